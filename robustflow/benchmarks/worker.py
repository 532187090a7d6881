"""Measure one case in this process, which :mod:`robustflow.benchmarks.allocator` starts.

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

from robustflow.benchmarks import allocator, calls, cases, memory, timing
from robustflow.benchmarks.cases import Case
from robustflow.benchmarks.rows import Row

# Heap to touch before the clock starts, as a multiple of a case's inputs: eager PyTorch's training
# step takes about that much.
PRIMED_INPUTS = 12


def time_case(case: Case, policy: str, seconds: float) -> dict[str, Any]:
    """A JSON record of the row, without peak memory, and of the competitors that were left out."""
    if policy == "keeping":
        allocator.prime(PRIMED_INPUTS * case.traffic.inputs)
    prepared = calls.prepare(case)
    calls.check_agreement(prepared)
    times = timing.alternate(
        {
            "robustflow": prepared.ours,
            "copy": timing.copy_of(case.bytes),
            **prepared.competitors,
        },
        seconds=seconds,
        min_rounds=5 if policy == "keeping" else 3,
        warmup=2,  # each has been called once already, for the comparison
    )
    row = Row(
        name=case.name,
        operation=case.family.operation,
        direction=case.direction,
        shape=case.shape,
        dtype=case.dtypes,
        allocator=policy,
        bytes=case.bytes,
        **timing.row_figures(
            times.pop("robustflow"), times.pop("copy"), times, elements=case.elements
        ),
    )
    return {"row": asdict(row), "left_out": prepared.left_out}


def peak_of(case: Case, who: str) -> int:
    """Peak bytes of one call of ``who`` (``robustflow`` or a competitor), without its inputs."""
    only = case.against([who])

    def function(case: Case) -> timing.Function:
        prepared = calls.prepare(case)
        return prepared.competitors[who] if case.competitors else prepared.ours

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
        case = cases.find(task[1])
        if task[-1] == "quick":
            case = case.quick()
        if task[0] == "time":
            case = case.against(task[2].split(","))
            result = time_case(case, policy=task[3], seconds=float(task[4]))
        else:
            result = peak_of(case, who=task[2])
    Path(file).write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])
