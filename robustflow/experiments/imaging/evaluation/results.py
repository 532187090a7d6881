"""The results of an evaluation: figures of every picture, and means with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import robustflow
from robustflow._plain import plain
from robustflow.diagnostics.intervals import NOTHING, Estimate, mean_interval
from robustflow.experiments.data.reading import Skipped
from robustflow.experiments.imaging.evaluation.drawing import Column
from robustflow.experiments.imaging.evaluation.metrics import Metric


@dataclass(frozen=True)
class Trained:
    """A checkpoint in the table.

    Attributes:
        label: its name there.
        path: of its file.
        coupling: of its flow.
        step: updates; None where not known.
    """

    label: str
    path: str
    coupling: str
    step: int | None


@dataclass(frozen=True)
class Key:
    """A row of the table.

    Attributes:
        checkpoint: its label.
        group: of the pictures.
        temperature: of the latents.
        column: what was done to the samples.
    """

    checkpoint: str
    group: str
    temperature: float
    column: Column


@dataclass(frozen=True)
class Fault:
    """A faulty sample, as the published file has it.

    Attributes:
        picture, sample: numbers from 0.
        beyond: whether a value is above 1.5 or below -0.5.
        not_finite: whether a value is.
    """

    picture: int
    sample: int
    beyond: bool
    not_finite: bool


@dataclass(frozen=True)
class Shown:
    """The worst sample of a picture, for the page.

    Attributes:
        pixels: (H, W, 3), as saved.
        faulty: how many samples of the picture are.
    """

    pixels: NDArray[np.uint8]
    faulty: int


@dataclass
class Evaluation:
    """All figures.

    Attributes:
        trained: the checkpoints.
        task: its name.
        settings: how it was made.
        metrics: in the table's order.
        titles: of the pictures, by group, in order.
        figures: by row and picture, each metric's value; without those that were left out.
        faults: by row, without rows that have none.
        left_out: what is missing, by the reason.
        skipped: files.
        shown: by picture (group, title) and checkpoint, at the highest temperature, raw.
        observations, truths: by picture, for the page, (H, W, 3).
    """

    trained: list[Trained]
    task: str
    settings: dict[str, Any]
    metrics: list[Metric]
    titles: dict[str, list[str]] = field(default_factory=dict)
    figures: dict[tuple[Key, str], dict[str, float]] = field(default_factory=dict)
    faults: dict[Key, list[Fault]] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    shown: dict[tuple[str, str], dict[str, Shown]] = field(default_factory=dict)
    observations: dict[tuple[str, str], NDArray[np.uint8]] = field(default_factory=dict)
    truths: dict[tuple[str, str], NDArray[np.uint8]] = field(default_factory=dict)

    @property
    def keys(self) -> list[Key]:
        """The table's rows: checkpoints, then couplings of which there are several."""
        keys = list(dict.fromkeys(key for key, _ in self.figures))
        pooled = [label for label, members in self.members.items() if len(members) > 1]
        for label in pooled:
            first = self.members[label][0]
            keys += [replace(key, checkpoint=label) for key in keys if key.checkpoint == first]
        return keys

    @property
    def members(self) -> dict[str, list[str]]:
        """The checkpoints of a label of the table.

        Usually one. Checkpoints of one coupling, such as those of several seeds, have a further row
        in common, whose figures are means over them, picture by picture.
        """
        pools = {each.label: [each.label] for each in self.trained}
        for coupling in dict.fromkeys(each.coupling for each in self.trained):
            alike = [each.label for each in self.trained if each.coupling == coupling]
            if len(alike) > 1:
                pools[f"{coupling}, mean of {len(alike)}"] = alike
        return pools

    @property
    def present(self) -> list[Metric]:
        """The metrics that at least one picture has."""
        names = {name for figures in self.figures.values() for name in figures}
        return [metric for metric in self.metrics if metric.name in names]

    def values(self, key: Key, metric: Metric) -> list[float]:
        """The values of the row's pictures that have the metric, in order."""
        pooled = []
        for title in self.titles[key.group]:
            every = [
                self.figures.get((replace(key, checkpoint=member), title), {}).get(metric.name)
                for member in self.members[key.checkpoint]
            ]
            known = [value for value in every if value is not None and not math.isnan(value)]
            if known:
                pool = max(known) if metric.pooled == "max" else sum(known) / len(known)
                pooled.append(pool)
        return pooled

    def estimate(self, key: Key, metric: Metric) -> Estimate:
        """A cell of the table: over the row's pictures, with its interval where it is a mean."""
        values = self.values(key, metric)
        if not values:
            return NOTHING
        if metric.pooled == "max":
            return Estimate(max(values), math.nan, math.nan)
        if len(values) == 1:  # nothing to resample
            return Estimate(values[0], math.nan, math.nan)
        return mean_interval(values)

    def leave_out(self, what: str, why: str) -> None:
        """Record once that something is missing, and why."""
        names = self.left_out.setdefault(why, [])
        if what not in names:
            names.append(what)

    @property
    def notices(self) -> list[str]:
        """What is missing, as sentences."""
        return [f"Left out: {', '.join(names)}: {why}." for why, names in self.left_out.items()]

    def to_dict(self) -> dict[str, Any]:
        """For JSON; what is not finite is a string."""
        return plain(
            {
                "robustflow": robustflow.__version__,
                "torch": torch.__version__,
                "task": self.task,
                "settings": self.settings,
                "checkpoints": [asdict(each) for each in self.trained],
                "metrics": [description(metric) for metric in self.present],
                "rows": [
                    {
                        **asdict(key),
                        "pictures": len(self.titles[key.group]),
                        "metrics": {
                            metric.name: asdict(self.estimate(key, metric))
                            for metric in self.present
                        },
                        "faulty samples": [asdict(each) for each in self.faults.get(key, [])],
                    }
                    for key in self.keys
                ],
                "pictures": [
                    {**asdict(key), "picture": title, "metrics": figures}
                    for (key, title), figures in self.figures.items()
                ],
                "left out": self.notices,
                "skipped": [{"file": str(s.path), "reason": s.reason} for s in self.skipped],
            }
        )


def description(metric: Metric) -> dict[str, Any]:
    """A metric as the table describes it, without its function."""
    return {
        "metric": metric.name,
        "unit": metric.unit,
        "better": metric.better,
        "library": metric.library,
        "colour space": metric.colours,
        "border": metric.border,
        "what": metric.what,
        "over pictures": metric.pooled,
    }


def cell(value: Estimate) -> str:
    """A figure and its interval, short; "" where there is none."""
    if math.isnan(value.value):
        return ""
    text = format(value.value, ".4g")
    if math.isnan(value.low):
        return text
    return f"{text} [{value.low:.4g}, {value.high:.4g}]"


def labels_of(paths: Sequence[str]) -> list[str]:
    """The shortest distinct ends of the paths.

    Example:
        >>> labels_of(["runs/a/affine", "runs/b/affine", "spline"])
        ['a/affine', 'b/affine', 'spline']
    """
    parts = [[part for part in path.split("/") if part] for path in paths]
    labels = []
    for index, own_parts in enumerate(parts):
        for length in range(1, len(own_parts) + 1):
            end = own_parts[-length:]
            others = (
                each[-length:] for other_index, each in enumerate(parts) if other_index != index
            )
            if end not in others:
                break
        labels.append("/".join(own_parts[-length:]))
    return labels
