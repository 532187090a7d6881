"""`robustflow study`: files, resuming, odd requests, and every study's measure at a tiny size."""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

from robustflow.cli import main
from robustflow.diagnostics.figures import new_figure
from robustflow.experiments.data.builtin import split_of
from robustflow.experiments.imaging.config import Config
from robustflow.experiments.imaging.training import Listener, Update
from robustflow.experiments.studies import black, figures, tradeoff
from robustflow.experiments.studies.runner import Result, run_study
from robustflow.experiments.studies.study import (
    Cell,
    Row,
    Study,
    StudyError,
    from_toml,
    load_study,
    study_names,
)
from robustflow.experiments.studies.trainings import Stopped

DOCS = Path(__file__).parents[2] / "docs"
_SMALL = {  # of every training here
    "model.steps": "1",
    "model.hidden_channels": "4",
    "encoder.channels": "4",
    "encoder.blocks": "2",
    "training.iterations": "2",
    "training.batch_size": "2",
    "data.crop": "16",
    "output.validation_batches": "1",
}
_TEXT = """
title = "A fake"
question = "Does it run?"
seeds = [0, 1]
[settings]
number = 2
[models.affine]
task = "sr"
preset = "tiny"
set = { "model.coupling" = "affine" }
[models.spline]
task = "sr"
preset = "tiny"
"""


def smaller(study: Study) -> Study:
    for key, value in _SMALL.items():
        study = study.changed(key, value)
    return study


class Fake(ModuleType):
    """A study's module that counts what it measured, and stops where it is told to."""

    def __init__(self) -> None:
        super().__init__("robustflow.experiments.studies.fake")
        self.measured: list[tuple[str, int]] = []
        self.stop_at: tuple[str, int] | None = None

    def measure(self, cell: Cell) -> list[Row]:
        place = (cell.model, cell.seed)
        if place == self.stop_at:
            raise KeyboardInterrupt
        self.measured.append(place)
        weight = next(cell.flow.parameters())
        return [{"weight": weight.flatten()[0].item(), "number": cell.settings["number"]}]

    def figure(self, rows: Sequence[Row], study: Study) -> Any:
        made = new_figure(figsize=(3, 3))
        made.subplots().plot([row["weight"] for row in rows])
        return made


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    module = Fake()
    monkeypatch.setitem(sys.modules, module.__name__, module)
    yield module


@pytest.fixture
def study() -> Study:
    return smaller(from_toml("fake", _TEXT))


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_study_that_was_stopped_goes_on_and_gives_the_same_table(
    fake: Fake, study: Study, tmp_path: Path
) -> None:
    whole = run_study(study, tmp_path / "whole")
    assert len(whole.rows) == 4
    fake.measured.clear()
    fake.stop_at = ("affine", 1)
    with pytest.raises(KeyboardInterrupt):
        run_study(study, tmp_path / "parts")
    assert not (tmp_path / "parts" / "fake" / "table.csv").exists()
    assert fake.measured == [("affine", 0), ("spline", 0)]
    fake.stop_at = None
    again = run_study(study, tmp_path / "parts")
    assert fake.measured == [("affine", 0), ("spline", 0), ("affine", 1), ("spline", 1)]
    assert again.rows == whole.rows
    tables = [tmp_path / name / "fake" / "table.csv" for name in ("whole", "parts")]
    assert tables[0].read_bytes() == tables[1].read_bytes()
    assert [row["model"] for row in lines(tables[0])] == ["affine", "spline"] * 2
    saved = json.loads((tmp_path / "whole" / "fake" / "result.json").read_text())
    assert saved["seeds"] == [0, 1] and saved["settings"] == {"number": 2}
    assert saved["versions"]["torch"] == torch.__version__ and saved["machine"]["cores"]
    assert [each["updates"] for each in saved["trainings"]] == [2] * 4
    assert saved["rows"] == json.loads(json.dumps(whole.rows))
    with Image.open(tmp_path / "whole" / "fake" / "fake.png") as image:
        assert image.format == "PNG"


class Interrupting(Listener):
    """Ctrl-C after the first update."""

    def updated(self, update: Update, state: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)


def test_a_training_that_was_stopped_is_gone_on_with(
    fake: Fake, study: Study, tmp_path: Path
) -> None:
    study = replace(study, seeds=(0,))
    whole = run_study(study, tmp_path / "whole")
    with pytest.raises(Stopped):
        run_study(study, tmp_path / "parts", listener=lambda name, config: Interrupting())
    assert (tmp_path / "parts" / "models" / "affine-0" / "checkpoints" / "step-00000001").is_dir()
    again = run_study(study, tmp_path / "parts")
    assert again.rows == whole.rows
    assert [each["updates"] for each in again.trainings] == [2, 2]


def test_changed_settings_and_damaged_cells_are_measured_anew(
    fake: Fake, study: Study, tmp_path: Path
) -> None:
    study = replace(study, seeds=(0,))
    run_study(study, tmp_path)
    changed = run_study(study.changed("number", "3"), tmp_path)
    assert [row["number"] for row in changed.rows] == [3, 3]
    (tmp_path / "fake" / "cells" / "affine-0.json").write_text('{"asked": ')
    fake.measured.clear()
    heard: list[str] = []
    run_study(study.changed("number", "3"), tmp_path, progress=heard.append)
    assert fake.measured == [("affine", 0)]
    assert "affine-0.json cannot be read" in heard[0] and "measured again" in heard[0]


def test_trainings_of_another_folder_are_used_where_they_are_the_same(
    fake: Fake, study: Study, tmp_path: Path
) -> None:
    study = replace(study, seeds=(0,))
    first = run_study(study, tmp_path / "first")
    models = tmp_path / "first" / "models"
    second = run_study(study, tmp_path / "second", models=[models])
    assert second.rows == first.rows
    assert not (tmp_path / "second" / "models" / "affine-0").exists()
    other = study.changed("model.steps", "2")
    with pytest.raises(StudyError, match="affine-0 holds a training of another configuration"):
        run_study(other, tmp_path / "third", models=[models])
    longer = study.changed("training.iterations", "3")
    with pytest.raises(StudyError, match="another configuration"):
        run_study(longer, tmp_path / "first")
    with pytest.raises(StudyError, match="There is no folder"):
        run_study(study, tmp_path / "third", models=[tmp_path / "nowhere"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "Name a study"),
        (["tradeof"], "There is no study 'tradeof'. Did you mean 'tradeoff'?"),
        (["tradeoff", "--set", "numbr=2"], "has no setting 'numbr'. Did you mean 'number'?"),
        (["tradeoff", "--set", "number=many"], "number must be a whole number, got 'many'"),
        (["tradeoff", "--set", "seeds=0"], "seeds must be a list of numbers, got 0"),
        (["tradeoff", "--set", "number"], "--set wants KEY=VALUE"),
        (["tradeoff", "--set", "training.steps=2"], "[training] has no option 'steps'"),
        (["tradeoff", "--set", "training.iterations=0"], "iterations must be above 0"),
        (["tradeoff", "--models", "nowhere"], "There is no folder nowhere of trainings"),
    ],
)
def test_bad_requests_are_named(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", *arguments, "--out", str(tmp_path)]) == 2
    assert sentence in capsys.readouterr().err


def test_a_damaged_training_is_named(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["study", "scores", "--out", str(tmp_path), "--set", "seeds=[0]"]
    folder = tmp_path / "models" / "sr-affine-0"
    (folder / "checkpoints" / "step-00000002").mkdir(parents=True)
    (folder / "config.toml").write_text("no TOML")
    assert main(command) == 2
    assert "config.toml is not valid TOML" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("title = ", "is not valid TOML"),
        ('title = "A"', "lacks question, models"),
        (_TEXT + "\n[other]\n", "has a key 'other'"),
        (_TEXT.replace("preset", "presets"), "has a key 'presets'. Did you mean 'preset'"),
    ],
)
def test_broken_files_of_studies_are_named(text: str, sentence: str) -> None:
    with pytest.raises(StudyError) as error:
        from_toml("fake", text)
    assert sentence in str(error.value)


def test_all_studies_are_listed_with_their_questions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "--list"]) == 0
    printed = capsys.readouterr().out
    words = " ".join(printed.split())
    for name in study_names():
        found = load_study(name)
        assert name in words and found.question.split()[0] in words
        for config in found.models.values():
            if "{data}" not in config.data.train:
                assert isinstance(config, Config)
    assert len(study_names()) >= 6


def tiny(name: str) -> Study:
    """A study whose measure takes a second or two."""
    study = smaller(load_study(name)).changed("seeds", "[0]").changed("number", "2")
    study = study.changed("size", "32")
    if "temperatures" in study.settings:
        study = study.changed("temperatures", "[0.9]")
    if name == "shift":
        study = study.changed("encoder.name", "tiny")
    if name == "adaptation":
        study = study.changed("latent updates", "40").changed("weight updates", "2")
        study = study.changed("latent rate", "0.1").changed("sigma", "0.003")
    names = list(study.models)
    kept = [names[0], names[-1]] if name == "black" else names[:1]  # of both of its tasks
    return replace(study, models={label: study.models[label] for label in kept})


def ran(name: str, out: Path) -> Result:
    result = run_study(tiny(name), out)
    with Image.open(out / name / f"{name}.png") as image:
        assert min(image.size) > 200
    assert len(lines(out / name / "table.csv")) == len(result.rows) > 0
    return result


def test_tradeoff_and_seeds(tmp_path: Path) -> None:
    rows = ran("tradeoff", tmp_path).rows
    assert [row["pictures"] for row in rows] == ["held_out", "ood"]
    assert all(0 <= row["faulty (%)"] <= 100 and row["PSNR (dB)"] > 5 for row in rows)
    rows = ran("seeds", tmp_path).rows  # the training is the first study's
    assert [row["samples"] for row in rows[:4]] == ["raw", "projected", "fixed", "guarded"]


def test_the_figure_of_the_tradeoff_counts_its_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tradeoff, "split_of", lambda split: split_of(split)[:2])
    stored = json.loads((DOCS / "studies" / "tradeoff.json").read_text(encoding="utf-8"))
    drawn = tradeoff.figure(stored["rows"], load_study("tradeoff"))
    assert drawn.get_suptitle().endswith(": 2 out-of-distribution pictures")


def test_shift(tmp_path: Path) -> None:
    rows = ran("shift", tmp_path).rows
    kinds = load_study("shift").settings["kinds"]
    assert len(rows) == sum(map(len, kinds.values())) == 17
    assert {row["kind"] for row in rows} == set(kinds)


def test_scores_and_detectors(tmp_path: Path) -> None:
    rows = ran("scores", tmp_path).rows
    assert {row["failure"] for row in rows} == {"onsets", "contaminated"}
    names = {row["score"] for row in rows}
    assert "gain" in names and "Mahalanobis, encoder, first" in names
    rows = ran("detectors", tmp_path).rows
    assert all(row["samples"] == 2 * 17 for row in rows)


def test_adaptation_brings_samples_nearer_to_the_observation(tmp_path: Path) -> None:
    rows = ran("adaptation", tmp_path).rows
    by_way = {
        way: figures.mean(figures.values(rows, "LR-PSNR (dB)", way=way))
        for way in ("plain", "latents corrected", "plain, as large")
    }
    assert by_way["latents corrected"] > by_way["plain"] + 1
    assert by_way["latents corrected"] > by_way["plain, as large"]


def test_black_counts_what_is_planted(tmp_path: Path) -> None:
    truth = torch.full((1, 3, 8, 8), 0.8)
    truth[..., :4] = 0.1  # dark on the left
    samples = truth.repeat(2, 1, 1, 1)
    samples[0, :, :2, :] = -3.0  # black over both halves
    samples[1, 0, 0, 7] = torch.nan
    counted = black._count(samples, truth, {"bright": 0.5, "black": 0.008})
    assert counted["bright"] == 2 * 32 and counted["black"] == 8
    assert counted["NaN pixels"] == 1 and counted["with NaN"] == 1 and counted["faulty"] == 2
    assert counted["largest"] == float("inf")
    rows = ran("black", tmp_path).rows
    assert [row["precision"] for row in rows] == 2 * list(black._PRECISIONS)
    assert all(row["samples with NaN (%)"] == 0 for row in rows if row["precision"] == "float32")


def test_mri_measures_a_quarter_of_the_lines_and_zero_filling_is_its_pseudo_inverse(
    tmp_path: Path,
) -> None:
    pytest.importorskip("deepinv", reason="pip install 'robustflow[mri]'")
    from robustflow.experiments.studies import mri

    for width in (64, 96, 160):
        chosen = mri.mask(torch.zeros(1, 1, 4, width))[0, 0, 0]
        assert float(chosen.mean()) == pytest.approx(0.25, abs=2 / width)
        assert torch.equal(chosen[1:], chosen[1:].flip(0))  # of k and -k alike
    physics, x = mri.CartesianMRI(), torch.rand(2, 1, 32, 64)
    y = physics.A(x)
    assert y.shape == (2, 2, 32, 64)
    torch.testing.assert_close(physics.A(physics.A_dagger(y)), y)
    centred = torch.fft.ifftshift(x[:, 0], dim=(-2, -1))  # fastMRI's convention
    spectrum = torch.fft.fftshift(torch.fft.fft2(centred, norm="ortho"), dim=(-2, -1))
    kept = torch.view_as_real(spectrum * mri.mask(x)[0]).movedim(-1, 1)
    torch.testing.assert_close(y, kept, atol=1e-5, rtol=1e-4)
    pytest.importorskip("nilearn", reason="pip install 'robustflow[mri]'")
    rows = ran("mri", tmp_path).rows
    assert {row["pictures"] for row in rows} == {"held-out", "other-planes"}
    assert len(list((tmp_path / "mri" / "data" / "train").iterdir())) == 11
