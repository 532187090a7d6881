"""Contract: half types are computed in float32 and rounded once; autocast changes nothing."""

from __future__ import annotations

import pytest
import torch

from tests.conformance import operations
from tests.conformance.operations import Operation
from tests.conformance.samples import Sample, sample
from tests.conformance.targets import Target

HALF = (torch.bfloat16, torch.float16)
each_operation = pytest.mark.parametrize(
    "operation", operations.REPRESENTATIVES, ids=lambda op: op.name
)
both_directions = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])


@pytest.mark.parametrize(
    ("x_dtype", "params_dtype", "logabsdet_dtype"),
    [
        (torch.float64, torch.float64, torch.float64),
        (torch.float32, torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16, torch.float32),
        (torch.float16, torch.float16, torch.float32),
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.float32, torch.float16, torch.float32),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float32, torch.float64, torch.float64),
        (torch.float64, torch.float32, torch.float64),
    ],
    ids=str,
)
@each_operation
def test_dtypes_of_results(
    target: Target,
    operation: Operation,
    x_dtype: torch.dtype,
    params_dtype: torch.dtype,
    logabsdet_dtype: torch.dtype,
) -> None:
    call = sample(operation, target, dtype=x_dtype, params_dtype=params_dtype)
    for reduce in ("none", "sum"):
        y, logabsdet, grad_x, *grad_groups = call.gradients(reduce=reduce)
        assert (y.dtype, logabsdet.dtype, grad_x.dtype) == (x_dtype, logabsdet_dtype, x_dtype)
        assert {grad.dtype for grad in grad_groups} == {params_dtype}


@both_directions
@pytest.mark.parametrize("half", HALF, ids=str)
@each_operation
def test_half_is_float32_rounded_once(
    native_target: Target, operation: Operation, half: torch.dtype, inverse: bool
) -> None:
    """Results are those of the widened inputs to the last bit; only what is stored is rounded."""
    narrow = sample(operation, native_target, dtype=half, inverse=inverse)
    wide = Sample(
        operation, narrow.layout, narrow.x.float(), tuple(g.float() for g in narrow.groups)
    )
    for call in (narrow, wide):
        call.requires_grad_()
    y, logabsdet = narrow.call(inverse)
    y_wide, logabsdet_wide = wide.call(inverse)
    assert torch.equal(y, y_wide.to(half))
    assert torch.equal(logabsdet, logabsdet_wide)

    generator = torch.Generator().manual_seed(1)
    grad_y, grad_logabsdet = (
        torch.randn(y.shape, generator=generator).to(y.device, dtype)
        for dtype in (half, torch.float32)
    )
    grads = torch.autograd.grad((y, logabsdet), narrow.tensors, (grad_y, grad_logabsdet))
    wide_grads = torch.autograd.grad(
        (y_wide, logabsdet_wide), wide.tensors, (grad_y.float(), grad_logabsdet)
    )
    for grad, wide_grad in zip(grads, wide_grads, strict=True):
        assert torch.equal(grad, wide_grad.to(half))


@pytest.mark.parametrize("half", HALF, ids=str)
@each_operation
def test_shared_gradients_are_summed_in_float32(
    native_target: Target, operation: Operation, half: torch.dtype
) -> None:
    """4096 equal terms: a sum in a half type would stop growing at 256 or 2048 of them."""
    count = 1 << 12
    one = operation.sample_params((1, 1), torch.Generator().manual_seed(3)).to(half)
    groups = one.split(operation.parts, dim=-1)
    if len(operation.parts) == 1:
        groups = (one.flatten(1),)
    groups = tuple(group.to(native_target.device).requires_grad_() for group in groups)
    x = torch.full((count, 1), 0.125, dtype=half, device=native_target.device)
    y, _ = operation.call(x[:1], groups, False, "none")
    single = torch.autograd.grad(y, groups, torch.full_like(y, 1 / 256))
    y, _ = operation.call(x, groups, False, "none")
    summed = torch.autograd.grad(y, groups, torch.full_like(y, 1 / 256))
    info = torch.finfo(half)
    for total, term in zip(summed, single, strict=True):
        expected = count * term.double()
        bound = info.eps * expected.abs() + count * info.smallest_normal * info.eps
        assert bool(((total.double() - expected).abs() <= bound).all())


@pytest.mark.parametrize("autocast", HALF, ids=str)
@pytest.mark.parametrize("params_dtype", [torch.float32, torch.bfloat16], ids=str)
@each_operation
def test_autocast_changes_nothing(
    target: Target, operation: Operation, params_dtype: torch.dtype, autocast: torch.dtype
) -> None:
    call = sample(operation, target, params_dtype=params_dtype)
    for inverse in (False, True):
        expected = call.gradients(inverse, "sum")
        with torch.autocast(target.device, dtype=autocast):
            actual = call.gradients(inverse, "sum")
        for one, other in zip(actual, expected, strict=True):
            assert one.dtype == other.dtype
            assert torch.equal(one, other)
