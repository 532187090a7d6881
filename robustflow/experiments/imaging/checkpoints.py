"""Checkpoints of a training, written atomically; the last few and the best are kept.

A checkpoint is a folder::

    checkpoints/step-00001000/
        model.safetensors      weights to sample from (averaged, where training averages)
        training.safetensors   what training goes on from: weights, optimiser, average
        state.json             step, counters

It is written under another name and renamed when every byte is on disk, so a folder of this name is
complete. ``best`` is another such folder, whose ``state.json`` names the step.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from robustflow.experiments.torch_files import UnreadableFile, load_torch_file

MODEL = "model.safetensors"
TRAINING = "training.safetensors"
STATE = "state.json"
BEST = "best"
FORMAT = "robustflow imaging flow 1"
_NAME = re.compile(r"step-(\d{8})")
_PARTIAL = ".partial-"


class CheckpointError(Exception):
    """A checkpoint that cannot be read or written; its text says which, why, and what to do."""


@dataclass
class State:
    """The numbers of a training.

    Attributes:
        step: updates done.
        skipped: updates left out for a loss or gradient that was not finite.
        skipped_in_a_row: the last of them.
        best_bits: lowest bits per dimension of a validation, and None before the first.
        seconds: spent in training.
    """

    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    best_bits: float | None = None
    seconds: float = 0.0


def write(
    folder: Path,
    state: State,
    config: str,
    model: Mapping[str, Tensor],
    training: Mapping[str, Tensor],
    *,
    task: str = "",
    encoder: str = "",
    keep: int,
    best: bool,
) -> Path:
    """Write the checkpoint of a step, and remove those beyond the last ``keep``.

    Args:
        folder: of the checkpoints.
        state: of the step.
        config: the configuration as TOML, which goes into the file of the weights.
        model: weights to sample from.
        training: what training goes on from.
        task: its name.
        encoder: the hash of the file that a frozen encoder's weights stay in.
        keep: how many are kept, at least 1; the best one beside them.
        best: whether this is the best so far.

    Raises:
        CheckpointError: it could not be written; the earlier ones are as they were.
    """
    name = f"step-{state.step:08d}"
    metadata = {"format": FORMAT, "config": config, "step": str(state.step)}
    metadata["task"] = task
    if encoder:
        metadata["encoder"] = encoder
    partial = folder / f"{_PARTIAL}{name}"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(_on_cpu(model), partial / MODEL, metadata)
        save_file(_on_cpu(training), partial / TRAINING, {"format": FORMAT})
        (partial / STATE).write_text(json.dumps(asdict(state), indent=2), encoding="utf-8")
        for file in partial.iterdir():
            _flush(file)
        _flush(partial)
        # Write the best one first: a training that is killed in between repeats this step, with the
        # same validation, and writes both. In the other order, `best` would stay the older one.
        if best:
            _make_best(folder, partial)
        target = folder / name
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        _flush(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"The checkpoint of step {state.step} could not be written to {folder}: {error}. "
            "Earlier checkpoints are whole: make room, and go on with --resume."
        ) from error
    for old in complete(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def _make_best(folder: Path, source: Path) -> None:
    """Let ``best`` be a copy of a checkpoint, by links where the file system has them."""
    partial = folder / f"{_PARTIAL}{BEST}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for file in (MODEL, STATE):
        try:
            os.link(source / file, partial / file)
        except OSError:  # a file system without links
            shutil.copy2(source / file, partial / file)
    old = folder / f"{_PARTIAL}old-{BEST}"
    shutil.rmtree(old, ignore_errors=True)
    if (folder / BEST).exists():
        (folder / BEST).rename(old)
    partial.rename(folder / BEST)
    shutil.rmtree(old, ignore_errors=True)


def complete(folder: Path) -> list[Path]:
    """The checkpoints of a folder, in the order of their steps."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def remove_partial(folder: Path) -> None:
    """Remove files that a killed training left incomplete."""
    if folder.is_dir():
        for path in folder.iterdir():
            if path.name.startswith(_PARTIAL):
                shutil.rmtree(path, ignore_errors=True)


def read_training(checkpoint: Path) -> tuple[State, dict[str, Tensor]]:
    """The training state that :func:`write` stored.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    return read_state(checkpoint), _read(checkpoint / TRAINING)[0]


def read_state(checkpoint: Path) -> State:
    """The numbers of a checkpoint.

    Raises:
        CheckpointError: they are missing or damaged.
    """
    try:
        return State(**json.loads((checkpoint / STATE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"The checkpoint {checkpoint} cannot be read: {error}.") from error


def read_model(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights in a file and its metadata, which has ``format`` if it is one of ours.

    Args:
        path: what :func:`model_file` finds; or a ``.pth`` or ``.pt`` file, which has no metadata.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    file = model_file(path)
    if file.suffix not in (".pth", ".pt"):
        return _read(file)
    try:
        loaded = load_torch_file(file)
    except (FileNotFoundError, UnreadableFile) as error:
        raise CheckpointError(f"{file} cannot be read: {error}.") from error
    weights = loaded if isinstance(loaded, Mapping) else {}
    return {name: each for name, each in weights.items() if isinstance(each, Tensor)}, {}


def read_metadata(file: Path) -> dict[str, str]:
    """The metadata of a file of weights: format, configuration, step, encoder.

    Raises:
        CheckpointError: there is no such file, or it is damaged.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            return dict(opened.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}.") from error


def model_file(path: Path) -> Path:
    """The file of weights of a training's folder (the best, else the last), or of a checkpoint.

    Raises:
        CheckpointError: there is none.
    """
    if path.is_file():
        return path
    checkpoints = path / "checkpoints"
    candidates = [
        path / MODEL,
        checkpoints / BEST / MODEL,
        *(each / MODEL for each in reversed(complete(checkpoints))),
    ]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise CheckpointError(f"There is no checkpoint at {path}: name a training's folder or a file.")


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    metadata = read_metadata(file)
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, metadata  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}.") from error


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _flush(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's state as tensors by name: ``optimiser.<parameter>.<name>``."""
    state: dict[int, dict[str, Any]] = optimiser.state_dict()["state"]
    return {
        f"optimiser.{index}.{name}": torch.as_tensor(value)
        for index, values in state.items()
        for name, value in values.items()
    }


def load_optimiser(
    optimiser: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    convert: Callable[[Tensor, nn.Parameter], Tensor] = lambda tensor, weight: tensor,
) -> None:
    """Give an optimiser the state of :func:`optimiser_tensors`.

    Args:
        optimiser: whose state is replaced.
        tensors: among others, those of :func:`optimiser_tensors`.
        convert: what becomes of a tensor of a weight's state.
    """
    weights = [weight for group in optimiser.param_groups for weight in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        prefix, _, rest = key.partition(".")
        if prefix == "optimiser":
            index, _, name = rest.partition(".")
            state.setdefault(int(index), {})[name] = convert(tensor, weights[int(index)])
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
