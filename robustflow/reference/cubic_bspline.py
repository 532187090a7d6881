"""The monotone cubic B-spline of Hong and Chun (AAAI 2023, arXiv:2304.04555).

Hong, Park and Chun (ICCV 2023, arXiv:2212.04319) use it as a remedy for exploding inverses, besides
the modified rational-quadratic spline. Its derivative is a quadratic B-spline. In a bin of width h,
at the fraction t of the width from the left knot and with c = 1 - t::

    dy/dx = 3 (r0 c^2 + 2 q c t + r1 t^2)
    y = y0 + h (r0 t (3 - 3 t + t^2) + q t^2 (3 - 2 t) + r1 t^3)

Here q is the difference of two neighbouring control points, divided by the sum of the three knot
spacings that it spans. r0 and r1 belong to the left and the right knot: each is a weighted mean of
the two q beside its knot. Every term is positive, so nothing cancels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from robustflow.reference.numerics import compute_dtype, cumulative_sum, sum_from

NUM_KNOT_LOGITS, NUM_CONTROL_LOGITS = 4, 6
_NUM_BINS = 8

# Number of Halley steps in _root. On 400,000 adversarial bins the residual after one, two and three
# steps was 2e-2, 7e-7 and 7e-16 of the bin's height.
_HALLEY_STEPS = 3


def cubic_bspline(
    x: Tensor,
    params: Tensor,
    inverse: bool,
    left: float,
    right: float,
    min_bin: float,
    batch_dims: int,
) -> tuple[Tensor, Tensor]:
    """Cubic spline on the box (left, right)^2, the identity outside it, plus a shift everywhere.

    There are eight bins. The two outermost at each end have the smallest width, and the slope at
    the edges of the box is 1. Eleven increasing control points determine the curve.

    Args:
        x: shape S, any floating dtype.
        params: broadcasts to S + (11,): four knot logits (the widths of the inner bins), six
            control logits (the differences of the inner control points), and a shift.
        inverse: map y to x instead of x to y.
        left, right: the box, the same in x and y.
        min_bin: smallest bin, and smallest difference of control points, as a fraction of the box,
            in (0, 1/8).
        batch_dims: the log-determinant is summed over the dimensions of x from this one on.

    Returns:
        y of the shape and dtype of x, and the log-determinant of shape S[:batch_dims] in the
        compute dtype: float64 if x or params is, else float32.

    Example:
        >>> y, logabsdet = cubic_bspline(
        ...     torch.tensor([0.0, 3.0]), torch.zeros(11), False, -0.5, 0.5, 1e-2, 1
        ... )
        >>> y
        tensor([0., 3.])
    """
    dtype = compute_dtype(x, params)
    z, params = x.to(dtype), params.to(dtype)
    shift = params[..., -1]
    if inverse:
        z = z - shift

    outside = (z <= left) | (z >= right)  # written so that NaN counts as inside and stays NaN
    # The spline gets harmless inputs where its result is not used: see modified_rq.
    inner = torch.where(outside, left, z)
    params = torch.where(outside.unsqueeze(-1), 0.0, params)
    spacings = (right - left) * _sizes(params[..., :NUM_KNOT_LOGITS], min_bin, fixed=4)
    rises = (right - left) * _sizes(params[..., NUM_KNOT_LOGITS:-1], min_bin, fixed=2)
    mapped, logabsdet = spline_in_box(inner, spacings, rises, left, right, inverse)

    y = torch.where(outside, z, mapped)
    if not inverse:
        y = y + shift
    return y.to(x.dtype), sum_from(torch.where(outside, 0.0, logabsdet), batch_dims)


def spline_in_box(
    inner: Tensor, spacings: Tensor, rises: Tensor, left: float, right: float, inverse: bool
) -> tuple[Tensor, Tensor]:
    """The spline inside its box, without a shift.

    Args:
        inner: shape S, within the box.
        spacings: (*S, 12), of the knots inside the box and around it. The middle eight are the
            bins; they sum to the size of the box.
        rises: (*S, 10), the differences of the control points. The middle eight sum to the size of
            the box.
        left, right, inverse: as for :func:`cubic_bspline`.

    Returns:
        The value and the log-determinant, both of shape S.
    """
    q = rises / (spacings[..., :-2] + spacings[..., 1:-1] + spacings[..., 2:])
    before, after = spacings[..., 1:-2], spacings[..., 2:-1]  # beside the nine knots
    r = (q[..., :-1] * after + q[..., 1:] * before) / (before + after)
    widths, q = spacings[..., 2:-2], q[..., 1:-1]
    heights = widths * (r[..., :-1] + q + r[..., 1:])

    x_knots, y_knots = _knots(widths, left, right), _knots(heights, left, right)
    k = (inner.unsqueeze(-1) >= (y_knots if inverse else x_knots)[..., 1:-1]).sum(-1, keepdim=True)
    x0, x1 = _pick(x_knots, k), _pick(x_knots, k + 1)
    y0, y1 = _pick(y_knots, k), _pick(y_knots, k + 1)
    width = _pick(widths, k)
    curve = Curve(_pick(r, k), _pick(q, k), _pick(r, k + 1))

    if inverse:
        low, high = _distances(inner, y0, y1, _pick(heights, k))
        near_left = low < high
        # Solve from the nearer knot, so that the error is relative to the distance from it.
        r0, r1 = curve.r0, curve.r1
        curve = Curve(torch.where(near_left, r0, r1), curve.q, torch.where(near_left, r1, r0))
        t = _root(curve, torch.where(near_left, low, high) / width)
        mapped = torch.where(near_left, x0 + width * t, x1 - width * t)
        logabsdet = -torch.log(_slope(curve, t, 1 - t))
    else:
        low, high = _distances(inner, x0, x1, width)
        t, c = low / width, high / width
        rise, fall = width * _rise(curve, t), width * _rise(Curve(*curve[::-1]), c)
        mapped = torch.where(rise < fall, y0 + rise, y1 - fall)
        logabsdet = torch.log(_slope(curve, t, c))
    return mapped, logabsdet


class Curve(NamedTuple):
    """The curve of a bin, in units of the bin's width. All values are positive."""

    r0: Tensor
    q: Tensor
    r1: Tensor


def _sizes(logits: Tensor, min_bin: float, fixed: int) -> Tensor:
    """Sizes as fractions of the box: the free ones, and ``fixed`` smallest ones at each end."""
    free = min_bin + (1 - _NUM_BINS * min_bin) * torch.softmax(logits, -1)
    return torch.nn.functional.pad(free, (fixed, fixed), value=min_bin)


def _knots(sizes: Tensor, left: float, right: float) -> Tensor:
    """The nine knots, each computed from the nearer edge. The eight sizes sum to the box."""
    from_left = cumulative_sum(sizes)[..., :-1]
    from_right = cumulative_sum(sizes, from_end=True)[..., 1:]
    inner = torch.where(from_left < from_right, left + from_left, right - from_right)
    edge = torch.zeros_like(inner[..., :1])
    return torch.cat([edge + left, inner, edge + right], -1)


def _distances(v: Tensor, v0: Tensor, v1: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Distances of v from both ends of a bin, which sum to its size.

    The smaller one is computed from its end; the larger one is the size minus the smaller.
    """
    low, high = (v - v0).clamp(min=0.0), (v1 - v).clamp(min=0.0)
    near_low = low < high
    near = torch.minimum(torch.where(near_low, low, high), size)
    return torch.where(near_low, near, size - near), torch.where(near_low, size - near, near)


def _rise(curve: Curve, t: Tensor) -> Tensor:
    """The rise of the curve from the left knot to t, divided by the bin's width."""
    r0, q, r1 = curve
    return t * (r0 * (3 - t * (3 - t)) + t * (q * (3 - 2 * t) + r1 * t))


def _slope(curve: Curve, t: Tensor, c: Tensor) -> Tensor:
    """The derivative of :func:`_rise`, where c = 1 - t."""
    r0, q, r1 = curve
    return 3 * (r0 * c * c + 2 * q * c * t + r1 * t * t)


def _root(curve: Curve, rise: Tensor) -> Tensor:
    """The t in [0, 1] with ``_rise(curve, t) == rise``, for at most half of the rise at t = 1.

    A fixed number of Halley steps. They slope0 at the smaller of the solutions of
    3 r0 t + 3 q t^2 = rise and r1 t^3 = rise. The first approximates the curve near its left end,
    the second where r1 is much larger than r0 and q.
    """
    with torch.no_grad():
        height = (curve.r0 + curve.q + curve.r1).detach()  # no_grad leaves forward-mode AD on
        unit = Curve(*(each.detach() / height for each in curve))
        target = rise.detach() / height
        slope0 = 3 * unit.r0
        quadratic_root = 2 * target / (slope0 + torch.sqrt(slope0 * slope0 + 12 * unit.q * target))
        t = torch.minimum(quadratic_root, (target / unit.r1) ** (1 / 3))
        for _ in range(_HALLEY_STEPS):
            residual = _rise(unit, t) - target
            slope = _slope(unit, t, 1 - t)
            bend = 3 * ((unit.q - unit.r0) * (1 - t) + (unit.r1 - unit.q) * t)
            t = t - residual * slope / (slope * slope - residual * bend)
    # Newton steps at the root change its value by rounding errors only, and give it derivatives:
    # after one step the first is right, after two steps the first three.
    for _ in range(2):
        t = t - (_rise(curve, t) - rise) / _slope(curve, t, 1 - t)
    return t


def _pick(values: Tensor, k: Tensor) -> Tensor:
    return values.gather(-1, k).squeeze(-1)
