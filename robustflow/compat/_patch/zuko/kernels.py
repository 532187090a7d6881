"""The kernels, on the parameters that zuko's ``MonotonicRQSTransform`` is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from robustflow import functional as F
from robustflow import ops
from robustflow._rq_arguments import box_of
from robustflow._transforms import RQ
from robustflow.compat._patch.obstacles import in_dtype, promoted_dtype

SMALLEST_BIN = (1e-3, 1e-3)  # width and height, which zuko fixes


def spline(
    parameters: Sequence[Tensor],
    num_bins: int,
    bound: Any,
    slope: float,
    x: Tensor,
    inverse: bool,
    by: Any = None,
) -> tuple[Tensor, Tensor]:
    """The kernels, on widths, heights and derivatives or on the tensor that holds them."""
    if len(parameters) == 1 and x.shape == parameters[0].shape[:-1]:
        packed = parameters[0]
        dtype = promoted_dtype(x, packed)
        box, edges = box_of(x, bound)
        config = RQ.config(
            num_bins,
            inverse,
            "linear",
            "softclip",
            edges,
            *SMALLEST_BIN,
            slope,
            1.0,
            "none",
            x.dim(),
        )
        y, ladj = ops.of(RQ).apply(in_dtype(x, dtype), packed, None, None, box, *config, by=by)
        return y, in_dtype(ladj, dtype)
    widths, heights, derivatives = split(parameters, num_bins)
    dtype = promoted_dtype(x, widths, heights, derivatives)
    y, ladj = F.rq_spline(
        in_dtype(x, dtype),
        widths,
        heights,
        derivatives,
        inverse,
        tail_bound=bound,
        min_bin_width=SMALLEST_BIN[0],
        min_bin_height=SMALLEST_BIN[1],
        min_derivative=slope,
        parametrization="softclip",
    )
    return y, in_dtype(ladj, dtype)


def split(parameters: Sequence[Tensor], num_bins: int) -> Sequence[Tensor]:
    """Widths, heights and derivatives."""
    if len(parameters) == 3:
        return parameters
    return parameters[0].split((num_bins, num_bins, num_bins - 1), -1)
