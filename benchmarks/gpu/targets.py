"""What was asked of the kernels before any was measured, and verdicts on the rows.

Stated for float32 and bf16 at 64 M elements on an H100 or H200. A verdict is on the faster backend.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from benchmarks.gpu.calls import COMPILED, REFERENCE
from benchmarks.gpu.plan import FULL
from benchmarks.gpu.row import GpuRow, fastest
from robustflow.benchmarks.report import WORDS

COPY = "copy"
# A bf16 kernel may fall this far short of float32's bar: it does the same arithmetic for half the
# bytes.
_BF16_ALLOWANCE = 0.10


@dataclass(frozen=True)
class Target:
    """``measure``, of a case, is to be at least ``bar``: a fraction of the copy's speed
    (``copy``), or a contestant's time over ours."""

    case: str
    measure: str
    bar: float

    @property
    def text(self) -> str:
        bar = f">= {self.bar:.0%} of a copy" if self.measure == COPY else f">= {self.bar:g}x"
        return f"{self.case}: {bar}" + ("" if self.measure == COPY else f" {self.measure}")


@dataclass(frozen=True)
class Verdict:
    """``met`` is None where nothing was measured that the target is about; ``why`` says so."""

    target: str
    measure: str
    bar: float
    value: float | None
    backend: str | None
    met: bool | None
    why: str

    @property
    def word(self) -> str:
        return WORDS[self.met]


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
        Target(f"{family}.{direction}.float32.large", COPY, bar)
        for (family, direction), bar in _FRACTIONS.items()
    ),
    *(
        Target(f"{family}.{direction}.bfloat16.large", COPY, round(bar - _BF16_ALLOWANCE, 2))
        for (family, direction), bar in _FRACTIONS.items()
    ),
    *(
        Target(f"{family}.{direction}.float32.large", contestant, bar)
        for contestant, bar in _RATIOS.items()
        for family in ("modified_rq", "affine", "rq8_rows")
        for direction in ("forward", "inverse", "forward+backward")
    ),
)


def judge(rows: Sequence[GpuRow], on_gpu: bool, text: str = "") -> list[Verdict]:
    """Every target whose case's name contains ``text``, with what was measured beside it."""
    return [_judge(target, rows, on_gpu) for target in TARGETS if text in target.case]


def _judge(target: Target, rows: Sequence[GpuRow], on_gpu: bool) -> Verdict:
    def verdict(
        met: bool | None, why: str = "", row: GpuRow | None = None, value: float | None = None
    ) -> Verdict:
        backend = row.backend if row else None
        return Verdict(target.text, target.measure, target.bar, value, backend, met, why)

    if not on_gpu:
        return verdict(None, "this is no GPU.")
    row = fastest(rows, target.case)
    if row is None:
        return verdict(None, "there is no such row.")
    value = row.floor_fraction if target.measure == COPY else row.ratio.get(target.measure)
    if value is None:
        return verdict(None, f"{target.measure} was not timed.", row)
    if row.scale != FULL:
        return verdict(None, "the target is stated for 64 M elements.", row, value)
    return verdict(value >= target.bar, "", row, value)


def as_json(verdicts: Sequence[Verdict]) -> list[dict[str, object]]:
    return [{**asdict(verdict), "verdict": verdict.word} for verdict in verdicts]
