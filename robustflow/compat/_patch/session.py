"""Which libraries are patched, and by how many patches each."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from types import TracebackType

import torch

from robustflow.compat._patch import counts, locking
from robustflow.compat._patch.code import Change
from robustflow.compat._patch.recognise import standard_modes


@dataclass
class Session:
    """One library from its first patch to its last restore."""

    name: str
    changes: Sequence[Change]
    uses: int = 0
    applied: list[Change] = field(default_factory=list)  # what is in force now

    def apply(self) -> None:
        """Apply the changes that are not in force yet; after an error, none of them."""
        if len(self.applied) == len(self.changes):
            return
        with ExitStack() as undone_on_error:
            for change in self.changes:
                if not any(change is each for each in self.applied):
                    change.apply()
                    self.applied.append(change)
                    undone_on_error.callback(self._undo, change)
            undone_on_error.pop_all()
        _forget_compiled()

    def undo(self) -> None:
        """Undo all changes, even if one fails; those that fail stay in force."""
        with ExitStack() as last_first:
            last_first.callback(_forget_compiled)
            for change in self.applied:
                last_first.callback(self._undo, change)

    def _undo(self, change: Change) -> None:
        change.undo()
        self.applied = [each for each in self.applied if each is not change]


_sessions: dict[str, Session] = {}  # by name, while any change of it is in force


class Patch:
    """A patch in force: what :func:`patch` returns.

    As a context manager it ends at exit. Patches of one library are counted, so that it gets its
    own code back when the last of them has ended.
    """

    def __init__(self, session: Session) -> None:
        self._session: Session | None = session
        self.name = session.name

    def restore(self) -> None:
        """End this patch; a second call does nothing."""
        with locking.lock:
            session, self._session = self._session, None
            if session is None or _sessions.get(session.name) is not session:
                return
            session.uses -= 1
            if session.uses == 0:
                _end(session)

    def __enter__(self) -> Patch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.restore()

    def __repr__(self) -> str:
        state = "" if self._session else ", restored"
        return f"Patch({self.name!r}{state})"


def begin(name: str, changes: Callable[[], Sequence[Change]]) -> Patch:
    """One more patch of a library; ``changes`` is called if there is none yet. Hold the lock."""
    session = _sessions.get(name)
    if session is None:
        with standard_modes():
            session = Session(name, changes())
    try:
        session.apply()
    finally:
        _register(session)
    if session.uses == 0:
        counts.start(name)
    session.uses += 1
    return Patch(session)


def end(name: str) -> None:
    """End all patches of a library, if there are any. Hold the lock."""
    if name in _sessions:
        _end(_sessions[name])


def _end(session: Session) -> None:
    try:
        session.undo()
    finally:  # its handles are void, and must not end a later patch
        _register(replace(session, uses=0))


def _register(session: Session) -> None:
    """A library has a session, and counts, while any change of its patch is in force."""
    if session.applied:
        _sessions[session.name] = session
        counts.keep(session.name)
    else:
        _sessions.pop(session.name, None)
        counts.stop(session.name)


def _forget_compiled() -> None:
    """torch.compile guards on functions, not on their code: drop what it compiled before."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
