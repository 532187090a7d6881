"""Properties of every input, hunted by hypothesis: monotone, invertible, consistent."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import robustflow
from robustflow._transforms import SCALES
from tests.conformance.layouts import Layout
from tests.conformance.operations import RQ, Affine, ModifiedRQ, Operation
from tests.conformance.targets import Target, target_params

# A function-scoped fixture cannot be used with @given: the backend is chosen inside. Examples come
# with ever new numbers of bins, too many for kernels that are compiled for each.
each_target = pytest.mark.parametrize("where", target_params(compiled=False))

logits = st.one_of(
    st.floats(-4.0, 4.0, width=32),
    st.floats(-40.0, 40.0, width=32),
    st.sampled_from([0.0, -0.0, 1e4, -1e4, 1e-38, 40.0, -40.0]),
)
unit = st.one_of(st.floats(-1.25, 1.25, width=32), st.sampled_from([-1.0, 1.0, 0.0, 0.5, -0.5]))


@st.composite
def splines(draw: st.DrawFn) -> Operation:
    half = draw(st.sampled_from([0.5, 1.0, 3.0, 10.0]))
    if draw(st.booleans()):
        return ModifiedRQ(draw(st.sampled_from(["exp", "softclip"])), interval=(-half, half))
    return RQ(
        draw(st.integers(1, 12)),
        draw(st.sampled_from(["linear", "circular"])),
        draw(st.sampled_from(["softmax", "softclip"])),
        bounds=(-half, half, -half, half),
    )


@st.composite
def affines(draw: st.DrawFn) -> Operation:
    return Affine(draw(st.sampled_from(sorted(SCALES))), draw(st.booleans()), draw(st.booleans()))


def _params(draw: Any, operation: Operation) -> Tensor:
    values = draw(st.lists(logits, min_size=operation.num_params, max_size=operation.num_params))
    params = torch.tensor(values)
    if isinstance(operation, ModifiedRQ):
        params[3] = params[3].clamp(-4.0, 4.0)
    if isinstance(operation, Affine):
        params = params.clamp(-8.0, 8.0)
    return params


def _points(draw: Any, operation: Operation, count: int) -> Tensor:
    values = draw(st.lists(unit, min_size=count, max_size=count))
    return torch.tensor(values) * operation.box[1]


def _apply(
    operation: Operation, x: Tensor, params: Tensor, where: Target, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """One set of parameters (P,) for all of x (N,)."""
    packed = params.to(x.dtype).expand(x.numel(), -1).contiguous()
    groups = Layout("line", (x.numel(),), params_last=True).lay_params(packed, operation.parts)
    with where.chosen():
        y, logabsdet = operation.call(
            x.to(where.device), tuple(g.to(where.device) for g in groups), inverse, "none"
        )
    return y.cpu(), logabsdet.cpu()


@each_target
@given(data=st.data(), operation=splines())
def test_monotone(where: Target, data: st.DataObject, operation: Operation) -> None:
    """x <= x' gives y <= y' up to a rounding of the box, forward and inverse, tails included."""
    params = _params(data.draw, operation)
    x = _points(data.draw, operation, 24).sort().values
    if isinstance(operation, ModifiedRQ):
        slack = 4.0 * torch.finfo(x.dtype).eps * (operation.box[1] + abs(float(params[3])))
    else:
        slack = 2.0 * torch.finfo(x.dtype).eps * operation.box[1]
    for inverse in (False, True):
        y, logabsdet = _apply(operation, x, params, where, inverse)
        assert bool((y.diff() >= -slack).all())
        assert bool(y.isfinite().all()) and bool(logabsdet.isfinite().all())


@each_target
@given(data=st.data(), operation=st.one_of(splines(), affines()))
def test_inverse_of_forward(where: Target, data: st.DataObject, operation: Operation) -> None:
    """In float64, to what rounding y costs through the steepest slope nearby."""
    params = _params(data.draw, operation).clamp(-10.0, 10.0).double()
    x = _points(data.draw, operation, 16).double()
    y, logabsdet = _apply(operation, x, params, where)
    back, log_inverse = _apply(operation, y, params, where, inverse=True)
    size = torch.maximum(x.abs(), y.abs()).clamp(min=operation.box[1])
    ulp = torch.finfo(torch.float64).eps * size
    # The slope may change within a rounding of a knot: the flatter of both ends counts.
    slope = torch.minimum(logabsdet, -log_inverse).exp().clamp(max=1.0)
    assert bool(((back - x).abs() <= 64.0 * ulp / slope).all())
    _, again = _apply(operation, back, params, where)
    assert bool(((again + log_inverse).abs() <= 1e-6).all())


@each_target
@given(data=st.data(), operation=st.one_of(splines(), affines()))
def test_logabsdet_is_the_log_of_the_derivative(
    where: Target, data: st.DataObject, operation: Operation
) -> None:
    """log |dy/dx| by autograd through y alone, forward and inverse."""
    params = _params(data.draw, operation).clamp(-12.0, 12.0).double()
    x = _points(data.draw, operation, 16).double()
    for inverse in (False, True):
        x = x.detach().requires_grad_()
        y, logabsdet = _apply(operation, x, params, where, inverse)
        (slope,) = torch.autograd.grad(y.sum(), x)
        torch.testing.assert_close(slope.log(), logabsdet, rtol=1e-9, atol=1e-9)


@each_target
@given(data=st.data(), operation=splines())
def test_a_spline_stays_within_the_box(
    where: Target, data: st.DataObject, operation: Operation
) -> None:
    """|T(x) - x - shift| is below the box's length, whatever the parameters; the inverse's too."""
    params = _params(data.draw, operation)
    x = _points(data.draw, operation, 16)
    shift = params[3] if isinstance(operation, ModifiedRQ) else torch.zeros(())
    low, high = operation.box
    y, _ = _apply(operation, x, params, where)
    assert bool(((y - shift - x).abs() < high - low + 1e-5).all())
    back, _ = _apply(operation, x, params, where, inverse=True)
    assert bool(((back - (x - shift)).abs() < high - low + 1e-5).all())


@each_target
@given(
    data=st.data(),
    operation=st.one_of(splines(), affines()),
    sizes=st.lists(st.integers(1, 5), min_size=2, max_size=4),
)
def test_layout_does_not_matter(
    where: Target, data: st.DataObject, operation: Operation, sizes: list[int]
) -> None:
    """Any order of axes in memory of x and of the packed parameters gives the same bits."""
    shape = tuple(sizes)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1 << 30)))
    params = operation.sample_params(shape, generator)
    x = operation.sample_x(params, generator, False).float()
    packed = Layout("any", shape).pack(params.float())
    found = []
    for shuffle in (False, True):
        tensors = [x, packed]
        if shuffle:
            tensors = [_shuffled(tensor, data.draw) for tensor in tensors]
        with where.chosen():
            x_in, packed_in = (t.to(where.device).requires_grad_() for t in tensors)
            y, logabsdet = operation.call(x_in, (packed_in,), False, "none")
            grads = torch.autograd.grad(y.sum() + 2.0 * logabsdet.sum(), (x_in, packed_in))
        found.append([t.detach().cpu() for t in (y, logabsdet, *grads)])
    for one, other in zip(*found, strict=True):
        if where.backend == "reference":  # torch's own kernels promise less
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(one, other)


def _shuffled(tensor: Tensor, draw: Any) -> Tensor:
    """The same values with the axes in another order in memory."""
    order = draw(st.permutations(range(tensor.dim())))
    back = [order.index(dim) for dim in range(tensor.dim())]
    return tensor.permute(order).contiguous().permute(back)


@each_target
@given(data=st.data(), operation=st.one_of(splines(), affines()))
def test_the_sum_is_the_sum(where: Target, data: st.DataObject, operation: Operation) -> None:
    """reduce="sum" adds what reduce="none" gives, for any sizes."""
    rows, columns = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 70))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1 << 30)))
    params = operation.sample_params((rows, columns), generator)
    x = operation.sample_x(params, generator, False).double().to(where.device)
    packed = Layout("any", (rows, columns)).pack(params).to(where.device)
    with robustflow.use_backend(where.backend):
        _, each = operation.call(x, (packed,), False, "none")
        _, total = operation.call(x, (packed,), False, "sum")
    torch.testing.assert_close(total, each.sum(dim=1), rtol=1e-11, atol=1e-11)
