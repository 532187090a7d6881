# mypy: allow-untyped-defs, allow-incomplete-defs
"""One bin of a rational-quadratic spline: forward, inverse, and the gradients: csrc/math/rq_bin.h.

Durkan et al. 2019 (arXiv:1906.04032), rewritten in homogeneous coordinates so that every quantity
is a sum of non-negative terms. With a and b the distances to the left and right knot::

    v = a H + D0 b     u = b H + D1 a     P = a v     R = b u     D = derivative * W
    y = y0 + g P  (or y1 - g R, from the nearer knot),  g = H / (P + R)
    T = dy/dx = (g W)(g N),  N = a u + b v

A bin is the tuple (x0, x1, y0, y1, width, height, d0, d1).
"""

from __future__ import annotations

import triton
import triton.language as tl

from robustflow.kernels.elementary import maximum, minimum


@triton.jit
def distances(v, v0, v1, size):
    """Distances of v from the ends of [v0, v1], which sum to its size.

    The smaller one is computed, the other is size minus that. The ends are rounded, so in a tiny
    bin even the smaller one may exceed the size; it is clamped.
    """
    left, right = maximum(0.0, v - v0), maximum(0.0, v1 - v)
    near_left = left < right
    near = minimum(size, tl.where(near_left, left, right))
    far = size - near
    return tl.where(near_left, near, far), tl.where(near_left, far, near)


@triton.jit
def rq_slope(g, width, N):
    """T, in an order in which no factor overflows or underflows."""
    return (g * width) * (g * N)


@triton.jit
def rq_factors(spline_bin, a, b):
    """(v, u), the two factors that P, R and N share."""
    _, _, _, _, width, height, d0, d1 = spline_bin
    return tl.fma(a, height, d0 * width * b), tl.fma(b, height, d1 * width * a)


@triton.jit
def rq_forward(spline_bin, x):
    """(y, T) at x."""
    x0, x1, y0, y1, width, height, _, _ = spline_bin
    a, b = distances(x, x0, x1, width)
    v, u = rq_factors(spline_bin, a, b)
    P, R = a * v, b * u
    N = tl.fma(a, u, b * v)
    g = height / (P + R)
    return tl.where(P < R, tl.fma(g, P, y0), tl.fma(-g, R, y1)), rq_slope(g, width, N)


@triton.jit
def rq_solve(spline_bin, y):
    """(a, b, whether x is nearer to x0): the point of the curve at y."""
    _, _, y0, y1, width, height, d0, d1 = spline_bin
    p, q = distances(y, y0, y1, height)
    r = width * tl.fma(d0, q, -(d1 * p)) / height
    size = tl.abs(r)
    # Beyond this r^2 overflows and 4 p q is negligible.
    root = tl.where(size > 1e18, size, tl.sqrt(tl.fma(r, r, 4.0 * p * q)))
    g = size + root
    rising = r >= 0.0
    twice = 2.0 * tl.where(rising, p, q)
    share = 1.0 / (twice + g)
    small, large = twice * share, g * share
    t, c = tl.where(rising, small, large), tl.where(rising, large, small)
    return t * width, c * width, t < c


@triton.jit
def rq_inverse(spline_bin, y):
    """(x, T) at y."""
    x0, x1, _, _, width, height, _, _ = spline_bin
    a, b, near_left = rq_solve(spline_bin, y)
    v, u = rq_factors(spline_bin, a, b)
    g = height / tl.fma(a, v, b * u)
    N = tl.fma(a, u, b * v)
    return tl.where(near_left, x0 + a, x1 - b), rq_slope(g, width, N)


@triton.jit
def rq_shares(spline_bin, a, b):
    """The terms of the partial derivatives of y and of l = log T: RqShares of csrc/math/rq_bin.h.

    Shares of Q and of N sum to one, so nothing overflows.
    """
    _, _, _, _, width, height, d0, d1 = spline_bin
    D0, D1 = d0 * width, d1 * width
    aH, bH = a * height, b * height
    D0b, D1a = D0 * b, D1 * a
    v, u = aH + D0b, bH + D1a
    N = tl.fma(a, u, b * v)
    one_over_Q, one_over_N = 1.0 / tl.fma(a, v, b * u), 1.0 / N
    g = height * one_over_Q
    slope = rq_slope(g, width, N)
    aQ, bQ = a * one_over_Q, b * one_over_Q
    h0, h1 = aQ * aH, bQ * bH
    u0, u1 = aQ * D0b, bQ * D1a
    n0, n1 = (b * one_over_N) * D0b, (a * one_over_N) * D1a
    E = tl.fma(-(b * one_over_N), aH, h0 + h1)
    A = 2.0 * tl.fma(-tl.fma(D0 + D1, b, 2.0 * aH), one_over_Q, u * one_over_N)
    B = 2.0 * tl.fma(-tl.fma(D0 + D1, a, 2.0 * bH), one_over_Q, v * one_over_N)
    return g, slope, h0, h1, u0, u1, n0, n1, E, A, B


@triton.jit
def rq_apply(spline_bin, a, b, shares, grad_y, grad_l):
    """Gradients of grad_y y + grad_l l by (x, x0, x1, y0, y1, log d0, log d1)."""
    _, _, _, _, width, height, _, _ = spline_bin
    g, slope, h0, h1, u0, u1, n0, n1, E, A, B = shares
    p, r = h0 + u0, h1 + u1
    one_over_W = 1.0 / width
    t, c = a * one_over_W, b * one_over_W
    two_E_W, two_g_H = 2.0 * E * one_over_W, 2.0 * g * height
    l_y = grad_l * (2.0 * (1.0 - E) / height)
    crossed = tl.fma(h0, h1, u0 * u1)
    grad_x = tl.fma(grad_y, slope, grad_l * (A - B))
    through_x0 = c * tl.fma(two_g_H * b, p, slope * c)
    through_x1 = t * tl.fma(two_g_H * a, r, slope * t)
    grad_x0 = -tl.fma(grad_y, through_x0, grad_l * (A + two_E_W))
    grad_x1 = tl.fma(-grad_y, through_x1, grad_l * (B + two_E_W))
    grad_y0 = tl.fma(grad_y, tl.fma(2.0 * h1, u0, tl.fma(r, r, crossed)), -l_y)
    grad_y1 = tl.fma(grad_y, tl.fma(2.0 * h0, u1, tl.fma(p, p, crossed)), l_y)
    grad_log_d0 = tl.fma(grad_y, height * u0 * r, grad_l * tl.fma(-2.0, u0, n0))
    grad_log_d1 = tl.fma(-grad_y, height * u1 * p, grad_l * tl.fma(-2.0, u1, n1))
    return grad_x, grad_x0, grad_x1, grad_y0, grad_y1, grad_log_d0, grad_log_d1


@triton.jit
def rq_gradient(spline_bin, key, grad_y, grad_logabsdet, INVERSE: tl.constexpr):
    """Gradients by (x, x0, x1, y0, y1, log d0, log d1, both x knots, both y knots).

    From cotangents of the output and of logabsdet, of either direction; "both" is by a shift of two
    knots together, from its own formula, since the two terms of the sum may cancel. The inverse is
    differentiated implicitly. Its gradients by the knots of x are written out, because large terms
    cancel in the sum of their parts through y and through l.
    """
    x0, x1, _, _, width, height, _, _ = spline_bin
    if INVERSE:
        a, b, _ = rq_solve(spline_bin, key)
        shares = rq_shares(spline_bin, a, b)
        g, slope, h0, h1, u0, u1, _, _, E, A, B = shares
        one_over_T = 1.0 / slope
        scaled = tl.fma(-grad_logabsdet, A - B, grad_y) * one_over_T
        _, _, _, grad_y0, grad_y1, grad_log_d0, grad_log_d1 = rq_apply(
            spline_bin, a, b, shares, -scaled, -grad_logabsdet
        )
        # dx/dx0 and dx/dx1 at fixed y; they sum to one.
        one_over_W = 1.0 / width
        t, c = a * one_over_W, b * one_over_W
        two_g_H = 2.0 * g * height * one_over_T
        of_x0 = c * tl.fma(two_g_H * b, h0 + u0, c)
        of_x1 = t * tl.fma(two_g_H * a, h1 + u1, t)
        through_l = grad_logabsdet * tl.fma(2.0 * E, one_over_W, tl.fma(A, of_x1, B * of_x0))
        grad_x0, grad_x1 = tl.fma(grad_y, of_x0, through_l), tl.fma(grad_y, of_x1, -through_l)
        return scaled, grad_x0, grad_x1, grad_y0, grad_y1, grad_log_d0, grad_log_d1, grad_y, -scaled
    else:
        a, b = distances(key, x0, x1, width)
        grad_x, grad_x0, grad_x1, grad_y0, grad_y1, grad_log_d0, grad_log_d1 = rq_apply(
            spline_bin, a, b, rq_shares(spline_bin, a, b), grad_y, grad_logabsdet
        )
        return grad_x, grad_x0, grad_x1, grad_y0, grad_y1, grad_log_d0, grad_log_d1, -grad_x, grad_y
