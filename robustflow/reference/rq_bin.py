"""One rational-quadratic bin, forward and inverse, in homogeneous coordinates.

The textbook form (Durkan et al. 2019, arXiv:1906.04032, equations 4 to 8) subtracts numbers of one
size; its quadratic's discriminant can round to a negative number. In the coordinates below every
quantity is a sum of non-negative terms. Write ``s`` for the bin's slope H / W, ``e`` for the knot
derivatives over ``s``, ``t`` and ``c`` for the distances of x from the left and the right knot over
W, ``v`` and ``n`` for those of y over H. Then t + c = v + n = 1 and::

    v = t (t + e0 c) / Q      n = c (c + e1 t) / Q      Q = t^2 + c^2 + (e0 + e1) t c
    dy/dx = s (e1 t^2 + 2 t c + e0 c^2) / Q^2

and the inverse is a root of a quadratic whose discriminant is r^2 + 4 v n with r = e0 n - e1 v.

Everything is differentiable to any order by autograd, and first derivatives stay among float32's
normal numbers for knot derivatives up to 2**60. A quotient a / b by a large b needs care: autograd
forms (a / b) / b. Where that is too small, b is split into a detached number of its size, by which
autograd only divides, and a factor that is 1 in value and carries b's gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Bin(NamedTuple):
    """The bin that an element falls into: knots (x0, y0) and (x1, y1), derivatives d0 and d1.

    All tensors broadcast to the element's shape; x0 < x1, y0 < y1, d0 > 0, d1 > 0.
    """

    x0: Tensor
    x1: Tensor
    y0: Tensor
    y1: Tensor
    d0: Tensor
    d1: Tensor


def forward(x: Tensor, b: Bin) -> tuple[Tensor, Tensor]:
    """Map ``x`` (x0 <= x <= x1) through the bin.

    Returns:
        y and log |dy/dx|, both of the shape of ``x``. NaN in x gives NaN in both.

    Example:
        >>> one = torch.ones(())
        >>> forward(torch.tensor(0.25), Bin(0 * one, one, 0 * one, one, one, one))
        (tensor(0.2500), tensor(0.))
    """
    width, height = b.x1 - b.x0, b.y1 - b.y0
    slope = height / width
    e0, e1 = b.d0 / slope, b.d1 / slope
    t, c = (x - b.x0) / width, (b.x1 - x) / width  # c is not 1 - t: that would cancel near x1

    lower, upper, curvature = _shares(t, c, e0, e1)
    total = lower + upper
    # From the nearer knot, so that rounding is relative to the distance that was computed.
    y = torch.where(lower < upper, b.y0 + height * (lower / total), b.y1 - height * (upper / total))
    return y, _log_derivative(slope, curvature, total)


def inverse(y: Tensor, b: Bin) -> tuple[Tensor, Tensor]:
    """Map ``y`` (y0 <= y <= y1) back through the bin.

    Returns:
        x and log |dx/dy|, both of the shape of ``y``. NaN in y gives NaN in both.

    Example:
        >>> one = torch.ones(())
        >>> inverse(torch.tensor(0.25), Bin(0 * one, one, 0 * one, one, one, one))
        (tensor(0.2500), tensor(-0.))
    """
    width, height = b.x1 - b.x0, b.y1 - b.y0
    slope = height / width
    e0, e1 = b.d0 / slope, b.d1 / slope
    v, n = (y - b.y0) / height, (b.y1 - y) / height

    r = e0 * n - e1 * v
    positive = r >= 0
    magnitude = torch.where(positive, r, -r)  # abs would have derivative 0 at r = 0
    # `root` does not depend on `scale`, so no gradient is lost by detaching it. Dividing by a
    # number of root's own size keeps r^2 from overflowing and sqrt's argument away from zero.
    scale = (magnitude + torch.sqrt(v * n)).detach()
    root = scale * torch.sqrt((r / scale) ** 2 + 4 * (v / scale) * (n / scale))
    g = magnitude + root

    # Only the ratio t : c is determined; a detached common factor makes t + c = 1.
    t, c = torch.where(positive, 2 * v, g), torch.where(positive, g, 2 * n)
    factor = (t + c).detach()
    t, c = t / factor, c / factor
    one = t + c
    x = torch.where(t < c, b.x0 + width * (t / one), b.x1 - width * (c / one))

    lower, upper, curvature = _shares(t, c, e0, e1)
    total = lower + upper
    return x, -_log_derivative(slope, one * one * curvature, total)


def _shares(t: Tensor, c: Tensor, e0: Tensor, e1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """v Q, n Q and the derivative's numerator: quadratics in (t, c), all terms non-negative."""
    return t * (t + e0 * c), c * (c + e1 * t), e1 * t * t + 2 * t * c + e0 * c * c


def _log_derivative(slope: Tensor, curvature: Tensor, total: Tensor) -> Tensor:
    """log(slope * curvature / total^2), in one logarithm."""
    size = total.detach()
    one = total / size
    return torch.log(slope * (curvature / size) / size / (one * one))
