"""torch.compile sees into the Triton operators: traced here, launched on a GPU only."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed: pip install triton"
)
def test_kernels_stand_in_the_graphs_and_operators_do_not() -> None:
    """In one graph a direction, with open sizes; the sums over samples add a kernel."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.backends.gpu.traced"],
        cwd=Path(__file__).parents[3],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = re.findall(r"^(\S+) (\[\d.*?\]) (\[\d.*?\])$", done.stdout, re.MULTILINE)
    assert len(rows) == 3, done.stdout
    for name, kernels, operators in rows:
        forward, backward = map(int, re.findall(r"\d+", kernels))
        assert forward >= 1 and backward >= 1, name
        assert operators == "[0, 0]", name
