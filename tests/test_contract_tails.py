"""Contract: outside the box the transform is exactly its tail, in value and in gradient."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import robustflow.functional as F
from conformance.layouts import Layout
from conformance.operations import RQ, ModifiedRQ, Operation
from conformance.samples import Sample
from conformance.targets import Target

COUNT = 67  # several packs of every lane type, and a remainder
RQ_TAILS = tuple(
    RQ(bins, tails, kind, separate)
    for bins in (5, 8)
    for tails in ("linear", "circular")
    for kind in ("softmax", "softclip", "knots")
    for separate in (False, True)
)
MODIFIED = (ModifiedRQ("exp"), ModifiedRQ("softclip", interval=(-3.0, 3.0)))
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
both_directions = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
LINE = Layout("line", (COUNT,), params_last=True)


def _outside(operation: Operation, dtype: torch.dtype) -> Tensor:
    """Inputs on and beyond both edges: the edges themselves, their neighbours, far and infinite."""
    low, high = operation.box
    edges = torch.tensor([low, high], dtype=dtype)
    away = torch.tensor([-math.inf, math.inf], dtype=dtype)
    next_out = torch.nextafter(edges, away)
    far = torch.tensor([1e30, -1e30, 2.0 * high, 2.0 * low, math.inf, -math.inf], dtype=dtype)
    values = torch.cat([edges, next_out, far])
    return values.repeat(COUNT // values.numel() + 1)[:COUNT]


def _call(operation: Operation, target: Target, x: Tensor, params: Tensor) -> Sample:
    groups = LINE.lay_params(params.to(target.device, x.dtype), operation.parts)
    return Sample(operation, LINE, x.to(target.device), tuple(g.detach() for g in groups))


def _cotangents(y: Tensor, logabsdet: Tensor) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(2, *y.shape, generator=generator, dtype=torch.float64)
    return noise[0].to(y), noise[1].to(logabsdet)


@both_directions
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("operation", RQ_TAILS, ids=lambda op: op.name)
def test_rq_outside_is_the_identity(
    target: Target, operation: RQ, dtype: torch.dtype, inverse: bool
) -> None:
    """Even where the parameters are NaN: an outside element reads none of them."""
    x = _outside(operation, dtype)
    generator = torch.Generator().manual_seed(2)
    ordinary = operation.sample_params((COUNT,), generator)
    for params in (ordinary, torch.full_like(ordinary, math.nan), 1e4 * ordinary):
        call = _call(operation, target, x, params).requires_grad_()
        y, logabsdet = call.call(inverse)
        assert torch.equal(y.cpu(), x)
        assert torch.equal(logabsdet, torch.zeros_like(logabsdet))
        grad_y, grad_logabsdet = _cotangents(y, logabsdet)
        grad_x, *grads = torch.autograd.grad((y, logabsdet), call.tensors, (grad_y, grad_logabsdet))
        assert torch.equal(grad_x, grad_y)
        assert all(torch.equal(grad, torch.zeros_like(grad)) for grad in grads)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("operation", MODIFIED, ids=lambda op: op.name)
def test_modified_rq_outside_is_the_shift(
    target: Target, operation: ModifiedRQ, dtype: torch.dtype
) -> None:
    """y = x + shift, l = 0; gradients (1, 0, 0, 0, 1), whatever the other parameters hold."""
    x = _outside(operation, dtype)
    shift = torch.linspace(-0.75, 0.75, COUNT).to(dtype)
    for fill in (0.3, math.nan, 1e4):
        params = torch.full((COUNT, 4), fill, dtype=dtype)
        params[:, 3] = shift
        call = _call(operation, target, x, params).requires_grad_()
        y, logabsdet = call.call()
        assert torch.equal(y.cpu(), x + shift)
        assert torch.equal(logabsdet, torch.zeros_like(logabsdet))
        grad_y, grad_logabsdet = _cotangents(y, logabsdet)
        grad_x, grad = torch.autograd.grad((y, logabsdet), call.tensors, (grad_y, grad_logabsdet))
        assert torch.equal(grad_x, grad_y)
        assert torch.equal(grad[:, :3], torch.zeros_like(grad[:, :3]))
        assert torch.equal(grad[:, 3], grad_y)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("operation", MODIFIED, ids=lambda op: op.name)
def test_modified_rq_inverse_outside_is_the_shift(
    target: Target, operation: ModifiedRQ, dtype: torch.dtype
) -> None:
    """x = y - shift; shifts are halves and wholes, so that differences are exact in each dtype."""
    low, high = operation.box
    z = torch.tensor([low, high, low - 0.5, high + 0.5, low - 8.0, high + 8.0], dtype=dtype)
    z = z.repeat(COUNT // 6 + 1)[:COUNT]
    shift = (torch.arange(COUNT) % 5 - 2).to(dtype) * 0.5
    y = z + shift
    for fill in (0.3, math.nan, 1e4):
        params = torch.full((COUNT, 4), fill, dtype=dtype)
        params[:, 3] = shift
        call = _call(operation, target, y, params).requires_grad_()
        x, logabsdet = call.call(inverse=True)
        assert torch.equal(x.cpu(), z)
        assert torch.equal(logabsdet, torch.zeros_like(logabsdet))
        grad_out, grad_logabsdet = _cotangents(x, logabsdet)
        grad_x, grad = torch.autograd.grad((x, logabsdet), call.tensors, (grad_out, grad_logabsdet))
        assert torch.equal(grad_x, grad_out)
        assert torch.equal(grad[:, :3], torch.zeros_like(grad[:, :3]))
        assert torch.equal(grad[:, 3], -grad_out)


@both_directions
@pytest.mark.parametrize("kind", ["softmax", "softclip", "knots"])
def test_without_tails_outside_is_nan(target: Target, kind: str, inverse: bool) -> None:
    """NaN y and logabsdet and zero gradients outside; the closed box is inside."""
    operation = RQ(8, None, kind)
    low, high = operation.box
    beyond = 1e-3
    x = torch.tensor([low, high, low - beyond, high + beyond, math.inf, -math.inf, 0.1])
    params = operation.sample_params((7,), torch.Generator().manual_seed(2)).float()
    layout = Layout("line", (7,), params_last=True)
    call = Sample(operation, layout, x.to(target.device), (params.to(target.device),))
    y, logabsdet, grad_x, grad = (t.cpu() for t in call.gradients(inverse))
    outside = torch.tensor([False, False, True, True, True, True, False])
    assert torch.equal(y.isnan(), outside)
    assert torch.equal(logabsdet.isnan(), outside)
    assert torch.equal(y[:2], torch.tensor([low, high]))
    assert bool((grad_x[outside] == 0).all()) and bool((grad[outside] == 0).all())
    assert bool(grad_x.isfinite().all()) and bool(grad.isfinite().all())
    assert bool((grad_x[~outside] != 0).all())


def test_slope_at_the_edges_is_the_tails(target: Target) -> None:
    """Linear tails: the derivative inside an edge is 1, not a softplus of a rounded constant."""
    operation = replace(RQ(8, "linear", "softmax"), bounds=(-3.0, 3.0, -3.0, 3.0))
    edges = torch.tensor([-3.0, 3.0], dtype=torch.float64)
    inside = torch.nextafter(edges, torch.zeros_like(edges)).repeat(33)
    layout = Layout("line", (66,), params_last=True)
    params = operation.sample_params((66,), torch.Generator().manual_seed(4))
    call = Sample(operation, layout, inside.to(target.device), (params.to(target.device),))
    for inverse in (False, True):
        _, logabsdet = call.call(inverse)
        assert float(logabsdet.abs().max()) < 1e-10


def test_circular_tails_share_the_derivative_of_the_edges(target: Target) -> None:
    """Just inside the two edges the slope is the first derivative, softplus(d_0) + minimum."""
    operation = RQ(4, "circular", "softmax", bounds=(-math.pi, math.pi, -math.pi, math.pi))
    params = torch.zeros(2, operation.num_params)
    params[:, 8] = 1.25
    x = torch.nextafter(torch.tensor([-math.pi, math.pi]), torch.zeros(2))
    layout = Layout("line", (2,), params_last=True)
    _, logabsdet = Sample(
        operation, layout, x.to(target.device), (params.to(target.device),)
    ).call()
    wanted = math.log(1e-3 + math.log1p(math.exp(1.25)))
    torch.testing.assert_close(logabsdet.cpu(), torch.full((2,), wanted), rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_bins", [1, 2, 8])
def test_zero_parameters_of_linear_tails(target: Target, num_bins: int) -> None:
    """Equal bins and softplus(0.5413) = 1 at the knots: the identity."""
    x = torch.linspace(-2.5, 2.5, 101, device=target.device)
    w = torch.zeros(101, num_bins, device=target.device)
    d = torch.full((101, num_bins - 1), math.log(math.expm1(1.0 - 1e-3)), device=target.device)
    for inverse in (False, True):
        y, logabsdet = F.rq_spline(x, w, w, d, inverse, tail_bound=2.0)
        torch.testing.assert_close(y, x, rtol=0, atol=5e-7)
        assert float(logabsdet.abs().max()) < 1e-6


def test_a_sequence_of_bounds_has_the_precision_of_the_inputs() -> None:
    x = torch.linspace(-0.2, 0.2, 42, dtype=torch.float64).view(21, 2)
    widths, heights, derivatives = (
        torch.randn(21, 2, size, dtype=torch.float64) for size in (4, 4, 3)
    )
    bounds = torch.tensor([0.1, 0.3], dtype=torch.float64)
    for ours, expected in zip(
        F.rq_spline(x, widths, heights, derivatives, tail_bound=[0.1, 0.3]),
        F.rq_spline(x, widths, heights, derivatives, tail_bound=bounds),
        strict=True,
    ):
        assert torch.equal(ours, expected)
