"""Compare two runs, row by row: what got slower by more than the noise.

Two runs on one machine are compared by time. But the machine itself can be slower in the second
run, through its clock or other load. In that case the competitors, which ran in alternation with
us, were slower too. So only a slowdown beyond theirs counts. Two runs on different machines are
compared by the ratios to each competitor instead. The noise of a difference is the sum of both
runs' spreads, and at least ``MINIMUM_NOISE``.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robustflow.benchmarks.rows import Row, duration, read_json, table

# By how much times on the same machine differ an hour later, with nothing changed.
MINIMUM_NOISE = 0.05

_MACHINE = ("cpu", "cores", "threads", "platform", "libc", "preloaded")
SLOWER, FASTER, SAME = "SLOWER", "faster", "same"


@dataclass(frozen=True)
class Run:
    """A file of rows: the machine, and each row by its case."""

    machine: dict[str, Any]
    rows: dict[str, Row]


@dataclass(frozen=True)
class Change:
    """One number of one case in both runs.

    Attributes:
        case: the row's name with what else distinguishes it, such as its allocator and shape.
        measure: ``time`` in seconds, or the competitor whose ratio it is.
        before, after: the number.
        slowdown: how many times slower the second run is; below 1, it is faster.
        noise: the fraction by which ``slowdown`` must exceed ``drift``, or 1.
        drift: how many times slower the competitors were in the second run, because of the machine.
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
    """The result of comparing two runs.

    Attributes:
        changes: for every case that both runs have.
        differs: the differences between the machines; empty if times were compared.
        unmatched: cases that could not be compared, with the reason.
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
        ValueError: the file is not from a benchmark, or has two rows of one case.
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
    """The comparison as text, with the largest slowdown first."""
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
    """The text that identifies a row, with the keys of other suites if the row has them."""
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
    """How many times slower a case's competitors were in the second run: the median over them."""
    slowdowns = [
        new.ratio[name] * new.median_s / (old.ratio[name] * old.median_s)
        for name in old.ratio
        if name in new.ratio
    ]
    return statistics.median(slowdowns) if slowdowns else 1.0


def _noise(first: float, second: float) -> float:
    return max(MINIMUM_NOISE, first + second)
