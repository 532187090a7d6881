"""A cell's flow through `robustflow evaluate`, as rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from robustflow.experiments.data.builtin import Split
from robustflow.experiments.imaging.evaluation.drawing import Column
from robustflow.experiments.imaging.evaluation.evaluate import evaluate
from robustflow.experiments.imaging.evaluation.results import Evaluation
from robustflow.experiments.studies.study import Cell, Row


def evaluation_of(
    cell: Cell,
    sources: Sequence[Split | Path] = ("held_out", "ood"),
    columns: Sequence[Column] = ("raw",),
) -> Evaluation:
    """With the settings ``number``, ``temperatures`` and ``size``."""
    settings = cell.settings
    return evaluate(
        [cell.folder],
        sources,
        number=settings["number"],
        temperatures=settings["temperatures"],
        columns=columns,
        size=settings["size"],
        seed=cell.seed,
    )


def rows_of(result: Evaluation, metrics: Sequence[str]) -> list[Row]:
    """A row for each group, temperature and column: means over pictures of some metrics."""
    chosen = [metric for metric in result.present if metric.name in metrics]
    return [
        {
            "pictures": key.group,
            "temperature": key.temperature,
            "samples": key.column,
            **{_title(m.name, m.unit): result.estimate(key, m).value for m in chosen},
        }
        for key in result.keys
    ]


def picture_rows(result: Evaluation, metrics: Sequence[str]) -> list[Row]:
    """A row for each picture, temperature and column."""
    units = {metric.name: metric.unit for metric in result.metrics}
    return [
        {
            "picture": title,
            "pictures": key.group,
            "temperature": key.temperature,
            "samples": key.column,
            **{_title(m, units[m]): figures[m] for m in metrics if m in figures},
        }
        for (key, title), figures in result.figures.items()
    ]


def _title(name: str, unit: str) -> str:
    return f"{name} ({unit})" if unit else name
