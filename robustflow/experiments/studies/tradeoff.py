"""Robustness against diversity and likelihood: the cost of a bounded inverse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from robustflow.diagnostics.figures import new_figure
from robustflow.experiments.data.builtin import split_of
from robustflow.experiments.studies.evaluated import evaluation_of, rows_of
from robustflow.experiments.studies.figures import legend, lines, tidy
from robustflow.experiments.studies.study import Cell, Row, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_METRICS = (
    *("PSNR", "SSIM", "diversity (pixels)", "CRPS", "LR-PSNR"),
    *("faulty", "largest |value|", "time", "memory"),
)


def measure(cell: Cell) -> list[Row]:
    """A row for each group of pictures and temperature."""
    costs = {
        "bits per dimension": cell.state.best_bits,
        "training (s)": round(cell.state.seconds, 1),
    }
    return [{**row, **costs} for row in rows_of(evaluation_of(cell), _METRICS)]


def figure(rows: Sequence[Row], study: Study) -> Figure:
    """Six panels for out-of-distribution pictures.

    Four metrics against temperature, the rate of faulty samples against bits per dimension, and
    CRPS against diversity.
    """
    chosen = [row for row in rows if row["pictures"] == "ood"]
    fig = new_figure(figsize=(11, 6.4))
    axes = fig.subplots(2, 3)
    panels = (
        ("faulty (%)", "faulty samples, %"),
        ("diversity (pixels) (%)", "diversity (pixels), %"),
        ("PSNR (dB)", "PSNR, dB"),
        ("CRPS", "CRPS"),
    )
    for axis, (column, title) in zip(axes.flat, panels, strict=False):
        lines(axis, chosen, "temperature", column)
        tidy(axis, title, "temperature")
    hottest = max(row["temperature"] for row in chosen)
    hot = [row for row in chosen if row["temperature"] == hottest]
    lines(axes[1, 1], hot, "bits per dimension", "faulty (%)")
    tidy(axes[1, 1], f"faulty at T = {hottest:g}, by likelihood", "bits/dim", "%")
    lines(axes[1, 2], chosen, "diversity (pixels) (%)", "CRPS")
    tidy(axes[1, 2], "CRPS by diversity", "diversity (pixels), %", "CRPS")
    legend(fig, axes[0, 0])
    number = len(split_of("ood"))
    fig.suptitle(f"{study.title}: {number} out-of-distribution pictures", fontsize=10)
    return fig
