"""The examples of the docstrings run and print what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "robustflow").rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)
# Modules that need an extra beyond `test`, and what they import for it.
NEEDS = {
    "robustflow.experiments.imaging.reconstructor": "deepinv",
    "robustflow.experiments.tasks.physics": "deepinv",
}


@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module: str) -> None:
    if module in NEEDS:
        pytest.importorskip(NEEDS[module])
    torch.manual_seed(0)
    found = doctest.testmod(importlib.import_module(module), extraglobs={"torch": torch})
    assert found.attempted > 0 and found.failed == 0
