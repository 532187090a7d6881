"""What a patch gains: stock neural spline flows with robustflow.compat.patch off and on.

    python -m benchmarks.dropin [--filter TEXT] [--seconds S] [--threads N] [--json FILE] [--check]

Three modes are timed: the patch off, the patch on, and "free", the same flow with a transform that
costs nothing (robustflow/benchmarks/dropin_cases.py). What is left of the time is mostly the
conditioner and the optimizer, so the speed-up of "free" bounds what a faster transform can gain;
"share" is the patch's speed-up over that bound. A patch also fuses layers into one call, so its
share can exceed 100 %: "free" runs the library's layers. The last table compares with targets.

A training step is measured with PyTorch's default Adam and with ``fused=True``. No patch
changes the optimizer.

Times are medians of alternating runs. Each library, size and allocator, the default one and one
that keeps its memory, has a process of its own. Peak memory is that of a training step without the
flow itself, in a process for each mode, under an allocator that returns every freed block.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from robustflow._arguments import output_file
from robustflow.benchmarks import allocator, dropin_cases, machine, memory, peers
from robustflow.benchmarks.dropin_cases import (
    LIBRARIES,
    MODES,
    SIZES,
    TINY,
    TRAINING_STEP,
    WHATS,
    Size,
)
from robustflow.benchmarks.rows import duration, table, write_json
from robustflow.benchmarks.verdicts import Verdict, verdict_table

MODULE = "benchmarks.dropin"
MIN_SHARE = 0.9  # the share of the bound that every row should reach

# Speed-ups over the library to reach on one thread, by library and size.
TARGETS = {
    ("nflows", "inference"): {"training step": 5.0, "sampling": 5.0},
    ("normflows", "inference"): {"training step": 6.0, "sampling": 5.0},
    ("zuko", "inference"): {"training step": 6.0, "sampling": 5.0},
    ("nflows", "large batch"): {"training step": 4.0},
    ("normflows", "large batch"): {"training step": 4.5},
    ("zuko", "large batch"): {"training step": 5.0},
}


@dataclass(frozen=True)
class DropInRow:
    """One flow, one kind of work, one allocator.

    Attributes:
        library, size, what, allocator: the case.
        seconds: median seconds by mode: ``off``, ``on``, ``free``.
        spread: interquartile range over the median, by mode.
        peak_bytes: peak memory of a training step by mode, without the flow and its input; empty
            for other kinds of work.
        difference: largest absolute difference between on and off in ``log_prob`` and ``samples``;
            and in ``gradients``, relative to the largest gradient.
    """

    library: str
    size: str
    what: str
    allocator: str
    seconds: dict[str, float]
    spread: dict[str, float]
    difference: dict[str, float]
    peak_bytes: dict[str, int] = field(default_factory=dict)

    @property
    def speedup(self) -> float:
        return self.seconds["off"] / self.seconds["on"]

    @property
    def bound(self) -> float:
        return self.seconds["off"] / self.seconds["free"]

    @property
    def share(self) -> float:
        return self.speedup / self.bound

    @property
    def target(self) -> float | None:
        return TARGETS.get((self.library, self.size), {}).get(self.what)


def time_flow(library: str, size: Size, policy: str, seconds: float) -> list[DropInRow]:
    """The rows of one flow in this process, without peak memory."""
    different = dropin_cases.differences(library, size)
    rows = []
    for what in WHATS:
        flow = dropin_cases.make_flow(library, size)
        runs = {mode: dropin_cases.make_run(library, size, what, mode, flow) for mode in MODES}
        times = dropin_cases.time_runs(runs, seconds, warmup=2)
        rows.append(
            DropInRow(
                library,
                size.name,
                what,
                policy,
                {mode: times[mode].median for mode in MODES},
                {mode: times[mode].spread for mode in MODES},
                different,
            )
        )
    return rows


def peak_of(library: str, size: Size, mode: str) -> int:
    """Peak bytes of one training step in this process."""
    dropin_cases.make_run(library, TINY, TRAINING_STEP, mode)()
    run = dropin_cases.make_run(library, size, TRAINING_STEP, mode)
    with dropin_cases.mode_of(library, mode):
        return memory.peak_bytes(run.work)


def measure(
    cases: Sequence[tuple[str, Size]], seconds: float, say: Callable[[str], None]
) -> tuple[list[DropInRow], dict[str, str]]:
    """Measure every case in processes of its own.

    Returns:
        The rows; and what was left out, with the reason.
    """
    rows: list[DropInRow] = []
    left_out: dict[str, str] = {}
    for library, size in cases:
        try:
            peers.check(library)
        except peers.PeerMissing as error:
            left_out[library] = str(error)
            continue
        say(f"{library}, {size.name}")
        peaks: dict[str, int] = {}
        for mode in MODES:
            arguments = ["peak", library, size.name, mode]
            try:
                peaks[mode] = allocator.run("returning", MODULE, arguments)
            except (ValueError, RuntimeError) as error:
                left_out[f"peak memory of {library}, {size.name}"] = str(error)
        for policy in ("default", "keeping"):
            arguments = ["time", library, size.name, policy, str(seconds)]
            try:
                records = allocator.run(policy, MODULE, arguments)
            except ValueError as error:  # the allocator cannot be set here
                left_out[f"{policy} allocator"] = str(error)
                continue
            for record in records:
                training = record["what"] == TRAINING_STEP
                rows.append(DropInRow(**{**record, "peak_bytes": peaks if training else {}}))
    return rows, left_out


def report(rows: Sequence[DropInRow], left_out: dict[str, str]) -> str:
    header = ["flow", "work", "allocator", *MODES, "faster", "bound", "share", "peak MiB off/on"]
    header += ["log_prob", "samples", "gradients"]
    lines = []
    for row in rows:
        peaks = [row.peak_bytes.get(mode) for mode in ("off", "on")]
        lines.append(
            [
                f"{row.library}, {row.size}",
                row.what,
                row.allocator,
                *(duration(row.seconds[mode]) for mode in MODES),
                f"{row.speedup:.2f}x",
                f"{row.bound:.2f}x",
                f"{row.share:.0%}",
                "/".join("-" if peak is None else f"{peak / 2**20:.0f}" for peak in peaks),
                *(f"{row.difference[name]:.1e}" for name in ("log_prob", "samples", "gradients")),
            ]
        )
    parts = [table(header, lines)]
    missed = [row for row in rows if row.share < MIN_SHARE]
    parts.append(
        f"{len(rows) - len(missed)} of {len(rows)} reach {MIN_SHARE:.0%} of the bound's speed-up."
    )
    verdicts = [
        Verdict(
            f"{row.library}, {row.size}, {row.what}: >= {row.target:g}x",
            {"allocator": row.allocator, "speed-up": f"{row.speedup:.2f}x"},
            row.speedup >= row.target,
        )
        for row in rows
        if row.target is not None
    ]
    if verdicts:
        parts.append(verdict_table(verdicts))
    parts += [f"Left out: {name}. {reason}" for name, reason in left_out.items()]
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["peak"] or arguments[:1] == ["time"]:
        _work(*arguments)
        return 0
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.add_argument("--filter", default="", help="only flows whose name contains this")
    parser.add_argument("--seconds", type=float, default=10.0, help="timing of each row")
    parser.add_argument("--threads", type=int, help="PyTorch's threads; the targets are for one")
    parser.add_argument("--tiny", action="store_true", help="a tiny flow, to see that it runs")
    parser.add_argument("--json", type=output_file, help="write the rows and the machine here")
    parser.add_argument(
        "--check",
        action="store_true",
        help=f"exit with 1 where a row does not reach {MIN_SHARE:.0%} of the bound's speed-up",
    )
    options = parser.parse_args(arguments)
    sizes = (TINY,) if options.tiny else SIZES
    every = [(library, size) for library in LIBRARIES for size in sizes]
    cases = [case for case in every if options.filter in f"{case[0]}, {case[1].name}"]
    if not cases:
        names = "; ".join(f"{library}, {size.name}" for library, size in every)
        parser.error(f"no flow's name contains {options.filter!r}; there are {names}")
    if options.threads:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)  # of the processes that measure
        torch.set_num_threads(options.threads)
    description = machine.describe()
    print(machine.headline(description))
    rows, left_out = measure(cases, options.seconds, lambda name: print(f"... {name}", flush=True))
    print("\n" + report(rows, left_out))
    saved = True
    if options.json:
        records = [
            {**asdict(row), "speedup": row.speedup, "bound": row.bound, "share": row.share}
            | {"target": row.target}
            for row in rows
        ]
        saved = write_json(options.json, description, [], dropin=records, left_out=left_out)
    return int(not saved or (options.check and any(row.share < MIN_SHARE for row in rows)))


def _work(task: str, library: str, size: str, *rest: str) -> None:
    """Run one measurement and write it to the last argument, a file; for :func:`allocator.run`."""
    *options, file = rest
    result: Any
    if task == "peak":
        result = peak_of(library, dropin_cases.find_size(size), *options)
    else:
        policy, seconds = options
        rows = time_flow(library, dropin_cases.find_size(size), policy, float(seconds))
        result = [asdict(row) for row in rows]
    Path(file).write_text(json.dumps(result))


if __name__ == "__main__":
    sys.exit(main())
