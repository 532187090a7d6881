"""Measure the GPU kernels, by default in at most eight minutes.

First the GPU's copy bandwidth. Then the cases of plan.py, the most important first, with the CUDA
and the Triton backend. Each result is checked against the float64 reference; some cases are timed
in alternation with PyTorch and the installed peers, too. A short table of targets comes last.
"""

from __future__ import annotations

import argparse
import secrets
import sys
from collections.abc import Sequence
from typing import Any

import torch

import robustflow
from benchmarks.gpu import card, report, targets
from benchmarks.gpu.calls import AGAINST
from benchmarks.gpu.meter import CudaMeter, HostMeter, Meter
from benchmarks.gpu.plan import FULL, QUICK, REHEARSAL, Task, plan
from benchmarks.gpu.suite import Budget, Suite
from robustflow._arguments import output_file
from robustflow._backend import GPU_BACKENDS
from robustflow.benchmarks.rows import write_json

# Less than eight minutes: starting takes time, and the last task may take longer than planned.
_BUDGET_S = 450.0
_QUICK_BUDGET_S = 75.0
_SECONDS_PER_CASE = {FULL: 0.4, QUICK: 0.2, REHEARSAL: 0.005}
_BACKENDS_OF_DEVICE = {"cuda": GPU_BACKENDS, "cpu": ("cpu", "reference")}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.seconds is None:
        options.seconds = _QUICK_BUDGET_S if options.quick else _BUDGET_S
    budget = Budget(options.seconds)
    device = torch.device(options.device)
    try:
        backends = _backends(device)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 2
    against = [name for name in options.against.split(",") if name]
    if unknown := sorted(set(against) - set(AGAINST)):
        parser.error(f"--against knows {', '.join(AGAINST)}, got {', '.join(unknown)}")
    on_gpu = device.type == "cuda"
    scale = REHEARSAL if not on_gpu else QUICK if options.quick else FULL
    tasks = plan(scale, options.filter, against)
    if not tasks:
        parser.error(
            f"no case's name contains {options.filter!r}; names are such as "
            f"{plan(FULL)[0].case.name}"
        )
    description = card.describe(device)
    gpu_states = {"before": card.state(device)}
    print(report.headline(description, gpu_states["before"]), flush=True)
    meter = _meter(device)
    copies = card.copy_speeds(
        meter, card.COPIES if on_gpu else card.REHEARSED_COPIES, _SECONDS_PER_CASE[scale]
    )
    print(report.copies(copies), flush=True)
    suite = Suite(
        description["card"]["name"],
        backends,
        meter,
        card.best_copy(copies),
        _SECONDS_PER_CASE[scale],
        secrets.randbelow(2**31) if options.seed is None else options.seed,
    )
    results = suite.results

    def judgements() -> list[targets.Judgement]:
        return targets.judge(results.rows, on_gpu, options.filter)

    def write(complete: bool) -> bool:
        if options.json is None:
            return True
        more: dict[str, Any] = {
            "gpu_measurement": on_gpu,
            "scale": scale,
            "complete": complete,
            "seconds": budget.spent,
            "budget_seconds": budget.seconds,
            "seed": suite.seed,
            "states": gpu_states,
            "copies": copies,
            "copy_bytes_per_s": suite.copy_bytes_per_s,
            "targets": [judgement.to_json() for judgement in judgements()],
            "wrong": results.wrong,
            "failed": results.failed,
            "left_out": results.left_out,
            "not_measured": results.not_measured,
        }
        return write_json(options.json, description, results.rows, **more)

    def done(task: Task) -> None:
        # After every task, so that a run that is cut short leaves what it measured.
        print(f"{budget.spent:5.0f} s  {task.name}", flush=True)
        write(complete=False)

    suite.run(tasks, budget, done)
    gpu_states["after"] = card.state(device)
    saved = write(complete=True)
    print("\n" + report.measured(results.rows))
    print("\n" + report.notes(results))
    print("\n" + report.targets(judgements()))
    print(f"\n{len(results.rows)} rows in {budget.spent:.0f} s on: {suite.device_name}.")
    return int(bool(results.wrong or results.failed) or not saved)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="8 M elements at most, and little more than a minute")
    add("--filter", default="", metavar="TEXT", help="only cases whose name contains this")
    add(
        "--against",
        default=",".join(AGAINST),
        metavar="NAMES",
        help="competitors, separated by commas; %(default)s by default",
    )
    add("--seconds", type=float, help=f"the budget of time; {_BUDGET_S:g} without --quick")
    add("--seed", type=int, help="of the inputs; a fresh one by default")
    add("--json", type=output_file, metavar="FILE", help="write the rows, targets and card here")
    # For tests of this suite: tiny tensors on the CPU, whose figures say nothing about a GPU.
    add("--device", default="cuda", choices=tuple(_BACKENDS_OF_DEVICE), help=argparse.SUPPRESS)
    return parser


def _backends(device: torch.device) -> list[str]:
    """The backends that can run on the device; RuntimeError, with the reasons, if there is none."""
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(
            "This measures a GPU, and torch sees none: run it where nvidia-smi lists one and torch "
            f"was built with CUDA (this is torch {torch.__version__}). For CPUs there is "
            "`python -m benchmarks.foundation`."
        )
    reasons = robustflow.backends()
    usable = [name for name in _BACKENDS_OF_DEVICE[device.type] if reasons[name] is True]
    if not usable:
        why = " ".join(f"{name}: {reasons[name]}" for name in _BACKENDS_OF_DEVICE[device.type])
        raise RuntimeError(f"No backend of robustflow can be measured here. {why}")
    for name in _BACKENDS_OF_DEVICE[device.type]:
        if name not in usable:
            print(f"Not measured: backend {name}. {reasons[name]}", flush=True)
    return usable


def _meter(device: torch.device) -> Meter:
    return CudaMeter(device, card.cache_bytes(device)) if device.type == "cuda" else HostMeter()


if __name__ == "__main__":
    sys.exit(main())
