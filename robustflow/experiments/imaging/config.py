"""The configuration of a training: every option with its default, as one TOML file.

A configuration is a dataclass of tables. Options that a preset or a file leaves out keep their
defaults; an unknown key is an error that names the nearest known one.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import tomlkit
import tomlkit.exceptions

from robustflow._checks import check_choice, suggestion
from robustflow.experiments.imaging.couplings import COUPLINGS
from robustflow.experiments.tasks import Task, make_task
from robustflow.experiments.values import converted
from robustflow.nn.level import Activations

PARALLEL = ("ddp", "fsdp")
NEW_ENCODERS = ("tiny", "rrdb")  # those that start with new weights


class ConfigError(ValueError):
    """A configuration that cannot be used; its text says which option, and what to write."""


def option(default: Any, meaning: str) -> Any:
    """A field of a table: its default and what it means, which ``--print-config`` prints."""
    return field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True)
class TaskTable:
    """``[task]``: the inverse problem. Its other keys are the task's own options."""

    name: str = option("sr", "sr, lowlight, denoise, deblur, inpaint, or package.module:Class")
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelTable:
    """``[model]``: the flow."""

    coupling: str = option("modified_rq", ", ".join(COUPLINGS))
    coupling_options: dict[str, Any] = field(
        default_factory=dict, metadata={"meaning": "options of the coupling's transform"}
    )
    levels: int = option(3, "each halves the picture")
    steps: int = option(16, "flow steps of a level")
    transition_steps: int = option(2, "actnorm and 1x1 convolution alone, at a level's start")
    split_levels: tuple[int, ...] = option(
        (), "levels (from 1) after which half of the channels leave"
    )
    hidden_channels: int = option(64, "width of the conditioners")
    head_kernel_size: int = option(3, "of the conditioners' last convolution")
    injectors: bool = option(True, "a transform of all channels by the condition, in each step")
    noise: float = option(0.05, "largest deviation of the noise that is a condition; 0: none")
    residual: bool = option(True, "model x minus the task's first guess, not x")


@dataclass(frozen=True)
class EncoderTable:
    """``[encoder]``: features of the observation."""

    name: str = option("tiny", "tiny, rrdb, pretrained, or a file of RRDB weights")
    channels: int = option(32, "features of tiny; rrdb has 64 at each tap")
    blocks: int = option(3, "residual blocks of tiny")
    frozen: bool | None = option(None, "keep its weights; by default where they come from a file")
    cache_gib: float = option(8.0, "limit on the features of a frozen encoder on disk")


@dataclass(frozen=True)
class DataTable:
    """``[data]``: pictures."""

    train: str = option("builtin", "builtin, or a folder of pictures")
    observations: str = option("", "a folder of observations of the same names; by default made")
    validation: str = option("", "a folder; by default held-out pictures, or the last of train")
    crop: int = option(160, "side of a training crop, in pixels of x")
    augment: bool = option(True, "mirror and turn")
    workers: int = option(0, "loading processes")


@dataclass(frozen=True)
class TrainingTable:
    """``[training]``: the optimisation."""

    iterations: int = option(180_000, "updates")
    batch_size: int = option(4, "crops of a batch, over all processes")
    learning_rate: float = option(2e-4, "Adam's")
    betas: tuple[float, float] = option((0.9, 0.999), "Adam's")
    milestones: tuple[float, ...] = option(
        (0.5, 0.75, 0.9, 0.95), "parts of the iterations after which the rate halves"
    )
    clip_norm: float = option(100.0, "gradient norm to clip at; 0: never")
    ema: float = option(0.999, "decay of the averaged weights; 0: none")
    autocast: bool = option(False, "bfloat16 in the networks; the transforms keep float32")
    activations: str = option("store", "store, recompute or reversible: for the backward pass")
    parallel: str = option("ddp", "of several processes: ddp, or fsdp, which shares out weights")
    seed: int = option(0, "of weights, crops and noise")
    threads: int = option(0, "of PyTorch; 0: its own choice")
    skip_limit: int = option(10, "non-finite losses in a row that end the training")


@dataclass(frozen=True)
class OutputTable:
    """``[output]``: what is written, and how often."""

    checkpoint_every: int = option(1000, "updates between checkpoints")
    keep: int = option(3, "checkpoints kept, beside the best")
    validate_every: int = option(1000, "updates between validations")
    validation_batches: int = option(8, "batches of a validation")
    samples_every: int = option(0, "updates between grids of samples; 0: none")
    tensorboard: bool = option(True, "write TensorBoard logs where it is installed")


@dataclass(frozen=True)
class Config:
    """The configuration of a training."""

    task: TaskTable = field(default_factory=TaskTable)
    model: ModelTable = field(default_factory=ModelTable)
    encoder: EncoderTable = field(default_factory=EncoderTable)
    data: DataTable = field(default_factory=DataTable)
    training: TrainingTable = field(default_factory=TrainingTable)
    output: OutputTable = field(default_factory=OutputTable)

    def make_task(self) -> Task:
        """The inverse problem.

        Raises:
            ConfigError: no such task, or options that it does not take.
        """
        try:
            return make_task(self.task.name, self.task.options)
        except ValueError as error:
            raise ConfigError(f"[task] {error}") from None

    @property
    def encoder_comes_from_a_file(self) -> bool:
        """Whether the encoder's weights are read from a file that stays where it is."""
        return self.encoder.name not in NEW_ENCODERS

    @property
    def encoder_is_frozen(self) -> bool:
        """Whether the encoder keeps its weights."""
        frozen = self.encoder.frozen
        return self.encoder_comes_from_a_file if frozen is None else frozen

    @property
    def encoder_stays_in_its_file(self) -> bool:
        """Whether checkpoints leave the encoder's weights out."""
        return self.encoder_comes_from_a_file and self.encoder_is_frozen

    def size_multiple(self, task: Task | None = None) -> int:
        """The number of which the sides of x must be multiples, for this task."""
        return math.lcm(2**self.model.levels, (task or self.make_task()).size_multiple)

    def check(self, task: Task | None = None) -> Config:
        """The configuration itself.

        Args:
            task: in place of the configuration's.

        Raises:
            ConfigError: an option is out of range; the text names it.
        """
        task = task or self.make_task()
        model, training = self.model, self.training
        try:
            check_choice("[training] activations", training.activations, get_args(Activations))
            check_choice("[training] parallel", training.parallel, PARALLEL)
            check_choice("[model] coupling", model.coupling, tuple(COUPLINGS))
        except ValueError as error:
            raise ConfigError(str(error)) from None
        try:
            COUPLINGS[model.coupling](**model.coupling_options)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"[model] coupling_options: {error}") from None
        if model.head_kernel_size % 2 == 0:
            raise ConfigError(
                f"[model] head_kernel_size must be odd, got {model.head_kernel_size!r}."
            )
        positive = {
            "model": ("levels", "hidden_channels", "head_kernel_size"),
            "encoder": ("channels", "blocks"),
            "data": ("crop",),
            "training": ("iterations", "batch_size", "learning_rate", "skip_limit"),
            "output": ("checkpoint_every", "keep", "validate_every", "validation_batches"),
        }
        for table, names in positive.items():
            for name in names:
                value = getattr(getattr(self, table), name)
                if not (value > 0 and math.isfinite(value)):
                    raise ConfigError(
                        f"[{table}] {name} must be above 0 and finite, got {value!r}."
                    )
        not_negative = {
            "model": ("steps", "transition_steps", "noise"),
            "encoder": ("cache_gib",),
            "data": ("workers",),
            "training": ("clip_norm", "seed", "threads"),
            "output": ("samples_every",),
        }
        for table, names in not_negative.items():
            for name in names:
                value = getattr(getattr(self, table), name)
                if not value >= 0:
                    raise ConfigError(f"[{table}] {name} must be at least 0, got {value!r}.")
        if not 0 <= training.ema < 1:
            raise ConfigError(f"[training] ema must lie in [0, 1), got {training.ema!r}.")
        if len(training.betas) != 2 or not all(0 <= beta < 1 for beta in training.betas):
            raise ConfigError(f"[training] betas must be two of [0, 1), got {training.betas!r}.")
        if not all(0 <= part <= 1 for part in training.milestones):
            raise ConfigError(
                "[training] milestones are parts of the iterations, in [0, 1], got "
                f"{list(training.milestones)!r}."
            )
        for level in model.split_levels:
            if not 1 <= level < model.levels:
                raise ConfigError(
                    f"[model] split_levels must lie in 1 to {model.levels - 1}, since a level "
                    f"must follow, got {level}."
                )
        multiple = self.size_multiple(task)
        if self.data.crop % multiple:
            raise ConfigError(
                f"[data] crop must be a multiple of {multiple} ({model.levels} levels, the task "
                f"{task.name!r}), got {self.data.crop}."
            )
        return self


def preset(task: str, name: str) -> Config:
    """A ready configuration: ``presets/TASK-NAME.toml``, or ``presets/any-NAME.toml``.

    Args:
        task: its name on the command line.
        name: ``"tiny"``, ``"small"`` or ``"paper"``, and others that a task has.

    Raises:
        ConfigError: there is none of this name.

    Example:
        >>> preset("sr", "paper-8x").model.levels
        4
    """
    folder = files(__package__) / "presets"
    for prefix in (task, "any"):
        file = folder / f"{prefix}-{name}.toml"
        if file.is_file():
            config = from_toml(file.read_text(encoding="utf-8"), f"preset {name!r}")
            return replace(config, task=replace(config.task, name=task))
    known = sorted(
        entry.name.removesuffix(".toml").partition("-")[2]
        for entry in folder.iterdir()
        if entry.name.startswith((f"{task}-", "any-"))
    )
    hint = suggestion(name, dict.fromkeys(known))
    raise ConfigError(f"There is no preset {name!r} for the task {task!r}. {hint}")


def load(path: Path) -> Config:
    """The configuration in a file.

    Raises:
        ConfigError: the file cannot be read, is no TOML, or has an unknown or unusable option.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The configuration {path} cannot be read: {error}.") from None
    return from_toml(text, str(path))


def from_toml(text: str, origin: str = "the configuration", base: Config | None = None) -> Config:
    """A configuration from TOML text; what it leaves out is the base's, or the default.

    Raises:
        ConfigError: no TOML, or an unknown or unusable option.
    """
    try:
        tables = tomlkit.parse(text).unwrap()
    except tomlkit.exceptions.ParseError as error:
        raise ConfigError(f"{origin} is not valid TOML: {error}.") from None
    config = base or Config()
    known = [each.name for each in fields(Config)]
    for table, values in tables.items():
        if table not in known or not isinstance(values, Mapping):
            raise ConfigError(f"{origin}: there is no table [{table}]. {suggestion(table, known)}")
        for key, value in values.items():
            config = override(config, f"{table}.{key}", value, origin)
    return config


def override(config: Config, key: str, value: Any, origin: str = "--set") -> Config:
    """The configuration with one option changed.

    Args:
        config: is left as it is.
        key: ``"table.option"``.
        value: of the option's type; a string is parsed as TOML where another type is wanted.
        origin: where the value comes from, for errors.

    Example:
        >>> override(Config(), "training.iterations", "500").training.iterations
        500
    """
    table_name, dot, name = key.partition(".")
    tables = [each.name for each in fields(Config)]
    if not dot or table_name not in tables:
        raise ConfigError(
            f"{origin}: {key!r} is not of the form table.option. {suggestion(table_name, tables)}"
        )
    table = getattr(config, table_name)
    names = [each.name for each in fields(table)]
    if table_name == "task" and name not in names:
        options = {**table.options, name: _parsed(value)}
        return replace(config, task=replace(table, options=options))
    if name not in names:
        raise ConfigError(
            f"{origin}: [{table_name}] has no option {name!r}. {suggestion(name, names)}"
        )
    kind = typing.get_type_hints(type(table))[name]
    value = _converted(value, kind, f"{origin}: [{table_name}] {name}")
    return replace(config, **{table_name: replace(table, **{name: value})})


def refuse_another_model(config: Config, trained: Config) -> None:
    """Raise unless a training can resume with a changed configuration.

    The task, the flow, the encoder and whether weights are averaged must stay.

    Args:
        config: to go on with.
        trained: of the checkpoint.

    Raises:
        ConfigError: they have changed; the text names every option.
    """
    fixed = {
        f"[{table}] {each.name}": (
            getattr(getattr(trained, table), each.name),
            getattr(getattr(config, table), each.name),
        )
        for table in ("task", "model", "encoder")
        for each in fields(getattr(config, table))
        if each.name != "cache_gib"
    }
    fixed["[training] ema (0 or not)"] = (trained.training.ema > 0, config.training.ema > 0)
    changed = [
        f"{name} was {before!r} and is {after!r}"
        for name, (before, after) in fixed.items()
        if before != after
    ]
    if changed:
        raise ConfigError(
            f"A training goes on with the model that it began with: {'; '.join(changed)}. Leave "
            "that as it was, or begin anew in another folder (--out)."
        )


def to_toml(config: Config, *, explain: bool = True) -> str:
    """The whole configuration as TOML, each option with its meaning as a comment."""
    document = tomlkit.document()
    for each in fields(Config):
        table = getattr(config, each.name)
        written = tomlkit.table()
        for item in fields(table):
            value = getattr(table, item.name)
            if each.name == "task" and item.name == "options":
                for name, chosen in value.items():
                    written.add(name, chosen)
                continue
            if value is None:
                written.add(tomlkit.comment(f"{item.name} = # {item.metadata['meaning']}"))
                continue
            entry = tomlkit.item(list(value) if isinstance(value, tuple) else value)
            if isinstance(value, dict):
                entry = tomlkit.inline_table()
                entry.update(value)
            if explain:
                entry.comment(item.metadata["meaning"])
            written.add(item.name, entry)
        document.add(each.name, written)
    return tomlkit.dumps(document)


def _parsed(value: Any) -> Any:
    """A string as a TOML value, where it is one."""
    if not isinstance(value, str):
        return value
    try:
        return tomlkit.value(value).unwrap()
    except (tomlkit.exceptions.ParseError, ValueError):
        return value


def _converted(value: Any, kind: Any, where: str) -> Any:
    """The value as one of a field's type; a text is read as TOML where another type is wanted."""
    if isinstance(value, str) and kind is not str:
        value = _parsed(value)
    try:
        return converted(value, kind)
    except ValueError as error:
        raise ConfigError(f"{where} {error}") from None
