"""zuko's autoregressive and coupling layers, each in one call, and their inverses.

A layer is described once, from its network and settings; a call asks whether they are still what
they were, and reads the parameters afresh. Layers and calls that cannot be served so run zuko's own
methods, whose splines the kernels serve as before.
"""

from __future__ import annotations

import inspect
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustflow._by_identity import ByIdentity
from robustflow._transforms import RQ
from robustflow._versions import are_counted, versions
from robustflow.compat._patch.code import Change, CodeChange, original_of
from robustflow.compat._patch.counts import served_fused, served_unfused
from robustflow.compat._patch.obstacles import broadcasts_to, number_obstacle
from robustflow.compat._patch.own_code import runs_own_code
from robustflow.compat._patch.recognise import require_function, require_parameters
from robustflow.compat._patch.zuko.direct import DirectLayers
from robustflow.compat._patch.zuko.kernels import SMALLEST_BIN
from robustflow.fused import (
    Builder,
    FusedCall,
    FusedLayer,
    Parameters,
    Program,
    Watch,
    call_obstacle,
    find_order,
    fused_layer,
    is_available,
)


class Modules(NamedTuple):
    """Those of zuko whose classes are recognised."""

    transforms: ModuleType
    autoregressive: ModuleType
    coupling: ModuleType
    networks: ModuleType


class _Method(NamedTuple):
    """A method of a transform, and what the one call gives of its results."""

    name: str
    argument: str
    inverse: bool
    with_ladj: bool


_FORWARD = (_Method("_call", "x", False, False), _Method("call_and_ladj", "x", False, True))
_BACK = _Method("_inverse", "y", True, False)


class _Plan(NamedTuple):
    """What is known of a layer, while it has the same ``univariate``, ``shapes`` and mask."""

    call: FusedCall
    univariate: Any
    shapes: Any
    masks: list[Tensor]
    versions: list[int]


class FusedLayers:
    """The layers of zuko's autoregressive and coupling transforms, each in one call.

    Args:
        library: for counts and messages.
        modules: of zuko.
        direct: layers whose univariate transform is the spline.
    """

    def __init__(self, library: str, modules: Modules, direct: DirectLayers) -> None:
        self._library = library
        self._modules = modules
        self._direct = direct
        self._layers: dict[type, type] = {
            modules.transforms.AutoregressiveTransform: (
                modules.autoregressive.MaskedAutoregressiveTransform
            ),
            modules.transforms.CouplingTransform: modules.coupling.GeneralCouplingTransform,
        }
        self._metas = {kind: vars(kind)["meta"] for kind in self._layers.values()}
        self._plans = ByIdentity[_Plan]()

    def changes(self) -> list[Change]:
        """Those of all methods but the inverse of autoregressive transforms."""
        if not is_available():
            return []
        autoregressive, coupling = self._layers
        return [
            *(self._change(autoregressive, method) for method in _FORWARD),
            *(self._change(coupling, method) for method in (*_FORWARD, _BACK)),
        ]

    def invert(self, transform: Any, y: Tensor) -> Tensor | None:
        """The inverse of an autoregressive transform; None where it is not one call.

        Its caller has seen that nothing is compiled and that the library's own code does not run.
        """
        owner, _ = self._layers
        result = self._result(transform, owner, _BACK, y) if is_available() else None
        return None if result is None else result[0]

    def _change(self, owner: type, method: _Method) -> Change:
        function = require_function(self._library, owner, method.name)
        require_parameters(self._library, function, ("self", method.argument))
        original = original_of(function)

        def call(self: Any, x: Tensor) -> Any:
            if not torch.compiler.is_compiling() and not runs_own_code():
                result = result_of(self, owner, method, x)
                if result is not None:
                    return result if method.with_ladj else result[0]
            return original(self, x)

        result_of = self._result
        return CodeChange(function, call)

    def _result(
        self, transform: Any, owner: type, method: _Method, x: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """A method's result and the log-determinant; None where its layer is not one call."""
        if type(transform) is not owner:
            return None
        layer = self._layer_of(transform, self._layers[owner])
        if layer is None or layer not in self._direct:
            return None
        result = self._serve(transform, layer, x, method.inverse)
        if not isinstance(result, str):
            return result
        served_unfused(self._library, f"{owner.__name__}.{method.name}", result)
        return None

    def _layer_of(self, transform: Any, layer_class: type) -> Any:
        """The layer that made a transform, if it is zuko's own and makes its parameters so."""
        meta = transform.meta
        if type(meta) is not partial or len(meta.args) != 1 or meta.keywords:
            return None
        layer, function = (getattr(meta.func, name, None) for name in ("__self__", "__func__"))
        if type(layer) is not layer_class or function is not self._metas[layer_class]:
            return None
        same_passes = getattr(transform, "passes", None) == getattr(layer, "passes", None)
        return layer if same_passes else None

    def _serve(
        self, transform: Any, layer: Any, x: Tensor, inverse: bool
    ) -> tuple[Tensor, Tensor] | str:
        """The layer in one call, or why it is not."""
        if obstacle := call_obstacle():
            return obstacle
        plan = self._plans.get(layer)
        if plan is None or not self._holds(plan, layer):
            plan = self._plan(layer)
            self._plans.set(layer, plan)
        (context,) = transform.meta.args
        leading = x.shape[:-1]
        rows = x
        if x.dim() != 2:
            if x.dim() == 0:
                return "its input has no features"
            rows = x.reshape(-1, x.shape[-1])
        if context is not None and context.shape[:-1] != leading:
            if context.dim() == 0 or not broadcasts_to(context[..., 0], x[..., 0]):
                return "its context does not broadcast to the input"
            context = context.expand(*leading, -1)
        if context is not None and context.dim() != 2:
            context = context.reshape(-1, context.shape[-1])
        result = plan.call(inverse, rows, context)
        if isinstance(result, str):
            return result
        served_fused(self._library, 1)
        y, ladj = result
        return (y, ladj) if rows is x else (y.view(x.shape), ladj.view(leading))

    def _holds(self, plan: _Plan, layer: Any) -> bool:
        return (
            plan.univariate is layer.univariate
            and plan.shapes is layer.shapes
            and all(map(lambda a, b: a is b, plan.masks, self._masks(layer)))
            and versions(plan.masks) == plan.versions
            and not plan.call.is_outdated()
        )

    @staticmethod
    def _masks(layer: Any) -> list[Tensor]:
        mask = layer._buffers.get("mask")
        return [] if mask is None else [mask]

    def _plan(self, layer: Any) -> _Plan:
        watch, parameters = Watch(), Parameters()
        watch.module(layer)
        described = self._describe(layer, watch, parameters)
        masks = self._masks(layer)
        return _Plan(
            FusedCall(described, layer.shapes[0][0], watch, parameters),
            layer.univariate,
            layer.shapes,
            masks,
            versions(masks),
        )

    def _describe(self, layer: Any, watch: Watch, parameters: Parameters) -> FusedLayer | str:
        num_bins, num_params = layer.shapes[0][0], layer.total
        masks = self._masks(layer)
        if not are_counted(masks):
            return "its mask was made in inference mode"
        settings = self._settings(layer.univariate)
        if settings is None or num_params != 3 * num_bins - 1:
            return "the kernels do not support its settings"
        network = layer.hyper
        if masks:
            (mask,) = masks
            read = tuple(mask.nonzero().flatten().tolist())
            changed = tuple((~mask).nonzero().flatten().tolist())
            features, kind, linear = len(mask), self._modules.networks.MLP, "Linear"
        else:
            features = network.out_features // num_params
            read = changed = tuple(range(features))
            kind, linear = self._modules.networks.MaskedMLP, "MaskedLinear"
        if type(network) is not kind:
            return "its network is not the library's own"
        program = self._program(
            network, getattr(self._modules.networks, linear), len(read), watch, parameters
        )
        if isinstance(program, str):
            return program
        if program.outputs != len(changed) * num_params:
            return "its network makes another number of parameters"
        bound, slope = settings
        configs = [
            RQ.config(
                num_bins, inverse, "linear", "softclip", bound, *SMALLEST_BIN, slope, 1.0, "sum", 2
            )
            for inverse in (False, True)
        ]
        order = None
        if not masks:
            order = find_order(program, parameters.masks())
            if order is not None and order.steps > watch.setting(layer, "passes"):
                order = None  # zuko's passes do not reach the inverse
        return program.obstacle or fused_layer(
            program, features, read, changed, num_params, tuple(configs), None, RQ.name, order
        )

    def _settings(self, univariate: Any) -> tuple[float, float] | None:
        """The bound and slope of a partial of the spline; None if they are not plain numbers."""
        keywords: dict[str, Any] = {}
        while type(univariate) is partial:
            keywords = {**univariate.keywords, **keywords}
            univariate = univariate.func
        defaults = inspect.signature(univariate).parameters
        bound, slope = (keywords.pop(name, defaults[name].default) for name in ("bound", "slope"))
        plain = isinstance(slope, (int, float)) and 0 < slope < 1 and not number_obstacle(bound)
        return (bound, slope) if plain and not keywords else None

    def _program(
        self,
        network: Any,
        linear: type,
        features: int,
        watch: Watch,
        parameters: Parameters,
    ) -> Program | str:
        first: Any = next(iter(network._modules.values()), None)
        kind = type(first)
        if kind is not linear:
            return "its network does not begin with a linear layer"
        extra = first.weight.shape[-1] - features
        if extra < 0:
            return "its network reads another number of features"
        builder = Builder(features, extra)
        last = self._append(builder, builder.both, network, linear, watch, parameters)
        return last if isinstance(last, str) else builder.program()

    def _append(
        self,
        builder: Builder,
        node: int,
        sequence: Any,
        linear: type,
        watch: Watch,
        parameters: Parameters,
    ) -> int | str:
        """The modules of a Sequential after a node; the last node that they make."""
        watch.module(sequence)
        start = node
        for module in sequence._modules.values():
            kind = type(module)
            if kind is self._modules.networks.Residual:
                last = self._append(builder, node, module, linear, watch, parameters)
                if isinstance(last, str):
                    return last
                node = last
            elif kind is linear:
                watch.module(module)
                if module.weight.dim() != 2:
                    return "its network has a stack of linear layers"
                node = parameters.linear(builder, node, module)
            else:
                activation = watch.activation(module)
                if activation is None:
                    return f"its network has a {kind.__name__}"
                node = builder.activation(node, activation)
        if type(sequence) is self._modules.networks.Residual:
            node = builder.sum(start, node)
        return node
