"""What a run says on a terminal: its rows, its verdicts, and what it left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from robustflow.benchmarks.rows import Measured, Row, duration, table

_HEADER = ["workload", "allocator", "median", "spread", "G el/s", "GB/s", "of copy", "peak MiB"]
_WORDS = {None: "not measured", True: "met", False: "MISSED"}


def measured_rows(rows: Sequence[Row]) -> str:
    """The rows as a table."""
    lines = [
        [
            row.name,
            row.allocator,
            duration(row.median_s),
            f"{row.spread:.0%}",
            f"{row.elements_per_s / 1e9:.3g}",
            f"{row.bytes / row.median_s / 1e9:.3g}",
            f"{row.floor_fraction:.0%}",
            "-" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.0f}",
            ", ".join(f"{ratio:.3g}x {name}" for name, ratio in row.ratio.items()),
        ]
        for row in rows
    ]
    return table([*_HEADER, "ratios"], lines)


def verdict_table(verdicts: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    """Targets or bars with the measured numbers of each allocator beside them."""
    lines = [
        [
            f"{verdict['workload']}: {verdict['target']}",
            *("-" if verdict[name] is None else f"{verdict[name]:.3g}" for name in columns),
            _WORDS[verdict["met"]],
        ]
        for verdict in verdicts
    ]
    return table(["target", *columns, "verdict"], lines)


def behind(rows: Sequence[Row]) -> list[str]:
    """A sentence for each row that a competitor is ahead of."""
    return [
        f"Behind: {row.name} ({row.allocator}) takes {1 / ratio:.2f} times as long as {name}."
        for row in rows
        for name, ratio in row.ratio.items()
        if ratio < 1 and name != "forward"
    ]


def remarks(measured: Measured) -> list[str]:
    """Sentences: eager peaks, what was left out, what failed."""
    return [
        *(
            f"Eager PyTorch's {name} holds {peak / 2**20:.0f} MiB beyond its inputs at its peak."
            for name, peak in measured.eager_peaks.items()
        ),
        *(f"Left out: {name}. {reason}" for name, reason in measured.left_out.items()),
        *(f"FAILED: {name}. {reason}" for name, reason in measured.failed.items()),
    ]
