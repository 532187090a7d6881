"""The description of a transform, one for all backends: its parameters and its settings.

A :class:`Spec` is the one place for a transform's names, numbers, defaults and ranges. The
operators' schemas (robustflow/ops), their configurations, the errors for wrong settings
(robustflow/functional.py and its callers) and the arguments of the Triton kernels are made from it.
C++ repeats the numbers of choices and the order of settings; tests/test_spec.py compares them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from robustflow._checks import check_choice, check_count, check_interval, once

Settings = Mapping[str, Any]
"""The size and settings by name. A setting's own functions get only those before it."""

_REDUCE = ("sum", "none")


@dataclass(frozen=True)
class Group:
    """Parameters of an element that can be passed as a tensor of their own.

    If the tensors of the other groups are None, that of the first group holds the parameters of all
    groups, one group after the other.
    """

    name: str
    count: int | Callable[[Settings], int]

    def size(self, settings: Settings) -> int:
        """The number of parameters per element."""
        return self.count if isinstance(self.count, int) else self.count(settings)


@dataclass(frozen=True)
class Number:
    """A setting that is a number.

    ``check(name, value, settings)`` raises an error if the value is not allowed. If the value is
    None, ``default_from(settings)`` is used in its place.
    """

    name: str
    default: float | None
    check: Callable[[str, Any, Settings], None]
    default_from: Callable[[Settings], float] | None = None

    type: ClassVar[str] = "float"

    @property
    def schema_names(self) -> tuple[str, ...]:
        """Its names in the schema."""
        return (self.name,)

    def pack(self, value: Any, settings: Settings) -> tuple[float, ...]:
        """Its values in the schema, checked."""
        if value is None and self.default_from is not None:
            value = self.default_from(settings)
        self.check(self.name, value, settings)
        return (value,)


@dataclass(frozen=True)
class Flag:
    """A setting that is True or False."""

    name: str
    default: bool

    type: ClassVar[str] = "bool"

    @property
    def schema_names(self) -> tuple[str, ...]:
        return (self.name,)

    def pack(self, value: Any, settings: Settings) -> tuple[bool, ...]:
        return (value,)


@dataclass(frozen=True)
class Choice:
    """A setting that is one of several names. In the schema it is the name's index in ``names``.

    ``schema_name`` is the setting's name in the schema, if that differs from ``name``. ``type`` is
    its type in the schema: "int", or "bool" if there are only two names.
    """

    name: str
    default: str | None
    names: tuple[str | None, ...]
    schema_name: str = ""
    type: str = "int"

    @property
    def schema_names(self) -> tuple[str, ...]:
        return (self.schema_name or self.name,)

    def pack(self, value: Any, settings: Settings) -> tuple[int | bool, ...]:
        check_choice(self.name, value, self.names)
        number = self.names.index(value)
        return (bool(number),) if self.type == "bool" else (number,)


@dataclass(frozen=True)
class Interval:
    """A setting that is a pair of increasing numbers."""

    name: str
    default: tuple[float, float]
    schema_names: tuple[str, str]

    type: ClassVar[str] = "float"

    def pack(self, value: Any, settings: Settings) -> tuple[float, ...]:
        return check_interval(self.name, value)


@dataclass(frozen=True)
class Box:
    """A setting that is four numbers, left, right, bottom and top, or a value that implies them.

    ``check`` returns the four numbers, or raises an error if the value is not allowed.
    """

    name: str
    default: float
    schema_names: tuple[str, str, str, str]
    check: Callable[[Any, Settings], tuple[float, ...]]

    type: ClassVar[str] = "float"

    def pack(self, value: Any, settings: Settings) -> tuple[float, ...]:
        return self.check(value, settings)


Setting = Number | Flag | Choice | Interval | Box


class Spec:
    """A transform maps each element, a number, to another number; each has its own parameters.

    Args:
        name: of its operators, and of its functions in robustflow/reference and robustflow/kernels.
        groups: its parameters.
        settings: its settings, in the order of the schema.
        size: name of a setting that is a count, such as the number of bins. It comes before
            ``inverse`` in the schema. "": there is none.
        max_size: the largest size that the kernels support. Beyond it the reference is used.
        constants: names of tensors without a gradient, which may be None.
        check: raises an error if the settings do not fit together.

    Attributes:
        config: ``config([size,] inverse, *settings, reduce, dims)``, the operator's configuration
            (its arguments after the tensors, in the order of the schema) for an x with ``dims``
            dimensions. The settings are given as in the public functions, in the order of
            ``settings``; a wrong one raises a TypeError or ValueError that names it. Results are
            cached.
        num_params: parameters per element; 0 if it depends on the settings.

    Example:
        >>> from robustflow._transforms import MODIFIED_RQ
        >>> MODIFIED_RQ.config(False, (-3.0, 3.0), 1e-3, 1e-3, "softclip", "sum", 4)
        (False, -3.0, 3.0, 0.001, 0.001, True, 1)
        >>> MODIFIED_RQ.with_choice_names(_)
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
        choices = {each.schema_names[0]: each for each in settings if isinstance(each, Choice)}
        self._choices = tuple(
            (index, choices[name].names)
            for index, name in enumerate(self.config_names)
            if name in choices
        )

    @property
    def tensors(self) -> tuple[str, ...]:
        """The schema's tensor arguments after x."""
        first, *others = (group.name for group in self.groups)
        return (f"Tensor {first}", *(f"Tensor? {name}" for name in (*others, *self.constants)))

    @property
    def config_schema(self) -> tuple[str, ...]:
        """The schema's other arguments, which are a configuration: ``"bool inverse"``, ..."""
        size = [f"int {self.size}"] if self.size else []
        settings = [f"{each.type} {name}" for each in self.settings for name in each.schema_names]
        return (*size, "bool inverse", *settings, "int batch_dims")

    @property
    def config_names(self) -> tuple[str, ...]:
        """Names of a configuration's values."""
        return tuple(argument.split()[1] for argument in self.config_schema)

    @property
    def defaults(self) -> dict[str, Any]:
        """The default of each setting, by name."""
        return {each.name: each.default for each in self.settings}

    def counts(self, settings: Settings) -> tuple[int, ...]:
        """Parameters per element in each group, given the size and settings that decide it."""
        return tuple(group.size(settings) for group in self.groups)

    def with_choice_names(self, config: Sequence[Any]) -> tuple[Any, ...]:
        """A configuration with the value of each ``Choice`` as a name instead of a number."""
        values = list(config)
        for index, names in self._choices:
            values[index] = names[values[index]]
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
