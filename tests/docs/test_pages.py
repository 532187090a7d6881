"""The Python blocks of the README and of every page run, and give what the pages say."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.docs.pages import PAGES, ROOT, blocks_to_run, name_of, text_of

Names = dict[str, Any]

# Pages whose blocks run in a test of their own: they start processes, or export files.
ELSEWHERE = {
    "docs/drop-ins.md": "tests/compat/patch/test_workers.py",
    "docs/onnx.md": "tests/contract/test_onnx.py",
}


def _readme(names: Names) -> None:
    assert names["samples"].shape == (4, 10, 3, 16, 16)
    assert torch.isfinite(names["loss"])
    assert names["counts"] == {"nflows": {"kernel": 1, "reference": 0, "fallback": 0}}
    assert not names["certificate"].passed
    assert names["points"].shape == (1, 100, 6)


def _start(names: Names) -> None:
    assert names["y"].shape == names["logabsdet"].shape == (64, 8)
    assert names["samples"].shape == (4, 10, 3, 16, 16)
    assert names["density"].sample(3).shape == (3, 6)


def _flows(names: Names) -> None:
    flow = names["flow"]
    assert (flow.channels, flow.size_multiple) == (3, 8)
    assert flow.latent_shapes((32, 32)) == [(6, 16, 16), (96, 4, 4)]
    assert names["samples"].shape == (2, 3, 3, 32, 32) and names["density"].shape == (2, 3)
    assert bool(names["bits"] > 8)  # of noise, which takes 8 bits
    torch.testing.assert_close(names["loss"], -flow.log_prob(names["x"], names["features"]).mean())
    assert bool((names["angles"].abs() <= math.pi).all())
    assert names["mixed"].sample(5).shape == (5, 2)


def _distributions(names: Names) -> None:
    assert torch.isfinite(names["loss"])
    assert names["flow"](torch.zeros(4)).sample((3,)).shape == (3, 6)


def _srflow(names: Names) -> None:
    torch.testing.assert_close(names["logdet"], torch.zeros(2), atol=1e-3, rtol=0)
    assert [sample.shape for sample in names["samples"]] == [(2, 12, 40, 40)] * 10


def _migrating(names: Names) -> None:
    assert len(names["report"].replaced) == 2 and not names["report"].kept


def _scores(names: Names) -> None:
    assert names["where"].shape == (4, 14, 14)
    assert names["unfamiliar"].dtype == torch.bool


def _artifacts(names: Names) -> None:
    assert names["found"].masks["saturated"].shape == (4, 64, 64)


def _calibration(names: Names) -> None:
    assert names["report"].to_dict()["pictures"] == 50


def _adding(names: Names) -> None:
    assert names["BUMP"].config(False, 2.0, "sum", 4) == (False, 2.0, 1)


def _imaging(names: Names) -> None:
    task, x = names["Grey"](), torch.rand(2, 3, 4, 4)
    assert torch.equal(task.forward(x)[:, 0], x.mean(dim=1))


CHECKS: dict[str, Callable[[Names], None]] = {
    "README.md": _readme,
    "docs/index.md": _start,
    "docs/flows.md": _flows,
    "docs/distributions.md": _distributions,
    "docs/srflow.md": _srflow,
    "docs/migrating.md": _migrating,
    "docs/scores.md": _scores,
    "docs/artifacts.md": _artifacts,
    "docs/calibration.md": _calibration,
    "docs/adding-a-transform.md": _adding,
    "docs/imaging.md": _imaging,
}
TO_RUN = [page for page in PAGES if blocks_to_run(page) and name_of(page) not in ELSEWHERE]


@pytest.mark.parametrize("page", TO_RUN, ids=name_of)
def test_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: Names = {"__name__": "page"}
    for block in blocks_to_run(page):
        exec(compile(block, name_of(page), "exec", dont_inherit=True), names)
    CHECKS[name_of(page)](names)


def test_pages_that_run_elsewhere_do() -> None:
    for page, test in ELSEWHERE.items():
        assert Path(page).name in text_of(ROOT / test)


def test_nothing_is_checked_that_does_not_run() -> None:
    assert set(CHECKS) == {name_of(page) for page in TO_RUN}
