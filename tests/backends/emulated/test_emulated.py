"""The CUDA kernels' own sources, on the host: `pytest -m emulated`.

They run under AddressSanitizer in a process of their own, which this file starts and reports on.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.backends.emulated.build import ROOT, Missing, build, toolchain
from tests.backends.emulated.process import SUITE, run_tests

pytestmark = [pytest.mark.emulated, pytest.mark.slow]

# The contract's tests whose subject is what kernels do with data, shapes and memory.
CONTRACT = ("nonfinite", "shapes", "tails")


@pytest.fixture(scope="session")
def library() -> Path:
    """The operators on the emulator, compiled where the sources have changed."""
    try:
        toolchain()
    except Missing as missing:
        pytest.skip(f"The CUDA kernels were not run on the host. {missing}")
    return build()


@pytest.fixture(scope="session")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which each process leaves the symbols of the kernels that it has launched."""
    return tmp_path_factory.mktemp("kernels")


def test_conformance(library: Path, launched: Path) -> None:
    """Every operation, layout, dtype and order of the threads, against the oracle."""
    outcome = run_tests(library, str(SUITE), kernels=launched / "suite")
    assert outcome.status == 0, outcome.last_lines
    assert re.search(r"\d{3,} passed", outcome.output), outcome.last_lines


def test_contract(library: Path, launched: Path) -> None:
    """Non-finite data, empty, 0-d and misaligned tensors, tails: as on every other target."""
    paths = [str(ROOT / "tests" / "contract" / f"test_{subject}.py") for subject in CONTRACT]
    outcome = run_tests(library, *paths, kernels=launched / "contract")
    assert outcome.status == 0, outcome.last_lines
    assert re.search(r"\d{3,} passed", outcome.output), outcome.last_lines


def test_every_kernel_has_run(library: Path, launched: Path) -> None:
    """No instantiation of a kernel is compiled that nothing above has launched."""
    if len(list(launched.iterdir())) < 2:
        pytest.skip("The tests above tell which kernels have run: run the whole file.")
    ran = {name for file in launched.iterdir() for name in file.read_text().split()}
    sources = "".join(path.read_text() for path in (ROOT / "csrc" / "cuda").iterdir())
    names = re.findall(r"ROBUSTFLOW_KERNEL\([^)]*\)\s+(\w+)\(", sources)
    assert len(names) >= 4
    symbols = subprocess.run(
        ["nm", "--defined-only", "--format=just-symbols", str(library)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    kernels = {
        symbol
        for symbol in symbols
        for name in names
        if re.fullmatch(rf"_ZN10robustflow\d+[a-z_]+{len(name)}{name}(I.*|E.*)", symbol)
        and ".cold" not in symbol
    }
    assert len(kernels) > len(names)
    assert not (idle := kernels - ran), "\n".join(sorted(idle))
