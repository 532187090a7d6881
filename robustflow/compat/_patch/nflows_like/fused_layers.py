"""The coupling layers of nflows, its copies, and normflows, each in one call.

A layer is described once, from its modules and settings; a call asks whether they are still what
they were, and reads the parameters afresh. Layers and calls that cannot be served so run the
library's own method, whose spline the kernels serve as before.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustflow._by_identity import ByIdentity
from robustflow._versions import are_counted, versions
from robustflow.compat._patch.code import Change, CodeChange, original_of
from robustflow.compat._patch.counts import served_fused, served_unfused
from robustflow.compat._patch.nflows_like.kernels import config_of, logit_scale
from robustflow.compat._patch.nflows_like.residual import ResidualNets
from robustflow.compat._patch.own_code import runs_own_code
from robustflow.compat._patch.recognise import require_function, require_parameters
from robustflow.fused import (
    FusedCall,
    FusedLayer,
    Parameters,
    Watch,
    call_obstacle,
    fused_layer,
    is_available,
)

Transformed = tuple[Tensor, Tensor]

_SETTINGS = ("num_bins", "tails", "tail_bound", "min_bin_width", "min_bin_height", "min_derivative")


def fused_changes(
    library: str, coupling: type, elementwise: type, networks: ModuleType
) -> list[Change]:
    """The changes of the two methods of a library's coupling layers.

    Args:
        library: for counts and messages.
        coupling: the class of its rational-quadratic coupling layers.
        elementwise: the class of the splines that its kept features may have.
        networks: the module with its ``ResidualNet``.
    """
    network = getattr(networks, "ResidualNet", None)
    if not is_available() or not isinstance(network, type):
        return []
    couplings = _Couplings(library, coupling, elementwise, ResidualNets(network))
    return [couplings.change("forward", False), couplings.change("inverse", True)]


class _Plan(NamedTuple):
    """What is known of a layer, for as long as it holds.

    Attributes:
        call: of the layer.
        unconditional: the parameters of the spline of its kept features, where it has one.
        settings, tensors, versions: what the layer had, ``tensors`` being those that tell which
            features change.
        with_context: whether calls have a context.
    """

    call: FusedCall
    unconditional: tuple[dict[str, Any], ...]
    settings: tuple[Any, ...]
    tensors: tuple[Tensor, ...]
    versions: list[int]
    with_context: bool


class _Couplings:
    def __init__(
        self, library: str, coupling: type, elementwise: type, networks: ResidualNets
    ) -> None:
        self._library = library
        self._coupling = coupling
        self._elementwise = elementwise
        self._networks = networks
        self._plans = ByIdentity[_Plan]()

    def change(self, name: str, inverse: bool) -> Change:
        """The change of ``forward`` or ``inverse``, which other couplings inherit too."""
        owner = next(each for each in self._coupling.__mro__ if name in vars(each))
        method = require_function(self._library, owner, name)
        require_parameters(self._library, method, ("self", "inputs", "context"))
        original = original_of(method)
        what = f"{self._coupling.__name__}.{name}"

        def call(self: Any, inputs: Tensor, context: Tensor | None) -> Transformed:
            if type(self) is coupling and not torch.compiler.is_compiling() and not runs_own_code():
                result = serve(self, inputs, context, inverse)
                if not isinstance(result, str):
                    return result
                served_unfused(library, what, result)
            transformed: Transformed = original(self, inputs, context)
            return transformed

        coupling, library, serve = self._coupling, self._library, self.serve
        return CodeChange(method, call)

    def serve(
        self, layer: Any, inputs: Tensor, context: Tensor | None, inverse: bool
    ) -> Transformed | str:
        """The layer in one call, or why it is not."""
        if obstacle := call_obstacle():
            return obstacle
        plan = self._plans.get(layer)
        if plan is None or not _holds(plan, layer, context is not None):
            plan = self._plan(layer, context is not None)
            self._plans.set(layer, plan)
        unconditional = [state.get(name) for state in plan.unconditional for name in _UNCONDITIONAL]
        result = plan.call(inverse, inputs, context, unconditional)
        if not isinstance(result, str):
            served_fused(self._library, 1 + len(plan.unconditional))
        return result

    def _plan(self, layer: Any, with_context: bool) -> _Plan:
        watch, parameters = Watch(), Parameters()
        watch.module(layer)
        tensors = (layer.identity_features, layer.transform_features)
        described = self._describe(layer, watch, parameters, with_context)
        unconditional = layer.unconditional_transform
        return _Plan(
            FusedCall(described, layer.num_bins, watch, parameters),
            () if unconditional is None else (unconditional._parameters,),
            settings_of(layer),
            tensors,
            versions(tensors),
            with_context,
        )

    def _describe(
        self, layer: Any, watch: Watch, parameters: Parameters, with_context: bool
    ) -> FusedLayer | str:
        program = self._networks.describe(layer.transform_net, watch, parameters, with_context)
        if isinstance(program, str):
            return program
        if program.obstacle:
            return program.obstacle
        tensors = (layer.identity_features, layer.transform_features)
        if not are_counted(tensors):
            return "its features were chosen in inference mode"
        kept, changed = (tuple(tensor.tolist()) for tensor in tensors)
        if sorted(kept + changed) != list(range(layer.features)) or program.features != len(kept):
            return "its features are not divided in two"
        scale = logit_scale(layer.transform_net, ("hidden_features", "hidden_channels"))
        num_params = program.outputs // max(len(changed), 1)
        if not scale or num_params * len(changed) != program.outputs:
            return "its network has an unknown number of units or parameters"
        watch.setting(layer.transform_net, "hidden_features")
        if layer.tails not in ("linear", "circular") or isinstance(layer.tail_bound, Tensor):
            return "its tails or bounds belong to single features, or there are none"
        configs = both_configs(layer, num_params, scale)
        if configs is None:
            return "the kernels do not support its settings"
        unconditional_configs = None
        unconditional = layer.unconditional_transform
        if unconditional is not None:
            kind = type(unconditional)
            if kind is not self._elementwise:
                return f"its kept features have a {kind.__name__}"
            groups = [unconditional._parameters.get(name) for name in _UNCONDITIONAL]
            watch.module(unconditional)
            sizes = [None if group is None else tuple(group.shape) for group in groups]
            for name in _SETTINGS[1:]:
                watch.setting(unconditional, name)
            bins = 0 if groups[0] is None else groups[0].shape[-1]
            extra = num_params - 3 * layer.num_bins
            if unconditional.tails != layer.tails or sizes != [
                (len(kept), bins),
                (len(kept), bins),
                (len(kept), bins + extra),
            ]:
                return "the spline of its kept features has other parameters or tails"
            if unconditional.tails not in ("linear", "circular") or isinstance(
                unconditional.tail_bound, Tensor
            ):
                return "the tails or bounds of its kept features belong to single ones"
            unconditional_configs = both_configs(unconditional, 3 * bins + extra, 1.0, bins)
            if unconditional_configs is None:
                return "the kernels do not support the settings of its kept features"
        return fused_layer(
            program, layer.features, kept, changed, num_params, configs, unconditional_configs
        )


_UNCONDITIONAL = ("unnormalized_widths", "unnormalized_heights", "unnormalized_derivatives")


def both_configs(
    layer: Any, num_params: int, scale: float, num_bins: int | None = None
) -> tuple[Any, Any] | None:
    """The spline's configurations in both directions; None if a setting is not supported."""
    num_bins = layer.num_bins if num_bins is None else num_bins
    forward, inverse = (
        config_of(
            layer, num_bins, direction, layer.tails, layer.tail_bound, num_params, scale, "sum", 2
        )
        for direction in (False, True)
    )
    return None if forward is None or inverse is None else (forward, inverse)


def settings_of(layer: Any) -> tuple[Any, ...]:
    """Those of a layer's spline."""
    return tuple([getattr(layer, name) for name in _SETTINGS])


def _holds(plan: _Plan, layer: Any, with_context: bool) -> bool:
    tensors = (layer.identity_features, layer.transform_features)
    return (
        plan.with_context is with_context
        and same_settings(plan.settings, settings_of(layer))
        and plan.tensors[0] is tensors[0]
        and plan.tensors[1] is tensors[1]
        and versions(tensors) == plan.versions
        and not plan.call.is_outdated()
    )


def same_settings(before: Sequence[Any], now: Sequence[Any]) -> bool:
    """Whether a layer's settings are what they were."""
    return all(map(_same, before, now))


def _same(before: Any, now: Any) -> bool:
    return before is now or (
        type(before) is type(now) and type(now) is not Tensor and before == now
    )
