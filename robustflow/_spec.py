"""What a transform is described by, once for all backends: its parameters and its settings.

A :class:`Spec` is the one place for a transform's names, numbers, defaults and ranges. From it come
the operators' schemas (robustflow/ops), their configurations and the errors of wrong settings
(robustflow/functional and what stands on it), and the arguments of the Triton kernels. The C++ side
repeats the numbers of choices and the order of fields; tests/test_spec.py compares them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from robustflow._checks import check_choice, check_count, check_interval, once

Settings = Mapping[str, Any]
"""The size and settings by name, those that stand before the one that is asked about."""

_REDUCE = ("sum", "none")


@dataclass(frozen=True)
class Group:
    """Parameters of an element that can come as a tensor of their own.

    If the others are None, the tensor of the first group holds the parameters of all groups, one
    group after the other.
    """

    name: str
    count: int | Callable[[Settings], int]

    def size(self, settings: Settings) -> int:
        """How many parameters of an element."""
        return self.count if isinstance(self.count, int) else self.count(settings)


@dataclass(frozen=True)
class Number:
    """A setting that is a number: ``check(name, value, settings)`` raises where it is a wrong one.

    ``otherwise`` gives the number to use for None.
    """

    name: str
    default: float | None
    check: Callable[[str, Any, Settings], None]
    otherwise: Callable[[Settings], float] | None = None

    type: ClassVar[str] = "float"

    @property
    def fields(self) -> tuple[str, ...]:
        """Its names in the schema."""
        return (self.name,)

    def pack(self, value: Any, settings: Settings) -> tuple[float, ...]:
        """Its values in the schema, checked."""
        if value is None and self.otherwise is not None:
            value = self.otherwise(settings)
        self.check(self.name, value, settings)
        return (value,)


@dataclass(frozen=True)
class Flag:
    """A setting that is True or False."""

    name: str
    default: bool

    type: ClassVar[str] = "bool"

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.name,)

    def pack(self, value: Any, settings: Settings) -> tuple[bool, ...]:
        return (value,)


@dataclass(frozen=True)
class Choice:
    """A setting that is one of some names. A name's number is its place among them.

    ``field`` is its name in the schema, where that is another, and ``type`` is "bool" there for one
    of two names.
    """

    name: str
    default: str | None
    names: tuple[str | None, ...]
    field: str = ""
    type: str = "int"

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.field or self.name,)

    def pack(self, value: Any, settings: Settings) -> tuple[int | bool, ...]:
        check_choice(self.name, value, self.names)
        number = self.names.index(value)
        return (bool(number),) if self.type == "bool" else (number,)


@dataclass(frozen=True)
class Interval:
    """A setting that is a pair of increasing numbers."""

    name: str
    default: tuple[float, float]
    fields: tuple[str, str]

    type: ClassVar[str] = "float"

    def pack(self, value: Any, settings: Settings) -> tuple[float, ...]:
        return check_interval(self.name, value)


@dataclass(frozen=True)
class Box:
    """A setting that is four numbers, left, right, bottom and top, or one that stands for them."""

    name: str
    default: float
    fields: tuple[str, str, str, str]
    check: Callable[[Any, Settings], tuple[float, ...]]

    type: ClassVar[str] = "float"

    def pack(self, value: Any, settings: Settings) -> tuple[float, ...]:
        return self.check(value, settings)


Setting = Number | Flag | Choice | Interval | Box


class Spec:
    """A transform: one number of each element to another, by some parameters of its own.

    Args:
        name: of its operators, and of its functions in robustflow/reference and robustflow/kernels.
        groups: its parameters.
        settings: its settings, in the order of the schema.
        size: a setting that is a count, which stands before the direction in the schema, if any.
        max_size: the largest that kernels take: the reference answers beyond.
        constants: names of tensors without a gradient, which may be None.
        check: raises where settings do not go together.

    Attributes:
        config: ``config([size,] inverse, *settings, reduce, dims)``, the operator's configuration
            (its arguments after the tensors, in the order of the schema) for an x of so many
            dimensions. Settings are values of the public functions, in the order of ``settings``;
            a wrong one raises a TypeError or ValueError that names it. Results are cached.
        num_params: parameters of an element; 0 where it depends on the settings.

    Example:
        >>> from robustflow._transforms import MODIFIED_RQ
        >>> MODIFIED_RQ.config(False, (-3.0, 3.0), 1e-3, 1e-3, "softclip", "sum", 4)
        (False, -3.0, 3.0, 0.001, 0.001, True, 1)
        >>> MODIFIED_RQ.named(_)
        (False, -3.0, 3.0, 0.001, 0.001, 'softclip', 1)
    """

    def __init__(
        self,
        name: str,
        groups: Sequence[Group],
        settings: Sequence[Setting],
        *,
        size: str = "",
        max_size: int = 0,
        constants: Sequence[str] = (),
        check: Callable[[Settings], None] | None = None,
    ) -> None:
        self.name = name
        self.groups = tuple(groups)
        self.settings = tuple(settings)
        self.size = size
        self.max_size = max_size
        self.constants = tuple(constants)
        self.check = check
        self.config: Callable[..., tuple[Any, ...]] = once(self._config)
        counts = [group.count for group in groups]
        self.num_params = sum(c for c in counts if isinstance(c, int)) if not size else 0
        choices = {each.fields[0]: each for each in settings if isinstance(each, Choice)}
        self._choices = tuple(
            (at, choices[field].names)
            for at, field in enumerate(self.fields.values())
            if field in choices
        )

    @property
    def tensors(self) -> tuple[str, ...]:
        """Arguments of the schema that are tensors, after x."""
        first, *others = (group.name for group in self.groups)
        return (f"Tensor {first}", *(f"Tensor? {name}" for name in (*others, *self.constants)))

    @property
    def numbers(self) -> tuple[str, ...]:
        """The other arguments of the schema: a configuration."""
        return tuple(self.fields)

    @property
    def fields(self) -> dict[str, str]:
        """Those arguments, as in a schema, and their names."""
        arguments = {f"int {self.size}": self.size} if self.size else {}
        arguments["bool inverse"] = "inverse"
        for each in self.settings:
            arguments |= {f"{each.type} {field}": field for field in each.fields}
        arguments["int batch_dims"] = "batch_dims"
        return arguments

    @property
    def defaults(self) -> dict[str, Any]:
        """Of the settings, by name."""
        return {each.name: each.default for each in self.settings}

    def counts(self, settings: Settings) -> tuple[int, ...]:
        """Parameters of an element, group by group, given the size and the settings that count."""
        return tuple(group.size(settings) for group in self.groups)

    def named(self, config: Sequence[Any]) -> tuple[Any, ...]:
        """A configuration with names in place of the numbers of choices."""
        values = list(config)
        for at, names in self._choices:
            values[at] = names[values[at]]
        return tuple(values)

    def _config(self, *arguments: Any) -> tuple[Any, ...]:
        *values, reduce, dims = arguments
        settings: dict[str, Any] = {}
        packed: list[Any] = []
        if self.size:
            settings[self.size] = values.pop(0)
            check_count(self.size, settings[self.size])
            packed.append(settings[self.size])
        packed.append(values.pop(0))  # the direction
        for setting, value in zip(self.settings, values, strict=True):
            packed += setting.pack(value, settings)
            settings[setting.name] = value
        if self.check is not None:
            self.check(settings)
        check_choice("reduce", reduce, _REDUCE)
        # How many leading dimensions the log-determinant keeps.
        packed.append(min(1, dims) if reduce == "sum" else dims)
        return tuple(packed)
