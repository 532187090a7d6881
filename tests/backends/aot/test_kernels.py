"""Every kernel compiles for sm_90, spills nothing, calls nothing and leaves room for two blocks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from benchmarks.aot.kernels import Compiled, cuda_kernels
from benchmarks.aot.toolchain import ToolMissing
from tests.backends.aot.allowances import STACK, Allowance, stack_allowance
from tests.backends.aot.conftest import ARCH, OTHER_ARCHS, few_instructions

pytestmark = pytest.mark.aot


def _key(kernel: Compiled) -> str:
    return f"{kernel.backend}:{kernel.name}"


def spills(kernels: list[Compiled]) -> list[str]:
    """A sentence for each kernel that keeps more in memory of its own than it may."""
    sentences = []
    for kernel in kernels:
        allowance = stack_allowance(_key(kernel), kernel.arch)
        limit = allowance.limit if allowance else 0
        if kernel.taken.stack > limit or (kernel.local_accesses and not limit):
            sentences.append(
                f"{_key(kernel)} has a stack of {kernel.taken.stack} bytes (allowed: {limit}) and "
                f"{kernel.local_accesses} instructions that access it."
            )
    return sentences


def used_allowances(kernels: list[Compiled]) -> set[Allowance | None]:
    return {stack_allowance(_key(kernel), kernel.arch) for kernel in kernels if kernel.taken.stack}


def test_nothing_spills(kernels: list[Compiled]) -> None:
    assert not spills(kernels)


def test_every_allowance_is_needed(cuda: list[Compiled], triton: list[Compiled]) -> None:
    needed = {entry for entry in STACK if ARCH in (entry.archs or (ARCH,))}
    assert needed <= used_allowances([*cuda, *triton])


def test_float32_kernels_call_nothing(kernels: list[Compiled]) -> None:
    """A call is a division or a root that somebody wrote without a lane's operator."""
    calls = {_key(kernel): kernel.calls for kernel in kernels if kernel.float32}
    assert calls
    assert not {name: count for name, count in calls.items() if count}


def test_every_kernel_leaves_room_for_two_blocks(kernels: list[Compiled]) -> None:
    """Or for eight warps, where blocks are small: fewer cannot hide the latency of memory."""
    for kernel in kernels:
        held = kernel.occupancy
        assert held.blocks >= 2 and held.warps >= 8, f"{_key(kernel)}: {held}"


def test_planar_kernels_access_sixteen_bytes_at_a_time(cuda: list[Compiled]) -> None:
    planar = [kernel for kernel in cuda if kernel.name.startswith("planar_")]
    assert planar
    for kernel in planar:
        assert kernel.global_widths(reads=True)[0] == 16, kernel.name
        assert kernel.global_widths(reads=False)[0] == 16, kernel.name


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
