"""Contract: backward saves x and the raw parameters only; nothing is read out of bounds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conformance import layouts, operations
from tests.conformance.layouts import Layout
from tests.conformance.operations import RQ, Affine, ModifiedRQ, Operation
from tests.conformance.samples import sample
from tests.conformance.targets import Target
from tests.support.allocations import peak

each_operation = pytest.mark.parametrize(
    "operation", operations.REPRESENTATIVES, ids=lambda op: op.name
)
both_directions = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])


@both_directions
@each_operation
def test_saved_tensors(native_target: Target, operation: Operation, inverse: bool) -> None:
    """By storage: each saved tensor is a view of an input, and none is saved twice."""
    for layout in layouts.PACKED if len(operation.parts) == 1 else layouts.SEPARATE:
        call = sample(operation, native_target, layout=layout, inverse=inverse).requires_grad_()
        saved: list[torch.Tensor] = []

        def keep(tensor: torch.Tensor, saved: list[torch.Tensor] = saved) -> torch.Tensor:
            saved.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            y, logabsdet = call.call(inverse, "sum")
        inputs = {tensor.untyped_storage().data_ptr() for tensor in call.tensors}
        places = [tensor.untyped_storage().data_ptr() for tensor in saved if tensor.numel()]
        assert set(places) <= inputs, f"{layout}: something else than an input is saved"
        assert len(places) <= len(call.tensors), f"{layout}: an input is saved twice"
        assert y.grad_fn is not None and logabsdet.grad_fn is not None


@each_operation
def test_nothing_is_saved_without_gradients(native_target: Target, operation: Operation) -> None:
    call = sample(operation, native_target).requires_grad_()
    with torch.no_grad():
        y, logabsdet = call.call()
    assert y.grad_fn is None and logabsdet.grad_fn is None
    call.x.requires_grad_(False)
    for group in call.groups:
        group.requires_grad_(False)
    y, _ = call.call()
    assert not y.requires_grad


@pytest.mark.parametrize(
    ("operation", "shape"),
    [(ModifiedRQ("exp"), (4, 8, 64, 65)), (RQ(8), (5000, 13)), (Affine(), (4, 8, 64, 65))],
    ids=["modified_rq", "rq", "affine"],
)
def test_allocations(native_device: Target, operation: Operation, shape: tuple[int, ...]) -> None:
    """A call allocates y and logabsdet; with gradients, one of x and one of the parameters besides.

    No copy of an input and no temporary of an input's size: 2 % beyond that is for sums by block.
    """
    call = sample(operation, native_device, layout=Layout("large", shape)).requires_grad_()
    cotangents = (torch.ones_like(call.x), torch.ones(shape[0], device=call.x.device))

    def forward() -> object:
        with torch.no_grad():
            return call.call(reduce="sum")

    def training() -> object:
        outputs = call.call(reduce="sum")
        return outputs, torch.autograd.grad(outputs, call.tensors, cotangents)

    results = 4 * (call.x.numel() + shape[0])
    device = native_device.device
    assert results <= peak(forward, device) <= 1.02 * results
    gradients = sum(4 * tensor.numel() for tensor in call.tensors)
    assert results + gradients <= peak(training, device) <= 1.02 * (results + gradients)


_GUARDED = """
import ctypes, mmap, sys, torch, robustflow
sys.path.insert(0, {root!r})
from tests.support.allocations import peak
from tests.conformance import layouts, operations
from tests.conformance.layouts import Layout
from tests.conformance.samples import sample
torch.set_num_threads(1)
robustflow.use_backend({backend!r})
if {isa!r}:
    from robustflow import _native
    _native.set_isa({isa!r})
libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
PAGE = mmap.PAGESIZE
kept = []

def guarded(tensor, at_end):
    "The same contiguous values, flush against a page that may not be touched."
    nbytes = tensor.numel() * tensor.element_size()
    pages = -(-nbytes // PAGE)
    area = mmap.mmap(-1, (pages + 2) * PAGE)
    kept.append(area)
    base = ctypes.addressof(ctypes.c_char.from_buffer(area))
    offset = PAGE * (pages + 1) - nbytes if at_end else PAGE
    view = torch.frombuffer(area, dtype=tensor.dtype, count=tensor.numel(), offset=offset)
    view.copy_(tensor.reshape(-1))
    for page in (0, pages + 1):
        assert libc.mprotect(base + page * PAGE, PAGE, 0) == 0
    return view.view(tensor.shape)

count = 0
for name in {operations}:
    operation = eval(name, vars(operations))
    separate = len(operation.parts) > 1
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for shape in {shapes}:
            if separate:
                shape = (shape[0] * shape[-1],)
            layout = Layout("guarded", shape)
            for at_end in (False, True):
                for inverse in (False, True):
                    call = sample(operation, layout=layout, dtype=dtype, inverse=inverse)
                    x = guarded(call.x, at_end).requires_grad_()
                    groups = tuple(guarded(g, at_end).requires_grad_() for g in call.groups)
                    y, logabsdet = operation.call(x, groups, inverse, "sum")
                    grad_y = guarded(torch.ones_like(call.x), at_end)
                    grad_l = guarded(torch.ones(logabsdet.shape, dtype=logabsdet.dtype), at_end)
                    torch.autograd.grad((y, logabsdet), (x, *groups), (grad_y, grad_l))
                    count += 1
print("survived", count)
"""
_GUARDED_OPERATIONS = (
    'ModifiedRQ("exp")',
    "RQ(8)",
    "RQ(5)",
    'RQ(7, "circular", "softclip")',
    'RQ(4, None, "softmax")',
    "RQ(8, separate=True)",
    "RQ(6, separate=True)",
    "Affine()",
)
# Rows in multiples of a register's lanes and not, a single element, planes whose last block is some
# packs but no multiple of the widest, and a sample of many blocks.
_GUARDED_SHAPES = (
    *((1, 1), (5, 1), (8, 1), (32, 2), (37, 3), (2, 1, 3), (2, 3, 33)),
    *((1, 2, 272), (1, 1, 4099)),
)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="guard pages need mprotect")
def test_nothing_is_read_past_a_tensors_end(native_host: Target) -> None:
    """Inputs flush against unreadable pages, before and after: a read beyond them is a crash.

    On a GPU compute-sanitizer looks for the same: tests/backends/gpu/sanitize.py.
    """
    script = _GUARDED.format(
        root=str(Path(__file__).parents[2]),
        backend=native_host.backend,
        isa=native_host.isa,
        operations=_GUARDED_OPERATIONS,
        shapes=_GUARDED_SHAPES,
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, f"exit {run.returncode}: {run.stderr[-2000:]}"
    calls = len(_GUARDED_OPERATIONS) * 3 * len(_GUARDED_SHAPES) * 2 * 2
    assert run.stdout.split() == ["survived", str(calls)]


@each_operation
def test_gradients_are_dense_for_expanded_parameters(
    native_target: Target, operation: Operation
) -> None:
    """A stride of 0 in the parameters is not one in their gradient."""
    layout = Layout("expanded", (4, 3), shared=(0,), expanded=True)
    call = sample(operation, native_target, layout=layout)
    assert all(0 in group.stride() for group in call.groups)
    *_, grad_x, _ = call.gradients()[:4]
    for gradient in call.gradients()[3:]:
        assert 0 not in gradient.stride()
    assert 0 not in grad_x.stride()
