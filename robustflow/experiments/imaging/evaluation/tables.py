"""An evaluation as files: CSV, JSON, the published list of faulty samples, figures, a page."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from robustflow._files import check_writable, write_atomically
from robustflow.experiments.imaging.evaluation.figures import figure_grid
from robustflow.experiments.imaging.evaluation.page import render
from robustflow.experiments.imaging.evaluation.results import Evaluation, Key, description

_FAULTS = "errorpixels"
_FILES = ("evaluation.json", "table.csv", "pictures.csv", "evaluation.png", "evaluation.html")
_PUBLISHED = ("i", "ii", "errpixel (1.5,-0.5)", "nanpixel")  # of the published test script


def check_folder(out: Path) -> None:
    """Raise before the work if a file cannot be written.

    Raises:
        UnwritablePath: one cannot.
    """
    check_writable(*(out / name for name in _FILES), out / _FAULTS / "x.csv")


def write(result: Evaluation, out: Path) -> None:
    """The JSON file, ``table.csv``, ``pictures.csv``, ``errorpixels/*.csv``, a figure, a page.

    Args:
        result: what was found.
        out: a folder.

    Raises:
        OSError: a file cannot be written.
    """
    text = json.dumps(result.to_dict(), indent=1, allow_nan=False) + "\n"
    write_atomically(out / "evaluation.json", text)
    write_atomically(out / "table.csv", table(result))
    write_atomically(out / "pictures.csv", pictures(result))
    for key in dict.fromkeys(key for key, _ in result.figures):
        write_atomically(out / _FAULTS / f"{name_of(key)}.csv", faulty_samples(result, key))
    buffer = io.BytesIO()
    figure_grid(result).savefig(buffer, format="png", dpi=130)
    write_atomically(out / "evaluation.png", buffer.getvalue())
    write_atomically(out / "evaluation.html", render(result))


def table(result: Evaluation) -> str:
    """One line for each figure: row, metric, value, interval, and what the metric is."""
    couplings = {each.label: each.coupling for each in result.trained}
    couplings |= {label: couplings[all_[0]] for label, all_ in result.members.items()}
    lines: list[Sequence[object]] = [
        (
            *("checkpoint", "coupling", "pictures", "temperature", "column"),
            *("metric", "unit", "value", "low", "high", "number"),
            *("better", "library", "colour space", "border"),
        )
    ]
    for key in result.keys:
        for metric in result.present:
            number = len(result.values(key, metric))
            if not number:
                continue
            estimate = result.estimate(key, metric)
            about = description(metric)
            lines.append(
                (
                    *(key.checkpoint, couplings[key.checkpoint], key.group),
                    *(key.temperature, key.column, metric.name, metric.unit),
                    *map(_number, (estimate.value, estimate.low, estimate.high)),
                    number,
                    *(about[name] for name in ("better", "library", "colour space")),
                    "" if metric.border is None else metric.border,
                )
            )
    return _csv(lines)


def pictures(result: Evaluation) -> str:
    """One line for each picture of each row, a column for each metric."""
    names = [metric.name for metric in result.present]
    lines: list[Sequence[object]] = [
        ("checkpoint", "pictures", "temperature", "column", "picture", *names)
    ]
    for (key, title), figures in result.figures.items():
        values = [_number(figures[name]) if name in figures else "" for name in names]
        lines.append((key.checkpoint, key.group, key.temperature, key.column, title, *values))
    return _csv(lines)


def faulty_samples(result: Evaluation, key: Key) -> str:
    """A line for each faulty sample of a row: the published ``errorpixels.csv``.

    Pictures are numbered from 0 in the order of ``pictures.csv``. Source: the test script of Hong,
    Park and Chun, ICCV 2023.
    """
    lines: list[Sequence[object]] = [_PUBLISHED]
    lines += [
        (fault.picture, fault.sample, int(fault.beyond), int(fault.not_finite))
        for fault in result.faults.get(key, [])
    ]
    return _csv(lines)


def name_of(key: Key) -> str:
    """A row as a file's name."""
    words = f"{key.checkpoint}-{key.group}-T{key.temperature:g}-{key.column}"
    return re.sub(r"[^\w.=-]+", "_", words).strip("_")


def _number(value: float) -> str:
    return "" if value != value else repr(float(value))


def _csv(lines: Iterable[Sequence[object]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(lines)
    return buffer.getvalue()
