"""Properties of kernels on a device, each a function of a target: on a CPU they must hold as well.

Every function raises AssertionError where its property does not hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

import robustflow
from tests.conformance.layouts import Layout
from tests.conformance.operations import Operation
from tests.conformance.samples import Sample, sample
from tests.conformance.targets import Target

# Sizes around those that a block, a vector or a tile may have.
ODD_SIZES = (1, 2, 3, 5, 7, 8, 9, 15, 17, 31, 33, 63, 65, 127, 129, 255, 257, 1023, 1025, 4099)
# Sizes of one dimension beyond what one dimension of a CUDA grid, y or z, may have: 65535.
LONG = 70_001


def assert_same(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...], what: str) -> None:
    """Equal bit for bit, NaN equal to itself."""
    assert len(actual) == len(expected)
    for number, (one, other) in enumerate(zip(actual, expected, strict=True)):
        assert one.shape == other.shape and one.dtype == other.dtype, f"result {number} {what}"
        same = (one == other) | (one.isnan() & other.isnan())
        differing = int((~same).sum())
        assert differing == 0, f"result {number} {what}: {differing} of {same.numel()} differ"


def assert_near_the_reference(
    call: Sample, actual: tuple[Tensor, ...], inverse: bool, reduce: str
) -> None:
    """Values and gradients in float64 as the reference has them on the same device."""
    with robustflow.use_backend("reference"):
        expected = call.clone().gradients(inverse, reduce)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def line(operation: Operation, size: int) -> Layout:
    """One row of elements, packed as an image of one line where the parameters are packed."""
    return Layout("line", (1, 1, size) if len(operation.parts) == 1 else (size,))


def misaligned(tensor: Tensor, offset: int) -> Tensor:
    """The same values ``offset`` elements into a storage of NaN."""
    buffer = tensor.new_full((tensor.numel() + offset,), float("nan"))
    return buffer[offset:].view(tensor.shape).copy_(tensor)


def check_alignment(target: Target, operation: Operation, dtype: torch.dtype) -> None:
    """Odd sizes, and tensors that start anywhere, give the bits of a long and aligned tensor."""
    longest = sample(operation, target, layout=line(operation, max(ODD_SIZES)), dtype=dtype)
    whole = longest.gradients()
    dims = (-1, -1 if len(operation.parts) == 1 else 0)  # of x and of the parameters: the elements
    for number, size in enumerate(ODD_SIZES):
        offset = number % 8 + 1

        def first(tensor: Tensor, dim: int, size: int = size) -> Tensor:
            return tensor.detach().narrow(dim, 0, size)

        x = misaligned(first(longest.x, dims[0]), offset)
        groups = tuple(misaligned(first(g, dims[1]), offset) for g in longest.groups)
        part = Sample(operation, line(operation, size), x, groups).requires_grad_()
        # The cotangents too lie anywhere: they are slices of those of the long call.
        y, logabsdet = part.call()
        generator = torch.Generator().manual_seed(1)
        cotangents = [
            torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t)
            for t in (longest.x, whole[1])
        ]
        sliced = [misaligned(first(c, -1), offset) for c in cotangents]
        grads = torch.autograd.grad((y, logabsdet), part.tensors, sliced)
        expected = (
            *(first(t, -1) for t in whole[:3]),
            *(first(t, dims[1]) for t in whole[3:]),
        )
        assert_same((y.detach(), logabsdet.detach(), *grads), expected, f"of the first {size}")


LONG_SHAPES = ((LONG, 2), (2, LONG), (LONG, 1, 2, 2), (1, LONG, 2), (2, 2, LONG))


def check_long_dimensions(target: Target, operation: Operation, shape: tuple[int, ...]) -> None:
    """Any dimension may be long; also where samples are summed, and shared parameters."""
    separate = len(operation.parts) > 1
    for shared in ((), (0,)):
        layout = Layout("long", shape, shared=shared)
        for reduce in ("none", "sum") if not separate or len(shape) == 2 else ("none",):
            call = sample(operation, target, layout=layout, dtype=torch.float64)
            actual = call.gradients(reduce=reduce)
            assert_near_the_reference(call, actual, False, reduce)


SUMMED = Layout("summed", (3, 4, 193, 257))
SHARED = Layout("shared", (3, 4, 193, 257), shared=(0, 2, 3))
SUMMED_ROWS = Layout("summed_rows", (40_009, 3))
SHARED_ROWS = Layout("shared_rows", (40_009, 3), shared=(0,))


def check_determinism(
    target: Target,
    operation: Operation,
    streams: Callable[[], AbstractContextManager[object]],
    runs: int = 4,
) -> None:
    """Sums over samples and over shared parameters have the same bits in every run.

    ``streams`` makes the context of each further run, a stream of its own on a GPU.
    """
    packed = len(operation.parts) == 1
    for layout in (SUMMED, SHARED, SUMMED_ROWS, SHARED_ROWS) if packed else (SUMMED_ROWS,):
        call = sample(operation, target, layout=layout)
        expected = call.gradients(reduce="sum")
        for run in range(runs):
            with streams():
                actual = call.gradients(reduce="sum")
            assert_same(actual, expected, f"in run {run} of {layout}")


@dataclass(frozen=True)
class Recording:
    """A recorded piece of work: CUDA's graphs, or the same function again."""

    replay: Callable[[], None]
    outputs: tuple[Tensor, ...]


Recorder = Callable[[Callable[[], tuple[Tensor, ...]]], Recording]


def recorded_on_a_gpu(work: Callable[[], tuple[Tensor, ...]]) -> Recording:
    """A CUDA graph of the work, warmed up on a side stream first, as torch's manual asks."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = work()
    return Recording(graph.replay, outputs)


def recorded_on_a_cpu(work: Callable[[], tuple[Tensor, ...]]) -> Recording:
    """What a graph is, without one: the work again, its results into the same tensors."""
    outputs = tuple(output.clone() for output in work())

    def replay() -> None:
        for output, fresh in zip(outputs, work(), strict=True):
            output.copy_(fresh)

    return Recording(replay, outputs)


def check_replay(target: Target, operation: Operation, record: Recorder, inverse: bool) -> None:
    """A recorded training step, replayed on other data, gives what an eager one gives."""
    for dtype in (torch.float32, torch.bfloat16):
        calls = [
            sample(operation, target, dtype=dtype, inverse=inverse, seed=seed) for seed in range(3)
        ]
        static = calls[0].clone().requires_grad_()
        cotangents = [torch.ones_like(t) for t in calls[0].clone().call(inverse, "sum")]

        def step(
            call: Sample = static, cotangents: list[Tensor] = cotangents
        ) -> tuple[Tensor, ...]:
            outputs = call.call(inverse, "sum")
            grads = torch.autograd.grad(outputs, call.tensors, cotangents)
            return (*(output.detach() for output in outputs), *grads)

        recording = record(step)
        for call in calls[1:]:
            with torch.no_grad():
                for mine, theirs in zip(static.tensors, call.tensors, strict=True):
                    mine.copy_(theirs)
            recording.replay()
            replayed = tuple(output.clone() for output in recording.outputs)
            assert_same(replayed, step(call.requires_grad_(), cotangents), f"replayed in {dtype}")


TRAINING_SHAPES = {"planar": (16, 48, 80, 80), "rows": (1 << 18, 8)}


def training_bytes(call: Sample, reduce: str = "sum") -> int:
    """Bytes of everything that a training step must hold: inputs, outputs, gradients."""
    inputs = sum(t.numel() * t.element_size() for t in call.tensors)
    y = call.x.numel() * call.x.element_size()
    return 2 * inputs + y + 4 * call.x.shape[0]


def check_training_memory(
    call: Sample, peak: Callable[[Callable[[], object]], int], allowance: float = 1.2
) -> None:
    """A step's peak, inputs included, against the bytes that it cannot do without.

    ``peak`` runs a step and says how many bytes it held at most beyond those held before.
    """
    call.requires_grad_()
    cotangents = (torch.ones_like(call.x), torch.ones(call.x.shape[0], device=call.x.device))

    def step() -> object:
        outputs = call.call(reduce="sum")
        return outputs, torch.autograd.grad(outputs, call.tensors, cotangents)

    inputs = sum(t.numel() * t.element_size() for t in call.tensors)
    held, needed = inputs + peak(step), training_bytes(call)
    assert needed <= held <= allowance * needed, f"{held / needed:.3f} times the bytes of a step"


def peak_on_a_gpu(step: Callable[[], object]) -> int:
    step()  # what the first call keeps is none of a step's
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated() - before


def slices(tensor: Tensor, dim: int, size: int) -> Iterator[Tensor]:
    """Consecutive pieces of a tensor along a dimension."""
    for start in range(0, tensor.shape[dim], size):
        yield tensor.narrow(dim, start, min(size, tensor.shape[dim] - start))


def check_pieces(
    target: Target,
    operation: Operation,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    piece: int,
) -> None:
    """A tensor too large for 32-bit offsets has the bits of its pieces, in values and gradients.

    shape (N, C, S) of x, cut along S. Data are made on the device, and pieces looked at one after
    another: the whole in float64 would not fit.
    """
    generator = torch.Generator(target.device).manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=target.device).normal_(generator=generator)

    x = normal(*shape).requires_grad_()
    params = normal(shape[0], shape[1] * operation.num_params, shape[2]).requires_grad_()
    grad_y = normal(*shape)
    y, total = operation.call(x, (params,), False, "sum")
    grads = torch.autograd.grad((y, total), (x, params), (grad_y, torch.ones_like(total)))
    y, summed = y.detach(), torch.zeros_like(total, dtype=torch.float64)
    whole = (x, params, grad_y, y, *grads)
    for x_, params_, grad_y_, *expected in zip(*(slices(t, 2, piece) for t in whole), strict=True):
        part = [x_.detach().contiguous(), params_.detach().contiguous()]
        part = [tensor.requires_grad_() for tensor in part]
        y_, each = operation.call(part[0], (part[1],), False, "none")
        actual = torch.autograd.grad((y_, each), part, (grad_y_, torch.ones_like(each)))
        assert_same((y_.detach(), *actual), tuple(expected), "of a piece")
        summed += each.detach().double().flatten(1).sum(dim=1)
    torch.testing.assert_close(total.detach().double(), summed, rtol=1e-5, atol=1e-2)
