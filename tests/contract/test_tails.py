"""Contract: outside the box the transform is exactly its tail, in value and in gradient."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import robustflow.functional as F
from tests.conformance.layouts import Layout
from tests.conformance.operations import RQ, ModifiedRQ, Operation
from tests.conformance.samples import Sample
from tests.conformance.targets import Target

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
    """Inputs beyond both edges, next to them, far and infinite; and, but on a circle, the edges."""
    low, high = operation.box
    edges = torch.tensor([low, high], dtype=dtype)
    away = torch.tensor([-math.inf, math.inf], dtype=dtype)
    next_out = torch.nextafter(edges, away)
    far = torch.tensor([1e30, -1e30, 2.0 * high, 2.0 * low, math.inf, -math.inf], dtype=dtype)
    on_circle = isinstance(operation, RQ) and operation.tails == "circular"
    values = torch.cat([next_out, far] if on_circle else [edges, next_out, far])
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


@both_directions
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_edges_of_circular_tails_are_one_point(
    target: Target, dtype: torch.dtype, inverse: bool
) -> None:
    """At -pi, pi and just inside, the slope is that of the first derivative, softplus(d_0) + m."""
    operation = RQ(4, "circular", "softmax", bounds=(-math.pi, math.pi, -math.pi, math.pi))
    edges = torch.tensor([-math.pi, math.pi], dtype=dtype)
    x = torch.cat([edges, torch.nextafter(edges, torch.zeros(2, dtype=dtype))])
    layout = Layout("line", (4,), params_last=True)
    params = operation.sample_params((1,), torch.Generator().manual_seed(3)).to(dtype).repeat(4, 1)
    params[:, 8] = 1.25
    call = Sample(operation, layout, x.to(target.device), (params.to(target.device),))
    y, logabsdet = call.requires_grad_().call(inverse)
    slope = math.log1p(math.exp(1.25)) + 1e-3
    sign = -1.0 if inverse else 1.0
    tolerance: Any = {"rtol": 0, "atol": 1e-4 if dtype == torch.float32 else 1e-12}
    wanted = torch.full((4,), sign * math.log(slope), dtype=dtype)
    torch.testing.assert_close(logabsdet.cpu(), wanted, **tolerance)
    assert torch.equal(y[:2].cpu(), edges)
    by_x, by_params = torch.autograd.grad(y.sum(), call.tensors, retain_graph=True)
    torch.testing.assert_close(by_x.cpu(), torch.full_like(x, slope**sign), **tolerance)
    assert float(by_params[:2].abs().max()) < 1e-5  # the edges stay where they are
    (by_params,) = torch.autograd.grad(logabsdet.sum(), call.groups)
    by_derivative = torch.full((4,), sign / (1.0 + math.exp(-1.25)) / slope, dtype=dtype)
    torch.testing.assert_close(by_params[:, 8].cpu(), by_derivative, **tolerance)


# Edges that no half type has: of each, some are rounded outwards and some inwards. The last box is
# one of each channel, as a tensor.
ROUNDED = (
    RQ(5, None, "softmax", bounds=(-0.3, 1.1, 0.1, 0.7)),
    RQ(5, "circular", "softclip", separate=True, bounds=(-3.3, 2.9, -3.3, 2.9)),
    RQ(3, None, "softclip", bounds=(-0.35, 0.35, -0.35, 0.35), per_dimension=True),
)
STORED = (
    *((dtype, dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)),
    *((torch.float32, torch.float64), (torch.float16, torch.float32)),
)
each_pair = pytest.mark.parametrize(
    "dtypes", STORED, ids=lambda pair: "+".join(str(d).removeprefix("torch.") for d in pair)
)


def _edges(operation: RQ, shape: tuple[int, ...], y_axis: bool) -> tuple[Tensor, Tensor]:
    """Of each element, in float64."""
    box = operation.box_tensor(torch.zeros(shape, dtype=torch.float64)).expand(*shape, 4)
    return (box[..., 2], box[..., 3]) if y_axis else (box[..., 0], box[..., 1])


@both_directions
@each_pair
@pytest.mark.parametrize("operation", ROUNDED, ids=lambda op: op.name)
def test_edges_as_a_dtype_holds_them_are_inside(
    target: Target, operation: RQ, dtypes: tuple[torch.dtype, torch.dtype], inverse: bool
) -> None:
    """As if they were the edges, in value and gradients; what lies beyond them is outside."""
    dtype, params_dtype = dtypes
    shape = (4, 3)
    low, high = _edges(operation, shape, y_axis=inverse)
    step = 3.0 * torch.finfo(dtype).eps * torch.maximum(low.abs(), high.abs())[0]
    x = torch.stack([low[0], high[0], low[0] - step, high[0] + step]).to(dtype)
    params = operation.sample_params(shape, torch.Generator().manual_seed(6)).to(params_dtype)
    layout = Layout("rows", shape)
    groups = layout.lay_params(params.to(target.device), operation.parts)
    call = Sample(operation, layout, x.to(target.device), tuple(g.detach() for g in groups))
    y, logabsdet = call.requires_grad_().call(inverse)
    grad_y, grad_logabsdet = _cotangents(y, logabsdet)
    grad_x, *grads = torch.autograd.grad((y, logabsdet), call.tensors, (grad_y, grad_logabsdet))
    y, logabsdet, grad_x = y.detach().cpu(), logabsdet.detach().cpu(), grad_x.cpu()
    grad_params = layout.canonical(tuple(grad.cpu() for grad in grads), operation.parts)

    inner = torch.minimum(torch.maximum(x.double(), low), high)[:2].requires_grad_()
    wide = params.double().requires_grad_()
    exact = operation.oracle(torch.cat([inner, 0.5 * (low + high)[2:]]), wide, inverse)
    exact_grads = torch.autograd.grad(
        tuple(each[:2] for each in exact),
        (inner, wide),
        (grad_y.cpu().double()[:2], grad_logabsdet.cpu().double()[:2]),
    )
    size = 1.0 + float(exact_grads[1].abs().max())
    tolerance: Any = {"rtol": 1e-3 + 2 * torch.finfo(dtype).eps}
    torch.testing.assert_close(y[:2].double(), exact[0][:2], atol=1e-6, **tolerance)
    torch.testing.assert_close(logabsdet[:2].double(), exact[1][:2], rtol=0, atol=1e-3)
    torch.testing.assert_close(grad_x[:2].double(), exact_grads[0], atol=1e-3, **tolerance)
    tolerance["rtol"] += 2 * torch.finfo(params_dtype).eps
    torch.testing.assert_close(
        grad_params[:2].double(), exact_grads[1][:2], atol=1e-3 * size, **tolerance
    )
    assert bool((grad_params[2:] == 0).all())
    if operation.tails is None:
        assert bool(y[2:].isnan().all() and logabsdet[2:].isnan().all())
        assert bool((grad_x[2:] == 0).all())
    else:
        assert torch.equal(y[2:], x[2:]) and bool((logabsdet[2:] == 0).all())
        assert torch.equal(grad_x[2:], grad_y[2:].cpu())


@each_pair
@pytest.mark.parametrize("kind", ["softmax", "softclip"])
@pytest.mark.parametrize("per_dimension", [False, True], ids=["numbers", "tensor"])
def test_edges_hold_a_chain_of_splines(
    target: Target, per_dimension: bool, kind: str, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    """Each takes what the one before gives, to either side: nothing leaves the box."""
    dtype, params_dtype = dtypes
    bounds = (-0.35, 0.35, -0.35, 0.35) if per_dimension else (-0.3, 1.1, -0.3, 1.1)
    operation = RQ(5, None, kind, bounds=bounds, per_dimension=per_dimension)
    shape = (101, 3)
    low, high = _edges(operation, shape, y_axis=False)
    generator = torch.Generator().manual_seed(7)
    x = low + (high - low) * torch.linspace(0, 1, 101, dtype=torch.float64).unsqueeze(-1)
    x = x.to(target.device, dtype)
    low, high = (edge.to(target.device, dtype) for edge in (low, high))
    layout = Layout("rows", shape)
    for number in range(6):
        # Steep and flat bins: much of what goes through them ends next to an edge.
        params = 3.0 * operation.sample_params(shape, generator).to(target.device, params_dtype)
        groups = layout.lay_params(params, operation.parts)
        x, logabsdet = operation.call(x, groups, number % 2 == 1, "none")
        assert bool(logabsdet.isfinite().all())
        assert bool(((low <= x) & (x <= high)).all())


def test_edges_hold_sizes_that_sum_to_more(target: Target) -> None:
    """Ready-made sizes whose sum is rounded: an inner knot may lie beyond the end of the box."""
    sizes = torch.tensor([[0.35, 0.35 * (1 + 2e-7), 1e-30]]).repeat(64, 1)
    derivatives = torch.ones(64, 4)
    x = torch.linspace(0.69999, 0.7, 64)
    tensors: Any = [t.to(target.device) for t in (x, sizes, sizes, derivatives)]
    options: Any = {"tails": None, "parametrization": "knots"}
    options |= {"left": 0.0, "right": 0.7, "bottom": 0.0, "top": 0.7}
    for inverse in (False, True):
        y, _ = F.rq_spline(*tensors, **{**options, "inverse": inverse})
        assert bool((y <= torch.tensor(0.7, device=y.device)).all())


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
