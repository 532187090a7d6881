"""A value for each of some objects, kept as long as the object lives."""

from __future__ import annotations

import weakref
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")


class ByIdentity(Generic[Value]):
    """A dictionary whose keys are objects: held weakly, and compared by identity.

    Inside, the keys are the objects' ids, because looking up a weak reference is slow. It needs no
    lock, because each step is one operation of a dictionary; and it has none, because a process
    that is forked while a lock is held cannot release it.

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
