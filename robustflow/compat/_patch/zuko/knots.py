"""Knots computed when they are read, or when the library is restored."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from torch import Tensor

from robustflow._by_identity import ByIdentity
from robustflow._versions import versions
from robustflow.compat._patch.code import AttributeChange, Change
from robustflow.compat._patch.zuko.kept import ATTRIBUTE, KNOTS, MODIFIED, Kept, LostKnots
from robustflow.compat._patch.zuko.kernels import split

_KNOT_SET = frozenset(KNOTS)


class Knots:
    """The knots of the transforms that were made while zuko is patched.

    Args:
        owner: the class of the transforms.
        init: its own ``__init__``, which computes the knots.

    Attributes:
        patched: whether zuko is.
    """

    def __init__(self, owner: type, init: FunctionType) -> None:
        self.owner = owner
        self.init = init
        self.patched = False
        self._pending = ByIdentity[bool]()  # torch's transforms have no hash, for a WeakSet

    def keep(self, transform: Any, kept: Kept) -> None:
        """Give a transform its parameters in place of knots."""
        transform.__dict__[ATTRIBUTE] = kept
        self._pending.set(transform, True)
        if not self.patched:  # the library was restored meanwhile
            self.settle(transform)

    def keep_traced(self, transform: Any, kept: Kept, *, compiling: bool) -> None:
        """The same for a transform in a graph, which has its knots already."""
        setattr(transform, ATTRIBUTE, kept)
        if not compiling:
            self._pending.set(transform, True)

    def kept(self, transform: Any) -> Kept | None:
        """What a transform keeps for the kernels; None if its knots are what counts.

        Raises:
            RuntimeError: its parameters were written to.
        """
        state = transform.__dict__
        kept: Kept | None = state.get(ATTRIBUTE)
        if kept is None:
            return None
        if kept.knots is None:
            if not _KNOT_SET.isdisjoint(state):  # assigned by the user, whose knots count
                self.settle(transform)
                return None
            if versions(kept.parameters) != kept.versions:
                raise RuntimeError(MODIFIED)
            return kept
        now = [getattr(transform, name) for name in KNOTS]
        same = all(mine is its for mine, its in zip(now, kept.knots, strict=True))
        return kept if same else None

    def settle(self, transform: Any) -> None:
        """Give a transform its knots, as zuko computes them, and forget its parameters."""
        state = transform.__dict__
        kept: Kept | None = state.pop(ATTRIBUTE, None)
        if kept is None or kept.knots is not None:
            return
        if versions(kept.parameters) != kept.versions:
            for name in KNOTS:
                state.setdefault(name, LostKnots())
            return
        bound = kept.bound
        if isinstance(bound, Tensor) and bound.dim():
            bound = bound.unsqueeze(-1)
        # Knots of another object, so that this one's other attributes stay.
        twin: Any = object.__new__(self.owner)
        self.init(twin, *split(kept.parameters, kept.num_bins), bound, kept.slope)
        for name in KNOTS:
            state.setdefault(name, twin.__dict__[name])

    def settle_all(self) -> None:
        """Settle every transform that is alive, whichever fails."""
        with ExitStack() as each:
            for transform in self._pending.owners():
                each.callback(self.settle, transform)


def knots_changes(knots: Knots) -> list[Change]:
    """Reading a knot, or pickling a transform, settles it; so does restoring the library."""
    owner: Any = knots.owner

    def __getattr__(self: Any, name: str) -> Any:
        if name in KNOTS and ATTRIBUTE in self.__dict__:
            knots.settle(self)
            return self.__dict__[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __getstate__(self: Any) -> Any:
        knots.settle(self)
        parent: Any = super(owner, self)
        return parent.__getstate__()

    return [
        AttributeChange(owner, "__getattr__", __getattr__),
        AttributeChange(owner, "__getstate__", __getstate__),
        SettleOnRestore(knots),
    ]


@dataclass
class SettleOnRestore:
    """A change that, undone, gives its knots to every transform made while it was in force."""

    knots: Knots

    def apply(self) -> None:
        self.knots.patched = True

    def undo(self) -> None:
        self.knots.patched = False
        self.knots.settle_all()
