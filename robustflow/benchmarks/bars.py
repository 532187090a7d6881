"""Bars: what a measured number must reach, stated per workload and competitor.

``QUICK_BARS`` are what ``robustflow bench --quick --bars`` holds continuous integration to. They
are about half of what two AVX2 cores measured (the affine's training step apart, which is bound by
memory), so that a miss is a regression and not a weaker machine; and a miss counts only where it
exceeds the measured spread of the ratio.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from robustflow.benchmarks import workloads
from robustflow.benchmarks.rows import Row

ALLOCATORS = ("keeping", "default")


@dataclass(frozen=True)
class Bar:
    """A bar for one number of one workload's row.

    ``measure`` is a competitor (the ratio must be at least ``bar``), ``copy`` (the fraction of the
    speed of copying the same bytes, at least) or ``memory`` (all bytes alive at the peak of a
    training step over those of inputs, outputs and gradients, at most).
    """

    workload: str
    measure: str
    bar: float

    @property
    def text(self) -> str:
        if self.measure == "copy":
            return f">= {self.bar:.0%} of a copy"
        if self.measure == "memory":
            return f"<= {self.bar:g}x its tensors"
        return f">= {self.bar:g}x {self.measure}"

    def value(self, row: Row) -> float | None:
        """The measured number, or None where it could not be measured."""
        if self.measure == "copy":
            return row.floor_fraction
        if self.measure == "memory":
            return None if row.peak_bytes is None else memory_ratio(row)
        return row.ratio.get(self.measure)

    def met(self, row: Row, within_spread: bool = False) -> bool | None:
        """Whether the row reaches the bar; None where the number is missing.

        ``within_spread``: a ratio counts as reaching it unless it falls under the bar by more than
        its measured spread.
        """
        value = self.value(row)
        if value is None:
            return None
        if self.measure == "memory":
            return value <= self.bar
        if within_spread:
            value *= 1 + row.ratio_spread.get(self.measure, row.spread)
        return value >= self.bar


def memory_ratio(row: Row) -> float:
    """Bytes alive at the peak of a training step over its inputs, outputs and gradients.

    Gradients are those of the inputs. The cotangents that the step starts from are alive too and
    are counted above the line but not below it, which is the strict reading.
    """
    if row.peak_bytes is None:
        raise ValueError(f"Row {row.name} has no peak_bytes.")
    workload = workloads.find(row.name)
    workload = replace(workload, shape=row.shape)
    inputs, outputs = workload.traffic.inputs, workload.traffic.outputs
    return (inputs + outputs + row.peak_bytes) / (2 * inputs + outputs)


def judge(
    bars: Sequence[Bar],
    rows: Sequence[Row],
    judged: Sequence[str] = ALLOCATORS,
    within_spread: bool = False,
) -> list[dict[str, Any]]:
    """Every bar of the measured workloads, with the number beside it under each allocator.

    ``met`` follows the rows of the ``judged`` allocators: False where one of them misses, None
    where the number is missing in one that was to be judged.
    """
    by_case = {(row.name, row.allocator): row for row in rows}
    measured = {row.name for row in rows}
    verdicts = []
    for bar in bars:
        if bar.workload not in measured:
            continue
        found = {name: by_case.get((bar.workload, name)) for name in ALLOCATORS}
        mets = [
            None if row is None else bar.met(row, within_spread)
            for name, row in found.items()
            if name in judged
        ]
        verdicts.append(
            {
                "workload": bar.workload,
                "target": bar.text,
                **{name: bar.value(row) if row else None for name, row in found.items()},
                "met": False if False in mets else None if None in mets else True,
            }
        )
    return verdicts


def _bars(workload: str, **ratios: float) -> list[Bar]:
    return [Bar(workload, competitor, ratio) for competitor, ratio in ratios.items()]


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
