"""Contract: any shape and layout goes in; the gradient comes back in the parameter's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import robustflow
import robustflow.functional as F
from tests.conformance import layouts, operations
from tests.conformance.layouts import Layout
from tests.conformance.operations import RQ, Affine, ModifiedRQ, Operation
from tests.conformance.samples import Sample, sample
from tests.conformance.targets import Target

PACKED = tuple(op for op in operations.REPRESENTATIVES if len(op.parts) == 1)
SEPARATE = RQ(8, "linear", "softmax", separate=True)
each_packed = pytest.mark.parametrize("operation", PACKED, ids=lambda op: op.name)
each_operation = pytest.mark.parametrize(
    "operation", operations.REPRESENTATIVES, ids=lambda op: op.name
)

EMPTY = [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0), (0, 3), (2, 0)]


@pytest.mark.parametrize("shape", EMPTY, ids=str)
@each_packed
def test_empty(target: Target, operation: Operation, shape: tuple[int, ...]) -> None:
    channels = shape[1] * operation.num_params
    with torch.device(target.device):
        x = torch.zeros(shape, requires_grad=True)
        params = torch.zeros(shape[0], channels, *shape[2:], requires_grad=True)
    for inverse in (False, True):
        for reduce, expected in (("none", shape), ("sum", shape[:1])):
            y, logabsdet = operation.call(x, (params,), inverse, reduce)
            assert y.shape == x.shape and logabsdet.shape == expected
            assert bool((logabsdet == 0).all())
            grads = torch.autograd.grad((y.sum() + logabsdet.sum()), (x, params))
            assert grads[0].shape == x.shape and grads[1].shape == params.shape


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)], ids=str)
def test_empty_separate(target: Target, shape: tuple[int, ...]) -> None:
    with torch.device(target.device):
        x = torch.zeros(shape, requires_grad=True)
        groups = tuple(torch.zeros(*shape, size, requires_grad=True) for size in SEPARATE.parts)
    y, logabsdet = SEPARATE.call(x, groups, False, "none")
    assert y.shape == shape and logabsdet.shape == shape
    grads = torch.autograd.grad(y.sum() + logabsdet.sum(), (x, *groups))
    assert [g.shape for g in grads] == [t.shape for t in (x, *groups)]


@each_packed
def test_empty_batch_of_shared_parameters(target: Target, operation: Operation) -> None:
    """No sample at all: the shared parameters' gradient is a sum of nothing, zero everywhere."""
    with torch.device(target.device):
        x = torch.zeros(0, 3, 4, requires_grad=True)
        params = torch.zeros(1, 3 * operation.num_params, 4, requires_grad=True)
    y, logabsdet = operation.call(x, (params,), False, "sum")
    (grad,) = torch.autograd.grad(y.sum() + logabsdet.sum(), (params,))
    assert torch.equal(grad, torch.zeros_like(params))


@pytest.mark.parametrize("reduce", ["none", "sum"])
@each_operation
def test_0d(target: Target, operation: Operation, reduce: str) -> None:
    """One number; "sum" has nothing to sum."""
    layout = Layout("0d", (), params_last=True)
    one = sample(operation, target, layout=layout, dtype=torch.float64)
    y, logabsdet, grad_x, *_ = one.gradients(reduce=reduce)
    expected, wanted_logabsdet = operation.oracle(one.x, one.canonical(), False)
    assert y.shape == logabsdet.shape == grad_x.shape == ()
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(logabsdet, wanted_logabsdet)


@pytest.mark.parametrize("reduce", ["none", "sum"])
@each_operation
def test_1d(target: Target, operation: Operation, reduce: str) -> None:
    layout = Layout("1d", (131,), params_last=True)
    line = sample(operation, target, layout=layout, dtype=torch.float64)
    y, logabsdet = line.call(reduce=reduce)
    expected, wanted_logabsdet = operation.oracle(line.x, line.canonical(), False)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(logabsdet, wanted_logabsdet)


@pytest.mark.parametrize("dims", range(2, 9))
@each_packed
def test_many_dimensions(target: Target, operation: Operation, dims: int) -> None:
    """Up to eight, with dimensions that no reshape can merge."""
    shape = (2, 3, 2, 3, 2, 1, 2, 3)[:dims]
    layout = Layout("deep", shape, layouts.reversed_axes, layouts.sliced)
    deep = sample(operation, target, layout=layout, dtype=torch.float64)
    for reduce in ("none", "sum"):
        y, logabsdet, *_ = deep.gradients(reduce=reduce)
        expected, each = operation.oracle(deep.x.detach(), deep.canonical().detach(), False)
        torch.testing.assert_close(y, expected)
        total = each.sum(dim=tuple(range(1, dims))) if reduce == "sum" else each
        torch.testing.assert_close(logabsdet, total)


def _same_order(gradient: Tensor, tensor: Tensor) -> bool:
    """Strides in the same order and dense: the layout, whatever the gaps of a sliced original."""
    dims = [dim for dim in range(tensor.dim()) if tensor.shape[dim] > 1]
    order = sorted(dims, key=lambda dim: tensor.stride(dim))
    strides = [gradient.stride(dim) for dim in order]
    dense = []
    step = 1
    for dim in order:
        dense.append(step)
        step *= tensor.shape[dim]
    return strides == dense


@pytest.mark.parametrize(
    "layout",
    [
        layout
        for layout in layouts.PACKED + layouts.SEPARATE
        if not layout.expanded and not layout.x_expanded and layout.shape
    ],
    ids=str,
)
def test_gradient_has_the_layout_of_its_parameter(native_target: Target, layout: Layout) -> None:
    """One dense tensor each, strides in the parameter's order: nothing downstream copies."""
    separate = layout in layouts.SEPARATE
    for operation in (SEPARATE,) if separate else PACKED:
        call = sample(operation, native_target, layout=layout)
        _, _, grad_x, *grads = call.gradients()
        for gradient, group in zip(grads, call.groups, strict=True):
            assert _same_order(gradient, group), (gradient.stride(), group.stride())
            assert gradient.untyped_storage().nbytes() == gradient.numel() * gradient.element_size()
        assert _same_order(grad_x, call.x)


@pytest.mark.parametrize(
    "layout", [layouts.PLANAR, layouts.ROWS, layouts.PACKED[2], layouts.PACKED[5]], ids=str
)
@each_packed
def test_y_has_the_layout_of_x(native_target: Target, operation: Operation, layout: Layout) -> None:
    call = sample(operation, native_target, layout=layout)
    y, _ = call.call()
    assert _same_order(y, call.x), (y.stride(), call.x.stride())


@each_operation
def test_inputs_are_left_alone(target: Target, operation: Operation) -> None:
    call = sample(operation, target)
    before = [tensor.detach().clone() for tensor in call.tensors]
    for inverse in (False, True):
        y, logabsdet, *_ = call.gradients(inverse, "sum")
        y.zero_()
        logabsdet.zero_()
    assert all(torch.equal(a, b) for a, b in zip(before, call.tensors, strict=True))


@each_operation
def test_outputs_share_no_memory(target: Target, operation: Operation) -> None:
    """Writing into y changes neither x nor logabsdet, even where y equals x."""
    call = sample(operation, target)
    y, logabsdet = call.call()
    places = {t.untyped_storage().data_ptr() for t in (y, logabsdet, *call.tensors)}
    assert len(places) == 2 + len(call.tensors)


@pytest.mark.parametrize("asked", ["y", "logabsdet"])
@each_operation
def test_gradient_of_one_output(target: Target, operation: Operation, asked: str) -> None:
    """The other's cotangent is None inside: the same as zeros."""
    for inverse in (False, True):
        call = sample(operation, target, dtype=torch.float64, inverse=inverse).requires_grad_()
        y, logabsdet = call.call(inverse)
        zero_y, zero_l = torch.zeros_like(y), torch.zeros_like(logabsdet)
        one_y, one_l = torch.full_like(y, 1.25), torch.full_like(logabsdet, 1.25)
        if asked == "y":
            alone = torch.autograd.grad(y, call.tensors, one_y, retain_graph=True)
            both = torch.autograd.grad((y, logabsdet), call.tensors, (one_y, zero_l))
        else:
            alone = torch.autograd.grad(
                logabsdet, call.tensors, one_l, retain_graph=True, materialize_grads=True
            )
            both = torch.autograd.grad((y, logabsdet), call.tensors, (zero_y, one_l))
        for one, other in zip(alone, both, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@each_operation
def test_strange_cotangents(target: Target, operation: Operation) -> None:
    """Expanded, transposed and sliced cotangents of y, and an expanded one of logabsdet."""
    layout = Layout("square", (6, 7))
    call = sample(operation, target, layout=layout, dtype=torch.float64).requires_grad_()
    y, logabsdet = call.call()
    base = torch.randn(7, 6).to(y)
    for grad_y in (
        torch.tensor(0.5).to(y).expand(6, 7),
        base.T,
        torch.randn(12, 14).to(y)[::2, 1::2],
        base[:1, :1].expand(6, 7),
    ):
        for grad_logabsdet in (grad_y, torch.tensor(-2.0).to(y).expand(6, 7)):
            strange = torch.autograd.grad(
                (y, logabsdet), call.tensors, (grad_y, grad_logabsdet), retain_graph=True
            )
            plain = torch.autograd.grad(
                (y, logabsdet),
                call.tensors,
                (grad_y.contiguous(), grad_logabsdet.contiguous()),
                retain_graph=True,
            )
            assert all(torch.equal(a, b) for a, b in zip(strange, plain, strict=True))


@pytest.mark.parametrize("shared", [(0,), (2,), (0, 2)], ids=str)
@each_packed
def test_shared_is_expanded_and_summed(
    target: Target, operation: Operation, shared: tuple[int, ...]
) -> None:
    """Size-1 dimensions give what the expanded parameters give, the gradient summed."""
    shared_layout = Layout("shared", (4, 3, 37), shared=shared)
    call = sample(operation, target, layout=shared_layout, dtype=torch.float64)
    channels = call.groups[0].shape[1]
    full = call.groups[0].detach().expand(4, channels, 37).contiguous()
    dense = Sample(operation, Layout("dense", (4, 3, 37)), call.x.detach().clone(), (full,))
    *_, grad_x, grad = call.gradients()
    *_, dense_grad_x, dense_grad = dense.gradients()
    torch.testing.assert_close(grad_x, dense_grad_x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grad, dense_grad.sum(dim=shared, keepdim=True))


def test_groups_may_broadcast_each_in_its_own_way(target: Target) -> None:
    """Widths one for all, heights a row each, derivatives a column each."""
    shape = (5, 4)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(shape, generator=generator).to(target.device, torch.float64).requires_grad_()
    groups = tuple(
        torch.randn(*lead, size, generator=generator)
        .to(target.device, torch.float64)
        .requires_grad_()
        for lead, size in (((), 8), ((5, 1), 8), ((4,), 7))
    )
    y, logabsdet = SEPARATE.call(x, groups, False, "none")
    full = tuple(g.detach().expand(*shape, g.shape[-1]).requires_grad_() for g in groups)
    expected = SEPARATE.oracle(x, torch.cat(full, dim=-1), False)
    expanded = SEPARATE.call(x, full, False, "none")
    torch.testing.assert_close((y, logabsdet), expected)
    torch.testing.assert_close((y, logabsdet), expanded)
    grads = torch.autograd.grad(y.sum() + logabsdet.sum(), groups)
    dense = torch.autograd.grad(expanded[0].sum() + expanded[1].sum(), full)
    for grad, group, other in zip(grads, groups, dense, strict=True):
        torch.testing.assert_close(grad, other.sum_to_size(group.shape))


@pytest.mark.parametrize("separate_log_scale", [False, True])
def test_affine_with_its_scale_apart(target: Target, separate_log_scale: bool) -> None:
    """params alone, or shift and log_scale as two tensors (here views of one): the same."""
    both = sample(Affine("sigmoid"), target, layout=layouts.PLANAR, dtype=torch.float64)
    y, logabsdet, *_ = both.gradients(reduce="sum")
    shift, log_scale = both.canonical().detach().unbind(-1)
    if not separate_log_scale:
        shift, log_scale = shift.contiguous(), log_scale.contiguous()
    x = both.x.detach().requires_grad_()
    shift.requires_grad_()
    log_scale.requires_grad_()
    other = F.conditional_affine(x, shift, log_scale)
    assert torch.equal(other[0], y) and torch.equal(other[1], logabsdet)
    shift_grad, scale_grad = torch.autograd.grad(
        other[0].sum() + other[1].sum(), (shift, log_scale)
    )
    both.requires_grad_()
    again = both.call(reduce="sum")
    (packed_grad,) = torch.autograd.grad(again[0].sum() + again[1].sum(), both.groups)
    packed = both.layout.canonical((packed_grad,), (2,))
    torch.testing.assert_close(torch.stack([shift_grad, scale_grad], dim=-1), packed)


@each_packed
def test_large_tensor_offsets(native_host: Target, operation: Operation) -> None:
    """Strides whose offsets pass 2^31 elements: only the touched pages of the storage exist.

    A GPU has no such sparse memory: tests/backends/gpu/test_large.py fills its tensors.
    """
    far = 1 << 31
    storage = torch.empty(far + 4096, dtype=torch.bfloat16)
    num_params = operation.num_params
    params = storage.as_strided((2, num_params), (far, 1))
    params.copy_(operation.sample_params((2,), torch.Generator().manual_seed(0)))
    x = storage.as_strided((2,), (far,), 2048).fill_(0.125)
    y, logabsdet = _line(operation, x, params)
    expected, wanted_logabsdet = _line(operation, x.contiguous(), params.contiguous())
    assert torch.equal(y, expected) and torch.equal(logabsdet, wanted_logabsdet)


def _line(operation: Operation, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    return operation.call(x, (params,), False, "none")


@pytest.mark.parametrize("num_bins", [256, 257, 400])
def test_many_bins(target: Target, num_bins: int) -> None:
    """No number of bins is too large: where a kernel ends, the reference answers."""
    operation = RQ(num_bins, "linear", "softmax")
    layout = Layout("many", (5, 2))
    call = sample(operation, target, layout=layout, dtype=torch.float64).requires_grad_()
    actual = call.gradients(reduce="sum")
    with robustflow.use_backend("reference"):
        expected = call.gradients(reduce="sum")
    torch.testing.assert_close(actual, expected)


def test_modified_rq_is_the_identity_at_zero(target: Target) -> None:
    """To half an ulp of the box in float32, and |l| to 3e-7."""
    x = torch.linspace(-0.6, 0.6, 10_001, device=target.device)
    params = torch.zeros(10_001, 4, device=target.device)
    for inverse in (False, True):
        y, logabsdet = ModifiedRQ("exp").call(x, (params,), inverse, "none")
        assert float((y - x).abs().max()) <= 2.0**-24
        assert float(logabsdet.abs().max()) <= 3e-7
