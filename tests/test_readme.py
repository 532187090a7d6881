"""The README's Python runs as it stands there, and what its commands name exists."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import robustflow

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8")


def test_examples_run_and_give_what_they_say() -> None:
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names: dict[str, Any] = {}
    torch.manual_seed(0)

    def run(word: str) -> None:
        """The first block left, which is the one with this word."""
        block = blocks.pop(0)
        assert word in block
        exec(block, names)

    run("modified_rq_spline")
    assert names["y"].shape == names["logabsdet"].shape == (64, 8)
    run("flow_step")
    assert torch.isfinite(names["loss"])
    assert names["samples"].shape == (4, 10, 3, 16, 16)
    run("RQSplineCoupling")
    assert names["density"].sample(3).shape == (3, 6)
    run("RQSplineTransform")
    assert torch.isfinite(names["loss"])
    assert names["flow"](torch.zeros(4)).sample((3,)).shape == (3, 6)
    run("compat.patch")
    assert torch.isfinite(names["loss"])
    assert names["counts"] == {"nflows": {"kernel": 1, "reference": 0, "fallback": 0}}
    run("CondAffineSeparatedAndCond")
    assert names["z"].shape == (2, 12, 40, 40)
    torch.testing.assert_close(names["logdet"], torch.zeros(2), atol=1e-3, rtol=0)
    run("condition_once")
    assert [sample.shape for sample in names["samples"]] == [(2, 12, 40, 40)] * 10
    run("convert_affine")
    assert len(names["report"].replaced) == 2 and not names["report"].kept
    run("InverseMonitor")
    assert not names["certificate"].passed
    assert names["points"].shape == (1, 100, 6)
    assert not blocks


@pytest.mark.parametrize("module", sorted(set(re.findall(r"python -m ([\w.]+)", TEXT))))
def test_modules_that_commands_name_exist(module: str) -> None:
    assert importlib.util.find_spec(module) is not None


def test_pytest_knows_the_markers() -> None:
    markers = set(re.findall(r"pytest -m (\w+)", TEXT))
    assert "gpu" in markers
    for marker in markers:
        assert f'"{marker}: ' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_backends_and_variables_are_real() -> None:
    section = TEXT.partition("## On a GPU")[2].partition("\n## ")[0]
    for name in re.findall(r'`"(\w+)"`|use_backend\("(\w+)"\)', section):
        assert "".join(name) in {"auto", *robustflow.backends()}
    sources = [*ROOT.glob("*.py"), *ROOT.glob("robustflow/**/*.py"), ROOT / "CMakeLists.txt"]
    text = "".join(source.read_text(encoding="utf-8") for source in sources)
    for variable in set(re.findall(r"ROBUSTFLOW_\w+", TEXT)):
        assert variable in text, variable
    for file in re.findall(r"`(robustflow/[\w.]+)`", TEXT):
        assert (ROOT / file).exists()


def test_the_commands_for_a_gpu_say_what_they_miss() -> None:
    """Where there is none: none of them passes in silence."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU: see pytest -m gpu")
    for command, status, words in (
        (["pytest", "-q", "-m", "gpu", "tests/gpu"], 0, "No GPU: this run shows nothing"),
        (["tests.gpu.sanitize"], 1, "There is nothing to look at."),
        (["benchmarks.gpu"], 2, "torch sees none"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == status, done.stderr[-2000:]
        assert words in done.stdout + done.stderr
