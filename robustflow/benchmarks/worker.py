"""Measure one workload in this process; :mod:`robustflow.benchmarks.allocator` starts it.

    python -m robustflow.benchmarks.worker time NAME COMPETITORS ALLOCATOR SECONDS SHAPE FILE
    python -m robustflow.benchmarks.worker memory NAME WHO SHAPE FILE
    python -m robustflow.benchmarks.worker faults FILE
    python -m robustflow.benchmarks.worker threads FILE

COMPETITORS are joined by commas, SHAPE is ``full`` or ``quick``; FILE receives the result as JSON.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from robustflow.benchmarks import allocator, cases, memory, timing, workloads
from robustflow.benchmarks.rows import Row

# Heap to touch beforehand, in units of a workload's inputs: eager training holds about as many.
PRIMED_INPUTS = 12


def time_workload(workload: workloads.Workload, policy: str, seconds: float) -> dict[str, Any]:
    """A row (without peak memory) and the competitors that were left out, with the reason."""
    if policy == "keeping":
        allocator.prime(PRIMED_INPUTS * workload.traffic.inputs)
    case = cases.prepare(workload)
    cases.check_agreement(case)
    times = timing.alternate(
        {"robustflow": case.ours, "copy": timing.copy_of(workload.bytes), **case.competitors},
        seconds=seconds,
        min_rounds=5 if policy == "keeping" else 3,
        warmup=2,  # each has been called once already, for the comparison
    )
    row = Row(
        name=workload.name,
        operation=workload.operation,
        direction=workload.direction,
        shape=workload.shape,
        dtype="float32",
        allocator=policy,
        bytes=workload.bytes,
        **timing.row_figures(
            times.pop("robustflow"), times.pop("copy"), times, elements=workload.elements
        ),
    )
    return {"row": asdict(row), "left_out": case.left_out}


def peak_of(workload: workloads.Workload, who: str) -> int:
    """Peak bytes of one call of ``who`` (``robustflow`` or a competitor) beyond its inputs."""
    only = workload.against([who])

    def function(of: workloads.Workload) -> timing.Function:
        case = cases.prepare(of)
        return case.competitors[who] if of.competitors else case.ours

    function(only.tiny())()
    return memory.peak_bytes(function(only))


def main(arguments: list[str]) -> None:
    *task, file = arguments
    result: object
    if task[0] == "faults":
        result = allocator.faults_of_a_fill()
    elif task[0] == "threads":
        result = torch.get_num_threads()
    else:
        workload = workloads.find(task[1])
        if task[-1] == "quick":
            workload = workload.quick()
        if task[0] == "time":
            workload = workload.against(task[2].split(","))
            result = time_workload(workload, policy=task[3], seconds=float(task[4]))
        else:
            result = peak_of(workload, who=task[2])
    Path(file).write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])
