"""Shared code of the studies' figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from robustflow.experiments.imaging.evaluation.figures import COLOURS
from robustflow.experiments.studies.study import Row

__all__ = ["COLOURS", "in_order", "legend", "lines", "mean", "number", "tidy", "values"]


def number(value: Any) -> float:
    """A cell of a row as a number; NaN for what is missing. Files hold infinity as a text."""
    return math.nan if value is None or value == "" else float(value)


def values(rows: Sequence[Row], column: str, **where: Any) -> list[float]:
    """A column's finite numbers in the rows that have these values.

    Example:
        >>> values([{"seed": 0, "x": 1.0}, {"seed": 1, "x": 2.0}], "x", seed=1)
        [2.0]
    """
    numbers = (
        number(row.get(column)) for row in rows if all(row[k] == v for k, v in where.items())
    )
    return [value for value in numbers if math.isfinite(value)]


def mean(values: Sequence[float]) -> float:
    """NaN for none."""
    return sum(values) / len(values) if values else math.nan


def in_order(rows: Sequence[Row], column: str) -> list[Any]:
    """The different values of a column, as they come."""
    return list(dict.fromkeys(row[column] for row in rows))


def lines(
    axis: Any,
    rows: Sequence[Row],
    x: str,
    y: str,
    *,
    by: str = "model",
    label: Callable[[Any], str] = str,
) -> None:
    """A line for each value of ``by``: means over seeds; bars: their range."""
    for place, name in enumerate(in_order(rows, by)):
        group_rows = [row for row in rows if row[by] == name]
        xs, ys, low, high = [], [], [], []
        for value in sorted({row[x] for row in group_rows}):
            seeds = in_order(group_rows, "seed")
            means = [mean(values(group_rows, y, **{x: value, "seed": seed})) for seed in seeds]
            means = [each for each in means if math.isfinite(each)]
            if means:
                xs.append(value)
                ys.append(mean(means))
                low.append(mean(means) - min(means))
                high.append(max(means) - mean(means))
        if xs:
            axis.errorbar(
                xs,
                ys,
                yerr=[low, high],
                color=COLOURS[place % len(COLOURS)],
                linestyle="-" if place < len(COLOURS) else "--",
                marker=".",
                linewidth=1,
                elinewidth=0.6,
                label=label(name),
            )


def tidy(axis: Any, title: str, x: str = "", y: str = "") -> None:
    """Title and labels, small; no box."""
    axis.set_title(title, fontsize=9)
    axis.set_xlabel(x, fontsize=8)
    axis.set_ylabel(y, fontsize=8)
    axis.tick_params(labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)


def legend(figure: Any, axis: Any, columns: int = 4) -> None:
    """One for the whole figure, below it."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=min(columns, max(1, len(labels))),
        fontsize=7,
        frameon=False,
    )
