"""Contract: an element has the same bits wherever it lies and for any number of threads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.conformance import layouts
from tests.conformance.layouts import Layout
from tests.conformance.operations import RQ, Affine, ModifiedRQ, Operation
from tests.conformance.samples import Sample, sample
from tests.conformance.targets import Target

PACKED_OPERATIONS: tuple[Operation, ...] = (
    ModifiedRQ("exp"),
    RQ(8, "linear", "softmax"),
    RQ(5, "circular", "softclip"),
    Affine("sigmoid"),
)
BITS_OPERATIONS = (*PACKED_OPERATIONS, RQ(8, "linear", "softmax", separate=True))
HALF_AND_FULL = (torch.float32, torch.bfloat16, torch.float64)
both_directions = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
each_operation = pytest.mark.parametrize("operation", BITS_OPERATIONS, ids=lambda op: op.name)
each_packed = pytest.mark.parametrize("operation", PACKED_OPERATIONS, ids=lambda op: op.name)


def assert_same_bits(actual: Tensor, expected: Tensor, what: str) -> None:
    """Equal bit for bit (NaN equal to itself), whatever the strides."""
    assert actual.shape == expected.shape and actual.dtype == expected.dtype, what
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    differing = int((~same).sum())
    assert differing == 0, f"{what}: {differing} of {same.numel()} elements differ"


def assert_all_same_bits(
    actual: tuple[Tensor, ...], expected: tuple[Tensor, ...], what: str
) -> None:
    names = ["y", "logabsdet", "grad_x", *(f"grad of group {i}" for i in range(len(actual)))]
    for name, one, other in zip(names, actual, expected, strict=False):
        assert_same_bits(one, other, f"{name} {what}")


def _in_layout(base: Sample, layout: Layout) -> Sample:
    """The values of ``base`` laid out otherwise."""
    groups = layout.lay_params(base.canonical(), base.operation.parts)
    detached = tuple(group.detach() for group in groups)
    return Sample(base.operation, layout, layout.lay_x(base.x).detach(), detached)


def _dense_layouts(operation: Operation) -> list[Layout]:
    """Every other layout that holds the same tensors without sharing or repeating anything."""
    packed = len(operation.parts) == 1
    usual = layouts.PLANAR if packed else layouts.SEPARATE_ROWS
    return [
        layout
        for layout in (layouts.PACKED if packed else layouts.SEPARATE)
        if layout.shape == usual.shape
        and layout is not usual
        and not (layout.shared or layout.x_expanded or layout.one_cotangent)
    ]


def _canonical(sample_: Sample, results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Results with the parameters' gradients as one canonical tensor, to compare layouts."""
    y, logabsdet, grad_x, *groups = results
    canonical = sample_.layout.canonical(tuple(groups), sample_.operation.parts)
    return y, logabsdet, grad_x, canonical


@both_directions
@each_operation
def test_layout(native_target: Target, operation: Operation, inverse: bool) -> None:
    for dtype in HALF_AND_FULL:
        base = sample(operation, native_target, dtype=dtype, inverse=inverse)
        expected = _canonical(base, base.gradients(inverse))
        for layout in _dense_layouts(operation):
            other = _in_layout(base, layout)
            actual = _canonical(other, other.gradients(inverse))
            assert_all_same_bits(actual, expected, f"in layout {layout}, {dtype}")


@both_directions
@each_operation
def test_position(native_target: Target, operation: Operation, inverse: bool) -> None:
    """The last n elements alone give what they gave among the others, for every remainder n."""
    layout = Layout("line", (1, 1, 70)) if len(operation.parts) == 1 else Layout("line", (70,))
    for dtype in HALF_AND_FULL:
        base = sample(operation, native_target, layout=layout, dtype=dtype, inverse=inverse)
        y, logabsdet = base.call(inverse)
        for count in range(1, 70):
            tail = slice(70 - count, None)
            if len(operation.parts) == 1:
                groups = tuple(group[..., tail].contiguous() for group in base.groups)
            else:
                groups = tuple(group[tail].contiguous() for group in base.groups)
            part = operation.call(base.x[..., tail].contiguous(), groups, inverse, "none")
            expected = (y[..., tail], logabsdet[..., tail])
            assert_all_same_bits(part, expected, f"of the last {count}, {dtype}")


@both_directions
@each_operation
def test_position_of_gradients(native_target: Target, operation: Operation, inverse: bool) -> None:
    layout = Layout("line", (1, 1, 70)) if len(operation.parts) == 1 else Layout("line", (70,))
    base = sample(operation, native_target, layout=layout, inverse=inverse).requires_grad_()
    grads = torch.autograd.grad([t.sum() for t in base.call(inverse)], base.tensors)
    for count in (1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 48, 63, 69):
        part = [t.detach()[..., 70 - count :] for t in base.tensors]
        expected = [grad[..., 70 - count :] for grad in grads]
        if len(operation.parts) > 1:
            part[1:] = [t.detach()[70 - count :] for t in base.groups]
            expected[1:] = [grad[70 - count :] for grad in grads[1:]]
        part = [t.contiguous().requires_grad_() for t in part]
        made = operation.call(part[0], tuple(part[1:]), inverse, "none")
        actual = torch.autograd.grad([t.sum() for t in made], part)
        for one, other in zip(actual, expected, strict=True):
            assert_same_bits(one, other, f"gradient of the last {count}")


@pytest.mark.parametrize("shared", [(), (0,), (2, 3), (0, 2, 3)], ids=str)
@each_packed
def test_thread_count(native_host: Target, operation: Operation, shared: tuple[int, ...]) -> None:
    """Large enough to be shared out; sums over samples and over shared parameters included."""
    layout = Layout("large", (3, 2, 96, 131), shared=shared)
    base = sample(operation, native_host, layout=layout)
    for inverse in (False, True):
        for reduce in ("none", "sum"):
            torch.set_num_threads(1)
            expected = base.gradients(inverse, reduce)
            torch.set_num_threads(2)
            what = f"with two threads, inverse={inverse}, reduce={reduce}"
            assert_all_same_bits(base.gradients(inverse, reduce), expected, what)


@pytest.mark.parametrize("shared", [(), (0,)], ids=str)
@each_operation
def test_thread_count_rows(
    native_host: Target, operation: Operation, shared: tuple[int, ...]
) -> None:
    base = sample(operation, native_host, layout=Layout("many", (20_011, 3), shared=shared))
    for inverse in (False, True):
        for reduce in ("none", "sum"):
            torch.set_num_threads(1)
            expected = base.gradients(inverse, reduce)
            torch.set_num_threads(2)
            what = f"with two threads, inverse={inverse}, reduce={reduce}"
            assert_all_same_bits(base.gradients(inverse, reduce), expected, what)


# Results beyond 32 MiB are written by streaming stores, those of one sample alone are not. Aligned
# to cache lines, not aligned, and as rows.
LARGE, OFF_LINES, LARGE_SPLINES = (5, 1, 1024, 1152), (5, 1, 1023, 1025), (5, 1, 384, 384)
_BEYOND: tuple[tuple[Operation, Layout], ...] = (
    (ModifiedRQ("softclip"), Layout("planar", LARGE)),
    (ModifiedRQ("softclip"), Layout("planar, off lines", OFF_LINES)),
    (ModifiedRQ("softclip"), Layout("rows", LARGE, params_last=True)),
    (Affine("sigmoid"), Layout("planar", LARGE)),
    (Affine("sigmoid"), Layout("rows", LARGE, params_last=True)),
    (RQ(8, "linear", "softmax"), Layout("planar", LARGE_SPLINES)),
    (RQ(8, "linear", "softmax"), Layout("rows", LARGE_SPLINES, params_last=True)),
)


# A half type's planes pass through buffers, and are written as usual.
BEYOND_THE_CACHES = [
    (operation, layout, dtype)
    for operation, layout in _BEYOND
    for dtype in (torch.float32, torch.bfloat16)
    if dtype is torch.float32 or layout.params_last
]


@pytest.mark.parametrize(
    "operation, layout, dtype",
    BEYOND_THE_CACHES,
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_results_beyond_the_caches(
    native_host: Target, operation: Operation, layout: Layout, dtype: torch.dtype
) -> None:
    whole = sample(operation, native_host, layout=layout, dtype=dtype)
    cotangent = torch.ones(layout.shape, dtype=dtype)

    def results(x: Tensor, groups: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        tensors = [t.clone().requires_grad_() for t in (x, *groups)]
        y, logabsdet = operation.call(tensors[0], tuple(tensors[1:]), False, "sum")
        weights = (cotangent[: len(x)], torch.ones_like(logabsdet))
        return y, logabsdet, *torch.autograd.grad((y, logabsdet), tensors, weights)

    made = results(whole.x, whole.groups)
    for index in range(layout.shape[0]):
        one = slice(index, index + 1)
        alone = results(whole.x[one], tuple(group[one] for group in whole.groups))
        assert_all_same_bits(alone, tuple(t[one] for t in made), f"of sample {index}")


@pytest.mark.parametrize("size", ["short", "long"])
@each_operation
def test_reduce(native_target: Target, operation: Operation, size: str) -> None:
    """reduce changes nothing but logabsdet, whose sum is that of the elements."""
    layout = None if size == "short" else Layout("long", (2, 2, 59, 71))
    for dtype in (torch.float32, torch.bfloat16):
        for inverse in (False, True):
            base = sample(operation, native_target, layout=layout, dtype=dtype, inverse=inverse)
            y, logabsdet = base.call(inverse, "none")
            y_sum, total = base.call(inverse, "sum")
            assert_same_bits(y_sum, y, "y with reduce='sum'")
            elements = logabsdet.double().flatten(1)
            # One logarithm of a product and the sum of many round differently: at random, and by
            # as much as the logarithm itself is off.
            bound = 2.0**-24 * (elements.abs().sum(1) + elements.shape[1] ** 0.5 + total.abs())
            assert bool(((total.double() - elements.sum(1)).abs() <= bound).all())


@each_operation
def test_gradients_do_not_depend_on_reduce(native_target: Target, operation: Operation) -> None:
    base = sample(operation, native_target).requires_grad_()
    for inverse in (False, True):
        found = []
        for reduce in ("none", "sum"):
            y, logabsdet = base.call(inverse, reduce)
            found.append(torch.autograd.grad((y.sum(), logabsdet.sum()), base.tensors))
        assert_all_same_bits(found[1], found[0], "with reduce='sum'")


@each_operation
def test_runs(native_target: Target, operation: Operation) -> None:
    """The same call twice, sums included."""
    for reduce in ("none", "sum"):
        base = sample(operation, native_target)
        assert_all_same_bits(base.gradients(False, reduce), base.gradients(False, reduce), "again")


@each_packed
def test_neighbours_in_the_batch(native_target: Target, operation: Operation) -> None:
    """A sample's sum does not depend on which samples stand beside it."""
    layout = Layout("batch", (5, 3, 9, 11))
    base = sample(operation, native_target, layout=layout)
    _, totals = base.call(reduce="sum")
    for index in range(5):
        one = slice(index, index + 1)
        groups = tuple(group[one].contiguous() for group in base.groups)
        _, alone = operation.call(base.x[one].contiguous(), groups, False, "sum")
        assert_same_bits(alone, totals[one], f"sum of sample {index}")


@pytest.mark.parametrize("kept", [(0,), (1,), (0, 1)], ids=["x", "params", "both"])
@each_packed
def test_gradients_asked_for(
    native_target: Target, operation: Operation, kept: tuple[int, ...]
) -> None:
    """Asking for fewer gradients changes none of those asked for."""
    base = sample(operation, native_target)
    for inverse in (False, True):
        expected = base.gradients(inverse)
        tensors = [t.detach() for t in base.tensors]
        asked = [tensors[index].requires_grad_() for index in kept]
        y, logabsdet = operation.call(tensors[0], tuple(tensors[1:]), inverse, "none")
        generator = torch.Generator().manual_seed(1)
        cotangents = [
            torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t)
            for t in (y, logabsdet)
        ]
        actual = torch.autograd.grad((y, logabsdet), asked, cotangents)
        for grad, index in zip(actual, kept, strict=True):
            assert_same_bits(grad, expected[2 + index], f"gradient {index} alone")


@pytest.mark.parametrize(
    "kind", [RQ(8), RQ(5), RQ(8, "circular", "softclip")], ids=lambda k: k.name
)
def test_packed_and_separate(native_target: Target, kind: RQ) -> None:
    """The same parameters in one tensor and in three."""
    packed = sample(kind, native_target, layout=layouts.ROWS)
    split = RQ(kind.num_bins, kind.tails, kind.parametrization, separate=True)
    groups = tuple(g.contiguous() for g in packed.canonical().split(split.parts, dim=-1))
    separate = Sample(split, layouts.SEPARATE_ROWS, packed.x, groups)
    for inverse in (False, True):
        actual = _canonical(separate, separate.gradients(inverse))
        assert_all_same_bits(actual, _canonical(packed, packed.gradients(inverse)), "separately")


@pytest.mark.parametrize("reduce", ["none", "sum"])
@pytest.mark.parametrize("period", [1, 2, 7, 16, 31, 32, 33])
@each_operation
@both_directions
def test_parameters_that_repeat(
    native_target: Target, operation: Operation, inverse: bool, period: int, reduce: str
) -> None:
    """Parameters shared by rows of a few elements; more rows than fit one task."""
    layout = Layout("rows that repeat", (6007 // period, period), shared=(0,))
    shared = sample(operation, native_target, layout=layout, inverse=inverse)
    whole = tuple(
        group.expand(layout.shape[0], *group.shape[1:]).contiguous() for group in shared.groups
    )
    own = Sample(operation, layout, shared.x.clone(), whole)
    made, expected = (each.gradients(inverse, reduce) for each in (shared, own))
    assert_all_same_bits(made[:3], expected[:3], "with parameters of its own")
    for found, parts in zip(made[3:], expected[3:], strict=True):
        sums, sizes = parts.double().sum(0, True), parts.double().abs().sum(0, True)
        bound = 2.0**-23 * (sums.abs() + 2.0**-20 * sizes)
        assert bool(((found.double() - sums).abs() <= bound).all())
