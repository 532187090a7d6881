"""What a run prints: its rows, and what it left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from robustflow.benchmarks.rows import Measured, Row, duration, table

# From the title of a column to a function that gives a row's text in it.
Columns = Mapping[str, Callable[[Any], str]]

# Columns of every table of rows, on a CPU and on a GPU.
MEASURED: Columns = {
    "median": lambda row: duration(row.median_s),
    "spread": lambda row: f"{row.spread:.1%}",
    "G el/s": lambda row: f"{row.elements_per_s / 1e9:.3g}",
    "GB/s": lambda row: f"{row.bytes / row.median_s / 1e9:.3g}",
    "of copy": lambda row: f"{row.floor_fraction:.0%}",
    "peak MiB": lambda row: "-" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.0f}",
}
RATIOS: Columns = {
    "ratios": lambda row: ", ".join(f"{ratio:.3g}x {who}" for who, ratio in row.ratio.items()),
}


def row_table(rows: Sequence[Row], columns: Columns) -> str:
    """The rows as a table."""
    return table(list(columns), [[text(row) for text in columns.values()] for row in rows])


def measured_rows(rows: Sequence[Row]) -> str:
    """The rows of a suite on a CPU as a table."""
    case: Columns = {"case": lambda row: row.name, "allocator": lambda row: row.allocator}
    return row_table(rows, {**case, **MEASURED, **RATIOS})


def slower_than_competitors(rows: Sequence[Row]) -> list[str]:
    """A sentence for each row and competitor that is faster than robustflow."""
    return [
        f"Slower: {row.name} ({row.allocator}) takes {1 / ratio:.2f} times as long as {name}."
        for row in rows
        for name, ratio in row.ratio.items()
        if ratio < 1 and name != "forward"
    ]


def remarks(measured: Measured) -> list[str]:
    """Sentences about eager PyTorch's peak memory, what was left out, and what failed."""
    return [
        *(
            f"Eager PyTorch's {name} holds {peak / 2**20:.0f} MiB beyond its inputs at its peak."
            for name, peak in measured.eager_peaks.items()
        ),
        *(f"Left out: {name}. {reason}" for name, reason in measured.left_out.items()),
        *(f"FAILED: {name}. {reason}" for name, reason in measured.failed.items()),
    ]
