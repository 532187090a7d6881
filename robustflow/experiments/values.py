"""Values of options as the types that their fields have."""

from __future__ import annotations

import types
import typing
from typing import Any, get_args, get_origin

_NAMES: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    tuple: "a list of numbers",
    dict: "a table",
}


def converted(value: Any, type_hint: Any) -> Any:
    """A value as one of a field's type: lists become tuples, and whole numbers floats.

    Args:
        value: as a caller or a TOML file gives it.
        type_hint: of the option: bool, int, float, str, a tuple or dict of them, or a union.

    Raises:
        ValueError: it is none; the text goes on from the option's name.

    Example:
        >>> converted([1, 2], tuple[float, ...])
        (1.0, 2.0)
    """
    union = get_origin(type_hint) in (typing.Union, types.UnionType)
    kinds = [
        kind for kind in (get_args(type_hint) if union else (type_hint,)) if kind is not type(None)
    ]
    for kind in kinds:
        base = get_origin(kind) or kind
        if base is tuple and isinstance(value, list | tuple):
            item = get_args(kind)[0]
            return tuple(converted(each, item) for each in value)
        if isinstance(value, bool) and base is not bool:
            continue
        if base is float and isinstance(value, int):
            return float(value)
        if isinstance(value, base):
            return value
    names = " or ".join(_NAMES.get(get_origin(kind) or kind, str(kind)) for kind in kinds)
    raise ValueError(f"must be {names}, got {value!r}.")
