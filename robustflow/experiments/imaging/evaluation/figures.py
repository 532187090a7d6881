"""The figure of an evaluation: metrics by temperature, a row of panels for each group."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from robustflow.diagnostics.figures import new_figure
from robustflow.experiments.imaging.evaluation.metrics import Metric
from robustflow.experiments.imaging.evaluation.results import Evaluation, Key

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAIN = (  # metrics for the figure and the terminal, if available
    "PSNR",
    "SSIM",
    "GMSD",
    "LPIPS",
    "diversity (LPIPS)",
    "diversity (pixels)",
    "CRPS",
    "LR-PSNR",
    "faulty",
    "time",
)
COLOURS = ("#2166ac", "#b2182b", "#1a7f37", "#7b3294", "#b35806", "#35978f", "#c51b7d", "#4d4d4d")
_COLUMNS = 5  # of panels, at most
_STYLES = {"raw": "-", "projected": ":", "fixed": "-.", "guarded": "--"}


def main_metrics(result: Evaluation) -> list[Metric]:
    """The metrics of :data:`MAIN` that the result has."""
    by_name = {metric.name: metric for metric in result.present}
    return [by_name[name] for name in MAIN if name in by_name]


def figure_grid(result: Evaluation) -> Figure:
    """A matplotlib figure: rows are groups, columns metrics; a line is a checkpoint and column."""
    metrics, groups = main_metrics(result), list(result.titles)
    rows = math.ceil(len(metrics) / _COLUMNS)  # of a group
    columns = math.ceil(len(metrics) / rows)
    figure = new_figure(figsize=(2.6 * columns, 2.1 * rows * len(groups) + 0.7))
    axes = figure.subplots(rows * len(groups), columns, squeeze=False)
    lines = list(dict.fromkeys((key.checkpoint, key.column) for key in result.keys))
    names = list(dict.fromkeys(checkpoint for checkpoint, _ in lines))
    for index, group in enumerate(groups):
        panels = axes[index * rows : (index + 1) * rows].ravel()
        for axis, metric in zip(panels, metrics, strict=False):
            for checkpoint, column in lines:
                keys = [
                    key
                    for key in result.keys
                    if (key.checkpoint, key.column, key.group) == (checkpoint, column, group)
                ]
                colour = COLOURS[names.index(checkpoint) % len(COLOURS)]
                _line(axis, result, sorted(keys, key=_temperature), metric, colour)
            unit = f", {metric.unit}" if metric.unit else ""
            arrow = {"higher": " \u2191", "lower": " \u2193"}.get(metric.better, "")
            axis.set_title(f"{metric.name}{unit}{arrow}", fontsize=8)
            axis.tick_params(labelsize=7)
            axis.spines[["top", "right"]].set_visible(False)
        for axis in panels[len(metrics) :]:
            axis.set_visible(False)
        for axis in panels[::columns]:
            axis.set_ylabel(group if len(group) < 30 else f"...{group[-27:]}", fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("temperature", fontsize=7)
    handles: dict[str, Any] = {}
    for axis in axes.ravel():
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        list(handles.values()),
        list(handles.keys()),
        loc="outside lower center",
        ncols=min(6, len(handles)),
        fontsize=7,
        frameon=False,
    )
    return figure


def _temperature(key: Key) -> float:
    return key.temperature


def _line(axis: Any, result: Evaluation, keys: list[Key], metric: Metric, colour: str) -> None:
    estimates = [(key, result.estimate(key, metric)) for key in keys]
    estimates = [(key, each) for key, each in estimates if math.isfinite(each.value)]
    if not estimates:
        return
    values = [each.value for _, each in estimates]
    errors = [
        [0.0 if not math.isfinite(each.low) else each.value - each.low for _, each in estimates],
        [0.0 if not math.isfinite(each.high) else each.high - each.value for _, each in estimates],
    ]
    key = keys[0]
    axis.errorbar(
        [key.temperature for key, _ in estimates],
        values,
        yerr=errors,
        color=colour,
        linestyle=_STYLES[key.column],
        marker=".",
        linewidth=1,
        elinewidth=0.5,
        label=f"{key.checkpoint}, {key.column}",
    )
