"""The kernels, compiled once; their tables close the run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import pytest

from benchmarks.aot import report
from benchmarks.aot.kernels import Compiled, cuda_kernels, triton_kernels
from benchmarks.aot.toolchain import ToolMissing
from tests.support import run_summary

ARCH = 90
# `make aot-all` adds these.
OTHER_ARCHS = (80, 86, 89, 100, 120)

# What no test here asks for takes its time.
few_instructions = partial(triton_kernels, disassemble_all=False)
TITLE = f"compiled for sm_{ARCH}, ahead of time"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--aot-all", action="store_true", help="compile for every architecture")


def _compiled(config: pytest.Config, make: Callable[[int], Iterable[Compiled]]) -> list[Compiled]:
    """The kernels for sm_90 and their table, or a skip that says what to install."""
    try:
        kernels = list(make(ARCH))
    except ToolMissing as missing:
        pytest.skip(str(missing))
    run_summary.of(config).sections.append((TITLE, report.kernel_table(kernels)))
    return kernels


@pytest.fixture(scope="session")
def cuda(pytestconfig: pytest.Config) -> list[Compiled]:
    """Every CUDA kernel."""
    return _compiled(pytestconfig, cuda_kernels)


@pytest.fixture(scope="session")
def triton(pytestconfig: pytest.Config) -> list[Compiled]:
    """Every Triton kernel."""
    return _compiled(pytestconfig, few_instructions)


@pytest.fixture(scope="session", params=["cuda", "triton"])
def kernels(request: pytest.FixtureRequest) -> list[Compiled]:
    """Those of one backend after the other."""
    compiled: list[Compiled] = request.getfixturevalue(request.param)
    return compiled
