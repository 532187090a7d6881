"""The README's Python runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

README = Path(__file__).parent.parent / "README.md"


def test_examples_run_and_give_what_they_say() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(blocks[0], names)
    assert names["y"].shape == names["logabsdet"].shape == (64, 8)
    exec(blocks[1], names)
    assert torch.isfinite(names["loss"])
    assert names["samples"].shape == (4, 10, 3, 16, 16)
