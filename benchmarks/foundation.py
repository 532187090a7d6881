"""Speed and memory of the transforms, against targets that were set before they were written.

    python -m benchmarks.foundation [--quick] [--filter TEXT] [--json FILE] [--check]

Each workload runs in a process of its own under an allocator that keeps its memory (this judges
the kernels, and is what the targets are held to) and again under the default one (this is what
users get). The targets are stated for 2 cores with AVX-512.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks import allocator, machine, workloads
from benchmarks.rows import Row, duration, table, write_json
from benchmarks.workloads import Workload

WORKER = "benchmarks.worker"
SECONDS = {"keeping": 6.0, "default": 3.0}
QUICK_SECONDS = {"keeping": 1.0, "default": 0.5}


@dataclass(frozen=True)
class Target:
    """A bar for one number of one workload's row.

    ``measure`` is a competitor (the ratio must be at least ``bar``), ``copy`` (the fraction of the
    speed of copying the same bytes, at least) or ``memory`` (all bytes alive at the peak of a
    training step over those of inputs, outputs and gradients, at most).
    """

    workload: str
    measure: str
    bar: float

    @property
    def text(self) -> str:
        if self.measure == "copy":
            return f">= {self.bar:.0%} of a copy"
        if self.measure == "memory":
            return f"<= {self.bar:g}x its tensors"
        return f">= {self.bar:g}x {self.measure}"

    def value(self, row: Row) -> float | None:
        """The measured number, or None where it could not be measured."""
        if self.measure == "copy":
            return row.floor_fraction
        if self.measure == "memory":
            return None if row.peak_bytes is None else memory_ratio(row)
        return row.ratio.get(self.measure)

    def met(self, value: float) -> bool:
        return value <= self.bar if self.measure == "memory" else value >= self.bar


# "Within 20 %" of the forward's bars, and of the forward itself.
_INVERSE = 0.8

TARGETS = (
    Target("modified_rq.forward", "eager", 40),
    Target("modified_rq.forward", "compiled", 3),
    Target("modified_rq.forward", "copy", 0.65),
    Target("modified_rq.inverse", "eager", 40 * _INVERSE),
    Target("modified_rq.inverse", "compiled", 3 * _INVERSE),
    Target("modified_rq.inverse", "copy", 0.65 * _INVERSE),
    Target("modified_rq.inverse", "forward", _INVERSE),
    Target("modified_rq.train", "eager", 28),
    Target("modified_rq.train", "compiled", 7),
    Target("modified_rq.train", "memory", 1.2),
    Target("rq.forward", "nflows", 60),
    Target("rq.train", "nflows", 40),
    Target("rq.train", "memory", 1.2),
    Target("rq.softclip.forward", "zuko", 18),
    Target("rq.softclip.train", "zuko", 12),
    Target("affine.forward", "copy", 0.65),
    Target("small.forward", "nflows", 15),
    Target("small.train", "nflows", 10),
)


def memory_ratio(row: Row) -> float:
    """Bytes alive at the peak of a training step over its inputs, outputs and gradients.

    Gradients are those of the inputs. The cotangents that the step starts from are alive too and
    are counted above the line but not below it, which is the strict reading.
    """
    if row.peak_bytes is None:
        raise ValueError(f"Row {row.name} has no peak_bytes.")
    workload = workloads.find(row.name)
    workload = replace(workload, shape=row.shape)
    inputs, outputs = workload.traffic.inputs, workload.traffic.outputs
    return (inputs + outputs + row.peak_bytes) / (2 * inputs + outputs)


@dataclass
class Measured:
    """Rows of every workload under each allocator; beside them, the peak bytes of eager training
    steps, and what was left out, with the reason."""

    rows: list[Row] = field(default_factory=list)
    eager_peaks: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def measure(chosen: Sequence[Workload], quick: bool, say: Callable[[str], None]) -> Measured:
    """Measure the chosen workloads, each in processes of its own."""
    seconds = QUICK_SECONDS if quick else SECONDS
    shape = "quick" if quick else "full"
    measured = Measured()
    policies = [policy for policy in seconds if _works(policy, measured)]
    for workload in chosen:
        say(workload.name)
        peak = _peak(workload, "robustflow", shape, measured)
        if workload.direction == "forward+backward" and "eager" in workload.competitors:
            eager_peak = _peak(workload, "eager", shape, measured)
            if eager_peak is not None:
                measured.eager_peaks[workload.name] = eager_peak
        for policy in policies:
            arguments = ["time", workload.name, policy, str(seconds[policy]), shape]
            result: dict[str, Any] = allocator.run(policy, WORKER, arguments)
            measured.left_out.update(result["left_out"])
            measured.rows.append(replace(Row.from_json(result["row"]), peak_bytes=peak))
    return measured


def _works(policy: str, measured: Measured) -> bool:
    """Whether ``policy`` can be set here and does what it says."""
    if policy == "default":
        return True
    try:
        faults: float = allocator.run(policy, WORKER, ["faults"])
    except ValueError as error:
        measured.left_out[f"{policy} allocator"] = str(error)
        return False
    if faults > 0.2:
        measured.left_out[f"{policy} allocator"] = (
            f"Filling a new tensor still met {faults:.0%} fresh pages: the memory was not kept."
        )
        return False
    return True


def _peak(workload: Workload, who: str, shape: str, measured: Measured) -> int | None:
    if workload.is_small:
        return None
    try:
        peak: int = allocator.run("returning", WORKER, ["memory", workload.name, who, shape])
    except (ValueError, RuntimeError) as error:
        measured.left_out[f"peak memory of {workload.name}"] = str(error)
        return None
    return peak


def judge(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Every target of the measured workloads, with the number beside it under each allocator.

    ``met`` is None where the number is missing. It follows the keeping allocator's row.
    """
    by_case = {(row.name, row.allocator): row for row in rows}
    verdicts = []
    for target in TARGETS:
        found = {policy: by_case.get((target.workload, policy)) for policy in SECONDS}
        values = {policy: target.value(row) if row else None for policy, row in found.items()}
        if not any(found.values()):
            continue
        kept = values["keeping"]
        verdicts.append(
            {
                "workload": target.workload,
                "target": target.text,
                **values,
                "met": None if kept is None else target.met(kept),
            }
        )
    return verdicts


def report(measured: Measured, verdicts: Sequence[dict[str, Any]]) -> str:
    """Two tables: what was measured, and the targets with the measured numbers beside them."""
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
        for row in measured.rows
    ]
    header = ["workload", "allocator", "median", "spread", "G el/s", "GB/s", "of copy", "peak MiB"]
    judged = [
        [
            f"{verdict['workload']}: {verdict['target']}",
            *("-" if verdict[name] is None else f"{verdict[name]:.3g}" for name in SECONDS),
            {None: "not measured", True: "met", False: "MISSED"}[verdict["met"]],
        ]
        for verdict in verdicts
    ]
    parts = [
        table([*header, "ratios"], lines),
        table(["target", *SECONDS, "verdict"], judged),
    ]
    parts += [
        f"Eager PyTorch's {name} holds {peak / 2**20:.0f} MiB beyond its inputs at its peak."
        for name, peak in measured.eager_peaks.items()
    ]
    parts += [f"Left out: {name}. {reason}" for name, reason in measured.left_out.items()]
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.foundation", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller tensors, about a minute")
    parser.add_argument("--filter", default="", help="only workloads whose name contains this")
    parser.add_argument("--json", type=Path, help="write the rows, verdicts and machine here")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    options = parser.parse_args(arguments)
    chosen = [work for work in workloads.FOUNDATION if options.filter in work.name]
    if not chosen:
        names = ", ".join(work.name for work in workloads.FOUNDATION)
        parser.error(f"no workload's name contains {options.filter!r}; there are {names}")
    description = machine.describe()
    print(_headline(description, options.quick), flush=True)
    measured = measure(chosen, options.quick, lambda name: print(f"... {name}", flush=True))
    verdicts = judge(measured.rows)
    print("\n" + report(measured, verdicts))
    if options.json:
        more = {
            "targets": verdicts,
            "eager_peak_bytes": measured.eager_peaks,
            "left_out": measured.left_out,
            "quick": options.quick,
        }
        write_json(options.json, description, measured.rows, **more)
    return int(options.check and any(verdict["met"] is not True for verdict in verdicts))


def _headline(description: dict[str, Any], quick: bool) -> str:
    build = description["robustflow"]
    lines = [
        f"{description['cpu']}, {description['cores']} cores, {description['threads']} threads, "
        f"torch {description['torch']}, kernels: {build.get('isa', 'unknown')}"
    ]
    if description["backends"]["cpu"] is not True:
        lines.append(f"The fused kernels are not in use. {description['backends']['cpu']}")
    if not machine.has_avx512() or description["threads"] != 2:
        lines.append("The targets are stated for 2 threads on 2 cores with AVX-512: not these.")
    if quick:
        lines.append("The targets are stated for the full shapes: these are smaller.")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
