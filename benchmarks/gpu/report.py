"""The tables that the suite prints: copies, rows, remarks, and the targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.gpu.row import GpuRow, clearly_faster
from benchmarks.gpu.suite import Results
from benchmarks.gpu.targets import Judgement
from robustflow.benchmarks.report import MEASURED, RATIOS, Columns, row_table
from robustflow.benchmarks.rows import duration, table
from robustflow.benchmarks.verdicts import verdict_table


def headline(description: dict[str, Any], state: dict[str, str]) -> str:
    """The GPU, versions, and its clocks, power and temperature."""
    card = description["card"]
    versions = ", ".join(
        f"{name} {card.get(name) or 'none'}" for name in ("driver", "cuda", "triton")
    )
    lines = [f"{card['name']}: torch {description['torch']}, {versions}"]
    lines += [", ".join(f"{name} {value}" for name, value in state.items())] if state else []
    return "\n".join(lines)


def copies(speeds: Sequence[dict[str, float]]) -> str:
    """A table of the device's copies."""
    lines = [
        [
            f"{speed['bytes'] / 2**20:.0f} MiB",
            duration(speed["median_s"]),
            f"{speed['spread']:.1%}",
            f"{speed['bytes_per_s'] / 1e9:.4g}",
        ]
        for speed in speeds
    ]
    return table(["copy, read and written", "median", "spread", "GB/s"], lines)


def measured(rows: Sequence[GpuRow]) -> str:
    """A table of every row.

    ``of copy`` is empty for small cases, which measure latency. ``faster`` is the backend that was
    faster on a case by more than the spread.
    """
    case: Columns = {"case": lambda row: row.name, "backend": lambda row: row.backend}
    on_gpu: Columns = {
        "of copy": lambda row: "-" if row.timing == "latency" else MEASURED["of copy"](row),
        "in a graph": lambda row: "-" if row.graph_s is None else duration(row.graph_s),
        "faster": lambda row: clearly_faster(rows, row.name) or "-",
    }
    return row_table(rows, {**case, **MEASURED, **on_gpu, **RATIOS})


def notes(results: Results) -> str:
    """A line for everything that has no row or no ratio, with the reason."""
    titles = {
        "Wrong, so no speed is reported": results.wrong,
        "Failed": results.failed,
        "Left out": results.left_out,
        "Not measured": results.not_measured,
    }
    return "\n".join(
        f"{title}: {name}: {reason}"
        for title, items in titles.items()
        for name, reason in items.items()
    )


def targets(judgements: Sequence[Judgement]) -> str:
    """A table of the targets, with the measured numbers and verdicts."""
    if not judgements:
        return "No target is about these cases."
    return verdict_table([judgement.verdict for judgement in judgements])
