"""The result of a case with one backend: a row of the JSON file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from robustflow.benchmarks.rows import Row


@dataclass(frozen=True)
class GpuRow(Row):
    """A case with one backend: a :class:`robustflow.benchmarks.rows.Row` with more fields.

    Here ``dtype`` is that of x, ``allocator`` is ``caching`` on a GPU, and ``floor_fraction`` is
    relative to the GPU's fastest copy.

    Attributes:
        device: the GPU's name, or a remark that this was a rehearsal on a CPU.
        backend: of robustflow.
        layout: ``planar`` or ``rows``.
        parameter_dtype: of the parameters.
        scale: ``full``, or why the shape is smaller.
        timing: ``cold`` (device time of one call, with nothing of its inputs in the cache) or
            ``latency`` (of consecutive calls, with the time to launch them).
        graph_s: seconds for a call inside a CUDA graph, for small cases; None if not measured.
        ratio_elements: by competitor, the number of elements at which its ratio was measured. A
            competitor that needs too much memory is compared on a smaller shape than the row's.
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
    """The row of the faster backend on a case; None without a row."""
    return min(
        (row for row in rows if row.name == name), key=lambda row: row.median_s, default=None
    )


def clearly_faster(rows: Sequence[GpuRow], name: str) -> str | None:
    """The backend that was faster on a case by more than the spread; None if none was."""
    of_case = sorted((row for row in rows if row.name == name), key=lambda row: row.median_s)
    if len(of_case) < 2:
        return None
    first, second = of_case[:2]
    lead = second.median_s / first.median_s - 1
    return first.backend if lead > max(first.spread, second.spread) else None
