"""Verdicts on measured numbers, and the table in which every benchmark prints them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from robustflow.benchmarks.rows import table

# By whether the target was met.
_WORDS = {None: "not measured", True: "met", False: "MISSED"}


@dataclass(frozen=True)
class Verdict:
    """Whether a target was met, with the numbers that decide it.

    Attributes:
        target: the case and the number to reach.
        measured: the measured numbers as text, by the titles of their columns.
        met: None where the number was not measured.
        reason: why it was not measured.
    """

    target: str
    measured: Mapping[str, str]
    met: bool | None
    reason: str = ""

    @property
    def word(self) -> str:
        return _WORDS[self.met]


def verdict_table(verdicts: Sequence[Verdict], title: str = "target") -> str:
    """The verdicts as a table. All of them have the same columns.

    Example:
        >>> fast = Verdict("a: >= 2x eager", {"measured": "3.1x"}, True)
        >>> slow = Verdict("b: >= 2x eager", {"measured": "1.8x"}, False)
        >>> print(verdict_table([fast, slow]))
        target          measured  verdict
        a: >= 2x eager      3.1x      met
        b: >= 2x eager      1.8x   MISSED
    """
    columns = list(dict.fromkeys(column for verdict in verdicts for column in verdict.measured))
    reasons = [""] if any(verdict.reason for verdict in verdicts) else []
    lines = [
        [
            verdict.target,
            *(verdict.measured[column] for column in columns),
            verdict.word,
            *(verdict.reason for _ in reasons),
        ]
        for verdict in verdicts
    ]
    return table([title, *columns, "verdict", *reasons], lines)
