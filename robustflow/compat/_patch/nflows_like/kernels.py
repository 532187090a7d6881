"""The kernels, called with the settings of a layer of nflows' kind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from robustflow import ops
from robustflow._checks import once, static
from robustflow._rq_arguments import box_of
from robustflow._transforms import EXTRA_DERIVATIVES, RQ
from robustflow.compat._patch.counts import served_rq
from robustflow.compat._patch.obstacles import (
    bound_obstacle,
    in_dtype,
    is_outside,
    minimum_obstacle,
    number_obstacle,
    tensor_obstacle,
)

_UNIT_BOX = (0.0, 1.0, 0.0, 1.0)  # of a layer without tails


def serve(
    library: str,
    layer: Any,
    num_bins: int,
    inputs: Tensor,
    params: Tensor,
    inverse: bool,
    logit_scale: float,
    reduce: str = "none",
) -> tuple[Tensor, Tensor] | None:
    """The kernels with a layer's settings, or None if they do not apply.

    Args:
        library: for the counts.
        layer: has ``tails``, ``tail_bound`` and the three minima.
        num_bins: K.
        inputs: x.
        params: packed, (..., P).
        inverse: the direction.
        logit_scale: of widths and heights.
        reduce: of the log-determinant, "none" or "sum".

    Returns:
        y, and the log-determinant in the inputs' dtype as in the library.
    """
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
    config = config_of(
        layer,
        num_bins,
        bool(inverse),
        tails,
        edges,
        static(params.shape[-1]),
        logit_scale,
        reduce,
        inputs.dim(),
    )
    if config is None:
        return None
    by = served_rq(library, inputs, num_bins)
    y, logabsdet = ops.of(RQ).apply(inputs, params, None, None, box, *config, by=by)
    return y, in_dtype(logabsdet, inputs.dtype)


def config_of(
    layer: Any,
    num_bins: int,
    inverse: bool,
    tails: Any,
    edges: Any,
    num_params: int,
    logit_scale: float,
    reduce: str,
    dims: int,
) -> tuple[Any, ...] | None:
    """The operator's configuration, or None if the kernels do not support a layer's setting."""
    minima = (layer.min_bin_width, layer.min_bin_height, layer.min_derivative)
    return _config(num_bins, inverse, tails, edges, *minima, num_params, logit_scale, reduce, dims)


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


def logit_scale(net: Any, names: Sequence[str]) -> float | None:
    """1 / sqrt(hidden units); 0 if the network does not say how many, None if unusable.

    Read at each call, as the libraries do: a wrapper that hides the attribute changes the outputs.
    """
    for name in names:
        if hasattr(net, name):
            units = getattr(net, name)
            usable = isinstance(units, (int, float)) and units > 0
            return 1 / math.sqrt(units) if usable else None
    return 0.0
