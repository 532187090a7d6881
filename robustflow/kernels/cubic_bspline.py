# mypy: allow-untyped-defs, allow-incomplete-defs, disable-error-code="assignment, misc"
# ruff: noqa: RUF005  (Triton does not support (*a, b))
"""The monotone cubic B-spline of Hong and Chun (arXiv:2304.04555).

The formulas are those of csrc/math/cubic_bspline.h, which explains them. Eight bins in a
box, slope 1 at its edges, identity outside, and a shift. Eleven parameters per element: four knot
logits, six control logits, the shift.

One formula serves both halves of the box. It goes from the edge of the box to the middle knot. An
element in the upper half is mirrored. x and y are distances from the edge. A *curve* is the tuple
(r0, q, r1) of a bin, in units of the bin's width.
"""

from __future__ import annotations

import triton
import triton.language as tl

from robustflow.kernels.elementary import exponential_of_negative, maximum, minimum
from robustflow.kernels.rq_bin import distances


@triton.jit
def cubic_rise(curve, t):
    """The rise of a curve from its first knot to t, divided by the bin's width."""
    r0, q, r1 = curve
    first = r0 * tl.fma(t, t - 3.0, 3.0)
    return t * tl.fma(t, tl.fma(q, tl.fma(t, -2.0, 3.0), r1 * t), first)


@triton.jit
def cubic_slope(curve, t):
    """The derivative of cubic_rise()."""
    r0, q, r1 = curve
    c = 1.0 - t
    return 3.0 * tl.fma(c, tl.fma(r0, c, q * (t + t)), r1 * t * t)


@triton.jit
def cubic_root(curve, distance):
    """The t with cubic_rise(curve, t) = distance, for at most half of the rise at t = 1."""
    r0, q, r1 = curve
    scale = 1.0 / (r0 + q + r1)
    v = distance * scale
    unit = (r0 * scale, q * scale, r1 * scale)
    start = 3.0 * unit[0]
    root = tl.sqrt(tl.fma(start, start, 12.0 * unit[1] * v))
    t = minimum(tl.exp2(tl.log2(v / unit[2]) * 0.3333333333333333), 2.0 * v / (start + root))
    for _ in tl.static_range(3):
        residual, slope = cubic_rise(unit, t) - v, cubic_slope(unit, t)
        curvature = 3.0 * tl.fma(unit[1] - unit[0], 1.0 - t, (unit[2] - unit[1]) * t)
        t = t - residual * slope / tl.fma(slope, slope, -residual * curvature)
    return minimum(1.0, maximum(0.0, t))


@triton.jit
def cubic_softmax(logits, FIRST: tl.constexpr, COUNT: tl.constexpr):
    """The softmax of COUNT logits, from number FIRST on."""
    largest = logits[FIRST]
    for i in tl.static_range(1, COUNT):
        largest = maximum(largest, logits[FIRST + i])
    total = tl.zeros_like(largest)
    powers = ()
    for i in tl.static_range(COUNT):
        power = exponential_of_negative(logits[FIRST + i] - largest)
        powers = powers + (power,)
        total += power
    scale = 1.0 / total
    shares = ()
    for i in tl.static_range(COUNT):
        shares = shares + (powers[i] * scale,)
    return shares


@triton.jit
def cubic_sizes(shares, smallest, free):
    sizes = ()
    for i in tl.static_range(len(shares)):
        sizes = sizes + (tl.fma(free, shares[i], smallest),)
    return sizes


@triton.jit
def cubic_mirrored(upper, values):
    """The values, in reverse order where ``upper`` is true."""
    out = ()
    for i in tl.static_range(len(values)):
        out = out + (tl.where(upper, values[len(values) - 1 - i], values[i]),)
    return out


@triton.jit
def of_bin(reached, v0, v1, v2, v3):
    """Of four values, one for each bin, select that of the element's bin."""
    return tl.where(reached[2], v3, tl.where(reached[1], v2, tl.where(reached[0], v1, v0)))


@triton.jit
def cubic_locate(key, params, settings, INVERSE: tl.constexpr):
    """Find the bin of each element. key: x, or y - shift for the inverse.

    Returns:
        (what transform and gradient need, what only the gradient needs).
    """
    left, right, min_bin = settings[0], settings[1], settings[2]
    m, free = (right - left) * min_bin, (right - left) * (1.0 - 8.0 * min_bin)
    knot_shares, control_shares = cubic_softmax(params, 0, 4), cubic_softmax(params, 4, 6)
    f = cubic_sizes(knot_shares, m, free)
    g = cubic_sizes(control_shares, m, free)
    # Distance of the middle knot from the left edge.
    inner = f[1] + f[2]
    middle_slopes = (g[2] / (f[0] + inner), g[3] / (inner + f[3]))
    r4 = tl.fma(middle_slopes[0], f[2], middle_slopes[1] * f[1]) / inner
    if INVERSE:
        middle = ((m + g[0]) + g[1]) + tl.fma(middle_slopes[0], f[0] + f[1], f[1] * r4)
    else:
        middle = ((m + m) + f[0]) + f[1]
    upper = key - left >= middle
    outside = (key <= left) | (key >= right)  # written so that NaN counts as inside and stays NaN
    knot_shares = cubic_mirrored(upper, knot_shares)
    control_shares = cubic_mirrored(upper, control_shares)
    f = cubic_mirrored(upper, f)
    g = cubic_mirrored(upper, g)
    middle_slopes = cubic_mirrored(upper, middle_slopes)

    f01 = f[0] + f[1]
    third = tl.zeros_like(f01) + 0.3333333333333333
    q2, q3, q4 = g[0] / ((m + m) + f[0]), g[1] / (m + f01), middle_slopes[0]
    r1 = 0.5 * (third + q2)
    r2 = tl.fma(q2, f[0], q3 * m) / (m + f[0])
    r3 = tl.fma(q3, f[1], q4 * f[0]) / f01
    x1, x2 = tl.zeros_like(f01) + m, tl.zeros_like(f01) + (m + m)
    x3 = x2 + f[0]
    x4 = x3 + f[1]
    y1 = m * (r1 + 0.6666666666666666)
    y2 = tl.fma(m, r1 + q2 + r2, y1)
    y3 = tl.fma(f[0], r2 + q3 + r3, y2)
    y4 = tl.fma(f[1], r3 + q4 + r4, y3)
    distance = tl.where(upper, right - key, key - left)
    if INVERSE:
        reached = (distance >= y1, distance >= y2, distance >= y3)
    else:
        reached = (distance >= x1, distance >= x2, distance >= x3)
    width = of_bin(reached, x1, x1, f[0], f[1])
    curve = (
        of_bin(reached, third, r1, r2, r3),
        of_bin(reached, third, q2, q3, q4),
        of_bin(reached, r1, r2, r3, r4),
    )
    zero = tl.zeros_like(x1)
    x_knots = (of_bin(reached, zero, x1, x2, x3), of_bin(reached, x1, x2, x3, x4))
    y_knots = (of_bin(reached, zero, y1, y2, y3), of_bin(reached, y1, y2, y3, y4))
    slopes = (third, third, q2, q3, q4, middle_slopes[1])
    location = (upper, outside, distance, width, curve, x_knots, y_knots)
    return location, (reached, knot_shares, control_shares, x1, f, slopes)


@triton.jit
def cubic_point(location, INVERSE: tl.constexpr):
    """(whether the bin's outer knot is the nearer one, the curve and t from the nearer knot)."""
    _, _, distance, width, curve, x_knots, y_knots = location
    r0, q, r1 = curve
    if INVERSE:
        a, b = distances(distance, y_knots[0], y_knots[1], width * (r0 + q + r1))
    else:
        a, b = distances(distance, x_knots[0], x_knots[1], width)
    near_edge = a < b
    nearer_curve = (tl.where(near_edge, r0, r1), q, tl.where(near_edge, r1, r0))
    nearer = tl.where(near_edge, a, b) / width
    return near_edge, nearer_curve, cubic_root(nearer_curve, nearer) if INVERSE else nearer


@triton.jit
def cubic_bspline_transform(x, params, settings, INVERSE: tl.constexpr):
    left, right = settings[0], settings[1]
    shift = params[0][10]
    key = x - shift if INVERSE else x
    location, _ = cubic_locate(key, params[0], settings, INVERSE)
    upper, outside, _, width, _, x_knots, y_knots = location
    near_edge, curve, t = cubic_point(location, INVERSE)
    if INVERSE:
        from_edge = tl.where(near_edge, tl.fma(width, t, x_knots[0]), tl.fma(-width, t, x_knots[1]))
    else:
        rise = cubic_rise(curve, t)
        from_edge = tl.where(
            near_edge, tl.fma(width, rise, y_knots[0]), tl.fma(-width, rise, y_knots[1])
        )
    value = tl.where(outside, key, tl.where(upper, right - from_edge, left + from_edge))
    slope = tl.where(outside, 1.0, cubic_slope(curve, t))
    return value if INVERSE else value + shift, slope, tl.log(slope)


@triton.jit
def cubic_derivatives(location, details, t, c):
    """Derivatives of y and of l = log T at a point of a bin: struct Derivatives in C++."""
    reached, _, _, m, f, q = details
    width = location[3]
    q0, q1 = of_bin(reached, q[0], q[1], q[2], q[3]), location[4][1]
    q2 = of_bin(reached, q[2], q[3], q[4], q[5])
    # Knot spacings before and after the bin, and distances of the point from the knots.
    before, after = of_bin(reached, m, m, m, f[0]), of_bin(reached, m, f[0], f[1], f[2])
    further = of_bin(reached, f[0], f[1], f[2], f[3])
    a, b = t * width, c * width
    a_before, b_after = a + before, b + after
    two0, two1 = 1.0 / (before + width), 1.0 / (width + after)
    three0, three1 = 1.0 / (m + before + width), 1.0 / (before + width + after)
    three2 = 1.0 / (width + after + further)
    # The quadratic B-spline T / 3. First the weights of q0 and q1 in the mean u, and of q1 and q2
    # in the mean w; then the means; then the weights of q0, q1 and q2 in T / 3.
    b0, a0, b1, a1 = b * two0, a_before * two0, b_after * two1, a * two1
    u, w = tl.fma(q0, b0, q1 * a0), tl.fma(q1, b1, q2 * a1)
    third = tl.fma(c, u, t * w)
    B0, B1, B2 = c * b0, tl.fma(c, a0, t * b1), t * a1
    # The cubic B-spline: each of these weights is divided between the control points after and
    # before its difference.
    up0, down0 = B0 * ((a_before + m) * three0), B0 * (b * three0)
    up1, down1 = B1 * (a_before * three1), B1 * (b_after * three1)
    up2, down2 = B2 * (a * three2), B2 * ((b_after + further) * three2)
    y_control = (down0, up0 + down1, up1 + down2, up2)
    y_knot = (
        tl.fma(q2, down2, tl.fma(t * b1, w, c * third)),
        tl.fma(q0, up0, tl.fma(c * a0, u, t * third)),
        tl.fma(q1, up1, t * a1 * w),
        q2 * up2,
    )
    one_over, curvature0, curvature1 = 1.0 / third, (q1 - q0) * two0, (q2 - q1) * two1
    half_l_x = tl.fma(c, curvature0, t * curvature1) * one_over
    l_difference = (B0 * three0 * one_over, B1 * three1 * one_over, B2 * three2 * one_over)
    l2 = q2 * l_difference[2]
    l_knot = (
        l2 - tl.fma(t * b1 * curvature1, one_over, c * half_l_x),
        -tl.fma(q0, l_difference[0], tl.fma(c * a0 * curvature0, one_over, t * half_l_x)),
        -tl.fma(q1, l_difference[1], t * a1 * curvature1 * one_over),
        -l2,
    )
    return 3.0 * third, 2.0 * half_l_x, y_knot, l_knot, y_control, l_difference


@triton.jit
def sums_before_and_after(shares):
    """(for each share the sum of those before it, for each share the sum of those after it)."""
    zero = tl.zeros_like(shares[0])
    before, after = (zero,), (zero,)
    for i in tl.static_range(1, len(shares)):
        before = before + (before[i - 1] + shares[i - 1],)
        after = (after[0] + shares[len(shares) - i],) + after
    return before, after


@triton.jit
def gradients_from_points(sums, grad_points):
    """sum_j share_j (C_i - C_j) for each i, from grad_points[i] = C_i - C_(i+1).

    C_i is the gradient with respect to the size of interval i, and grad_points[i] that with respect
    to the point between intervals i and i + 1; it is zero after the last of ``grad_points``.
    """
    before, after = sums
    zero = tl.zeros_like(before[0])
    from_after = ()
    total = zero
    for i in tl.static_range(len(before) - 1, -1, -1):
        if i < len(grad_points):
            total = tl.fma(grad_points[i], after[i], total)
        from_after = (total,) + from_after
    out = (from_after[0],)
    from_before = zero
    for i in tl.static_range(1, len(before)):
        if i <= len(grad_points):
            from_before = tl.fma(grad_points[i - 1], before[i], from_before)
        out = out + (from_after[i] - from_before,)
    return out


@triton.jit
def gradients_from_sizes(sums, shares, grad_sizes):
    """The same sums, from grad_sizes[i] = C_i, which is zero after the last of ``grad_sizes``."""
    before, after = sums
    weighted = ()
    for i in tl.static_range(len(grad_sizes)):
        weighted = weighted + (shares[i] * grad_sizes[i],)
    sums_before, sums_after = sums_before_and_after(weighted)
    total = sums_before[len(grad_sizes) - 1] + weighted[len(grad_sizes) - 1]
    out = ()
    for i in tl.static_range(len(shares)):
        if i < len(grad_sizes):
            others = sums_before[i] + sums_after[i]
            out = out + (tl.fma(before[i] + after[i], grad_sizes[i], -others),)
        else:
            out = out + (-total,)
    return out


@triton.jit
def cubic_bspline_gradient(
    x, params, grad_output, grad_logabsdet, settings, INVERSE: tl.constexpr
):  # fmt: skip
    key = x - params[0][10] if INVERSE else x
    location, details = cubic_locate(key, params[0], settings, INVERSE)
    upper, outside = location[0], location[1]
    reached, knot_shares, control_shares, _, _, _ = details
    near_edge, _, t = cubic_point(location, INVERSE)
    c = 1.0 - t
    slope, l_x, y_knot, l_knot, y_control, l_difference = cubic_derivatives(
        location, details, tl.where(near_edge, t, c), tl.where(near_edge, c, t)
    )
    mirrored = tl.where(upper, -grad_output, grad_output)
    # Implicit differentiation: the gradients of the inverse are those of the forward transform,
    # with these cotangents of its y and l.
    if INVERSE:
        grad_distance = tl.fma(-grad_logabsdet, l_x, mirrored) / slope
        grad_y, grad_l = -grad_distance, -grad_logabsdet
    else:
        grad_distance = tl.fma(mirrored, slope, grad_logabsdet * l_x)
        grad_y, grad_l = mirrored, grad_logabsdet
    zero = tl.zeros_like(key)
    k0 = tl.fma(grad_l, l_knot[0], -grad_y * y_knot[0])
    k1 = tl.fma(grad_l, l_knot[1], -grad_y * y_knot[1])
    k2 = tl.fma(grad_l, l_knot[2], -grad_y * y_knot[2])
    k3 = tl.fma(grad_l, l_knot[3], -grad_y * y_knot[3])
    p0, p1, p2, p3 = (
        grad_y * y_control[0], grad_y * y_control[1], grad_y * y_control[2], grad_y * y_control[3]
    )  # fmt: skip
    s0, s1, s2 = grad_l * l_difference[0], grad_l * l_difference[1], grad_l * l_difference[2]
    # Gradients with respect to the knots, control points and differences that the logits move. One
    # bin further from the edge, the same knot has an index smaller by one among k0 to k3; likewise
    # for the others.
    knots = gradients_from_points(
        sums_before_and_after(knot_shares),
        (
            of_bin(reached, k3, k2, k1, k0),
            of_bin(reached, zero, k3, k2, k1),
            of_bin(reached, zero, zero, k3, k2),
        ),
    )
    sums = sums_before_and_after(control_shares)
    points = gradients_from_points(
        sums,
        (
            of_bin(reached, p3, p2, p1, p0),
            of_bin(reached, zero, p3, p2, p1),
            of_bin(reached, zero, zero, p3, p2),
            of_bin(reached, zero, zero, zero, p3),
        ),
    )
    sizes = gradients_from_sizes(
        sums,
        control_shares,
        (
            of_bin(reached, s2, s1, s0, zero),
            of_bin(reached, zero, s2, s1, s0),
            of_bin(reached, zero, zero, s2, s1),
            of_bin(reached, zero, zero, zero, s2),
        ),
    )
    free = (settings[1] - settings[0]) * (1.0 - 8.0 * settings[2])
    grad_knots, grad_controls = (), ()
    for i in tl.static_range(4):
        grad_knots = grad_knots + (tl.where(outside, 0.0, free * knot_shares[i] * knots[i]),)
    for i in tl.static_range(6):
        both = points[i] + sizes[i]
        grad_controls = grad_controls + (tl.where(outside, 0.0, free * control_shares[i] * both),)
    grad_x = tl.where(outside, grad_output, tl.where(upper, -grad_distance, grad_distance))
    grad_shift = -grad_x if INVERSE else grad_output
    grad_knots = cubic_mirrored(upper, grad_knots)
    grad_controls = cubic_mirrored(upper, grad_controls)
    return grad_x, (grad_knots + grad_controls + (grad_shift,),)
