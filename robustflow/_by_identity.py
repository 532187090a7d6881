"""Values kept for objects by their identity, each as long as its object lives."""

from __future__ import annotations

import weakref
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")


class ByIdentity(Generic[Value]):
    """A dictionary of objects that holds them weakly and asks for neither hash nor equality.

    The keys are the objects' ids, because a lookup by a weak reference is slow. There is no lock,
    which a forked process could inherit held: each step is one operation of the dictionary.

    Example:
        >>> from torch import nn
        >>> layer, sizes = nn.Linear(3, 4), ByIdentity[int]()
        >>> sizes.set(layer, 12)
        >>> sizes.get(layer), len(sizes.owners())
        (12, 1)
        >>> del layer
        >>> sizes.owners()
        []
    """

    def __init__(self) -> None:
        self._entries: dict[int, tuple[weakref.ref[Any], Value]] = {}

    def get(self, owner: Any) -> Value | None:
        """The object's value; None if it has none."""
        entry = self._entries.get(id(owner))
        return entry[1] if entry is not None and entry[0]() is owner else None

    def set(self, owner: Any, value: Value) -> None:
        """Keep a value for an object, in place of an earlier one."""
        key, entries = id(owner), self._entries
        entries[key] = weakref.ref(owner, lambda _: entries.pop(key, None)), value

    def owners(self) -> list[Any]:
        """The objects that have a value and are alive."""
        living = [reference() for reference, _ in list(self._entries.values())]
        return [owner for owner in living if owner is not None]
