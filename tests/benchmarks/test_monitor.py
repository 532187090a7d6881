"""The benchmark of the monitor says what it must."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import monitor
from robustflow.benchmarks import timing


def test_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "CASES", monitor.CASES[:1])
    monkeypatch.setattr(timing.alternate, "__kwdefaults__", _hurried())
    file = tmp_path / "monitor.json"
    options = ["--coupling", "modified RQ", "--iterations", "1", "--steps", "1", "--seconds", "0"]
    assert monitor.main([*options, "--json", str(file)]) == 0
    (result,) = json.loads(file.read_text())["monitor"]["results"]
    assert result["onsets"] == 0 and result["picture"] == "astronaut"
    assert result["ratio"] == pytest.approx(result["watched"] / result["plain"])
    assert "modified RQ" in capsys.readouterr().out


def _hurried() -> dict[str, Any]:
    return {**(timing.alternate.__kwdefaults__ or {}), "min_rounds": 1, "warmup": 1}


def test_the_target() -> None:
    fast = monitor.Result("affine", "cat", 0.9, 1.0, 1.1, 1.1, 0.01, 3)
    slow = monitor.Result("affine", "cat", 0.9, 1.0, 1.2, 1.2, 0.01, 3)
    assert fast.met and not slow.met
    lines = monitor.report([fast, slow]).splitlines()
    assert lines[-2].rstrip().endswith("met") and lines[-1].rstrip().endswith("MISSED")
