"""The changes of one patched library, applied and undone together."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch

from robustflow.compat._patch.code import Change


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


def _forget_compiled() -> None:
    """torch.compile guards on functions, not on their code: drop what it compiled before."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
