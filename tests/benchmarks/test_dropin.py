"""benchmarks.dropin measures what it says, on a tiny flow."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import dropin
from robustflow import compat
from robustflow.benchmarks import dropin_cases
from robustflow.benchmarks.dropin_cases import LIBRARIES, MODES, TINY, WHATS


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    pytest.importorskip(name)
    return name


def test_modes_run_what_they_say(library: str) -> None:
    results = {mode: dropin_cases.results(library, TINY, mode) for mode in MODES}
    assert compat.patched() == {}
    off, on, free = (results[mode] for mode in MODES)
    torch.testing.assert_close(on["log_prob"], off["log_prob"], rtol=1e-3, atol=1e-3)
    assert (free["log_prob"] - off["log_prob"]).abs().max() > 1e-2
    # Connected: every parameter has a gradient, though it is zero.
    assert free["gradients"].shape == off["gradients"].shape
    again = dropin_cases.results(library, TINY, "off")
    torch.testing.assert_close(again, off, rtol=0, atol=0)


@pytest.mark.parametrize("what", WHATS)
def test_the_kernels_serve_the_whole_flow(library: str, what: str) -> None:
    run = dropin_cases.make_run(library, TINY, what, "on")
    with compat.patch(library):
        run()
        counts = compat.patched()[library]
    assert counts["kernel"] >= TINY.layers and counts["fallback"] == 0


def test_rows(library: str, tmp_path: Path) -> None:
    rows = dropin.time_flow(library, TINY, "default", seconds=0.01)
    assert [row.what for row in rows] == list(WHATS)
    for row in rows:
        assert row.share == pytest.approx(row.seconds["free"] / row.seconds["on"])
        assert all(row.seconds[mode] > 0 for mode in MODES)
        assert row.difference["log_prob"] < 1e-3
    text = dropin.report(rows, {"peak memory": "Not here."})
    assert f"{library}, tiny" in text and "Left out: peak memory. Not here." in text


def test_wrong_results_are_not_timed(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = dropin_cases.results

    def wrong(name: str, size: dropin_cases.Size, mode: str) -> dict[str, torch.Tensor]:
        found = own(name, size, mode)
        return {key: value + (mode == "on") for key, value in found.items()}

    monkeypatch.setattr(dropin_cases, "results", wrong)
    with pytest.raises(AssertionError, match="log_prob"):
        dropin.time_flow(library, TINY, "default", seconds=0.01)
