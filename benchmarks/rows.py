"""What a benchmark leaves behind: rows with stable keys, a JSON file, a table."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One measured case.

    Attributes:
        name: the workload's name.
        operation: ``modified_rq_spline``, ``rq_spline`` or ``conditional_affine``.
        direction: ``forward``, ``inverse`` or ``forward+backward``.
        shape: of x.
        dtype: of x and the parameters.
        allocator: ``default`` or ``keeping`` (see :mod:`benchmarks.allocator`).
        median_s: robustflow's median seconds a call.
        spread: its interquartile range over its median.
        elements_per_s: elements of x over ``median_s``.
        bytes: what the contract makes the operation read and write, each tensor once.
        floor_fraction: the time of a copy that moves as many bytes, over ``median_s``.
        peak_bytes: the most memory one call holds beyond its inputs, outputs included; None where
            it is too small to be seen.
        ratio: competitor to its time over ours.
    """

    name: str
    operation: str
    direction: str
    shape: tuple[int, ...]
    dtype: str
    allocator: str
    median_s: float
    spread: float
    elements_per_s: float
    bytes: int
    floor_fraction: float
    peak_bytes: int | None = None
    ratio: dict[str, float] = field(default_factory=dict)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Row:
        return cls(**{**record, "shape": tuple(record["shape"])})


KEYS = tuple(item.name for item in fields(Row))


def write_json(path: Path, machine: dict[str, Any], rows: Sequence[Row], **more: Any) -> None:
    """Write ``{"machine": …, "rows": […], **more}``; the file is never there in part."""
    record = {"machine": machine, "rows": [asdict(row) for row in rows], **more}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(json.dumps(record, indent=2) + "\n")
    os.replace(unfinished, path)


def read_rows(path: Path) -> list[Row]:
    """The rows of a file that :func:`write_json` wrote."""
    return [Row.from_json(record) for record in json.loads(path.read_text())["rows"]]


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Columns of text: the first to the left, the others to the right.

    Example:
        >>> print(table(["case", "ms"], [["a", "1.5"], ["bb", "12"]]))
        case   ms
        a     1.5
        bb     12
    """
    cells = [list(header), *(list(line) for line in lines)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    )


def duration(seconds: float) -> str:
    """Seconds in the unit that reads best.

    Example:
        >>> duration(0.00412)
        '4.12 ms'
    """
    unit, size = next(
        ((unit, size) for unit, size in (("s", 1.0), ("ms", 1e-3)) if seconds >= size),
        ("us", 1e-6),
    )
    return f"{seconds / size:.3g} {unit}"
