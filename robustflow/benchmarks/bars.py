"""Bars: what a measured number must reach, stated for each case and competitor.

Continuous integration runs ``robustflow bench --quick --bars``, which compares with ``QUICK_BARS``.
These are about half of what two AVX2 cores measured, so that a miss means a regression and not a
weaker machine. (The affine's training step is bound by memory; its bar is closer.) A row misses
only if it falls short by more than the measured spread of the ratio.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from robustflow.benchmarks import cases
from robustflow.benchmarks.rows import Row
from robustflow.benchmarks.verdicts import Verdict

ALLOCATORS = ("keeping", "default")
COPY, MEMORY = "copy", "memory"  # what a bar can measure, besides ratios to competitors


@dataclass(frozen=True)
class Bar:
    """The value that one number of a case's row must reach.

    Attributes:
        case: its name.
        measure: a competitor: the ratio must be at least ``bar``. ``copy``: the speed, as a
            fraction of that of copying as many bytes, must be at least ``bar``. ``memory``: the
            memory at the peak of a training step, over that of inputs, outputs and gradients, must
            be at most ``bar``.
        bar: the value.
    """

    case: str
    measure: str
    bar: float

    @property
    def text(self) -> str:
        if self.measure == COPY:
            return f">= {self.bar:.0%} of a copy"
        if self.measure == MEMORY:
            return f"<= {self.bar:g}x its tensors"
        return f">= {self.bar:g}x {self.measure}"

    def value(self, row: Row) -> float | None:
        """The measured number, or None where it could not be measured."""
        if self.measure == COPY:
            return row.floor_fraction
        if self.measure == MEMORY:
            return None if row.peak_bytes is None else memory_ratio(row)
        return row.ratio.get(self.measure)

    def met(self, row: Row, within_spread: bool = False) -> bool | None:
        """Whether the row reaches the bar; None where the number is missing.

        ``within_spread``: a ratio may be below the bar by its measured spread.
        """
        value = self.value(row)
        if value is None:
            return None
        if self.measure == MEMORY:
            return value <= self.bar
        if within_spread:
            value *= 1 + row.ratio_spread.get(self.measure, row.spread)
        return value >= self.bar


def memory_ratio(row: Row) -> float:
    """Bytes alive at the peak of a training step over its inputs, outputs and gradients.

    The gradients are those of the inputs. The incoming gradients of the outputs count as part of
    the peak but not of the denominator, which makes the ratio larger.
    """
    if row.peak_bytes is None:
        raise ValueError(f"Row {row.name} has no peak_bytes.")
    traffic = replace(cases.find(row.name), smaller_shape=row.shape).traffic
    inputs, outputs = traffic.inputs, traffic.outputs
    return (inputs + outputs + row.peak_bytes) / (2 * inputs + outputs)


def judge(
    bars: Sequence[Bar],
    rows: Sequence[Row],
    judged: Sequence[str] = ALLOCATORS,
    within_spread: bool = False,
) -> list[dict[str, Any]]:
    """A JSON record for each bar of a measured case, with the number under each allocator.

    ``met`` is about the ``judged`` allocators: False if the bar is missed under one of them, else
    None if the number is missing under one of them, else True.
    """
    by_case = {(row.name, row.allocator): row for row in rows}
    measured = {row.name for row in rows}
    records = []
    for bar in bars:
        if bar.case not in measured:
            continue
        under = {name: by_case.get((bar.case, name)) for name in ALLOCATORS}
        mets = [
            None if row is None else bar.met(row, within_spread)
            for name, row in under.items()
            if name in judged
        ]
        records.append(
            {
                "workload": bar.case,
                "target": bar.text,
                **{name: bar.value(row) if row else None for name, row in under.items()},
                "met": False if False in mets else None if None in mets else True,
            }
        )
    return records


def verdicts(records: Sequence[dict[str, Any]]) -> list[Verdict]:
    """The records of :func:`judge` as verdicts, for a table."""
    return [
        Verdict(
            f"{record['workload']}: {record['target']}",
            {name: _number(record[name]) for name in ALLOCATORS},
            record["met"],
        )
        for record in records
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _bars(case: str, **ratios: float) -> list[Bar]:
    return [Bar(case, competitor, ratio) for competitor, ratio in ratios.items()]


QUICK_BARS = (
    *_bars("sr3.modified_rq.forward", eager=8, compiled=1.7),
    *_bars("sr3.modified_rq.inverse", eager=6, compiled=1.3),
    *_bars("sr3.modified_rq.train", eager=5, compiled=1.5),
    *_bars("sr3.affine.train", eager=1.2, compiled=1),
    *_bars("nsf-1e4.rq10.forward", eager=4.5, compiled=3, nflows=7, normflows=7),
    *_bars("nsf-1e4.rq8-softclip.train", eager=4, compiled=3, zuko=2.8),
    *_bars("lattice.rq8-circular.inverse", eager=4, compiled=1.9, normflows=6),
    *_bars("tiny.rq8.train", eager=3.5, compiled=2, nflows=4.5, normflows=4),
)
