"""True distribution shift: flows of photographs on microscopy, text, astronomy and drawings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from robustflow.diagnostics import InverseMonitor
from robustflow.diagnostics.figures import new_figure
from robustflow.experiments.data.builtin import Split
from robustflow.experiments.imaging.evaluation.drawing import draw
from robustflow.experiments.imaging.robustness import observations
from robustflow.experiments.studies.evaluated import evaluation_of, picture_rows
from robustflow.experiments.studies.figures import COLOURS, in_order, legend, mean, tidy, values
from robustflow.experiments.studies.study import Cell, Row, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_METRICS = ("PSNR", "SSIM", "diversity (pixels)", "CRPS", "LR-PSNR", "faulty", "largest |value|")
_SPLITS: tuple[Split, ...] = ("train", "held_out", "ood")


def measure(cell: Cell) -> list[Row]:
    """A row for each picture and temperature."""
    kinds: dict[str, str] = {
        title: kind for kind, titles in cell.settings["kinds"].items() for title in titles
    }
    evaluation = evaluation_of(cell, _SPLITS)
    onsets = {
        (title, temperature): _onsets(cell, y, temperature)
        for split in _SPLITS
        for title, y in observations(cell.flow, split, None, cell.settings["size"]).items()
        for temperature in cell.settings["temperatures"]
    }
    return [
        {
            "kind": kinds.get(row["picture"], row["pictures"]),
            **row,
            "onsets of a sample": onsets[row["picture"], row["temperature"]],
        }
        for row in picture_rows(evaluation, _METRICS)
    ]


def _onsets(cell: Cell, y: Tensor, temperature: float) -> float:
    """The mean number of onsets of a sample, of the samples that are evaluated."""
    number = cell.settings["number"]
    with InverseMonitor(cell.flow) as monitor:
        draw(cell.flow, y, ["raw"], number=number, temperature=temperature, seed=cell.seed)
    return len(monitor.onsets) / number


def figure(rows: Sequence[Row], study: Study) -> Figure:
    """By kind of picture, at the highest temperature: faults, onsets, PSNR."""
    hottest = max(row["temperature"] for row in rows)
    chosen = [row for row in rows if row["temperature"] == hottest]
    models, kinds = in_order(chosen, "model"), in_order(chosen, "kind")
    panels = (
        ("faulty (%)", "faulty samples, %"),
        ("onsets of a sample", "onsets of a sample"),
        ("PSNR (dB)", "PSNR, dB"),
    )
    fig = new_figure(figsize=(12, 4))
    for axis, (column, title) in zip(fig.subplots(1, len(panels)), panels, strict=True):
        for index, model in enumerate(models):
            heights = [mean(values(chosen, column, model=model, kind=kind)) for kind in kinds]
            at = [k + 0.8 * (index + 0.5) / len(models) - 0.4 for k in range(len(kinds))]
            axis.bar(at, heights, 0.8 / len(models), color=COLOURS[index], label=model)
        axis.set_xticks(range(len(kinds)), kinds, rotation=50, fontsize=7, ha="right")
        tidy(axis, title)
    legend(fig, fig.axes[0])
    fig.suptitle(f"{study.title}, T = {hottest:g}", fontsize=10)
    return fig
