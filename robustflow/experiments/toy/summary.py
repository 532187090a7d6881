"""Summary of the runs: which are rejected as untrained, spans over seeds, the JSON file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from robustflow.diagnostics.bounds import bounds_of
from robustflow.experiments import report
from robustflow.experiments.toy.law import LAWS
from robustflow.experiments.toy.models import COUPLINGS
from robustflow.experiments.toy.reading import LayerReading
from robustflow.experiments.toy.runs import Run, RunResult
from robustflow.experiments.toy.training import Settings, is_untrained

NOT_MEANINGFUL = "Trained less than the demonstration: the numbers mean nothing."
_QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)


@dataclass(frozen=True)
class Outcome:
    """All runs of a demonstration.

    Attributes:
        results: as they were asked for.
        settings: of all of them.
    """

    results: tuple[RunResult, ...]
    settings: Settings

    def of(self, law: str, coupling: str) -> list[RunResult]:
        """The runs of one model, seed by seed, without those that are rejected."""
        pair = (law, coupling)
        rejected = self.rejected
        return [
            result
            for result in self.results
            if (result.run.law, result.run.coupling) == pair and result.run not in rejected
        ]

    def couplings(self, law: str) -> list[str]:
        """The couplings that the law was trained with and that are not rejected in every seed."""
        ran = dict.fromkeys(r.run.coupling for r in self.results if r.run.law == law)
        return [coupling for coupling in ran if self.of(law, coupling)]

    @property
    def rejected(self) -> dict[Run, float]:
        """Affine runs that count as untrained, and how many nats they are behind."""
        nats = {result.run: result.nats for result in self.results}
        deficits = {}
        for run, own in nats.items():
            standard = nats.get(Run(run.law, "reparametrised affine", run.seed))
            if run.coupling == "affine" and standard is not None and is_untrained(own, standard):
                deficits[run] = own - standard
        return deficits


@dataclass(frozen=True)
class Span:
    """The smallest and the largest of some numbers.

    Example:
        >>> Span.of([3.0, 1.0, 2.0]).text("{:.1f}"), Span.of([1.0]).text("{:.0%}")
        ('1.0…3.0', '100%')
    """

    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Span:
        """Of at least one number."""
        every = list(values)
        return cls(min(every), max(every))

    def text(self, form: str | Callable[[float], str]) -> str:
        """Both ends, or one where they read the same."""
        write = form.format if isinstance(form, str) else form
        ends = dict.fromkeys((write(self.low), write(self.high)))
        return "…".join(ends)


def magnitude(value: float) -> str:
    """A size in at most five characters.

    Example:
        >>> [magnitude(value) for value in (0.987, 2.0, 12.3, 345.6, 2.96e3, 1e16, float("inf"))]
        ['0.99', '2.0', '12', '346', '3e3', '1e16', 'inf']
    """
    if value < 0.995:
        return f"{value:.2f}"
    if value < 9.95:
        return f"{value:.1f}"
    if value < 1000 or not math.isfinite(value):
        return f"{value:.0f}"
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def percent(share: float) -> str:
    """A share in at most four characters; no share reads as none.

    Example:
        >>> [percent(share) for share in (0.0, 0.001, 0.125, 0.999, 1.0)]
        ['0%', '<1%', '12%', '>99%', '100%']
    """
    if 0 < share < 0.01:
        return "<1%"
    return ">99%" if 0.99 < share < 1 else f"{share:.0%}"


def to_json(outcome: Outcome, seconds: float) -> str:
    """Everything that was found, and what it ran on; infinity and NaN as words."""
    content = {
        "meaningful": outcome.settings.meaningful,
        "settings": asdict(outcome.settings),
        "laws": {
            name: {"entropy": law.entropy, "largest": law.largest} for name, law in LAWS.items()
        },
        "runs": [_run(result, outcome) for result in outcome.results],
        "machine": report.machine(),
        "seconds": seconds,
    }
    return json.dumps(_plain(content), indent=2, allow_nan=False) + "\n"


def _run(result: RunResult, outcome: Outcome) -> dict[str, Any]:
    law = LAWS[result.run.law]
    bounds = bounds_of(COUPLINGS[result.run.coupling])
    assert bounds is not None and bounds.tail is not None
    return {
        **asdict(result.run),
        "rejected": result.run in outcome.rejected,
        "nats": result.nats,
        "nats_above_entropy": result.nats - law.entropy,
        "step_milliseconds": result.step_milliseconds,
        "radii": [asdict(reading) for reading in result.radii],
        "s_u": bounds.tail.high,
        "layers": {"inside": _layers(result.inside), "outside": _layers(result.outside)},
        "attacks": [asdict(attack) for attack in result.attacks],
        "certified": asdict(result.certified),
    }


def _layers(layers: Sequence[LayerReading]) -> list[dict[str, Any]]:
    return [
        {
            "name": layer.name,
            "variance": layer.variance,
            "magnitude": layer.magnitude,
            "onsets": layer.onsets,
            **({} if layer.slopes is None else {"slopes": _quantiles(layer.slopes)}),
        }
        for layer in layers
    ]


def _quantiles(values: torch.Tensor) -> dict[str, float]:
    finite = values[values.isfinite()].double()
    levels = torch.tensor(_QUANTILES, dtype=torch.float64)
    if not len(finite):
        return {}
    return dict(zip(map(str, _QUANTILES), torch.quantile(finite, levels).tolist(), strict=True))


def _plain(value: Any) -> Any:
    """JSON has no infinity."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
