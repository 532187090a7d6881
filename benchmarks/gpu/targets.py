"""Targets of the kernels, and verdicts on the measured rows.

The targets are for float32 and bfloat16 with 64 M elements on an H100 or H200. They were chosen
before anything was measured. A verdict is about the faster backend.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.gpu.calls import COMPILED, REFERENCE
from benchmarks.gpu.plan import FULL
from benchmarks.gpu.row import GpuRow, fastest
from robustflow.benchmarks.bars import COPY, Bar
from robustflow.benchmarks.cases import DIRECTIONS
from robustflow.benchmarks.verdicts import Verdict

# The target of a bfloat16 kernel is lower by this much: it does the same arithmetic on half the
# bytes.
_BF16_ALLOWANCE = 0.10


@dataclass(frozen=True)
class Judgement:
    """A target with the measured number.

    Attributes:
        target: the target.
        value: the number; None if it was not measured on a GPU.
        backend: the faster backend, whose number it is.
        met: None if there is no number, or only one of a smaller shape.
        why: the reason if ``met`` is None.
    """

    target: Bar
    value: float | None
    backend: str | None
    met: bool | None
    why: str

    @property
    def verdict(self) -> Verdict:
        """For the table."""
        measured = "-" if self.value is None else self._text(self.value)
        columns = {"backend": self.backend or "-", "measured": measured}
        return Verdict(f"{self.target.case}: {self.target.text}", columns, self.met, self.why)

    def _text(self, value: float) -> str:
        return f"{value:.1%}" if self.target.measure == COPY else f"{value:.3g}x"

    def to_json(self) -> dict[str, object]:
        return {
            "target": self.verdict.target,
            "measure": self.target.measure,
            "bar": self.target.bar,
            "value": self.value,
            "backend": self.backend,
            "met": self.met,
            "why": self.why,
            "verdict": self.verdict.word,
        }


_FRACTIONS = {
    ("modified_rq", "forward"): 0.90,
    ("modified_rq", "inverse"): 0.90,
    ("modified_rq", "backward"): 0.80,
    ("affine", "forward"): 0.92,
    ("affine", "inverse"): 0.92,
    ("affine", "backward"): 0.92,
    ("rq8_rows", "forward"): 0.75,
    ("rq8_rows", "backward"): 0.65,
}
_RATIOS = {COMPILED: 3.0, REFERENCE: 30.0}

TARGETS = (
    *(
        Bar(f"large.{family}.{direction}", COPY, fraction)
        for (family, direction), fraction in _FRACTIONS.items()
    ),
    *(
        Bar(f"large.{family}.{direction}.bfloat16", COPY, round(fraction - _BF16_ALLOWANCE, 2))
        for (family, direction), fraction in _FRACTIONS.items()
    ),
    *(
        Bar(f"large.{family}.{direction}", competitor, ratio)
        for competitor, ratio in _RATIOS.items()
        for family in ("modified_rq", "affine", "rq8_rows")
        for direction in DIRECTIONS
    ),
)


def judge(rows: Sequence[GpuRow], on_gpu: bool, text: str = "") -> list[Judgement]:
    """A judgement for every target whose case's name contains ``text``."""
    return [_judge(target, rows, on_gpu) for target in TARGETS if text in target.case]


def _judge(target: Bar, rows: Sequence[GpuRow], on_gpu: bool) -> Judgement:
    if not on_gpu:
        return Judgement(target, None, None, None, "this is no GPU.")
    row = fastest(rows, target.case)
    if row is None:
        return Judgement(target, None, None, None, "there is no such row.")
    value = target.value(row)
    if value is None:
        return Judgement(target, None, row.backend, None, f"{target.measure} was not timed.")
    if row.scale != FULL:
        why = "the target is stated for 64 M elements."
        return Judgement(target, value, row.backend, None, why)
    return Judgement(target, value, row.backend, target.met(row), "")
