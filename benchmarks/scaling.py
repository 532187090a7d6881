"""How speed scales: with the number of elements, of bins and of threads.

    python -m benchmarks.scaling [--quick] [--filter TEXT] [--json FILE] [--check]

N goes from 1e2 to 1e8 for modified RQ, affine and K = 8 RQ, and K from 2 to 64 at a million rows;
forward, inverse and training step, on one thread and on two, under both allocators. All of a point
is timed in alternation, a copy of the same bytes among it, on the same number of threads: that copy
is the floor. Beyond the last cache a kernel's fraction of its floor should not depend on N; the
report says by how much it does, and ``--check`` holds the rows of the allocator that keeps its
memory to it (glibc's own maps tensors above 32 MB afresh and smaller ones not, which is a step in
every curve of the other). A point's tensors take at most 8 GB, or it is left out, with the reason.

benchmarks.scaling_points says what a point is.
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
ROWS_OF_BINS = 10**6

MEMORY = 8e9  # bytes that a point's tensors may take
# A process holds up to so many times that: glibc's heap, where it is kept, gets gaps.
HELD = {"keeping": 2.5, "default": 1.3}

STEADY = 1.5  # largest over smallest fraction of the floor, beyond the last cache
BEYOND = 2  # times the last cache that a call must move for it to be beyond it


@dataclass(frozen=True)
class Settings:
    """How much is measured: ``seconds`` for a point, and rounds that it takes in any case."""

    counts: tuple[int, ...] = COUNTS
    bins: tuple[int, ...] = BINS
    rows_of_bins: int = ROWS_OF_BINS
    seconds: float = 0.5
    min_rounds: int = 3


QUICK = Settings((10**2, 10**4, 3 * 10**5), (2, 8, 32), 10**4, seconds=0.1, min_rounds=2)


def points(settings: Settings) -> list[Point]:
    by_count = [Point("n", family, count) for family in FAMILIES for count in settings.counts]
    by_bins = [Point("k", with_bins(bins), settings.rows_of_bins) for bins in settings.bins]
    return by_count + by_bins


def free_bytes() -> int:
    """Memory that can be had now, here: the machine's, or what a control group leaves of it."""
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
    """Of the largest cache that the first core has, or None where Linux does not say."""
    units = {"K": 1 << 10, "M": 1 << 20}
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text().strip()
        sizes.append(int(text[:-1]) * units[text[-1]])
    return max(sizes, default=None)


def reason_against(point: Point, policy: str, free: int) -> str | None:
    """Why a point cannot be measured under an allocator with so many bytes free; or None."""
    needed = point.bytes_needed
    if needed > MEMORY:
        return f"Its tensors take {needed / 1e9:.1f} GB; {MEMORY / 1e9:.0f} GB is the limit."
    if HELD[policy] * needed > free:
        return (
            f"It may take {HELD[policy] * needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB "
            "are free."
        )
    return None


def groups(every: Sequence[Point], text: str) -> list[list[Point]]:
    """The points with a row whose name contains ``text``, by process: small ones of a transform
    share one."""
    by_process: dict[tuple[str, ...], list[Point]] = {}
    for point in every:
        named = (
            row_name(point.case(verb), threads)
            for verb in DIRECTIONS
            for threads in usable_threads()
        )
        if any(text in name for name in named):
            key = (point.sweep, point.family.operation, "" if point.is_small else point.name)
            by_process.setdefault(key, []).append(point)
    return list(by_process.values())


def measure(
    settings: Settings, text: str, say: Callable[[str], None]
) -> tuple[list[ScalingRow], Measured]:
    """Every row whose name contains ``text``, in processes of their own under each allocator; and
    the same with what was left out and what failed."""
    measured = Measured()
    rows: list[ScalingRow] = []
    for threads in set(THREADS) - set(usable_threads()):
        measured.left_out[f"{threads} threads"] = "This process may use fewer cores."
    policies = [policy for policy in HELD if suite.works(policy, measured)]
    for group in groups(points(settings), text):
        say(group[0].name if len(group) == 1 else f"{group[0].name} to {group[-1].name}")
        for policy in policies:
            chosen = []
            for point in group:
                reason = reason_against(point, policy, free_bytes())
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
    """Some points in this process, under the allocator that it was started with."""
    options = json.loads(work)
    chosen = [Point.from_json(record) for record in options.pop("points")]
    policy, text = options.pop("policy"), options.pop("text")
    settings = Settings(**options)
    if policy == "keeping":
        allocator.prime(max(point.bytes_to_prime for point in chosen))
    rows: list[ScalingRow] = []
    left_out: dict[str, str] = {}
    for point in reversed(chosen):  # the largest first: the heap that is kept grows once
        of_point, missing = measure_point(
            point, text, policy, seconds=settings.seconds, min_rounds=settings.min_rounds
        )
        rows = of_point + rows
        left_out |= missing
    result = {"rows": [asdict(row) for row in rows], "left_out": left_out}
    Path(file).write_text(json.dumps(result))


def steadiness(rows: Sequence[ScalingRow], cache: int) -> list[dict[str, Any]]:
    """For each operation, direction, number of threads and allocator: how far the fraction of the
    floor varies over the N whose calls move at least :data:`BEYOND` times the last cache.

    ``ratio`` is the largest fraction over the smallest, ``met`` whether it is within
    :data:`STEADY`; both are None where fewer than two N lie there.
    """
    groups: dict[tuple[Any, ...], list[ScalingRow]] = {}
    for row in rows:
        if row.sweep == "n":
            key = (row.operation, row.direction, row.threads, row.allocator)
            beyond = groups.setdefault(key, [])
            if row.bytes >= BEYOND * cache:
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
                "met": None if ratio is None else ratio <= STEADY,
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
        parts.append(verdict_table(judged, f"beyond the last cache, within {STEADY:g}x"))
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
        help="exit with 1 where, with memory kept, the fraction of the floor is not steady",
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
            "The size of the cache is read from Linux's /sys, which does not say it here."
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
