"""A run that is shared out over processes reports as one process would; and what it says last."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conformance.targets import GPU
from tests.support import gpu_summary, workers

ROOT = Path(__file__).parents[2]
CONFTEST = ROOT / "tests" / "conftest.py"
FEW = "tests/backends/gpu/test_compile.py"  # 18 tests
TESTS = """
import os
import pytest

@pytest.mark.parametrize("number", range(40))
def test_numbers(number):
    if number == 7:
        pytest.skip("seven")
    assert number != 11

@pytest.mark.alone
def test_alone():
    assert "ROBUSTFLOW_TEST_SHARD" not in os.environ

def test_in_a_worker():
    assert "ROBUSTFLOW_TEST_SHARD" in os.environ

@pytest.mark.skipif("DEADLY" not in os.environ, reason="only where a worker shall die")
def test_death():
    os._exit(3)
"""


# What one process has to say at the end of a run, and another one prints.
MORE_TESTS = """
from tests.support import run_summary
import pytest

def test_with_a_table(request):
    run_summary.of(request.config).sections.append(("a title", "and its table"))

@pytest.mark.gpu
def test_of_a_gpu():
    pass
"""


def run(folder: Path, *arguments: str, **variables: str) -> tuple[int, str]:
    """Pytest on the tests above, with this folder's conftest and two workers."""
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu:\n    alone:\n")
    (folder / "test_these.py").write_text(TESTS)
    (folder / "conftest.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        + CONFTEST.read_text().split("from __future__ import annotations\n")[1]
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-ra", *arguments],
        cwd=folder,
        env={**os.environ, workers.WORKERS: "2", **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_shared_run_reports_all_tests_once(tmp_path: Path) -> None:
    status, output = run(tmp_path)
    assert status == 1, output
    assert "1 failed, 40 passed, 2 skipped" in output
    assert "test_numbers[11]" in output and "assert 11 != 11" in output
    assert "seven" in output


def test_the_tests_of_a_dead_worker_have_failed(tmp_path: Path) -> None:
    """With the exit code, none lost, and the other worker's and its own earlier results kept."""
    status, output = run(
        tmp_path,
        "-k",
        "numbers or death",
        "--deselect",
        "test_these.py::test_numbers[11]",
        DEADLY="1",
    )
    assert status == 1, output
    assert "ended before it, with exit code 3" in output
    assert "FAILED test_these.py::test_death" in output
    passed = 38
    assert f"{passed} passed, 1 skipped" in output


def test_the_first_failure_ends_it_where_asked(tmp_path: Path) -> None:
    status, output = run(tmp_path, "-x")
    assert status != 0 and "stopping after 1 failures" in output and "test_numbers[11]" in output


@pytest.mark.slow
def test_a_run_that_xdist_shares_out_says_the_same(tmp_path: Path) -> None:
    """Its processes take the place of ours, and what they have to say at the end is said once."""
    pytest.importorskip("xdist")
    (tmp_path / "test_more.py").write_text(MORE_TESTS)
    status, output = run(
        tmp_path, "-n", "2", "--dist", "loadfile", "-k", "numbers or table or gpu or alone"
    )
    assert status == 1, output
    gpus = int(torch.cuda.is_available())
    assert f"1 failed, {39 + gpus} passed, 2 skipped" in output
    assert "needs a GPU to itself" in output
    assert output.count("= a title =") == output.count("and its table") == 1
    last_line = "the rest: 1 passed" if gpus else "1 tests need a GPU and were left out"
    assert output.count(last_line) == 1


class Report:
    def __init__(self, nodeid: str) -> None:
        self.nodeid = nodeid


def test_the_summary_counts_by_backend() -> None:
    names = [f"tests/test_x.py::test[{target}-{n}]" for target in GPU for n in range(2)]
    names += ["tests/backends/gpu/test_y.py::test", "tests/test_x.py::test_of_no_gpu[cpu@cpu]"]
    stats: dict[str, list[Any]] = {
        "passed": [Report(name) for name in names[1:]],
        "failed": [Report(names[0])],
        "warnings": [object()],
    }
    summary = gpu_summary.lines(stats, frozenset(names[:-1]))
    assert summary[-3:] == [
        "cuda@cuda: 1 passed, 1 failed",
        "triton@cuda: 2 passed",
        "the rest: 1 passed",
    ]
    if not torch.cuda.is_available():
        assert summary[0].startswith("No GPU: this run shows nothing")


def test_the_summary_says_what_was_left_out() -> None:
    (summary,) = gpu_summary.lines({}, frozenset(["tests/test_x.py::test[cuda@cuda]"]))
    assert summary.startswith("1 tests need a GPU and were left out")
    assert gpu_summary.lines({"passed": [Report("tests/test_x.py::test")]}, frozenset()) == []


def test_gpu_tests_are_left_out_in_one_line_and_skipped_where_asked_for() -> None:
    """Without a GPU; and every one of them can be collected."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    outputs = []
    for arguments in ([], ["-m", "gpu"]):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", FEW, *arguments],
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if name != workers.WORKERS},
            capture_output=True,
            text=True,
            timeout=300,
        )
        outputs.append(done.stdout)
    assert "18 tests need a GPU and were left out" in outputs[0] and "18 deselected" in outputs[0]
    assert "18 skipped" in outputs[1] and "torch sees no GPU" in outputs[1]
