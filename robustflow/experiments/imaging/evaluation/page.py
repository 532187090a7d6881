"""An evaluation as one HTML page that needs no other file and no network."""

from __future__ import annotations

from typing import Any

import torch

import robustflow
from robustflow.diagnostics.report import figures as drawings
from robustflow.diagnostics.report.page import Cell, fill, number_cell, words
from robustflow.experiments.imaging.evaluation.figures import figure_grid
from robustflow.experiments.imaging.evaluation.results import Evaluation, Key, cell


def render(result: Evaluation) -> str:
    """The page.

    Raises:
        ModuleNotFoundError: jinja2 is missing.
    """
    columns = ["checkpoint", "T", "samples"]
    columns += [
        f"{metric.name}{f', {metric.unit}' if metric.unit else ''}" for metric in result.present
    ]
    contents = {
        "result": result,
        "versions": {"robustflow": robustflow.__version__, "torch": torch.__version__},
        "checkpoints": [
            [words(each.label), words(each.coupling), _step(each.step), words(each.path)]
            for each in result.trained
        ],
        "columns": columns,
        "groups": [
            {
                "name": group,
                "titles": ", ".join(titles),
                "number": len(titles),
                "rows": [_row(result, key) for key in result.keys if key.group == group],
            }
            for group, titles in result.titles.items()
        ],
        "metrics": [
            [
                words(metric.name),
                words(metric.what),
                words(metric.better),
                words(metric.library),
                words(metric.colours),
                words("" if metric.border is None else f"{metric.border} pixels"),
            ]
            for metric in result.present
        ],
        "figure": drawings.as_svg(figure_grid(result)),
        "hottest": max(result.settings["temperatures"]),
        "pictures": _pictures(result),
    }
    return fill("page.html.jinja", contents, "robustflow.experiments.imaging.evaluation")


def _step(step: int | None) -> Cell:
    return words("") if step is None else number_cell(step, "d")


def _row(result: Evaluation, key: Key) -> list[Cell]:
    row = [words(key.checkpoint), number_cell(key.temperature, "g"), words(key.column)]
    for metric in result.present:
        estimate = result.estimate(key, metric)
        bad = metric.name == "faulty" and estimate.value > 0
        text = cell(estimate)
        row.append(Cell(text, repr(estimate.value) if text else "", "bad" if bad else ""))
    return row


def _pictures(result: Evaluation) -> list[dict[str, Any]]:
    shown = []
    for (group, title), observation in result.observations.items():
        images = [(observation, "observation")]
        if (group, title) in result.truths:
            images.append((result.truths[group, title], "truth"))
        of = result.settings["samples of a picture"]
        for label, worst in result.shown.get((group, title), {}).items():
            images.append((worst.pixels, f"{label}: {worst.faulty} of {of} faulty"))
        shown.append(
            {
                "title": title,
                "group": group,
                "images": [
                    {"address": drawings.picture(pixels), "caption": caption}
                    for pixels, caption in images
                ],
            }
        )
    return shown
