"""Run a study: train what is missing, measure cell by cell, write a table and a figure.

A cell is one model with one seed. Its results are stored in a file, with the settings that they
were measured with. So a stopped study resumes where it was, and cells whose settings have changed
are measured again.
"""

from __future__ import annotations

import csv
import io
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from robustflow._files import check_writable, write_atomically
from robustflow._plain import plain
from robustflow.experiments.imaging import checkpoints
from robustflow.experiments.imaging.config import Config, override, to_toml
from robustflow.experiments.imaging.loading import load_own_flow
from robustflow.experiments.imaging.training import Listener
from robustflow.experiments.report import machine
from robustflow.experiments.studies.study import DATA, Cell, Row, Study, StudyError
from robustflow.experiments.studies.trainings import trained

_PACKAGES = ("torch", "numpy", "scipy", "torchmetrics", "scikit-image", "scikit-learn", "deepinv")


@dataclass
class Result:
    """The results of a study.

    Attributes:
        study: the study as it was run.
        rows: of the table, each with "model" and "seed".
        trainings: for each cell: model, seed, number of weights, updates, bits per dimension, and
            seconds.
        folder: where the files are.
    """

    study: Study
    rows: list[Row]
    trainings: list[Row]
    folder: Path


@dataclass(frozen=True)
class Measured:
    """A cell's result."""

    rows: list[Row]
    training: Row


def run_study(
    study: Study,
    out: Path,
    *,
    models: Sequence[Path] = (),
    listener: Callable[[str, Config], Listener] = lambda name, config: Listener(),
    progress: Callable[[str], Any] = lambda sentence: None,
) -> Result:
    """Run a study, or resume it.

    Args:
        study: the study.
        out: the trainings are written to ``models/`` in it, where other studies find them; the rest
            to a folder with the study's name.
        models: further folders that may hold trainings. The study looks there for folders named
            ``MODEL-SEED``.
        listener: called with the name and configuration of each training that is run; returns its
            listener.
        progress: called with a sentence before each cell is measured.

    Raises:
        StudyError: a folder in ``models`` is missing, or a training has the name of one of the
            study's but another configuration.
        UnwritablePath: nothing can be written to ``out``; raised before any work.
        ModuleNotFoundError: an extra is missing; the text names it.
        Stopped, ConfigError, CheckpointError, TrainingStopped: as for :func:`trained`.
    """
    folder = out / study.name
    files = [folder / name for name in ("table.csv", "result.json", f"{study.name}.png")]
    check_writable(*files, out / "models" / "x", folder / "cells" / "x")
    for training_folder in models:
        if not training_folder.is_dir():
            raise StudyError(
                f"There is no folder {training_folder} of trainings: name another by --models."
            )
    module, data = study.module, folder / "data"
    if hasattr(module, "prepare"):
        module.prepare(data)
    result = Result(study, [], [], folder)
    cells = [(name, seed) for seed in study.seeds for name in study.models]
    for number, (name, seed) in enumerate(cells, 1):
        config = _with_seed(study.models[name], seed, data)
        file = folder / "cells" / f"{name}-{seed}.json"
        requested = {"settings": study.settings, "config": to_toml(config, explain=False)}
        measured = _stored(file, requested, progress)
        if measured is None:
            progress(f"{study.name}, {number} of {len(cells)}: {name}, seed {seed}")
            training_folder = trained(config, f"{name}-{seed}", out / "models", models, listener)
            measured = _measure(study, name, seed, training_folder, data)
            content = {"asked": requested, "rows": measured.rows, "training": measured.training}
            write_atomically(file, json.dumps(plain(content), indent=1, allow_nan=False) + "\n")
            measured = _stored(file, requested, progress) or measured
        result.rows += measured.rows
        result.trainings.append(measured.training)
    _write(result, files)
    return result


def _with_seed(config: Config, seed: int, data: Path) -> Config:
    """A model's configuration with its seed, and with the folder that the study prepared."""
    config = replace(config, training=replace(config.training, seed=seed))
    for option in ("train", "validation"):
        path: str = getattr(config.data, option)
        if DATA in path:
            config = override(config, f"data.{option}", path.replace(DATA, str(data.resolve())))
    return config


def _measure(study: Study, name: str, seed: int, folder: Path, data: Path) -> Measured:
    flow, config = load_own_flow(folder)
    state = checkpoints.read_state(checkpoints.complete(folder / "checkpoints")[-1])
    cell = Cell(study, name, seed, folder, flow, config, state, data)
    started = time.perf_counter()
    rows = [{"model": name, "seed": seed, **row} for row in study.module.measure(cell)]
    training: Row = {
        "model": name,
        "seed": seed,
        "weights": sum(weight.numel() for weight in flow.parameters()),
        "updates": state.step,
        "bits per dimension": state.best_bits,
        "seconds of training": round(state.seconds, 1),
        "seconds of measuring": round(time.perf_counter() - started, 1),
    }
    return Measured(rows, training)


def _stored(
    file: Path, requested: Mapping[str, Any], progress: Callable[[str], Any]
) -> Measured | None:
    """The stored results of a cell; None if it was not measured with what is asked for now."""
    if not file.exists():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["asked"] != plain(requested):
            return None
        return Measured(content["rows"], content["training"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        progress(f"{file} cannot be read ({error}): its cell is measured again.")
        return None


def table(rows: Sequence[Row]) -> str:
    """Rows as CSV. If a row lacks a column, its entry is empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _write(result: Result, files: Sequence[Path]) -> None:
    study = result.study
    content = {
        "study": study.name,
        "title": study.title,
        "question": study.question,
        "settings": study.settings,
        "seeds": study.seeds,
        "models": {name: to_toml(each, explain=False) for name, each in study.models.items()},
        "trainings": result.trainings,
        "rows": result.rows,
        "versions": _versions(),
        "machine": machine() | {"processor": platform.processor() or platform.machine()},
    }
    write_atomically(files[0], table(result.rows))
    write_atomically(files[1], json.dumps(plain(content), indent=1, allow_nan=False) + "\n")
    buffer = io.BytesIO()
    study.module.figure(result.rows, study).savefig(buffer, format="png", dpi=130)
    write_atomically(files[2], buffer.getvalue())


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
