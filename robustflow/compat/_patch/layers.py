"""The spline layers of nflows, its copies, and normflows, on packed parameters.

The libraries' methods split the conditioner's output (N, D, P) into widths, heights and derivatives
and scale two of them in place. The kernels read the packed tensor and write one packed gradient.
Calls that they do not support run the library's own method, which calls the functions of
:mod:`robustflow.compat._patch.splines`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from types import FunctionType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from robustflow import ops
from robustflow._checks import once, static
from robustflow._rq_arguments import box_of
from robustflow._transforms import EXTRA_DERIVATIVES, RQ
from robustflow.compat._patch.code import Change, CodeChange, Function, original_of
from robustflow.compat._patch.counts import fell_back, served_rq
from robustflow.compat._patch.made import Made
from robustflow.compat._patch.obstacles import (
    bound_obstacle,
    in_dtype,
    minimum_obstacle,
    number_obstacle,
    tensor_obstacle,
)
from robustflow.compat._patch.own_code import runs_own_code
from robustflow.compat._patch.recognise import (
    COUNT,
    compare,
    normal,
    require_function,
    require_parameters,
    uniform,
)
from robustflow.compat._patch.splines import is_outside
from robustflow.nn._in_order import NotInOrder, check_can_run, invert_in_order
from robustflow.nn._precision import no_change

_UNIT_BOX = (0.0, 1.0, 0.0, 1.0)  # of a layer without tails


def layer_changes(
    library: str, coupling: type, autoregressive: type, elementwise: type, made: type
) -> list[Change]:
    """The changes of a library's three spline layers, each compared with its own method first.

    Args:
        library: its name, for messages and counts.
        coupling: the class with ``_piecewise_cdf``.
        autoregressive: the one with ``_elementwise``.
        elementwise: the unconditional one, with ``_spline``.
        made: the masked network of autoregressive layers.
    """
    return [
        _change(library, coupling, "_piecewise_cdf", ("inputs", "transform_params"), _coupling),
        _change(
            library,
            autoregressive,
            "_elementwise",
            ("inputs", "autoregressive_params"),
            _autoregressive,
        ),
        _change(library, elementwise, "_spline", ("inputs",), _elementwise),
        _inverse_change(library, autoregressive, made),
    ]


def _change(library: str, owner: type, name: str, tensors: Sequence[str], make: Any) -> Change:
    method = require_function(library, owner, name)
    require_parameters(library, method, ("self", *tensors, "inverse"))
    original = original_of(method)
    replacement = make(library, original)
    _probe(library, owner, method, original, replacement)
    return CodeChange(method, replacement)


def _probe(
    library: str, owner: type, method: FunctionType, original: Function, replacement: Function
) -> None:
    num_bins, features = 5, 3
    size = 3 * num_bins - 1
    layer = SimpleNamespace(
        num_bins=num_bins,
        tails="linear",
        tail_bound=2.5,
        min_bin_width=1e-3,
        min_bin_height=2e-3,
        min_derivative=3e-3,
        transform_net=SimpleNamespace(hidden_features=7),
        autoregressive_net=SimpleNamespace(hidden_features=7),
        _output_dim_multiplier=lambda: size,
        unnormalized_widths=normal(features, num_bins, seed=2),
        unnormalized_heights=normal(features, num_bins, seed=3),
        unnormalized_derivatives=normal(features, num_bins - 1, seed=4),
        _share_across_batch=getattr(owner, "_share_across_batch", None),
    )
    x = uniform(COUNT, features, low=-4.0, high=4.0)
    packed = {
        "_piecewise_cdf": (normal(COUNT, features, size),),
        "_elementwise": (normal(COUNT, features * size),),
        "_spline": (),
    }[method.__name__]
    for inverse in (False, True):
        what = f"{owner.__name__}.{method.__name__}"
        compare(library, what, original, replacement, layer, x, *packed, inverse)


def _coupling(library: str, original: Function) -> Function:
    def call(
        self: Any, inputs: Tensor, transform_params: Tensor, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        scale = _logit_scale(self.transform_net, ("hidden_features", "hidden_channels"))
        if scale is not None and inputs.shape == transform_params.shape[:-1]:
            found = _serve(library, self, self.num_bins, inputs, transform_params, inverse, scale)
            if found is not None:
                if not scale:
                    warnings.warn(
                        "Inputs to the softmax are not scaled down: initialization might be bad.",
                        stacklevel=2,
                    )
                return found
        return original(self, inputs, transform_params, inverse)

    return call


def _autoregressive(library: str, original: Function) -> Function:
    def call(
        self: Any, inputs: Tensor, autoregressive_params: Tensor, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        scale = _logit_scale(self.autoregressive_net, ("hidden_features",))
        if scale is not None and inputs.dim() == autoregressive_params.dim() == 2:
            batch, features = inputs.shape
            num_params = self._output_dim_multiplier()
            if autoregressive_params.shape == (batch, features * num_params):
                params = autoregressive_params.view(batch, features, num_params)
                found = _serve(library, self, self.num_bins, inputs, params, inverse, scale, "sum")
                if found is not None:
                    return found
        return original(self, inputs, autoregressive_params, inverse)

    return call


def _elementwise(library: str, original: Function) -> Function:
    """One set of parameters for the whole batch: its gradient is summed in the kernel."""

    def call(self: Any, inputs: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        groups = (
            self.unnormalized_widths,
            self.unnormalized_heights,
            self.unnormalized_derivatives,
        )
        widths, heights, derivatives = (group.shape for group in groups)
        own = inputs.shape[1:]
        if (
            len(own) > 0
            and own == widths[:-1] == derivatives[:-1]
            and widths == heights
            and not tensor_obstacle(*groups)
        ):
            packed = torch.cat(groups, -1).unsqueeze(0)
            found = _serve(library, self, static(widths[-1]), inputs, packed, inverse, 1.0, "sum")
            if found is not None:
                return found
        return original(self, inputs, inverse)

    return call


def _inverse_change(library: str, autoregressive: type, made: type) -> Change:
    """The change of the inverse, which runs the network once for each feature.

    It loops over ``range(np.prod(shape))``, which torch.compile cannot trace. Eager calls without
    gradients compute each unit of the library's own network once. Other calls run the network for
    each feature; they are counted, and logged with the reason. Layers without a spline inherit the
    same method and keep the library's.
    """
    owner = next(each for each in autoregressive.__mro__ if "inverse" in vars(each))
    method = require_function(library, owner, "inverse")
    require_parameters(library, method, ("self", "inputs", "context"))
    original = original_of(method)

    def passes(self: Any, inputs: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        outputs, logabsdet = torch.zeros_like(inputs), None
        for _ in range(math.prod(inputs.shape[1:])):
            params = self.autoregressive_net(outputs, context)
            outputs, logabsdet = self._elementwise_inverse(inputs, params)
        return outputs, logabsdet

    networks = Made(library, made)

    def in_order(self: Any, inputs: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        network = self.autoregressive_net
        kind, its_network = type(self), type(network)
        if kind is not autoregressive:
            raise NotInOrder("a subclass may compute otherwise")
        if its_network is not made:
            raise NotInOrder("its network is not the library's own")
        if inputs.dim() != 2:
            raise NotInOrder("its input is not one row for each sample")
        if context is not None and (context.dim() != 2 or len(context) not in (1, len(inputs))):
            raise NotInOrder("its context is not one row for each sample, or one for all")
        if self.tails not in ("linear", "circular") or isinstance(self.tail_bound, Tensor):
            raise NotInOrder("its tails or bounds belong to single features, or there are none")
        check_can_run(inputs, *network.parameters(), *([] if context is None else [context]))
        ready = networks.find(network, inputs.shape[1], context)
        scale = _logit_scale(network, ("hidden_features",))
        if scale is None:
            raise NotInOrder("its network's hidden_features is no number")
        logabsdet = no_change(inputs)

        def invert(y: Tensor, params: Tensor) -> Tensor:
            found = _serve_wide(library, self, self.num_bins, y, params, True, scale, "sum")
            if found is None:
                raise NotInOrder("the kernels do not support its settings")
            logabsdet.add_(found[1])
            return found[0]

        outputs = invert_in_order(*ready, inputs, invert)
        return outputs, in_dtype(logabsdet, inputs.dtype)

    def call(self: Any, inputs: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if torch.compiler.is_compiling():
            return passes(self, inputs, context)
        if isinstance(self, autoregressive) and not runs_own_code():
            try:
                return in_order(self, inputs, context)
            except NotInOrder as reason:
                fell_back(library, f"{autoregressive.__name__}.inverse", str(reason))
        return original(self, inputs, context)

    layer = SimpleNamespace(
        autoregressive_net=lambda outputs, _: outputs.cumsum(-1),
        _elementwise_inverse=lambda inputs, params: (inputs - params.sin(), params.sum(-1)),
    )
    compare(library, f"{owner.__name__}.inverse", original, passes, layer, normal(COUNT, 3), None)
    return CodeChange(method, call)


def _serve(library: str, layer: Any, num_bins: int, inputs: Tensor, *rest: Any) -> Any:
    """:func:`_serve_wide`, with the log-determinant in the inputs' dtype as in the library."""
    found = _serve_wide(library, layer, num_bins, inputs, *rest)
    return None if found is None else (found[0], in_dtype(found[1], inputs.dtype))


def _serve_wide(
    library: str,
    layer: Any,
    num_bins: int,
    inputs: Tensor,
    params: Tensor,
    inverse: bool,
    logit_scale: float,
    reduce: str = "none",
) -> tuple[Tensor, Tensor] | None:
    """The kernels with a layer's settings, on parameters (..., P); None if they do not apply."""
    if tensor_obstacle(inputs, params):
        return None
    tails, bound = layer.tails, _UNIT_BOX
    if tails is None:
        if inputs.numel() == 0 or is_outside(inputs, *_UNIT_BOX[:2]):
            return None
    else:
        bound = layer.tail_bound
    if isinstance(bound, Tensor):
        if bound_obstacle(inputs, bound):
            return None
        box, edges = box_of(inputs, bound)
    else:
        box, edges = None, bound
    config = _config(
        num_bins,
        bool(inverse),
        tails,
        edges,
        layer.min_bin_width,
        layer.min_bin_height,
        layer.min_derivative,
        static(params.shape[-1]),
        logit_scale,
        reduce,
        inputs.dim(),
    )
    if config is None:
        return None
    by = served_rq(library, inputs, params, num_bins, inverse)
    return ops.of(RQ).apply(inputs, params, None, None, box, *config, by=by)


@once
def _config(
    num_bins: int,
    inverse: bool,
    tails: Any,
    edges: Any,
    min_bin_width: Any,
    min_bin_height: Any,
    min_derivative: Any,
    num_params: int,
    logit_scale: float,
    reduce: str,
    dims: int,
) -> tuple[Any, ...] | None:
    """The operator's configuration, or None where the kernels do not support a setting."""
    minima = (min_bin_width, min_bin_height, min_derivative)
    if not any(tails == kind for kind in EXTRA_DERIVATIVES):
        return None
    if num_params != 3 * num_bins + EXTRA_DERIVATIVES[tails]:
        return None
    if minimum_obstacle(num_bins, *minima):
        return None
    if not isinstance(edges, tuple) and number_obstacle(edges):
        return None
    scale = logit_scale or 1.0
    return RQ.config(num_bins, inverse, tails, "softmax", edges, *minima, scale, reduce, dims)


def _logit_scale(net: Any, names: Sequence[str]) -> float | None:
    """1 / sqrt(hidden units); 0 if the network does not say how many, None if unusable.

    Read at each call, as the libraries do: a wrapper that hides the attribute changes the outputs.
    """
    for name in names:
        if hasattr(net, name):
            units = getattr(net, name)
            usable = isinstance(units, (int, float)) and units > 0
            return 1 / math.sqrt(units) if usable else None
    return 0.0
