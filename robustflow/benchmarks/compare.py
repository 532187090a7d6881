"""Two runs, row by row: what got slower by more than the noise.

On one machine times are compared. Its clock and its neighbours change from run to run, and with
them every time: by how much, the competitors' times tell, which were taken in alternation with ours
in either run, and a difference counts only beyond theirs. On two machines times say nothing: the
ratios to each competitor are compared instead. The noise of a difference is the spread of both runs
together, and at least ``MINIMUM_NOISE``.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robustflow.benchmarks.rows import Row, duration, read_json, table

# Where the same machine, an hour later, is allowed to be without anyone having changed anything.
MINIMUM_NOISE = 0.05

_MACHINE = ("cpu", "cores", "threads", "platform", "libc", "preloaded")
SLOWER, FASTER, SAME = "SLOWER", "faster", "same"


@dataclass(frozen=True)
class Run:
    """A file of rows: each by its case, and what made them."""

    machine: dict[str, Any]
    rows: dict[str, Row]


@dataclass(frozen=True)
class Change:
    """One number of one case in both runs.

    Attributes:
        case: the row's name, and what else tells it from others.
        measure: ``time`` in seconds, or the competitor whose ratio it is.
        before, after: the number.
        slowdown: how many times slower the second run is by it; under 1 it is faster.
        noise: what ``slowdown`` has to exceed, as a fraction.
        drift: how many times slower the competitors were in the second run: the machine's share.
    """

    case: str
    measure: str
    before: float
    after: float
    slowdown: float
    noise: float
    drift: float = 1.0

    @property
    def verdict(self) -> str:
        if self.slowdown > max(1.0, self.drift) * (1 + self.noise):
            return SLOWER
        return FASTER if self.slowdown < min(1.0, self.drift) / (1 + self.noise) else SAME


@dataclass
class Comparison:
    """What comparing two runs gave.

    Attributes:
        changes: of every case that both runs have.
        differs: what the machines differ in; empty where times were compared.
        unmatched: cases that could not be compared, and why.
    """

    changes: list[Change] = field(default_factory=list)
    differs: list[str] = field(default_factory=list)
    unmatched: dict[str, str] = field(default_factory=dict)

    @property
    def slower(self) -> list[Change]:
        return [change for change in self.changes if change.verdict == SLOWER]


def read(path: Path) -> Run:
    """A run from its JSON file.

    Raises:
        ValueError: it is no benchmark's file, or holds two rows of one case.
    """
    record = read_json(path)
    cases = [(_case(row), Row.from_json(row)) for row in record["rows"]]
    twice = [case for case, count in Counter(case for case, _ in cases).items() if count > 1]
    if twice:
        raise ValueError(f"{path} has more than one row of {twice[0]}: it cannot be compared.")
    return Run(record["machine"], dict(cases))


def compare(before: Run, after: Run) -> Comparison:
    """Compare two runs, case by case."""
    result = Comparison(differs=list(_differences(before.machine, after.machine)))
    for case, old in before.rows.items():
        new = after.rows.get(case)
        if new is None:
            result.unmatched[case] = "only the first file has it"
            continue
        if not result.differs:
            noise = _noise(old.spread, new.spread)
            slowdown = new.median_s / old.median_s
            result.changes.append(
                Change(case, "time", old.median_s, new.median_s, slowdown, noise, _drift(old, new))
            )
            continue
        both = [name for name in old.ratio if name in new.ratio]
        if not both:
            result.unmatched[case] = "on two machines only ratios compare, and it has none in both"
        for name in both:
            noise = _noise(*(row.ratio_spread.get(name, row.spread) for row in (old, new)))
            ratios = old.ratio[name], new.ratio[name]
            result.changes.append(Change(case, name, *ratios, ratios[0] / ratios[1], noise))
    for case in after.rows:
        if case not in before.rows:
            result.unmatched[case] = "only the second file has it"
    return result


def report(result: Comparison) -> str:
    """The comparison as text: what is slower first."""
    parts = []
    if result.differs:
        parts.append(
            "The machines differ (" + "; ".join(result.differs) + "): times are not compared, "
            "the ratios to competitors are."
        )
    if result.changes:
        parts.append(_changes_table(result.changes))
    parts += [f"Not compared: {case}: {reason}." for case, reason in result.unmatched.items()]
    counts = Counter(change.verdict for change in result.changes)
    parts.append(
        f"{counts[SLOWER]} slower by more than the noise, {counts[FASTER]} faster, "
        f"{counts[SAME]} the same."
    )
    return "\n\n".join(parts)


def _changes_table(changes: list[Change]) -> str:
    def number(change: Change, value: float) -> str:
        return duration(value) if change.measure == "time" else f"{value:.3g}x"

    lines = [
        [
            change.case,
            change.measure,
            number(change, change.before),
            number(change, change.after),
            f"{change.slowdown:.2f}x",
            f"{change.drift:.2f}x",
            f"{change.noise:.0%}",
            change.verdict,
        ]
        for change in sorted(changes, key=lambda change: -change.slowdown)
    ]
    return table(
        ["case", "measure", "before", "after", "slower by", "machine by", "noise", "verdict"], lines
    )


def _case(record: dict[str, Any]) -> str:
    """What tells a row from others, the keys of other suites included where they are there."""
    shape = "x".join(str(size) for size in record.get("shape", ()))
    keys = ("name", "direction", "dtype", "allocator", "backend", "parameter_dtype", "threads")
    parts = [str(record[key]) for key in keys if record.get(key) not in (None, "")]
    return ", ".join([*parts, shape])


def _differences(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    facts = [
        *((key, before.get(key), after.get(key)) for key in _MACHINE),
        ("card", *((machine.get("card") or {}).get("name") for machine in (before, after))),
    ]
    for key, old, new in facts:
        if old != new:
            yield f"{key}: {old} and {new}"


def _drift(old: Row, new: Row) -> float:
    """How many times slower the competitors of a case were in the second run, in the median."""
    slowdowns = [
        new.ratio[name] * new.median_s / (old.ratio[name] * old.median_s)
        for name in old.ratio
        if name in new.ratio
    ]
    return statistics.median(slowdowns) if slowdowns else 1.0


def _noise(first: float, second: float) -> float:
    return max(MINIMUM_NOISE, first + second)
