"""The experiment on the demonstration's pictures, tiny: what it compares, and what it writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from robustflow.experiments import migration
from robustflow.experiments.comparison import PICTURES, TEMPERATURES
from robustflow.experiments.super_resolution import QUICK_SETTINGS, Settings

TINY = replace(QUICK_SETTINGS, steps=1, iterations=6, batch_size=2, sample_size=32)


@pytest.fixture(scope="module")
def result() -> migration.Migration:
    torch.set_num_threads(1)
    return migration.run_migration(TINY, 4, Console(quiet=True))


def test_the_stages_are_of_one_flow(result: migration.Migration) -> None:
    stages = result.stages
    names = ["affine", "converted", "converted, then trained", "affine, trained on"]
    assert list(stages) == names
    assert [row.name for row in result.conversion.replaced] == [
        "levels.0.layers.3",
        "levels.0.layers.4",
    ]
    assert [row.channels for row in result.conversion.replaced] == [48, 24]
    # Hardly trained, an affine depends on its condition but little: the constant one is as likely.
    bits = [stages[name].bits_training for name in names]
    assert bits[1] == pytest.approx(bits[0], rel=0.02)
    assert bits[2] < bits[1] and bits[3] < bits[0]


def test_everything_is_written(result: migration.Migration) -> None:
    content = json.loads(migration.to_json(result, TINY, 4, 1.0))
    assert content["settings"]["more_iterations"] == 4 and content["meaningful"] is False
    assert content["stages"]["converted"]["faults"] is None
    for name in ("affine", "converted, then trained", "affine, trained on"):
        stage = content["stages"][name]
        assert stage["total"]["samples"] == 5 * len(PICTURES) * len(TEMPERATURES)
        assert set(stage["faults"]) == {picture.title for picture in PICTURES}
        assert stage["bits_held_out"] == result.stages[name].bits_held_out
    assert len(content["conversion"]["replaced"]) == 2


def test_the_command_prints_a_row_a_stage(
    tmp_path: Path,
    result: migration.Migration,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[object] = []

    def run(*args: object) -> migration.Migration:
        asked.extend(args)
        return result

    monkeypatch.setattr(migration, "run_migration", run)
    file = tmp_path / "migration.json"
    arguments = ["--iterations", "6", "--more-iterations", "4", "--json", str(file)]
    assert migration.main([*arguments, "--seed", "3"]) == 0
    assert asked[:2] == [replace(Settings(), iterations=6, seed=3), 4]
    assert list(json.loads(file.read_text())["stages"]) == list(result.stages)
    printed = capsys.readouterr().out
    assert all(name in printed for name in result.stages) and "Replaced 2, kept 0" in printed
    with pytest.raises(SystemExit):
        migration.main(["--iterations", "0"])
    assert "--iterations: must be a whole number of at least 1" in capsys.readouterr().err
