"""Couplings compared over several seeds, at equal steps and at equal time.

The samples are taken raw, projected, fixed and guarded: the columns of ``robustflow evaluate``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from robustflow.diagnostics.figures import new_figure
from robustflow.experiments.studies.evaluated import evaluation_of, rows_of
from robustflow.experiments.studies.figures import legend, lines, tidy
from robustflow.experiments.studies.study import Cell, Row, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_METRICS = (
    *("PSNR", "SSIM", "GMSD", "diversity (pixels)", "CRPS", "LR-PSNR"),
    *("faulty", "artifacts: black", "artifacts: saturated", "largest |value|", "time"),
)


def measure(cell: Cell) -> list[Row]:
    """A row for each group of pictures, temperature and column of samples."""
    evaluation = evaluation_of(cell, columns=("raw", "projected", "fixed", "guarded"))
    costs = {
        "bits per dimension": cell.state.best_bits,
        "training (s)": round(cell.state.seconds, 1),
    }
    return [
        {"task": cell.config.task.name, **row, **costs} for row in rows_of(evaluation, _METRICS)
    ]


def figure(rows: Sequence[Row], study: Study) -> Figure:
    """Metrics of raw samples against temperature. Bars go from the lowest to the highest seed."""
    panels = (
        ("faulty (%)", "faulty, %"),
        ("PSNR (dB)", "PSNR, dB"),
        ("SSIM", "SSIM"),
        ("diversity (pixels) (%)", "diversity, %"),
        ("CRPS", "CRPS"),
    )
    raw = [row for row in rows if row["samples"] == "raw"]
    kinds = list(dict.fromkeys((row["task"], row["pictures"]) for row in raw))
    fig = new_figure(figsize=(12, 2.3 * len(kinds) + 0.8))
    axes = fig.subplots(len(kinds), len(panels), squeeze=False)
    for line, (task, group) in zip(axes, kinds, strict=True):
        group_rows = [row for row in raw if (row["task"], row["pictures"]) == (task, group)]
        for axis, (column, title) in zip(line, panels, strict=True):
            lines(axis, group_rows, "temperature", column, label=_without_task)
            tidy(axis, title)
        line[0].set_ylabel(f"{task}, {group}", fontsize=8)
    legend(fig, axes[0, 0])
    fig.suptitle(f"{study.title} (seeds {', '.join(map(str, study.seeds))})", fontsize=10)
    return fig


def _without_task(model: str) -> str:
    return model.partition("-")[2]
