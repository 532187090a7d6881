"""The arguments of nflows' two spline functions."""

from __future__ import annotations

from torch import Tensor

from robustflow._checks import static
from robustflow.compat._patch.obstacles import minimum_obstacle, tensor_obstacle

TENSORS = (
    "inputs",
    "unnormalized_widths",
    "unnormalized_heights",
    "unnormalized_derivatives",
)
MINIMA = ("min_bin_width", "min_bin_height", "min_derivative")

IDENTITY_INIT = "enable_identity_init"  # the last one, on nflows' main branch
CHANGES_SOFTPLUS = f"{IDENTITY_INIT} changes the softplus"


def spline_obstacle(
    inputs: Tensor,
    widths: Tensor,
    heights: Tensor,
    derivatives: Tensor,
    extra: int,
    min_bin_width: float,
    min_bin_height: float,
    min_derivative: float,
) -> str | None:
    """Why the kernels cannot serve these arguments, or None; ``extra``: derivatives beyond K."""
    reason = tensor_obstacle(inputs, widths, heights, derivatives)
    if reason is not None:
        return reason
    num_bins = static(widths.shape[-1]) if widths.dim() else 0
    for group, size in ((widths, num_bins), (heights, num_bins), (derivatives, num_bins + extra)):
        if group.shape != (*inputs.shape, size):
            return "the parameters' shapes are not those of the inputs and the number of bins"
    return minimum_obstacle(num_bins, min_bin_width, min_bin_height, min_derivative)
