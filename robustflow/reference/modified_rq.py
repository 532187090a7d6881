"""The modified rational-quadratic spline of Hong, Park and Chun (ICCV 2023, arXiv:2212.04319)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robustflow.reference import numerics, rq_bin
from robustflow.reference.numerics import compute_dtype, saturate, sum_from


def modified_rq(
    x: Tensor,
    params: Tensor,
    inverse: bool,
    left: float,
    right: float,
    min_bin: float,
    min_derivative: float,
    derivative: str,
    batch_dims: int,
) -> tuple[Tensor, Tensor]:
    """Two-bin spline on the box (left, right)^2, the identity outside it, plus a shift everywhere.

    Args:
        x: shape S, any floating dtype.
        params: broadcasts to S + (4,): width, height, derivative and shift logits.
        inverse: map y to x instead of x to y.
        left, right: the box, the same in x and y.
        min_bin: smallest bin size, as a fraction of the box, in (0, 1/2).
        min_derivative: smallest derivative at the middle knot, in (0, 1).
        derivative: "exp", m + (1 - m) exp(d), the paper's; "softclip", exp(d / (1 + |d| / c))
            with c = -log m, which lies in [m, 1 / m].
        batch_dims: the log-determinant is summed over the dimensions of x from this one on.

    Returns:
        y of the shape and dtype of x, and the log-determinant of shape S[:batch_dims] in the
        compute dtype: float64 if x or params is, else float32.

    Example:
        >>> y, logabsdet = modified_rq(
        ...     torch.tensor([0.25, 3.0]), torch.zeros(4), False, -0.5, 0.5, 1e-3, 1e-3, "exp", 1
        ... )
        >>> y
        tensor([0.2500, 3.0000])
    """
    dtype = compute_dtype(x, params)
    z = x.to(dtype)
    *logits, shift = params.to(dtype).unbind(-1)
    if inverse:
        z = z - shift

    outside = (z <= left) | (z >= right)  # written so that NaN counts as inside and stays NaN
    # The spline gets harmless inputs where its result is not used. Selecting the result is not
    # enough: the gradient would be 0 times the formula's derivative, which may be infinite.
    inner = torch.where(outside, left, z)
    w, h, d = (torch.where(outside, 0.0, logit) for logit in logits)

    x_mid = _middle_knot(w, left, right, min_bin)
    y_mid = _middle_knot(h, left, right, min_bin)
    if derivative == "softclip":
        d_mid = torch.exp(numerics.softclip(d, -math.log(min_derivative)))
    else:
        d_mid = min_derivative + (1 - min_derivative) * torch.exp(saturate(d))

    upper = inner >= (y_mid if inverse else x_mid)
    spline_bin = rq_bin.Bin(
        x0=torch.where(upper, x_mid, left),
        x1=torch.where(upper, right, x_mid),
        y0=torch.where(upper, y_mid, left),
        y1=torch.where(upper, right, y_mid),
        d0=torch.where(upper, d_mid, 1.0),
        d1=torch.where(upper, 1.0, d_mid),
    )
    mapped, logabsdet = (rq_bin.inverse if inverse else rq_bin.forward)(inner, spline_bin)

    y = torch.where(outside, z, mapped)
    if not inverse:
        y = y + shift
    return y.to(x.dtype), sum_from(torch.where(outside, 0.0, logabsdet), batch_dims)


def _middle_knot(logit: Tensor, left: float, right: float, min_bin: float) -> Tensor:
    """The knot between the two bins, measured from the nearer end of the box."""
    logit = saturate(logit)
    size, free = right - left, 1 - 2 * min_bin
    from_left = left + size * (min_bin + free * torch.sigmoid(logit))
    from_right = right - size * (min_bin + free * torch.sigmoid(-logit))
    return torch.where(logit < 0, from_left, from_right)
