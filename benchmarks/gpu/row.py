"""What is measured of a case: a row of the JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from robustflow.benchmarks.rows import Row


@dataclass(frozen=True)
class GpuRow(Row):
    """A case by one backend: the keys of :class:`robustflow.benchmarks.rows.Row`, and these.

    ``dtype`` is that of x alone, ``allocator`` is torch's own on a GPU, ``floor_fraction`` is
    relative to the card's best copy, and ``ratio`` may be of a smaller shape: see
    ``ratio_elements``.

    Attributes:
        device: the card's name, or that this was a rehearsal on a CPU.
        backend: of robustflow.
        layout: ``planar`` or ``rows``.
        parameter_dtype: of the parameters.
        scale: ``full``, or why the shape is smaller.
        timing: ``cold`` (device time of one call, its inputs not in the cache) or ``latency`` (of
            calls in a row, with the work of launching them).
        graph_s: seconds a call inside a CUDA graph, of small cases; None where it was not taken.
        ratio_elements: contestant to the elements of the shape at which it was timed with ours.
    """

    device: str = ""
    backend: str = ""
    layout: str = ""
    parameter_dtype: str = ""
    scale: str = "full"
    timing: str = "cold"
    graph_s: float | None = None
    ratio_elements: dict[str, int] = field(default_factory=dict)


def fastest(rows: Sequence[GpuRow], name: str) -> GpuRow | None:
    """The faster backend's row of a case: what "auto" can have."""
    return min(
        (row for row in rows if row.name == name), key=lambda row: row.median_s, default=None
    )


def clearly_faster(rows: Sequence[GpuRow], name: str) -> str | None:
    """The backend that was faster on a case by more than the spread; None where neither was."""
    of_case = sorted((row for row in rows if row.name == name), key=lambda row: row.median_s)
    if len(of_case) < 2:
        return None
    first, second = of_case[:2]
    lead = second.median_s / first.median_s - 1
    return first.backend if lead > max(first.spread, second.spread) else None
