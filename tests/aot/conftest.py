"""The kernels, compiled once; the tables, printed at the end of the run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

import pytest

from benchmarks.aot import report
from benchmarks.aot.kernels import Compiled, cuda_kernels, pinned_kernels, triton_kernels
from benchmarks.aot.predict import CARDS, Prediction, predictions, record
from benchmarks.aot.toolchain import CACHE, ToolMissing, compilers

ARCH = 90
# `make aot-all` adds these.
OTHER_ARCHS = (80, 86, 89, 100, 120)

_TABLES = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--aot-all", action="store_true", help="compile for every architecture")


def _compiled(config: pytest.Config, make: Callable[[int], Iterable[Compiled]]) -> list[Compiled]:
    """The kernels for sm_90 and their table, or a skip that says what to install."""
    try:
        kernels = list(make(ARCH))
    except ToolMissing as missing:
        pytest.skip(str(missing))
    config.stash.setdefault(_TABLES, []).append(report.kernel_table(kernels))
    return kernels


@pytest.fixture(scope="session")
def cuda(pytestconfig: pytest.Config) -> list[Compiled]:
    """Every CUDA kernel."""
    return _compiled(pytestconfig, cuda_kernels)


@pytest.fixture(scope="session")
def triton(pytestconfig: pytest.Config) -> list[Compiled]:
    """Every Triton kernel."""
    return _compiled(pytestconfig, triton_kernels)


@pytest.fixture(scope="session", params=["cuda", "triton"])
def kernels(request: pytest.FixtureRequest) -> list[Compiled]:
    """Those of one backend after the other."""
    compiled: list[Compiled] = request.getfixturevalue(request.param)
    return compiled


@pytest.fixture(scope="session")
def predicted(pytestconfig: pytest.Config, triton: list[Compiled]) -> list[Prediction]:
    """The predictions of both backends; kept as build/aot/predictions.json."""
    try:
        made = predictions([*pinned_kernels(ARCH), *triton])
    except ToolMissing as missing:
        pytest.skip(str(missing))
    (CACHE / "predictions.json").write_text(json.dumps(record(made, compilers()), indent=1))
    tables = pytestconfig.stash.setdefault(_TABLES, [])
    tables.append(f"{report.prediction_table(made)}\n\n{CARDS[0]}\n{report.LEGEND}")
    return made


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for table in config.stash.get(_TABLES, []):
        terminalreporter.section(f"compiled for sm_{ARCH}, ahead of time")
        terminalreporter.write_line(table)
