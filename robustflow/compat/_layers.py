"""The spline layers of nflows and normflows (and of nflows' copies), with packed parameters.

Their methods cut the conditioner's output (N, D, P) into widths, heights and derivatives and scale
two of the three in place. The kernels read it whole, and write its gradient whole. A call that they
cannot serve so goes on to the library's own method, which calls the functions of
:mod:`robustflow.compat._splines`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from types import FunctionType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from robustflow import functional as F
from robustflow.compat._calls import (
    bound_obstacle,
    in_dtype,
    minimum_obstacle,
    tensor_obstacle,
)
from robustflow.compat._code import Change, CodeChange, Function, original_of
from robustflow.compat._probe import (
    COUNT,
    compare,
    normal,
    require_function,
    require_parameters,
    uniform,
)
from robustflow.compat._registry import KERNEL, served
from robustflow.compat._splines import EXTRA_DERIVATIVES, is_outside

_UNIT = (0.0, 1.0)  # the box of a layer without tails


def layer_changes(
    library: str, coupling: type, autoregressive: type, elementwise: type
) -> list[Change]:
    """The changes of a library's three spline layers, each compared with its own method first.

    Args:
        library: its name, for messages and counts.
        coupling: the class with ``_piecewise_cdf``.
        autoregressive: the one with ``_elementwise``.
        elementwise: the unconditional one, with ``_spline``.
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
        _inverse_change(library, autoregressive),
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
        settings = _settings(self, inputs, transform_params)
        if settings is not None:
            scale = _logit_scale(self.transform_net, ("hidden_features", "hidden_channels"))
            shape = (*inputs.shape, _num_parameters(self))
            if scale is not None and transform_params.shape == shape:
                if not scale:
                    warnings.warn(
                        "Inputs to the softmax are not scaled down: initialization might be bad.",
                        stacklevel=2,
                    )
                served(library, KERNEL)
                y, logabsdet = F.rq_spline_packed(
                    inputs,
                    transform_params,
                    self.num_bins,
                    inverse=bool(inverse),
                    logit_scale=scale or 1.0,
                    **settings,
                )
                return y, in_dtype(logabsdet, inputs.dtype)
        return original(self, inputs, transform_params, inverse)

    return call


def _autoregressive(library: str, original: Function) -> Function:
    def call(
        self: Any, inputs: Tensor, autoregressive_params: Tensor, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        settings = _settings(self, inputs, autoregressive_params)
        if settings is not None and inputs.dim() == 2:
            scale = _logit_scale(self.autoregressive_net, ("hidden_features",))
            batch, features = inputs.shape
            shape = (batch, features * _num_parameters(self))
            if scale is not None and autoregressive_params.shape == shape:
                served(library, KERNEL)
                y, logabsdet = F.rq_spline_packed(
                    inputs,
                    autoregressive_params,
                    self.num_bins,
                    inverse=bool(inverse),
                    logit_scale=scale or 1.0,
                    reduce="sum",
                    **settings,
                )
                return y, in_dtype(logabsdet, inputs.dtype)
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
        settings = _settings(self, inputs, *groups)
        if settings is not None:
            num_bins = groups[0].shape[-1]
            sizes = (num_bins, num_bins, num_bins + EXTRA_DERIVATIVES[self.tails])
            if inputs.dim() >= 2 and all(
                group.shape == (*inputs.shape[1:], size)
                for group, size in zip(groups, sizes, strict=True)
            ):
                served(library, KERNEL)
                packed = torch.cat(groups, -1).unsqueeze(0)
                y, logabsdet = F.rq_spline_packed(
                    inputs,
                    packed,
                    num_bins,
                    inverse=bool(inverse),
                    reduce="sum",
                    **settings,
                )
                return y, in_dtype(logabsdet, inputs.dtype)
        return original(self, inputs, inverse)

    return call


def _inverse_change(library: str, autoregressive: type) -> Change:
    """The inverse loops over ``range(np.prod(shape))``, which torch.compile cannot trace."""
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

    def call(self: Any, inputs: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        traced = torch.compiler.is_compiling()
        return (passes if traced else original)(self, inputs, context)

    layer = SimpleNamespace(
        autoregressive_net=lambda outputs, _: outputs.cumsum(-1),
        _elementwise_inverse=lambda inputs, params: (inputs - params.sin(), params.sum(-1)),
    )
    compare(library, f"{owner.__name__}.inverse", original, passes, layer, normal(COUNT, 3), None)
    return CodeChange(method, call)


def _settings(layer: Any, inputs: Tensor, *parameters: Tensor) -> dict[str, Any] | None:
    """A layer's tails and minima as keywords of the functional, or None where it must pass."""
    tails = layer.tails
    minima = (layer.min_bin_width, layer.min_bin_height, layer.min_derivative)
    num_bins = getattr(layer, "num_bins", None) or parameters[0].shape[-1]
    if not (tails is None or tails == "linear" or tails == "circular"):
        return None
    if tensor_obstacle(inputs, *parameters) or minimum_obstacle(num_bins, *minima):
        return None
    box: dict[str, Any]
    if tails is None:
        if inputs.numel() == 0 or is_outside(inputs, *_UNIT):
            return None
        low, high = _UNIT
        box = {"left": low, "right": high, "bottom": low, "top": high}
    else:
        if bound_obstacle(inputs, layer.tail_bound):
            return None
        box = {"tail_bound": layer.tail_bound}
    return {
        "tails": tails,
        "min_bin_width": minima[0],
        "min_bin_height": minima[1],
        "min_derivative": minima[2],
        **box,
    }


def _num_parameters(layer: Any) -> int:
    return 3 * int(layer.num_bins) + EXTRA_DERIVATIVES[layer.tails]


def _logit_scale(net: Any, names: Sequence[str]) -> float | None:
    """1 / sqrt(hidden units) where the network tells them, 0 where it does not, None if unusable.

    Asked at call time, as the libraries do: a wrapper that hides the attribute changes the outputs.
    """
    for name in names:
        if hasattr(net, name):
            units = getattr(net, name)
            usable = isinstance(units, (int, float)) and units > 0
            return 1 / math.sqrt(units) if usable else None
    return 0.0
