"""Where the pictures of a configuration are."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustflow.experiments.data.builtin import split_of
from robustflow.experiments.data.crops import Source, find_sources
from robustflow.experiments.data.reading import picture_files
from robustflow.experiments.imaging.config import Config, ConfigError
from robustflow.experiments.tasks import Task

_VALIDATION_SHARE = 0.05  # of the files, the last by name, where no folder is named


@dataclass(frozen=True)
class Sources:
    """Pictures to train on and to validate with."""

    training: list[Source]
    validation: list[Source]


def sources_of(config: Config, task: Task, report: Callable[[str], Any]) -> Sources:
    """The pictures of ``[data]``; files that are left out are reported.

    Raises:
        ConfigError: a folder is missing, or nothing in it can be used.
    """
    data = config.data
    if data.train == "builtin":
        if data.observations:
            raise ConfigError("[data] observations goes with a folder of pictures, not builtin.")
        try:
            training = [picture.file for picture in split_of("train")]
            validation = [picture.file for picture in split_of("held_out")]
        except FileNotFoundError as error:
            raise ConfigError(f"[data] train: {error}") from None
    else:
        training = _files(data.train, "train")
        validation = []
        if not data.validation:
            number = math.ceil(_VALIDATION_SHARE * len(training)) if len(training) > 1 else 0
            kept = len(training) - number
            training, validation = training[:kept], training[kept:]
    if data.validation:
        validation = _files(data.validation, "validation")
    observations = None
    if data.observations:
        if task.observation_channels != 3:  # of a picture file
            raise ConfigError(
                f"[data] observations: the task {task.name!r} observes "
                f"{task.observation_channels} channels, which picture files have not."
            )
        observations = _by_stem(_files(data.observations, "observations"))
    sources = Sources(
        find_sources(training, observations, task, data.crop, report),
        find_sources(validation, observations, task, data.crop, report),
    )
    if not sources.training:
        raise ConfigError(
            f"[data] train: no picture of {data.train} can be used for crops of {data.crop}."
        )
    if not sources.validation:
        report("No picture is left for validation: the training pictures serve for that, too.")
        sources = Sources(sources.training, sources.training)
    return sources


def _by_stem(files: list[Path]) -> dict[str, Path]:
    by_stem: dict[str, Path] = {}
    for path in files:
        if path.stem in by_stem:
            raise ConfigError(
                f"[data] observations: {by_stem[path.stem]} and {path} have the same name, so it "
                "is not clear which belongs to the picture of that name."
            )
        by_stem[path.stem] = path
    return by_stem


def _files(folder: str, option: str) -> list[Path]:
    try:
        return picture_files(Path(folder).expanduser())
    except (OSError, ValueError) as error:
        raise ConfigError(f"[data] {option}: {error}") from None
