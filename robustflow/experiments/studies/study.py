"""A study: its TOML file, and the cells of its table."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any

import tomlkit
import tomlkit.exceptions

from robustflow._checks import suggestion
from robustflow.experiments.imaging.checkpoints import State
from robustflow.experiments.imaging.config import Config, override, preset
from robustflow.experiments.imaging.model import ImagingFlow
from robustflow.experiments.values import converted

Row = dict[str, Any]  # of the table: names of columns to texts and numbers
DATA = "{data}"  # in a study's file: the folder that its module's prepare() fills
_KEYS = ("title", "question", "minutes", "extra", "seeds", "settings", "models")
_OF_MODEL = ("task", "preset", "set")


class StudyError(ValueError):
    """A study that cannot be run as asked; the text says why."""


@dataclass(frozen=True)
class Study:
    """A question, the flows that answer it, and how they are measured.

    Attributes:
        name: of its file and its module.
        title, question: in words.
        minutes: about how many it takes on one core, with its trainings.
        extra: of robustflow that it needs beside ``study``; "" for none.
        seeds: each model is trained with each.
        settings: of the measurement.
        models: configurations by name, without seed.
    """

    name: str
    title: str
    question: str
    minutes: float
    extra: str
    seeds: tuple[int, ...]
    settings: Mapping[str, Any]
    models: Mapping[str, Config]

    @property
    def module(self) -> ModuleType:
        """The module that measures."""
        return importlib.import_module(f"{__package__}.{self.name}")

    def changed(self, key: str, value: str) -> Study:
        """The study with one setting (``"number"``), all seeds (``"seeds"``), or one option of all
        trainings (``"training.iterations"``) changed.

        Raises:
            StudyError: there is no such setting, or the value is of another type.
            ConfigError: likewise for an option.
        """
        if "." in key:
            models = {name: override(each, key, value) for name, each in self.models.items()}
            return replace(self, models=models)
        if key != "seeds" and key not in self.settings:
            raise StudyError(
                f"--set: the study {self.name!r} has no setting {key!r}. "
                f"{suggestion(key, ['seeds', *self.settings])}"
            )
        try:
            parsed = tomlkit.value(value).unwrap()
        except (tomlkit.exceptions.ParseError, ValueError):
            parsed = value
        try:
            if key == "seeds":
                return replace(self, seeds=converted(parsed, tuple[int, ...]))
            before = self.settings[key]
            if isinstance(before, list) and isinstance(parsed, list):
                new: Any = [converted(each, type(before[0])) for each in parsed]
            else:
                new = converted(parsed, type(before))
        except ValueError as error:
            raise StudyError(f"--set: {key} {error}") from None
        return replace(self, settings={**self.settings, key: new})


@dataclass(frozen=True)
class Cell:
    """One trained flow of a study.

    Attributes:
        study: that it belongs to.
        model: its name there.
        seed: of its training, and of the latents.
        folder: of its training.
        flow: in evaluation mode.
        config: that it was trained with.
        state: at the end of its training.
        data: what the study's module prepared.
    """

    study: Study
    model: str
    seed: int
    folder: Path
    flow: ImagingFlow
    config: Config
    state: State
    data: Path = field(default_factory=Path)

    @property
    def settings(self) -> Mapping[str, Any]:
        """Of the measurement."""
        return self.study.settings


def study_names() -> list[str]:
    """The names of all studies.

    Example:
        >>> "tradeoff" in study_names()
        True
    """
    entries = (entry.name for entry in files(__package__).iterdir())
    return sorted(name.removesuffix(".toml") for name in entries if name.endswith(".toml"))


def load_study(name: str) -> Study:
    """A study by its name.

    Raises:
        StudyError: there is none of this name.

    Example:
        >>> load_study("tradeoff").title
        'Robustness against diversity and likelihood'
    """
    if name not in study_names():
        raise StudyError(f"There is no study {name!r}. {suggestion(name, study_names())}")
    text = files(__package__).joinpath(f"{name}.toml").read_text(encoding="utf-8")
    return from_toml(name, text)


def from_toml(name: str, text: str) -> Study:
    """A study from the text of its file.

    Raises:
        StudyError: no TOML, or a key is missing or not known.
        ConfigError: a model's configuration cannot be used.
    """
    try:
        table = tomlkit.parse(text).unwrap()
    except tomlkit.exceptions.ParseError as error:
        raise StudyError(f"The study {name!r} is not valid TOML: {error}.") from None
    _check_keys(f"The study {name!r}", table, _KEYS, needed=("title", "question", "models"))
    models = {}
    for label, model in table["models"].items():
        where = f"The study {name!r}, model {label!r},"
        _check_keys(where, model, _OF_MODEL, needed=("task", "preset"))
        config = preset(model["task"], model["preset"])
        for key, value in model.get("set", {}).items():
            config = override(config, key, value, where)
        models[label] = config
    return Study(
        name,
        table["title"],
        table["question"],
        table.get("minutes", 0),
        table.get("extra", ""),
        tuple(table.get("seeds", [0])),
        table.get("settings", {}),
        models,
    )


def _check_keys(
    where: str, table: Mapping[str, Any], known: Sequence[str], needed: Sequence[str]
) -> None:
    for key in table:
        if key not in known:
            raise StudyError(f"{where} has a key {key!r}. {suggestion(key, known)}")
    if missing := [key for key in needed if key not in table]:
        raise StudyError(f"{where} lacks {', '.join(missing)}.")
