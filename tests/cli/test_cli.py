"""The command line: commands are found, `doctor` tells what is wrong, missing extras are named."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

import robustflow
from robustflow import _native, cli
from robustflow.cli import doctor


def test_commands_are_the_modules_of_the_package() -> None:
    assert {"demo", "doctor"} <= set(cli.commands())
    assert not any(name.startswith("_") for name in cli.commands())


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--help"])
    assert exit_.value.code == 0
    output = capsys.readouterr().out
    assert all(f"    {name} " in output for name in cli.commands())


def test_an_unknown_command_lists_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["cure"])
    assert exit_.value.code == 2
    assert "doctor" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["robustflow", "robustflow.cli"])
def test_the_version_without_the_script(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"robustflow {robustflow.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--help"], 0), (["doctor"], 141), (["train", "sr", "--print-config"], 141)],  # argparse: 0
)
def test_a_reader_that_leaves_is_no_error(arguments: list[str], code: int) -> None:
    """As `robustflow ... | head -0`: nobody reads the other end of the pipe."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "robustflow.cli", *arguments],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (code, "")


def test_another_broken_pipe_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(argv: object) -> int:
        raise BrokenPipeError("a worker's")

    monkeypatch.setattr(cli, "_main", fail)
    with pytest.raises(BrokenPipeError, match="a worker's"):
        cli.main([])


@pytest.mark.parametrize(
    ("module", "missing", "extra"),
    [
        ("robustflow.experiments.migration", "rich", "experiments"),
        ("robustflow.experiments.figures", "matplotlib", "experiments"),
        ("examples.posterior", "sbi", "sbi"),
    ],
)
def test_an_experiment_without_its_extra_names_it(
    tmp_path: Path, module: str, missing: str, extra: str
) -> None:
    (tmp_path / f"{missing}.py").write_text(f"raise ModuleNotFoundError(name={missing!r})")
    done = subprocess.run(
        [sys.executable, "-m", module],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert f" needs the package {missing}: pip install 'robustflow[{extra}]'\n" in done.stderr
    assert "Traceback" not in done.stderr


def test_doctor_reports_versions_and_backends(capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(["doctor", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["versions"]["torch"] == torch.__version__
    assert report["versions"]["Python"] == platform.python_version()
    assert report["backends"] == robustflow.backends()
    assert report["native"] == robustflow.build_info()
    assert report["healthy"] is (code == 0) is (report["problems"] == [])
    assert report["healthy"] and report["versions"]["robustflow"] == robustflow.__version__


def test_doctor_finds_kernels_that_are_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not robustflow.build_info()["loaded"]:
        pytest.skip("the native library is not built")
    results = itertools.cycle([(torch.zeros(3), torch.zeros(3)), (torch.ones(3), torch.zeros(3))])
    monkeypatch.setattr(
        "robustflow.functional.modified_rq_spline", lambda *args, **kwargs: next(results)
    )
    assert cli.main(["doctor"]) == 1
    output = capsys.readouterr().out
    assert "disagree with the reference" in output and output.endswith("not healthy\n")


def test_doctor_quotes_a_native_library_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = {"loaded": False, "reason": "It fell over."}
    monkeypatch.setattr(robustflow, "build_info", lambda: failed)
    diagnosis = doctor.diagnose()
    assert diagnosis["problems"] == ["It fell over."] and not diagnosis["healthy"]
    assert doctor.render(diagnosis).count("It fell over.") == 1
    left_out = {**failed, "broken": False}
    monkeypatch.setattr(_native, "is_outdated", lambda: False)
    monkeypatch.setattr(robustflow, "build_info", lambda: left_out)
    diagnosis = doctor.diagnose()
    assert diagnosis["notes"] == ["It fell over."] and diagnosis["healthy"]
    assert "note: It fell over.\nhealthy" in doctor.render(diagnosis)
    monkeypatch.setattr(_native, "is_outdated", lambda: True)
    assert "built from other sources" in doctor.diagnose()["notes"][1]


def test_doctor_tells_of_the_gpu_side(capsys: pytest.CaptureFixture[str]) -> None:
    """Why each GPU backend is missing, or what serves there and on which card."""
    cli.main(["doctor"])
    output = capsys.readouterr().out
    for name in ("cuda", "triton"):
        reason = robustflow.backends()[name]
        assert f"  {name:<18} {'yes' if reason is True else reason}" in output
    info = robustflow.build_info()["cuda"]
    assert f"  {'cuda':<18} {'loaded' if info['loaded'] else 'not loaded'}" in output
    if torch.cuda.is_available():
        assert torch.cuda.get_device_name(0) in output
    else:
        assert "none that torch sees" in output


def test_doctor_reads_the_drivers_version(tmp_path: Path) -> None:
    file = tmp_path / "version"
    file.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release\n")
    assert doctor.driver_version(file) == "580.95.05"
    file.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar 5\n")
    assert doctor.driver_version(file) == "550.54.15"
    assert doctor.driver_version(tmp_path / "none") == "unknown"


@pytest.mark.parametrize(
    ("mode", "setting", "advised"),
    [
        ("madvise", None, True),
        ("madvise", "1", False),
        ("always", None, False),
        (None, None, False),
    ],
)
def test_doctor_advises_huge_pages_where_they_have_to_be_asked_for(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: str | None,
    setting: str | None,
    advised: bool,
) -> None:
    file = tmp_path / "enabled"
    if mode:
        file.write_text("always madvise never\n".replace(mode, f"[{mode}]"))
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    if setting:
        monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", setting)
    report = doctor._memory_report(file)
    assert report["huge pages"] == (mode or "unknown")
    assert ("THP_MEM_ALLOC_ENABLE=1" in report["advice"]) is advised


def test_a_missing_package_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(args: argparse.Namespace) -> int:
        import a_package_that_is_not_there  # type: ignore[import-not-found]  # noqa: F401

        return 0

    command = types.ModuleType("robustflow.cli.paint")
    command.add_parser = lambda subparsers: subparsers.add_parser("paint")  # type: ignore[attr-defined]
    command.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "robustflow.cli.paint", command)
    monkeypatch.setattr(cli, "commands", lambda: ["paint"])
    assert cli.main(["paint"]) == 2
    message = capsys.readouterr().err
    assert "a_package_that_is_not_there" in message and "'robustflow[paint]'" in message
