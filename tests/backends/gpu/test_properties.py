"""The properties of ``properties`` on every GPU target; on the CPU's as far as it goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import robustflow.functional as F
from tests.backends.gpu import properties
from tests.conformance import operations
from tests.conformance.layouts import Layout
from tests.conformance.operations import RQ, Affine, ModifiedRQ, Operation
from tests.conformance.samples import sample
from tests.conformance.targets import GPU, TARGETS, Target, as_params

REPRESENTATIVES = operations.REPRESENTATIVES
HOST = Target("cpu")
gpu_target = pytest.mark.parametrize("gpu", as_params(GPU))
# The CPU kernels stand in where a property is no GPU's alone: so the checks are checked here.
any_target = pytest.mark.parametrize(
    "any_target", as_params([HOST, *GPU] if HOST in TARGETS else list(GPU))
)
each_operation = pytest.mark.parametrize("operation", REPRESENTATIVES, ids=lambda op: op.name)
both_directions = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@each_operation
@any_target
def test_alignment(any_target: Target, operation: Operation, dtype: torch.dtype) -> None:
    with any_target.chosen():
        properties.check_alignment(any_target, operation, dtype)


@pytest.mark.parametrize("shape", properties.LONG_SHAPES, ids=str)
@pytest.mark.parametrize("operation", [ModifiedRQ("exp"), Affine("sigmoid")], ids=lambda o: o.name)
@any_target
def test_long_dimensions(any_target: Target, operation: Operation, shape: tuple[int, ...]) -> None:
    with any_target.chosen():
        properties.check_long_dimensions(any_target, operation, shape)


@pytest.mark.parametrize("separate", [False, True], ids=["packed", "separate"])
@any_target
def test_long_rows(any_target: Target, separate: bool) -> None:
    operation = RQ(5, "linear", "softmax", separate=separate)
    with any_target.chosen():
        properties.check_long_dimensions(any_target, operation, (properties.LONG, 2))


def _new_stream(target: Target) -> Callable[[], AbstractContextManager[Any]]:
    """Contexts in which work runs on a stream of its own, which is waited for afterwards."""
    if target.device != "cuda":
        return nullcontext

    @contextmanager
    def context() -> Iterator[None]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            yield
        torch.cuda.current_stream().wait_stream(stream)

    return context


@each_operation
@any_target
def test_determinism_across_runs_and_streams(any_target: Target, operation: Operation) -> None:
    with any_target.chosen():
        properties.check_determinism(any_target, operation, _new_stream(any_target))


@both_directions
@each_operation
@any_target
def test_a_recorded_step_replays(any_target: Target, operation: Operation, inverse: bool) -> None:
    on_gpu = any_target.device == "cuda"
    record = properties.recorded_on_a_gpu if on_gpu else properties.recorded_on_a_cpu
    with any_target.chosen():
        properties.check_replay(any_target, operation, record, inverse)


@pytest.mark.parametrize(
    ("operation", "shape"),
    [(ModifiedRQ("exp"), "planar"), (Affine("sigmoid"), "planar"), (RQ(8), "rows")],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
@gpu_target
def test_memory_of_a_training_step(gpu: Target, operation: Operation, shape: str) -> None:
    layout = Layout(shape, properties.TRAINING_SHAPES[shape])
    with gpu.chosen():
        call = sample(operation, gpu, layout=layout)
        properties.check_training_memory(call, properties.peak_on_a_gpu)


def test_memory_counts_what_a_step_holds() -> None:
    """The bound bites: a step that holds its outputs twice is found."""
    call = sample(ModifiedRQ("exp"))
    exact = properties.training_bytes(call) - sum(
        t.numel() * t.element_size() for t in call.tensors
    )
    properties.check_training_memory(call, partial(_always, exact))
    for wrong in (exact // 2, 2 * exact):
        with pytest.raises(AssertionError, match="times the bytes of a step"):
            properties.check_training_memory(call, partial(_always, wrong))


def _always(peak: int, step: Callable[[], object]) -> int:
    return peak


@both_directions
@each_operation
@gpu_target
def test_no_host_synchronisation(gpu: Target, operation: Operation, inverse: bool) -> None:
    """torch raises where the host would wait for the device; none of a step's work does."""
    with gpu.chosen():
        call = sample(operation, gpu, inverse=inverse).requires_grad_()
        outputs = call.call(inverse, "sum")
        cotangents = [torch.ones_like(output) for output in outputs]
        torch.autograd.grad(outputs, call.tensors, cotangents)  # what is compiled is compiled
        torch.cuda.synchronize()
        with _no_waiting():
            outputs = call.call(inverse, "sum")
            torch.autograd.grad(outputs, call.tensors, cotangents)
            with torch.no_grad():
                call.call(inverse, "none")


@gpu_target
def test_no_host_synchronisation_with_a_box_per_dimension(gpu: Target) -> None:
    operation = RQ(8, "linear", "softmax", per_dimension=True)
    with gpu.chosen():
        call = sample(operation, gpu)
        bound = operation.dimension_bounds(tuple(call.x.shape)).to(gpu.device)
        torch.cuda.synchronize()

        def run() -> tuple[Tensor, Tensor]:
            return F.rq_spline_packed(call.x, call.groups[0], 8, tails="linear", tail_bound=bound)

        run()
        with _no_waiting():
            run()


@contextmanager
def _no_waiting() -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@each_operation
@gpu_target
def test_the_current_stream_is_used(gpu: Target, operation: Operation) -> None:
    """Inputs that arrive late on a stream: work on another stream would miss them."""
    with gpu.chosen():
        call = sample(operation, gpu).requires_grad_()
        expected = call.gradients()
        late = call.clone()
        for tensor in late.tensors:
            tensor.fill_(float("nan"))
        late.requires_grad_()
        cotangents = [torch.ones_like(t) for t in expected[:2]]
        ready = torch.autograd.grad(call.call(), call.tensors, cotangents)
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)  # some 30 ms
            with torch.no_grad():
                for mine, theirs in zip(late.tensors, call.tensors, strict=True):
                    mine.copy_(theirs)
            outputs = late.call()
            grads = torch.autograd.grad(outputs, late.tensors, cotangents)
        stream.synchronize()
        properties.assert_same(
            (*(o.detach() for o in outputs), *grads), (*expected[:2], *ready), "on another stream"
        )


@each_operation
@gpu_target
def test_another_device_than_the_current(gpu: Target, operation: Operation) -> None:
    """Tensors on the last GPU while the first is current."""
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU: a second is needed")
    with gpu.chosen():
        first = sample(operation, gpu)
        expected = first.gradients()
        other = sample(operation, f"cuda:{torch.cuda.device_count() - 1}")
        actual = other.gradients()
        assert torch.cuda.current_device() == 0
        properties.assert_same(tuple(t.cpu() for t in actual), tuple(t.cpu() for t in expected), "")


@each_operation
@any_target
def test_pieces_of_a_tensor(any_target: Target, operation: Operation) -> None:
    """tests/backends/gpu/test_large.py's check, on a tensor of ordinary size."""
    if len(operation.parts) > 1:
        pytest.skip("the check packs its parameters")
    with any_target.chosen():
        properties.check_pieces(any_target, operation, (2, 3, 1000), torch.float32, 300)
