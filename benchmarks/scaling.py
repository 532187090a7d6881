"""How speed scales: with the number of elements, of bins and of threads.

    python -m benchmarks.scaling [--quick] [--filter TEXT] [--json FILE] [--check]

N goes from 1e2 to 1e8 for the modified RQ spline, the affine transform and the RQ spline with K = 8
bins; K goes from 2 to 64 at a million elements. Each point is measured forward, inverse and as a
training step, on one thread and on two, under two allocators (robustflow/benchmarks/allocator.py).

The functions of a point are timed in alternation. One of them copies as many bytes on as many
threads: that copy is the floor. For calls whose tensors do not fit in the last cache, the fraction
of the floor should be the same for every N. The report shows how much it varies. ``--check`` exits
with 1 if it varies too much under the allocator that keeps its memory. The default allocator is not
checked: it maps fresh pages for tensors above 32 MB, so its curves have a step there.

A point whose tensors need more than 8 GB is left out, and the report says so.
benchmarks/scaling_points.py defines a point.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.scaling_points import (
    FAMILIES,
    THREADS,
    Point,
    ScalingRow,
    measure_point,
    row_name,
    short,
    usable_threads,
    with_bins,
)
from robustflow._arguments import output_file
from robustflow.benchmarks import allocator, machine, suite
from robustflow.benchmarks.cases import DIRECTIONS
from robustflow.benchmarks.rows import Measured, duration, table, write_json
from robustflow.benchmarks.verdicts import Verdict, verdict_table

MODULE = "benchmarks.scaling"

COUNTS = (*(m * 10**e for e in range(2, 8) for m in (1, 3)), 10**8)
BINS = (2, 4, 8, 10, 16, 32, 64)
ELEMENTS_OF_BINS = 10**6

MAX_TENSOR_BYTES = 8e9  # for the tensors of a point
# Memory of the process over that of its tensors, by allocator. "keeping" never returns memory to
# the system, so its heap becomes fragmented.
PROCESS_MEMORY_FACTOR = {"keeping": 2.5, "default": 1.3}

MAX_VARIATION = 1.5  # largest over smallest fraction of the floor, for calls beyond the last cache
# A call is beyond the last cache if it moves at least this many times the size of that cache.
BEYOND_CACHE_FACTOR = 2


@dataclass(frozen=True)
class Settings:
    """What a run measures.

    Attributes:
        counts: the N.
        bins: the K, each at ``elements_of_bins`` elements.
        seconds: of timing for each point.
        min_rounds: the least number of rounds, however long they take.
    """

    counts: tuple[int, ...] = COUNTS
    bins: tuple[int, ...] = BINS
    elements_of_bins: int = ELEMENTS_OF_BINS
    seconds: float = 0.5
    min_rounds: int = 3


QUICK = Settings((10**2, 10**4, 3 * 10**5), (2, 8, 32), 10**4, seconds=0.1, min_rounds=2)


def points(settings: Settings) -> list[Point]:
    by_count = [Point("n", family, count) for family in FAMILIES for count in settings.counts]
    by_bins = [Point("k", with_bins(bins), settings.elements_of_bins) for bins in settings.bins]
    return by_count + by_bins


def free_bytes() -> int:
    """The machine's free memory, or what is left of the control group's limit if that is less."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    group = Path("/sys/fs/cgroup")
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            free.append(int((group / limit).read_text()) - int((group / used).read_text()))
        except (OSError, ValueError):  # no such group, or "max": no limit
            continue
    return max(0, min(free))


def last_cache_bytes() -> int | None:
    """The size of the first core's largest cache, or None where Linux does not tell it."""
    units = {"K": 1 << 10, "M": 1 << 20}
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text().strip()
        sizes.append(int(text[:-1]) * units[text[-1]])
    return max(sizes, default=None)


def why_left_out(point: Point, policy: str, free: int) -> str | None:
    """Why a point cannot be measured with ``free`` bytes of memory; None if it can."""
    tensors = point.bytes_needed
    if tensors > MAX_TENSOR_BYTES:
        limit = MAX_TENSOR_BYTES / 1e9
        return f"Its tensors take {tensors / 1e9:.1f} GB; {limit:.0f} GB is the limit."
    process = PROCESS_MEMORY_FACTOR[policy] * tensors
    if process > free:
        return f"It may take {process / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free."
    return None


def groups(every: Sequence[Point], text: str) -> list[list[Point]]:
    """The points with a row whose name contains ``text``, one list for each process.

    Small points of the same transform share a process.
    """
    by_process: dict[tuple[str, ...], list[Point]] = {}
    for point in every:
        named = (
            row_name(point.case(direction), threads)
            for direction in DIRECTIONS
            for threads in usable_threads()
        )
        if any(text in name for name in named):
            key = (point.sweep, point.family.operation, "" if point.is_small else point.name)
            by_process.setdefault(key, []).append(point)
    return list(by_process.values())


def measure(
    settings: Settings, text: str, say: Callable[[str], None]
) -> tuple[list[ScalingRow], Measured]:
    """Measure every row whose name contains ``text``, in separate processes under each allocator.

    Returns:
        The rows; and the same rows with what was left out and what failed.
    """
    measured = Measured()
    rows: list[ScalingRow] = []
    for threads in set(THREADS) - set(usable_threads()):
        measured.left_out[f"{threads} threads"] = "This process may use fewer cores."
    policies = [policy for policy in PROCESS_MEMORY_FACTOR if suite.works(policy, measured)]
    for group in groups(points(settings), text):
        say(group[0].name if len(group) == 1 else f"{group[0].name} to {group[-1].name}")
        for policy in policies:
            chosen = []
            for point in group:
                reason = why_left_out(point, policy, free_bytes())
                if reason is None:
                    chosen.append(point)
                else:
                    measured.left_out[f"{point.name}, {policy}"] = reason
            if not chosen:
                continue
            work = {"points": [point.to_json() for point in chosen], "text": text}
            arguments = ["--worker", json.dumps(work | {"policy": policy} | asdict(settings))]
            try:
                result = allocator.run(policy, MODULE, arguments)
            except RuntimeError as error:
                for point in chosen:
                    measured.failed[f"{point.name}, {policy}"] = str(error)
                continue
            rows += [
                ScalingRow(**{**each, "shape": tuple(each["shape"])}) for each in result["rows"]
            ]
            measured.left_out |= result["left_out"]
    measured.rows += rows
    return rows, measured


def worker(work: str, file: str) -> None:
    """Measure points in this process, under the allocator that it was started with.

    ``work`` is JSON; the rows are written to ``file``.
    """
    options = json.loads(work)
    chosen = [Point.from_json(record) for record in options.pop("points")]
    policy, text = options.pop("policy"), options.pop("text")
    settings = Settings(**options)
    if policy == "keeping":
        allocator.prime(max(point.bytes_to_prime for point in chosen))
    rows: list[ScalingRow] = []
    left_out: dict[str, str] = {}
    for point in reversed(chosen):  # the largest first, so that a heap that is kept grows once
        point_rows, missing = measure_point(
            point, text, policy, seconds=settings.seconds, min_rounds=settings.min_rounds
        )
        rows = point_rows + rows
        left_out |= missing
    result = {"rows": [asdict(row) for row in rows], "left_out": left_out}
    Path(file).write_text(json.dumps(result))


def steadiness(rows: Sequence[ScalingRow], cache: int) -> list[dict[str, Any]]:
    """How much the fraction of the floor varies with N, for calls beyond the last cache.

    There is one record for each operation, direction, number of threads and allocator. Its
    ``ratio`` is the largest fraction over the smallest, and ``met`` says whether that is at most
    :data:`MAX_VARIATION`. Both are None if fewer than two N are beyond the cache, which has
    ``cache`` bytes.
    """
    groups: dict[tuple[Any, ...], list[ScalingRow]] = {}
    for row in rows:
        if row.sweep == "n":
            key = (row.operation, row.direction, row.threads, row.allocator)
            beyond = groups.setdefault(key, [])
            if row.bytes >= BEYOND_CACHE_FACTOR * cache:
                beyond.append(row)
    records = []
    for (operation, direction, threads, policy), beyond in groups.items():
        fractions = [row.floor_fraction for row in beyond]
        ratio = max(fractions) / min(fractions) if len(fractions) > 1 else None
        records.append(
            {
                "operation": operation,
                "direction": direction,
                "threads": threads,
                "allocator": policy,
                "elements": sorted(math.prod(row.shape) for row in beyond),
                "smallest_fraction": min(fractions, default=None),
                "largest_fraction": max(fractions, default=None),
                "ratio": ratio,
                "met": None if ratio is None else ratio <= MAX_VARIATION,
            }
        )
    return records


def report(rows: Sequence[ScalingRow], steady: Sequence[dict[str, Any]], measured: Measured) -> str:
    lines = [
        [
            row.name,
            row.allocator,
            f"{row.seconds_per_element * 1e9:.3g}",
            f"{row.spread:.0%}",
            f"{row.bytes_per_element:.0f}",
            f"{row.copy_bytes_per_s / 1e9:.3g}",
            f"{row.floor_fraction:.0%}",
            duration(row.median_s),
            ", ".join(f"{ratio:.3g}x {who}" for who, ratio in row.ratio.items()),
        ]
        for row in rows
    ]
    header = ["point", "allocator", "ns/el", "spread", "B/el", "copy GB/s", "of copy", "a call"]
    judged = [
        Verdict(
            f"{each['operation']} {each['direction']}",
            {
                "threads": f"{each['threads']}",
                "allocator": each["allocator"],
                "N": ", ".join(short(count) for count in each["elements"]),
                "of copy": f"{each['smallest_fraction']:.0%} to {each['largest_fraction']:.0%}",
                "ratio": "-" if each["ratio"] is None else f"{each['ratio']:.2f}x",
            },
            each["met"],
        )
        for each in steady
        if each["elements"]
    ]
    parts = [table([*header, "ratios"], lines)]
    if judged:
        parts.append(verdict_table(judged, f"beyond the last cache, within {MAX_VARIATION:g}x"))
    parts += [f"Left out: {name}. {reason}" for name, reason in measured.left_out.items()]
    parts += [f"FAILED: {name}. {error}" for name, error in measured.failed.items()]
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few points, small, about a minute")
    parser.add_argument("--filter", default="", help="only rows whose name contains this")
    parser.add_argument(
        "--json", type=output_file, help="write the rows, verdicts and machine here"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="exit with 1 if the fraction of the floor varies too much under the allocator that "
        "keeps its memory",
    )
    options = parser.parse_args(arguments)
    settings = QUICK if options.quick else Settings()
    if not groups(points(settings), options.filter):
        parser.error(
            f"no row's name contains {options.filter!r}; names are like "
            f"{row_name(points(settings)[0].case('forward'), 1)}"
        )
    description = machine.describe()
    print(machine.headline(description), flush=True)
    rows, measured = measure(
        settings, options.filter, lambda name: print(f"... {name}", flush=True)
    )
    cache = last_cache_bytes()
    if cache is None:
        measured.left_out["the comparison beyond the last cache"] = (
            "The size of the cache is read from Linux's /sys, which does not tell it here."
        )
    steady = [] if cache is None else steadiness(rows, cache)
    print("\n" + report(rows, steady, measured))
    saved = True
    if options.json:
        saved = write_json(
            options.json,
            description,
            rows,
            beyond_cache=steady,
            last_cache_bytes=cache,
            left_out=measured.left_out,
            failed=measured.failed,
            quick=options.quick,
        )
    judged = [each["met"] for each in steady if each["allocator"] == "keeping"]
    failed = bool(measured.failed) or not saved
    return int(failed or (options.check and not (judged and all(judged))))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(*sys.argv[2:])
    else:
        sys.exit(main())
