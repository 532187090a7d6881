"""The run under compute-sanitizer, as far as it goes without a GPU."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

import robustflow
from tests.backends.gpu import sanitize, small_run
from tests.conformance import layouts, operations

ALL: dict[str, bool | str] = dict.fromkeys(("cpu", "cuda", "triton", "reference"), True)


def fake_sanitizer(folder: Path, body: str) -> str:
    """A program in compute-sanitizer's place, which prints its arguments and then does ``body``."""
    file = folder / "compute-sanitizer"
    file.write_text(f"#!{sys.executable}\nimport os, sys\nprint(sys.argv[1:])\n{body}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return str(file)


def test_the_small_run_meets_every_operation() -> None:
    """On the CPU kernels, or the reference: what it would do on a GPU."""
    backend = "cpu" if robustflow.backends()["cpu"] is True else "reference"
    calls = list(small_run.calls("cpu"))
    assert {call.operation for call, _, _ in calls} == set(operations.REPRESENTATIVES)
    known = {layout.name for layout in (*layouts.PACKED, *layouts.LARGE_PACKED, *layouts.SEPARATE)}
    assert set(small_run.NAMES) <= known
    assert {call.layout.name for call, _, _ in calls} == set(small_run.NAMES)
    assert small_run.run(backend, "cpu") == len(calls)


def test_clean_and_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(robustflow, "backends", lambda: ALL)
    clean = "assert os.environ['PYTORCH_NO_CUDA_MEMORY_CACHING'] == '1'\nprint('7 calls')"
    for body, status, words in (
        (clean, 0, ["cuda, memcheck: clean", "triton, racecheck: clean"]),
        ("sys.exit(99 if 'racecheck' in sys.argv else print('7 calls'))", 1, ["exit code 99"]),
        ("print('it stopped early')", 1, ["exit code 0", "it stopped early"]),
    ):
        sanitizer = fake_sanitizer(tmp_path, body)
        monkeypatch.setattr(sanitize, "find_sanitizer", lambda sanitizer=sanitizer: sanitizer)
        assert sanitize.main([]) == status
        output = capsys.readouterr().out
        assert all(word in output for word in words), output
    assert sanitize.main(["cuda"]) == 1
    output = capsys.readouterr().out
    assert "'--tool', 'memcheck', '--error-exitcode', '99'" in output
    assert "'tests.backends.gpu.small_run', 'cuda'" in output and "triton" not in output


def test_what_is_missing_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sanitize.main(["cpu"]) == 2
    assert "cpu: the backends to look at are cuda, triton." in capsys.readouterr().out
    monkeypatch.setattr(robustflow, "backends", lambda: {**ALL, "cuda": "No.", "triton": "Nor."})
    assert sanitize.main([]) == 1
    assert "nothing to look at.\ncuda: No.\ntriton: Nor." in capsys.readouterr().out
    monkeypatch.setattr(robustflow, "backends", lambda: ALL)
    monkeypatch.setattr(sanitize, "find_sanitizer", lambda: None)
    assert sanitize.main([]) == 1
    assert "comes with the CUDA toolkit" in capsys.readouterr().out


def test_the_sanitizer_is_found_beside_the_toolkit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    program = fake_sanitizer(tmp_path / "bin", "")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert sanitize.find_sanitizer() == program
