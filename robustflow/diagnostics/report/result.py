"""What a robustness report holds: the samples of every context, the scores' results, bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import robustflow
from robustflow._plain import plain
from robustflow.diagnostics.certify import Certificate
from robustflow.diagnostics.intervals import Estimate
from robustflow.diagnostics.monitor import InverseMonitor
from robustflow.diagnostics.report.evidence import Evidence
from robustflow.diagnostics.report.statistics import Bin

FAILURES = ("onsets", "contaminated")


@dataclass(frozen=True)
class ScoreResult:
    """How well one score predicts one kind of failure.

    Attributes:
        score: its name.
        failure: "onsets" or "contaminated".
        between: rank correlation of the pictures' scores with their rates.
        auroc: over all grid points of all pictures.
        within: mean of the pictures' own.
        bins: rates by score.
    """

    score: str
    failure: str
    between: Estimate
    auroc: Estimate
    within: Estimate
    bins: list[Bin]


@dataclass
class RobustnessReport:
    """What :func:`robustness_report` found; ``str()`` of it is a summary.

    Attributes:
        model: its class.
        temperature: of the samples that scores are judged by.
        number: samples of each context and temperature.
        evidence: context by context.
        results: of every score and kind of failure.
        certificate: bounds for every condition.
        onset_layers: how many onsets each layer had, by its name and kind.
        latent_share, context_share: which part of the variance of onset counts (logarithm of one
            more) follows from the latent alone and from the context alone.
        path: of the page, where one was written.
    """

    model: str
    temperature: float
    number: int
    evidence: list[Evidence]
    results: list[ScoreResult]
    certificate: Certificate
    onset_layers: dict[tuple[str, str], int]
    latent_share: float
    context_share: float
    path: Path | None = None
    watched: InverseMonitor | None = field(default=None, repr=False)
    control: InverseMonitor | None = field(default=None, repr=False)

    @property
    def onset_counts(self) -> NDArray[np.float64]:
        """Onsets by context (rows) and latent (columns), at the chosen temperature."""
        return onset_counts(self.evidence, self.temperature, self.number)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; what is not finite is a string."""
        return plain(
            {
                "robustflow": robustflow.__version__,
                "torch": torch.__version__,
                "model": self.model,
                "temperature": self.temperature,
                "samples of each context and temperature": self.number,
                "certificate": self.certificate.to_dict(),
                "onsets by layer": [
                    {"layer": layer, "kind": kind, "onsets": number}
                    for (layer, kind), number in self.onset_layers.items()
                ],
                "share of variance": {"latent": self.latent_share, "context": self.context_share},
                "contexts": [
                    {
                        "title": each.title,
                        "group": each.group,
                        "familiar": each.familiar,
                        "scores": each.scores,
                        "temperatures": {
                            str(temperature): {
                                "onsets": len(sampled.onsets),
                                "contaminated": sampled.rate,
                                "faulty": sampled.faulty,
                                "largest": sampled.largest,
                            }
                            for temperature, sampled in each.sampled.items()
                        },
                    }
                    for each in self.evidence
                ],
                "scores": [asdict(each) for each in self.results],
            }
        )

    def __str__(self) -> str:
        chosen = [each.sampled[self.temperature] for each in self.evidence]
        onsets = sum(len(each.onsets) for each in chosen)
        faulty = [each.faulty for each in chosen if each.faulty is not None]
        lines = [
            f"{self.model}: {onsets} onsets in {self.number * len(chosen)} samples of "
            f"{len(chosen)} contexts at temperature {self.temperature:g}"
            + (f"; {sum(faulty)} samples are faulty by the published rule." if faulty else "."),
            f"Certificate: {'passed' if self.certificate.passed else 'failed'}; "
            f"{self.certificate.growth}.",
        ]
        if self.onset_layers:
            (layer, kind), number = max(self.onset_layers.items(), key=lambda pair: pair[1])
            lines.append(f"Most onsets ({number}) are in {layer} ({kind}).")
        best = [each for each in self.results if not math.isnan(each.auroc.value)]
        for failure in FAILURES:
            of_failure = [each for each in best if each.failure == failure]
            if of_failure:
                top = max(of_failure, key=lambda each: each.auroc.value)
                lines.append(f"Best score of {failure}: {top.score}, AUROC {top.auroc}.")
        return "\n".join(lines)


def onset_counts(
    evidence: Sequence[Evidence], temperature: float, number: int
) -> NDArray[np.float64]:
    """Onsets by context and latent."""
    counts = np.zeros((len(evidence), number))
    for row, each in enumerate(evidence):
        for onset in each.sampled[temperature].onsets:
            counts[row, onset.sample % number] += 1
    return counts
