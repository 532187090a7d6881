"""The K-bin rational-quadratic spline (Durkan et al. 2019, arXiv:1906.04032).

Two parametrisations of trained models are kept exactly (nflows' and normflows' softmax, zuko's soft
clipping), and ready-made knots serve for any other.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robustflow.reference import rq_bin
from robustflow.reference.numerics import (
    compute_dtype,
    cumulative_sum,
    softclip,
    softplus,
    sum_from,
)


def rq(
    x: Tensor,
    widths: Tensor,
    heights: Tensor | None,
    derivatives: Tensor | None,
    box: Tensor | None,
    num_bins: int,
    inverse: bool,
    tails: str | None,
    parametrization: str,
    left: float,
    right: float,
    bottom: float,
    top: float,
    min_bin_width: float,
    min_bin_height: float,
    min_derivative: float,
    logit_scale: float,
    batch_dims: int,
) -> tuple[Tensor, Tensor]:
    """Monotone spline through K + 1 knots on the box [left, right] x [bottom, top].

    Args:
        x: shape S, any floating dtype.
        widths: broadcasts to S + (K,); or, with ``heights`` None, to S + (2K + D,): K widths, K
            heights, D derivatives.
        heights: broadcasts to S + (K,), or None.
        derivatives: broadcasts to S + (D,), D = K - 1 with linear tails, K with circular ones
            (derivative j belongs to knot j, and 0 to knot K too), K + 1 without; or None.
        box: constant, broadcasts to S + (4,): left, right, bottom, top of each element, in place of
            the four numbers. No gradient flows to it.
        num_bins: K.
        inverse: map y to x instead of x to y.
        tails: None (NaN outside the closed box), "linear" (identity outside the open box,
            derivative 1 at its edges) or "circular" (identity outside the closed box). A half type
            may round an edge outwards: its rounding is then the edge.
        parametrization: of bin sizes, as fractions of the box, and of derivatives:
            "softmax": m + (1 - K m) softmax(logit_scale w), m_d + softplus(d);
            "softclip": softmax(w' / (1 + |2 w' / log m_d|)) of w' = logit_scale w, and
            exp(d / (1 + |d / log m_d|));
            "knots": sizes (in units of the box; they sum to it) and derivatives as they are. The
            box's edges are constants: for 0 < j < K, knot j is left + the sum of the first j sizes.
        left, right, bottom, top: the box.
        min_bin_width, min_bin_height: m above; K m < 1.
        min_derivative: m_d above, positive.
        logit_scale: multiplies width and height logits only.
        batch_dims: the log-determinant is summed over the dimensions of x from this one on.

    Returns:
        y of the shape and dtype of x, and the log-determinant of shape S[:batch_dims] in the
        compute dtype: float64 if x or any parameter is, else float32.

    Example:
        >>> K = 4
        >>> y, logabsdet = rq(
        ...     torch.tensor([0.3, 7.0]), torch.zeros(3 * K - 1), None, None, None, K, False,
        ...     "linear", "softclip", -5.0, 5.0, -5.0, 5.0, 0.0, 0.0, 1e-3, 1.0, 1,
        ... )
        >>> y
        tensor([0.3000, 7.0000])
    """
    dtype = compute_dtype(x, widths, heights, derivatives)
    if heights is None or derivatives is None:
        widths, heights, derivatives = (
            widths[..., :num_bins],
            widths[..., num_bins : 2 * num_bins],
            widths[..., 2 * num_bins :],
        )
    x_low, x_high, y_low, y_high = _edges(box, (left, right, bottom, top), dtype, x.device)
    low, high = (y_low, y_high) if inverse else (x_low, x_high)

    z = x.to(dtype)
    # Written so that NaN counts as inside and stays NaN.
    if tails == "linear":
        outside = (z <= low) | (z >= high)
    else:
        outside = (z < torch.minimum(low, _as_stored(low, x.dtype))) | (
            z > torch.maximum(high, _as_stored(high, x.dtype))
        )
    # The spline gets harmless inputs where its result is not used. Selecting the result is not
    # enough: the gradient would be 0 times the formula's derivative, which may be infinite.
    inner = _within(torch.where(outside, low, z), low, high)
    widths, heights, derivatives = (
        torch.where(outside.unsqueeze(-1), 1.0, p.to(dtype)) for p in (widths, heights, derivatives)
    )

    x_knots = _knots(
        widths, x_low, x_high, parametrization, min_bin_width, min_derivative, logit_scale
    )
    y_knots = _knots(
        heights, y_low, y_high, parametrization, min_bin_height, min_derivative, logit_scale
    )
    slopes = _slopes(derivatives, tails, parametrization, min_derivative)

    inner_knots = (y_knots if inverse else x_knots)[..., 1:-1]
    k = (inner.unsqueeze(-1) >= inner_knots).sum(-1, keepdim=True)
    spline_bin = rq_bin.Bin(
        x0=_pick(x_knots, k),
        x1=_pick(x_knots, k + 1),
        y0=_pick(y_knots, k),
        y1=_pick(y_knots, k + 1),
        d0=_pick(slopes, k),
        d1=_pick(slopes, k + 1),
    )
    y, logabsdet = (rq_bin.inverse if inverse else rq_bin.forward)(inner, spline_bin)

    if tails != "linear":  # an inner knot may be rounded past the end of the box
        y = _within(y, *((x_low, x_high) if inverse else (y_low, y_high)))
    if tails is None:
        y = torch.where(outside, math.nan, y)
        logabsdet = torch.where(outside, math.nan, logabsdet)
    else:
        y = torch.where(outside, z, y)
        logabsdet = torch.where(outside, 0.0, logabsdet)
    return y.to(x.dtype), sum_from(logabsdet, batch_dims)


def _edges(
    box: Tensor | None,
    numbers: tuple[float, float, float, float],
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Left, right, bottom, top as tensors that broadcast to S."""
    if box is None:
        left, right, bottom, top = (torch.full((), n, dtype=dtype, device=device) for n in numbers)
    else:
        left, right, bottom, top = box.detach().to(dtype).unbind(-1)
    return left, right, bottom, top


def _as_stored(edge: Tensor, dtype: torch.dtype) -> Tensor:
    """An edge of the box as a tensor of this dtype holds it, unless that is infinite."""
    stored = edge.to(dtype).to(edge.dtype)
    return torch.where(stored.isinf(), edge, stored)


def _within(value: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Clamped, with the gradient of the unclamped value."""
    nothing = value - value.detach()
    return torch.where(value < low, low + nothing, torch.where(value > high, high + nothing, value))


def _knots(
    raw: Tensor,
    low: Tensor,
    high: Tensor,
    parametrization: str,
    min_bin: float,
    slope: float,
    logit_scale: float,
) -> Tensor:
    """The K + 1 knots (..., K + 1) of raw sizes (..., K), from ``low`` to ``high``."""
    num_bins = raw.shape[-1]
    low, high = low.unsqueeze(-1), high.unsqueeze(-1)
    if parametrization == "knots":
        sizes = raw
    elif parametrization == "softclip":
        sizes = (high - low) * torch.softmax(softclip(logit_scale * raw, -math.log(slope) / 2), -1)
    else:
        # Softmax does not change under a common shift. Subtract the largest logit first, so that
        # scaling cannot overflow; detached, because the result does not depend on it.
        logits = logit_scale * (raw - raw.amax(-1, keepdim=True).detach())
        free = 1 - num_bins * min_bin
        sizes = (high - low) * (min_bin + free * torch.softmax(logits, -1))

    before = cumulative_sum(sizes)[..., :-1]
    inner = low + before
    if parametrization != "knots":
        # Sizes that sum to the box by construction: measure a knot from the nearer end of it.
        after = cumulative_sum(sizes, from_end=True)[..., 1:]
        inner = torch.where(before < after, inner, high - after)
    ends = (*raw.shape[:-1], 1)
    return torch.cat([low.expand(ends), inner, high.expand(ends)], -1)


def _slopes(raw: Tensor, tails: str | None, parametrization: str, min_derivative: float) -> Tensor:
    """The derivatives (..., K + 1) at the knots, of the D raw ones."""
    if parametrization == "knots":
        slopes = raw
    elif parametrization == "softclip":
        slopes = torch.exp(softclip(raw, -math.log(min_derivative)))
    else:
        slopes = min_derivative + softplus(raw)

    if tails == "linear":  # exactly the tails' derivative, not a rounded softplus of a constant
        return torch.nn.functional.pad(slopes, (1, 1), value=1.0)
    if tails == "circular":
        return torch.cat([slopes, slopes[..., :1]], -1)
    return slopes


def _pick(values: Tensor, k: Tensor) -> Tensor:
    return values.gather(-1, k).squeeze(-1)
