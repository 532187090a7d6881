"""Inverse problems as operators: what is observed of a picture.

:class:`Task` is the base of all; :data:`TASKS` has those with a name on the command line.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from robustflow._checks import suggestion
from robustflow.experiments.tasks.base import Task, to_8_bits
from robustflow.experiments.tasks.linear import Deblurring, Denoising, Inpainting
from robustflow.experiments.tasks.low_light import LowLight
from robustflow.experiments.tasks.super_resolution import SuperResolution
from robustflow.experiments.values import converted

TASKS: dict[str, type[Task]] = {
    kind.name: kind for kind in (SuperResolution, LowLight, Denoising, Deblurring, Inpainting)
}


def make_task(name: str, options: Mapping[str, Any] | None = None) -> Task:
    """A task by its name, or by ``"package.module:Class"`` for one of your own.

    Args:
        name: a key of :data:`TASKS`, or where to import a subclass of :class:`Task` from.
        options: the task's fields.

    Raises:
        ValueError: no such task, no such option, or an option of another type or out of range.

    Example:
        >>> make_task("sr", {"scale": 8}).scale
        8
    """
    kind = _task_class(name)
    known: list[str] = [field.name for field in fields(kind)] if is_dataclass(kind) else []
    types = get_type_hints(kind) if options else {}
    values = {}
    for option, value in (options or {}).items():
        if option not in known:
            raise ValueError(
                f"The task {name!r} has no option {option!r}. {suggestion(option, known)}"
            )
        try:
            values[option] = converted(value, types[option])
        except ValueError as error:
            raise ValueError(f"{option} {error}") from None
    return kind(**values)


def _task_class(name: str) -> type[Task]:
    if name in TASKS:
        return TASKS[name]
    module_name, colon, attribute = name.partition(":")
    if not colon:
        raise ValueError(
            f"There is no task {name!r}. {suggestion(name, TASKS)} One of your own is named by "
            "'package.module:Class'."
        )
    try:
        kind = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"The task {name!r} cannot be imported: {error}.") from error
    if not (isinstance(kind, type) and issubclass(kind, Task)):
        raise ValueError(f"{name!r} is no subclass of robustflow.experiments.tasks.Task.")
    return kind


__all__ = [
    "TASKS",
    "Deblurring",
    "Denoising",
    "Inpainting",
    "LowLight",
    "SuperResolution",
    "Task",
    "make_task",
    "to_8_bits",
]
