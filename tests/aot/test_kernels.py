"""Every kernel compiles for sm_90, spills nothing, fits the card, and is not bound by instructions
where the contract's bytes should bind it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from aot.allowances import BOUND_BY_INSTRUCTIONS, STACK, Allowance, stack_allowance
from aot.conftest import ARCH, OTHER_ARCHS, few_instructions
from benchmarks.aot.kernels import Compiled, cuda_kernels
from benchmarks.aot.predict import Prediction
from benchmarks.aot.toolchain import ToolMissing

pytestmark = pytest.mark.aot

PREDICTIONS = Path(__file__).parents[2] / "benchmarks" / "results" / "predictions-sm90.json"
MAKE_THEM = f"python -m benchmarks.aot --json benchmarks/results/{PREDICTIONS.name}"


def _key(kernel: Compiled) -> str:
    return f"{kernel.backend}:{kernel.name}"


def spills(kernels: list[Compiled]) -> list[str]:
    """A sentence for each kernel that keeps more in memory of its own than it may."""
    found = []
    for kernel in kernels:
        allowance = stack_allowance(_key(kernel), kernel.arch)
        limit = allowance.limit if allowance else 0
        if kernel.taken.stack > limit or (kernel.local_accesses and not limit):
            found.append(
                f"{_key(kernel)} has a stack of {kernel.taken.stack} bytes (allowed: {limit}) and "
                f"{kernel.local_accesses} instructions that access it."
            )
    return found


def used_allowances(kernels: list[Compiled]) -> set[Allowance | None]:
    return {stack_allowance(_key(kernel), kernel.arch) for kernel in kernels if kernel.taken.stack}


def test_nothing_spills(kernels: list[Compiled]) -> None:
    assert not spills(kernels)


def test_every_allowance_is_needed(cuda: list[Compiled], triton: list[Compiled]) -> None:
    needed = {entry for entry in STACK if ARCH in (entry.archs or (ARCH,))}
    assert needed <= used_allowances([*cuda, *triton])


def test_float32_kernels_call_nothing(kernels: list[Compiled]) -> None:
    """A call is a division or a root that somebody wrote without a lane's operator."""
    calls = {_key(kernel): kernel.counts.calls for kernel in kernels if kernel.single}
    assert calls
    assert not {name: count for name, count in calls.items() if count}


def test_float32_elements_are_computed_in_float32(predicted: list[Prediction]) -> None:
    """Sums over a block are in float64: by a few instructions a tile, not one an element."""
    assert predicted
    for prediction in predicted:
        assert prediction.instructions.get("fp64", 0) < 1, prediction.name


def test_every_kernel_leaves_room_for_two_blocks(kernels: list[Compiled]) -> None:
    """Or for eight warps, where blocks are small: fewer cannot hide the latency of memory."""
    for kernel in kernels:
        held = kernel.occupancy
        assert held.blocks >= 2 and held.warps >= 8, f"{_key(kernel)}: {held}"


def test_planar_kernels_access_sixteen_bytes_at_a_time(cuda: list[Compiled]) -> None:
    planes = [kernel for kernel in cuda if kernel.name.startswith("planes_")]
    assert planes
    for kernel in planes:
        assert kernel.counts.widths("global", True)[0] == 16, kernel.name
        assert kernel.counts.widths("global", False)[0] == 16, kernel.name


def test_memory_binds_float32(predicted: list[Prediction]) -> None:
    bound = {p.name for p in predicted if p.dtype == "float32" and p.bound_by_instructions}
    assert {p.dtype for p in predicted} >= {"float32", "bfloat16"}
    unexplained = bound - set(BOUND_BY_INSTRUCTIONS)
    assert not unexplained, "Tune these kernels, or say why not in tests/aot/allowances.py."
    assert not set(BOUND_BY_INSTRUCTIONS) - bound, "These reasons are no longer needed."


def test_every_operation_is_predicted(predicted: list[Prediction]) -> None:
    names = [prediction.name for prediction in predicted]
    assert len(names) == len(set(names))
    for backend in ("cuda", "triton"):
        for transform in ("modified_rq", "affine", "rq"):
            found = {
                (p.direction, p.dtype)
                for p in predicted
                if (p.backend, p.transform) == (backend, transform)
            }
            directions = ("forward", "inverse", "backward", "inverse-backward")
            assert found >= {(d, t) for d in directions for t in ("float32", "bfloat16")}


def test_predictions_move_the_bytes_of_the_contract(predicted: list[Prediction]) -> None:
    """The accesses that the disassembly shows, an element, against the bytes that are counted."""
    for prediction in predicted:
        if prediction.backend == "cuda" and prediction.layout == "planar":
            assert prediction.moved == pytest.approx(prediction.bytes, rel=0.1), prediction.name


def test_the_committed_predictions_are_of_these_kernels(predicted: list[Prediction]) -> None:
    """Not in every count, which a compiler may change: in what there is to predict."""
    committed = json.loads(PREDICTIONS.read_text())
    assert committed["kind"] == "predicted, not measured"
    there = {
        (p["backend"], p["kernel"], p["direction"], p["dtype"]) for p in committed["predictions"]
    }
    here = {(p.backend, p.kernel, p.direction, p.dtype) for p in predicted}
    assert there == here, f"Make them again: {MAKE_THEM}"


@pytest.mark.slow
@pytest.mark.parametrize("arch", OTHER_ARCHS)
def test_other_architectures(arch: int, pytestconfig: pytest.Config) -> None:
    """They compile, fit, and spill no more than they are allowed: `make aot-all`."""
    if not pytestconfig.getoption("--aot-all", default=False):
        pytest.skip("compiles for sm_90 only; `make aot-all` compiles for the others too")
    try:
        with ThreadPoolExecutor() as pool:  # nvcc works beside Triton, which is slower
            cuda = pool.submit(lambda: list(cuda_kernels(arch)))
            kernels = [*few_instructions(arch), *cuda.result()]
    except ToolMissing as missing:
        pytest.skip(str(missing))
    assert all(kernel.occupancy.blocks for kernel in kernels)
    assert not spills(kernels)
    assert {entry for entry in STACK if arch in entry.archs} <= used_allowances(kernels)
