"""The example that diagnoses flows of nflows and FrEIA runs."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
def test_flows_of_other_libraries_are_diagnosed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("nflows")
    pytest.importorskip("FrEIA")
    script = runpy.run_path(str(EXAMPLES / "diagnose_nflows_and_freia.py"))
    script["main"](["--iterations", "3", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    for name in ("nflows", "FrEIA"):
        assert f"{name}: " in printed and (tmp_path / name / "report.html").exists()
    assert printed.count("Certificate: failed") == 4  # the table of each, and its report
    assert "onsets" in printed and "KNNScore: alarms" in printed
