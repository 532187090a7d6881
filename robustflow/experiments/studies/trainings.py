"""The trainings of a study: reused if finished, resumed if stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from robustflow.experiments.imaging import checkpoints
from robustflow.experiments.imaging.config import Config, DataTable, OutputTable, load
from robustflow.experiments.imaging.training import Listener, Trainer
from robustflow.experiments.studies.study import StudyError


class Stopped(KeyboardInterrupt):
    """A signal ended a training; all is saved."""


def trained(
    config: Config,
    name: str,
    folder: Path,
    others: Sequence[Path],
    listener: Callable[[str, Config], Listener],
) -> Path:
    """The folder of a finished training.

    Args:
        config: of the training.
        name: of its folder.
        folder: of all trainings, where what is missing is trained.
        others: further folders of trainings that may be used.
        listener: made for a training that is run: by its name and configuration.

    Raises:
        StudyError: a folder of this name holds another training.
        Stopped: a signal came; the same call goes on with it.
        ConfigError, CheckpointError, TrainingStopped: as for :class:`Trainer`.
    """
    for place in (*others, folder):
        if is_finished(place / name, config):
            return place / name
    target = folder / name
    begun = bool(checkpoints.complete(target / "checkpoints"))
    trainer = Trainer(config, target, resume=begun, listener=listener(name, config))
    if trainer.run().step < config.training.iterations:
        raise Stopped
    return target


def is_finished(folder: Path, config: Config) -> bool:
    """Whether a folder holds this training, whole.

    Raises:
        StudyError: it holds another one.
        CheckpointError, ConfigError: its files are damaged.
    """
    steps = checkpoints.complete(folder / "checkpoints")
    if not steps:
        return False
    if _comparable(load(folder / "config.toml")) != _comparable(config):
        raise StudyError(
            f"{folder} holds a training of another configuration than the study asks for "
            f"(compare its config.toml with `robustflow study NAME --print-config`): name another "
            "folder, or move it away."
        )
    return checkpoints.read_state(steps[-1]).step == config.training.iterations


def _comparable(config: Config) -> Config:
    """The configuration without options that change no weights."""
    training = replace(config.training, threads=0)
    encoder = replace(config.encoder, cache_gib=0.0)
    data = replace(config.data, workers=DataTable().workers)
    output = OutputTable()
    return replace(config, training=training, encoder=encoder, data=data, output=output)
