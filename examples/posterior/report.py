"""The output of the example: tables, a JSON file, and a pair plot."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from examples.posterior.comparison import (
    TEST_SIMULATIONS,
    Comparison,
    Rightness,
    Sampling,
)
from examples.posterior.training import (
    PATCHED,
    UNPATCHED,
    Settings,
    Training,
    name_of,
)
from robustflow.experiments.report import machine

NOT_MEANINGFUL = "Fewer simulations or epochs than the example's own: the numbers mean nothing."
_COLOURS = {UNPATCHED: "tab:blue", PATCHED: "tab:orange", "exact": "black"}
_MASSES = (0.9, 0.5)  # of the exact posterior within a contour
_BINS = 40
_SHOWN = 4000  # samples of a cloud


@dataclass(frozen=True)
class Outcome:
    """All that the example found.

    Attributes:
        trainings: as they ran.
        sampling: the time of it.
        comparisons: of posteriors with each other.
        rightness: of posteriors, compared with the exact one.
        samples: of the observation's posterior, by mode and ``"exact"``, (num_samples, 5).
    """

    trainings: list[Training]
    sampling: Sampling
    comparisons: list[Comparison]
    rightness: list[Rightness]
    samples: dict[str, Tensor]


def print_introduction(console: Console, settings: Settings) -> None:
    """Print what is about to happen."""
    console.print(
        f"sbi {version('sbi')}: NPE with the estimator {settings.estimator!r} of "
        f"{settings.library} {version(settings.library)}, {settings.simulations:,} simulations, "
        f"{settings.epochs} epochs of batches of {settings.batch_size}, seed {settings.seed}; "
        "one thread.",
        highlight=False,
    )
    if not settings.meaningful:
        console.print(NOT_MEANINGFUL, style="bold yellow")


def print_outcome(console: Console, outcome: Outcome, settings: Settings) -> None:
    """The tables."""
    for table in (_times(outcome, settings), _differences(outcome), _rightness(outcome)):
        console.print(table, "")
    console.print(_calls(outcome, settings), highlight=False)


def _table(title: str, caption: str, *headings: str) -> Table:
    table = Table(
        title=title,
        caption=caption,
        box=SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
        pad_edge=False,
        show_edge=False,
    )
    for index, heading in enumerate(headings):
        table.add_column(
            heading,
            justify="right" if index else "left",
            no_wrap=not index,
            min_width=max(map(len, heading.split()), default=0),
        )
    return table


def _times(outcome: Outcome, settings: Settings) -> Table:
    table = _table(
        "Seconds",
        "training: sbi's train(), validation included; sampling: medians of turns",
        "",
        UNPATCHED,
        PATCHED,
        "faster",
    )
    rows: dict[str, dict[str, float]] = {}
    for training in outcome.trainings:
        what = name_of("training", training.nudged)
        rows.setdefault(what, {})[training.mode] = training.seconds
    rows[f"{settings.samples:,} samples"] = outcome.sampling.seconds
    for what, seconds in rows.items():
        off, on = seconds[UNPATCHED], seconds[PATCHED]
        table.add_row(what, f"{off:.3g}", f"{on:.3g}", f"{off / on:.2f}x")
    return table


def _differences(outcome: Outcome) -> Table:
    table = _table(
        "Differences",
        "losses by epoch, in nats; log_prob at new simulations; samples from the same base noise; "
        "shift: mean log_prob of the second minus the first, ± standard error; nudged: from "
        "weights one rounding higher",
        "",
        *(comparison.what for comparison in outcome.comparisons),
    )
    for name in ("training_loss", "validation_loss", "log_prob", "samples"):
        found = [comparison.differences.get(name) for comparison in outcome.comparisons]
        words = name.replace("_loss", " loss")
        for label, statistic in (("max", "largest"), ("mean", "mean")):
            cells = [f"{getattr(each, statistic):.0e}" if each else "" for each in found]
            table.add_row(f"{words}, {label}", *cells)
    table.add_section()
    table.add_row("shift of log_prob", *(f"{each.shift:+.0e}" for each in outcome.comparisons))
    table.add_row("±", *(f"{each.shift_error:.0e}" for each in outcome.comparisons))
    return table


def _rightness(outcome: Outcome) -> Table:
    table = _table(
        "Distance from the exact posterior",
        f"KL: mean over {TEST_SIMULATIONS:,} new simulations; the rest: samples of one "
        "observation's posterior, in its exact deviations",
        "",
        "KL [nats]",
        "means",
        "deviations",
        "energy distance",
    )
    for row in outcome.rightness:
        divergence = (
            "0" if row.divergence is None else f"{row.divergence:.3f} ± {row.divergence_error:.3f}"
        )
        errors = (f"{row.mean_error:.3f}", f"{row.deviation_error:.3f}", f"{row.energy:.4f}")
        table.add_row(row.what, divergence, *errors)
    return table


def _calls(outcome: Outcome, settings: Settings) -> str:
    training = [each.calls for each in outcome.trainings if each.mode == PATCHED]
    text = "; ".join(
        f"{what}: {calls['kernel']:,} by the kernels, {calls['reference']:,} by the reference, "
        f"{calls['fallback']:,} by {settings.library}"
        for what, calls in (("a training", training[0]), ("sampling", outcome.sampling.calls))
    )
    return f"Calls while patched, {text}."


def to_json(outcome: Outcome, settings: Settings, seconds: float) -> bytes:
    """Everything that was printed, the losses of every epoch, and what it ran on."""
    content: dict[str, Any] = {
        "meaningful": settings.meaningful,
        "settings": asdict(settings),
        "trainings": [_training(training) for training in outcome.trainings],
        "sampling": asdict(outcome.sampling),
        "comparisons": [asdict(comparison) for comparison in outcome.comparisons],
        "rightness": [asdict(row) for row in outcome.rightness],
        "machine": machine(),
        "versions": {name: version(name) for name in ("sbi", settings.library)},
        "seconds": seconds,
    }
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def _training(training: Training) -> dict[str, Any]:
    names = ("mode", "nudged", "seconds", "kept_epoch", "training_loss", "validation_loss", "calls")
    return {name: getattr(training, name) for name in names}


def draw(outcome: Outcome, settings: Settings) -> bytes:
    """A PNG: every pair of parameters, unpatched below the diagonal and patched above it."""
    exact = outcome.samples["exact"].numpy()
    count = exact.shape[1]
    limits = [tuple(np.quantile(column, (0.0005, 0.9995))) for column in exact.T]
    figure = Figure(figsize=(1.75 * count, 1.75 * count + 0.7), layout="constrained")
    figure.suptitle(
        f"sbi's {settings.estimator} posterior: unpatched (blue, below the diagonal), patched "
        f"(orange, above)\nand exact (black: contours of {_MASSES[1]:.0%} and {_MASSES[0]:.0%} of "
        f"its mass)" + ("" if settings.meaningful else f"\n{NOT_MEANINGFUL}"),
        fontsize=10.5,
    )
    axes = figure.subplots(count, count, squeeze=False)
    for row in range(count):
        for column in range(count):
            axis = axes[row, column]
            if row == column:
                _draw_one(axis, outcome.samples, row, limits[row])
            else:
                mode = UNPATCHED if row > column else PATCHED
                pair, box = [column, row], [limits[column], limits[row]]
                points = outcome.samples[mode].numpy()[:_SHOWN, pair]
                axis.plot(*points.T, ".", color=_COLOURS[mode], markersize=0.8, alpha=0.35)
                _draw_contours(axis, exact[:, pair], box)
            axis.set_xticks([])
            axis.set_yticks([])
            if row == count - 1:
                axis.set_xlabel(f"$\\theta_{column + 1}$")
            if column == 0:
                axis.set_ylabel(f"$\\theta_{row + 1}$")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _draw_one(
    axis: Axes, samples: dict[str, Tensor], index: int, limits: tuple[float, float]
) -> None:
    for name, values in samples.items():
        density, edges = np.histogram(values[:, index].numpy(), _BINS, limits, density=True)
        axis.stairs(density, edges, color=_COLOURS[name], linewidth=1.0, alpha=0.8)
    axis.set_xlim(limits)


def _draw_contours(axis: Axes, exact: np.ndarray, box: list[tuple[float, float]]) -> None:
    edges = [np.linspace(low, high, _BINS // 2 + 1) for low, high in box]
    density, _, _ = np.histogram2d(exact[:, 0], exact[:, 1], edges)
    ordered = np.sort(density, axis=None)[::-1]
    within = np.cumsum(ordered) / ordered.sum()
    levels = {float(ordered[np.searchsorted(within, mass)]) for mass in _MASSES}
    centres = [(each[1:] + each[:-1]) / 2 for each in edges]
    axis.contour(*centres, density.T, sorted(levels), colors="black", linewidths=0.7)
    axis.set_xlim(box[0])
    axis.set_ylim(box[1])
