"""The examples of docs/flows.md run and give what they say."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch

TEXT = (Path(__file__).parents[2] / "docs" / "flows.md").read_text(encoding="utf-8")


def test_the_examples_run() -> None:
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        exec(block, names)
    flow = names["flow"]
    assert (flow.channels, flow.size_multiple) == (3, 8)
    assert flow.latent_shapes((32, 32)) == [(6, 16, 16), (96, 4, 4)]
    assert names["samples"].shape == (2, 3, 3, 32, 32) and names["density"].shape == (2, 3)
    assert bool(names["bits"] > 8)  # of noise, which takes 8 bits
    torch.testing.assert_close(names["loss"], -flow.log_prob(names["x"], names["features"]).mean())
    assert bool((names["angles"].abs() <= math.pi).all())
    assert names["mixed"].sample(5).shape == (5, 2)
