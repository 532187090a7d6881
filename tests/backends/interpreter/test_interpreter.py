"""Starts the interpreter's process, one part of its tests at a time."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]
# Of the tests that every backend runs, those of what the suite does not have. (The interpreter
# takes a tenth of a second for what a kernel takes a microsecond for, and cuts off what a number
# has beyond bfloat16, where a GPU rounds.)
CONTRACT = {
    "test_shapes.py": "empty or zero_dim or broadcast or strange",
    "test_tails.py": "edges and not bfloat16",
}

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.skipif(
        importlib.util.find_spec("triton") is None,
        reason="Triton is not installed: `pip install triton`",
    ),
]


_PLUGINS = ("-p", "tests.backends.interpreter.backend", "-p", "no:cacheprovider")


def run(*arguments: str) -> None:
    """Run pytest in an interpreting process; its failures are this test's."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *_PLUGINS, "-q", "--tb=short", *arguments],
        cwd=TESTS.parent,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode != 0:
        pytest.fail(f"in the interpreter:\n{done.stdout[-8000:]}", pytrace=False)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["configuration", "not configuration"])
def test_kernels(part: str) -> None:
    run(str(TESTS / "backends" / "interpreter" / "suite.py"), "-k", part)


@pytest.mark.slow
@pytest.mark.parametrize("file", CONTRACT)
def test_contract(file: str) -> None:
    run(str(TESTS / "contract" / file), "-k", CONTRACT[file])
