"""Gradients of the reference against finite differences and against the closed formulas."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from robustflow._transforms import count_derivatives
from robustflow.reference import rq_bin
from tests.reference.calls import (
    Call,
    Pair,
    affine,
    calls,
    inputs,
    modified_rq,
    random_knots,
    rq,
)


@pytest.mark.parametrize(("call", "count"), calls())
def test_first_and_second_derivatives(call: Call, count: int) -> None:
    x, params = inputs(count)
    assert gradcheck(call, (x, params))
    assert gradgradcheck(call, (x, params))


def test_derivatives_of_separate_parameters_and_of_knots() -> None:
    x, _ = inputs(1)
    for tails, inverse in itertools.product(("linear", "circular", None), (False, True)):
        raw = random_knots(3, tails, smallest=0.2).expand(6, -1)
        groups = [p.clone() for p in raw.split([3, 3, count_derivatives(3, tails)], -1)]
        groups[2].pow_(0.2)
        groups = [p.requires_grad_() for p in groups]
        call = partial(rq, num_bins=3, tails=tails, parametrization="knots", inverse=inverse)
        assert gradcheck(call, (x, *groups))
        assert gradgradcheck(call, (x, *groups))
        # Packed or apart, the same tensors.
        packed = torch.cat(groups, -1)
        for ours, theirs in zip(call(x, packed), call(x, *groups), strict=True):
            assert torch.equal(ours, theirs)
    shift, logit = (p.requires_grad_() for p in torch.randn(2, 6, 1, dtype=torch.float64))
    assert gradcheck(affine, (x, shift, logit))


def test_no_gradient_flows_to_the_box() -> None:
    x, params = inputs(8)
    box = torch.tensor([-1.0, 1.0, -1.0, 1.0], dtype=torch.float64, requires_grad=True)
    y, logabsdet = rq(x, params, num_bins=3, box_tensor=box)
    (gradient,) = torch.autograd.grad((y + logabsdet).sum(), box, allow_unused=True)
    assert gradient is None


# The closed formulas of the first derivatives, written a second time and apart from the code that
# autograd differentiates: what fused kernels compute must be what the reference means.


def bin_derivatives(x: Tensor, b: rq_bin.Bin) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """T, and the derivatives of y and of l by x, x0, x1, y0, y1, log d0, log d1."""
    width, height = b.x1 - b.x0, b.y1 - b.y0
    a, c = x - b.x0, b.x1 - x
    k0, k1 = b.d0 * width, b.d1 * width
    q = a * (a * height + k0 * c) + c * (c * height + k1 * a)
    n = k1 * a * a + 2 * a * c * height + k0 * c * c
    g = height / q
    h0, h1, u0, u1 = a * a * height / q, c * c * height / q, k0 * a * c / q, k1 * a * c / q
    p, r = h0 + u0, h1 + u1
    n0, n1, n2 = k0 * c * c / n, k1 * a * a / n, 2 * a * c * height / n
    slope = (g * width) * (g * n)
    e = h0 + h1 - n2 / 2
    cross = h0 * h1 + u0 * u1
    from_left = 2 * (k1 * a + c * height) / n - 2 * (2 * a * height + (k0 + k1) * c) / q
    from_right = 2 * (k0 * c + a * height) / n - 2 * (2 * c * height + (k0 + k1) * a) / q
    of_y = [
        slope,
        -(c / width) * (slope * c / width + 2 * g * c * height * p),
        -(a / width) * (slope * a / width + 2 * g * a * height * r),
        r * r + cross + 2 * h1 * u0,
        p * p + cross + 2 * h0 * u1,
        height * u0 * r,
        -height * u1 * p,
    ]
    of_l = [
        from_left - from_right,
        -from_left - 2 * e / width,
        from_right + 2 * e / width,
        -2 * (1 - e) / height,
        2 * (1 - e) / height,
        n0 - 2 * u0,
        n1 - 2 * u1,
    ]
    return slope, of_y, of_l


def random_bins(count: int) -> tuple[Tensor, rq_bin.Bin]:
    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, dtype=torch.float64)

    x0, y0 = uniform(-2, 2), uniform(-2, 2)
    x1, y1 = x0 + uniform(-4, 1).exp(), y0 + uniform(-4, 1).exp()
    t = uniform(0, 1)
    t[: count // 4] = uniform(-9, -2).exp()[: count // 4]
    t[count // 4 : count // 2] = 1 - uniform(-9, -2).exp()[count // 4 : count // 2]
    return x0 + t * (x1 - x0), rq_bin.Bin(
        x0, x1, y0, y1, uniform(-6, 6).exp(), uniform(-6, 6).exp()
    )


def bin_gradients(
    function: Callable[[Tensor, rq_bin.Bin], Pair], value: Tensor, b: rq_bin.Bin, cotangents: Pair
) -> list[Tensor]:
    """Autograd's gradients by the argument, x0, x1, y0, y1, log d0, log d1."""
    logs = (b.d0.log(), b.d1.log())
    leaves = [v.clone().requires_grad_() for v in (value, b.x0, b.x1, b.y0, b.y1, *logs)]
    argument, x0, x1, y0, y1, log_d0, log_d1 = leaves
    outputs = function(argument, rq_bin.Bin(x0, x1, y0, y1, log_d0.exp(), log_d1.exp()))
    return list(torch.autograd.grad(outputs, leaves, cotangents))


def assert_relative(ours: Tensor, theirs: Tensor, scale: Tensor) -> None:
    assert ((ours - theirs).abs() <= 1e-10 * scale).all(), ((ours - theirs).abs() / scale).max()


def test_closed_formulas_of_one_bin_forward() -> None:
    x, b = random_bins(4000)
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    slope, of_y, of_l = bin_derivatives(x, b)
    torch.testing.assert_close(slope.log(), rq_bin.forward(x, b)[1], rtol=1e-10, atol=1e-11)
    for closed, cotangents in ((of_y, (one, zero)), (of_l, (zero, one))):
        found = bin_gradients(rq_bin.forward, x, b, cotangents)
        # The terms of a formula cancel; these are about the size of the largest.
        size = 1 + closed[0].abs() + 1 / (b.x1 - b.x0) + 1 / (b.y1 - b.y0)
        for ours, theirs in zip(found, closed, strict=True):
            assert_relative(ours, theirs, size)


def test_closed_formulas_of_one_bin_inverse() -> None:
    x, b = random_bins(4000)
    y = rq_bin.forward(x, b)[0]
    x = rq_bin.inverse(y, b)[0]  # y rounds; the formulas are for the x that belongs to it
    grad_x, grad_l = torch.randn_like(x), torch.randn_like(x)
    slope, of_y, of_l = bin_derivatives(x, b)
    by_y = (grad_x - grad_l * of_l[0]) / slope
    closed = [by_y] + [-by_y * dy - grad_l * dl for dy, dl in zip(of_y[1:], of_l[1:], strict=True)]
    found = bin_gradients(rq_bin.inverse, y, b, (grad_x, grad_l))
    # x is known to an ulp of its bin only, and so is whatever depends on it through the slopes.
    size = (1 + by_y.abs()) * (1 + of_l[0].abs() + 1 / (b.x1 - b.x0)) * (1 + slope + 1 / slope)
    for ours, theirs in zip(found, closed, strict=True):
        assert_relative(ours, theirs, size)


@pytest.mark.parametrize("num_bins", [1, 2, 5, 12])
def test_closed_formula_of_softmax_sizes(num_bins: int) -> None:
    """The gradient by the logits of the sizes, from those by the two knots of the element's bin."""
    low, high, min_bin = -1.5, 1.0, 0.02
    logits = torch.randn(200, num_bins, dtype=torch.float64, requires_grad=True)
    heights = torch.randn(200, num_bins, dtype=torch.float64)
    derivatives = torch.randn(200, num_bins - 1, dtype=torch.float64)
    x = low + (high - low) * torch.rand(200, dtype=torch.float64)
    grad_y, grad_l = torch.randn_like(x), torch.randn_like(x)
    box = (low, high, low, high)
    settings: dict[str, Any] = {
        "num_bins": num_bins,
        "box": box,
        "min_bin_width": min_bin,
        "min_bin_height": 0.01,
    }
    outputs = rq(x, logits, heights, derivatives, **settings)
    (found,) = torch.autograd.grad(outputs, logits, (grad_y, grad_l))

    def knots(raw: Tensor, m: float) -> Tensor:
        sizes = (high - low) * (m + (1 - num_bins * m) * raw.softmax(-1))
        return torch.nn.functional.pad(low + sizes.cumsum(-1), (1, 0), value=low)

    xs, ys = knots(logits.detach(), min_bin), knots(heights, 0.01)
    slopes = torch.nn.functional.pad(
        1e-3 + torch.nn.functional.softplus(derivatives), (1, 1), value=1.0
    )
    k = torch.searchsorted(xs, x.unsqueeze(-1), right=True) - 1
    pick = [v.gather(-1, k + i).squeeze(-1) for v in (xs, ys, slopes) for i in (0, 1)]
    _, of_y, of_l = bin_derivatives(x, rq_bin.Bin(*pick))
    by_left, by_right = ((grad_y * of_y[i] + grad_l * of_l[i]).unsqueeze(-1) for i in (1, 2))
    j = torch.arange(num_bins)
    size_gradients = torch.where(j < k, by_left + by_right, torch.where(j == k, by_right, 0.0))
    shares = logits.detach().softmax(-1)
    mean = (shares * size_gradients).sum(-1, keepdim=True)
    closed = (1 - num_bins * min_bin) * (high - low) * shares * (size_gradients - mean)
    torch.testing.assert_close(found, closed, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("flush_denormal", [False, True])
def test_float32_gradients_at_extreme_slopes(inverse: bool, flush_denormal: bool) -> None:
    """Slopes to 2e17: nothing that matters leaves the range of float32's normal numbers."""
    params = torch.randn(50000, 4) * torch.tensor([4.0, 4.0, 0.0, 0.1])
    params[:, 2] = 40 - 47 * torch.rand(50000) ** 3
    x = torch.rand(50000) - 0.5
    cotangents = torch.randn(2, 50000)
    found = []
    torch.set_flush_denormal(flush_denormal)
    try:
        for dtype in (torch.float32, torch.float64):
            leaves = [v.to(dtype).requires_grad_() for v in (x, params)]
            outputs = modified_rq(*leaves, inverse=inverse)
            found.append(torch.autograd.grad(outputs, leaves, tuple(cotangents.to(dtype))))
    finally:
        torch.set_flush_denormal(False)
    for single, double in zip(*found, strict=True):
        error = ((single - double).abs() / (1e-2 + double.abs())).flatten().sort().values
        assert error[error.numel() // 2] <= 1e-6
        # The rest is elements on which x or a knot rounds on a steep part of the spline.
        assert error[int(0.99 * error.numel())] <= 1e-3
        assert error[-1] <= 1e-2


def test_inverse_is_smooth_where_its_two_formulas_meet() -> None:
    """At r = 0 (the middle of a straight bin) the gradient is the mean of those beside it."""
    rows = []
    for y in (0.25, 0.25 - 1e-5, 0.25 + 1e-5):
        leaves = [torch.tensor(y, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)]
        leaves = [leaf.requires_grad_() for leaf in leaves]
        x, logabsdet = modified_rq(*leaves, inverse=True)
        by_y, by_params = torch.autograd.grad(x + 3 * logabsdet, leaves)
        rows.append(torch.cat([by_y.reshape(1), by_params]))
    torch.testing.assert_close(rows[0], (rows[1] + rows[2]) / 2, rtol=1e-8, atol=1e-8)
