"""A monitor's records as a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from robustflow.diagnostics.kinds import Kind
from robustflow.diagnostics.onsets import Limits, Onset, as_json


@dataclass(frozen=True)
class LayerRecord:
    """The records of one layer.

    Attributes:
        name, kind, library: which; the name is that in ``model.named_modules()``.
        direction: "sampling", from latents to data, or "density".
        calls: how many.
        input_magnitude, output_magnitude: largest absolute value; infinity where one is not
            finite.
        input_variance, output_variance: of all finite values, over samples, channels and
            positions; NaN without any.
        smallest_derivative, largest_derivative: of its elementwise transform in this direction:
            of sampling, the inverse derivatives. None where the layer has none, or keeps its
            own to itself.
        nonfinite_inputs, nonfinite_outputs: number of values that are not finite.
        onsets: number of onsets.
    """

    name: str
    kind: Kind
    library: str
    direction: str
    calls: int
    input_magnitude: float
    output_magnitude: float
    input_variance: float
    output_variance: float
    smallest_derivative: float | None
    largest_derivative: float | None
    nonfinite_inputs: int
    nonfinite_outputs: int
    onsets: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON: "inf" and "nan" stand for what it does not have."""
        return {
            key: as_json(value) if isinstance(value, float) else value
            for key, value in asdict(self).items()
        }


@dataclass(frozen=True)
class MonitorReport:
    """What :meth:`InverseMonitor.report` returns; ``str`` is a table.

    Attributes:
        model: the model's class.
        layers: in the order in which they were called.
        onsets: those that were kept.
        onset_count: how many there were.
        samples: how many were watched.
        limits: the thresholds.
    """

    model: str
    layers: tuple[LayerRecord, ...]
    onsets: tuple[Onset, ...]
    onset_count: int
    samples: int
    limits: Limits

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "model": self.model,
            "samples": self.samples,
            "onset_count": self.onset_count,
            "growth": self.limits.growth,
            "magnitude": self.limits.magnitude,
            "layers": [each.to_dict() for each in self.layers],
            "onsets": [each.to_dict() for each in self.onsets],
        }

    def __str__(self) -> str:
        rows = [[heading for heading, _ in _COLUMNS]]
        rows += [[show(each) for _, show in _COLUMNS] for each in self.layers]
        widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
        lines = [
            "  ".join(
                cell.ljust(width) if i < _LEFT else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        return "\n".join([*lines, self._summary()])

    def _summary(self) -> str:
        watched = f"{self.model}: {self.samples} sample{'' if self.samples == 1 else 's'} watched"
        if not self.onset_count:
            return f"{watched}, no explosion."
        onsets = f"{self.onset_count} onset{'' if self.onset_count == 1 else 's'} of explosions"
        return f"{watched}, {onsets}. The first: {self.onsets[0]}."


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _range(low: float | None, high: float | None) -> str:
    return "-" if low is None else f"{_number(low)} .. {_number(high)}"


_LEFT = 2  # columns of words
_COLUMNS: Sequence[tuple[str, Callable[[LayerRecord], str]]] = (
    ("layer", lambda each: each.name + (" (density)" if each.direction == "density" else "")),
    ("kind", lambda each: each.kind),
    ("calls", lambda each: str(each.calls)),
    ("max |in|", lambda each: _number(each.input_magnitude)),
    ("max |out|", lambda each: _number(each.output_magnitude)),
    ("var in", lambda each: _number(each.input_variance)),
    ("var out", lambda each: _number(each.output_variance)),
    ("derivative", lambda each: _range(each.smallest_derivative, each.largest_derivative)),
    ("non-finite", lambda each: str(each.nonfinite_outputs)),
    ("onsets", lambda each: str(each.onsets)),
)
