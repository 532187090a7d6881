"""The spline layers of nflows, its copies, and normflows, on packed parameters.

The libraries' methods split the conditioner's output (N, D, P) into widths, heights and derivatives
and scale two of them in place. The kernels read the packed tensor and write one packed gradient.
Calls that they do not support run the library's own method, which calls the functions of
:mod:`robustflow.compat._patch.nflows_like.functions`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from types import FunctionType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from robustflow._checks import static
from robustflow.compat._patch.code import Change, CodeChange, Function, original_of
from robustflow.compat._patch.nflows_like.inverse import autoregressive_changes
from robustflow.compat._patch.nflows_like.kernels import logit_scale, serve
from robustflow.compat._patch.obstacles import tensor_obstacle
from robustflow.compat._patch.recognise import (
    COUNT,
    compare,
    normal,
    require_function,
    require_parameters,
    uniform,
)


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
        *autoregressive_changes(library, autoregressive, made),
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
        scale = logit_scale(self.transform_net, ("hidden_features", "hidden_channels"))
        if scale is not None and inputs.shape == transform_params.shape[:-1]:
            found = serve(library, self, self.num_bins, inputs, transform_params, inverse, scale)
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
        scale = logit_scale(self.autoregressive_net, ("hidden_features",))
        if scale is not None and inputs.dim() == autoregressive_params.dim() == 2:
            batch, features = inputs.shape
            num_params = self._output_dim_multiplier()
            if autoregressive_params.shape == (batch, features * num_params):
                params = autoregressive_params.view(batch, features, num_params)
                found = serve(library, self, self.num_bins, inputs, params, inverse, scale, "sum")
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
            found = serve(library, self, static(widths[-1]), inputs, packed, inverse, 1.0, "sum")
            if found is not None:
                return found
        return original(self, inputs, inverse)

    return call
