"""Speed and memory of the transforms, against targets that were set before they were written.

    python -m benchmarks.foundation [--quick] [--filter TEXT] [--json FILE] [--check]

Each case runs in a process of its own under an allocator that keeps its memory (this judges
the kernels, and is what the targets are held to) and again under the default one (this is what
users get). The targets are stated for 2 cores with AVX-512.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from robustflow._arguments import output_file
from robustflow.benchmarks import bars, cases, machine, report, suite
from robustflow.benchmarks.bars import Bar
from robustflow.benchmarks.rows import Measured, write_json
from robustflow.benchmarks.suite import Settings
from robustflow.benchmarks.verdicts import verdict_table

FULL = Settings({"keeping": 6.0, "default": 3.0})
QUICK = Settings({"keeping": 1.0, "default": 0.5}, quick=True)

# "Within 20 %" of the forward's bars, and of the forward itself.
_INVERSE = 0.8

TARGETS = (
    Bar("large.modified_rq.forward", "eager", 40),
    Bar("large.modified_rq.forward", "compiled", 3),
    Bar("large.modified_rq.forward", "copy", 0.65),
    Bar("large.modified_rq.inverse", "eager", 40 * _INVERSE),
    Bar("large.modified_rq.inverse", "compiled", 3 * _INVERSE),
    Bar("large.modified_rq.inverse", "copy", 0.65 * _INVERSE),
    Bar("large.modified_rq.inverse", "forward", _INVERSE),
    Bar("large.modified_rq.train", "eager", 28),
    Bar("large.modified_rq.train", "compiled", 7),
    Bar("large.modified_rq.train", "memory", 1.2),
    Bar("large.rq8.forward", "nflows", 60),
    Bar("large.rq8.train", "nflows", 40),
    Bar("large.rq8.train", "memory", 1.2),
    Bar("large.rq8-softclip.forward", "zuko", 18),
    Bar("large.rq8-softclip.train", "zuko", 12),
    Bar("large.affine.forward", "copy", 0.65),
    Bar("tiny.rq8.forward", "nflows", 15),
    Bar("tiny.rq8.train", "nflows", 10),
)


def select(text: str) -> list[cases.Case]:
    """The cases whose name contains ``text``, against the competitors that their targets name
    (where they name none, against all)."""
    selected = []
    for case in cases.FOUNDATION:
        judged = case.against([each.measure for each in TARGETS if each.case == case.name])
        if text in case.name:
            selected.append(judged if judged.competitors else case)
    return selected


def judge(measured: Measured) -> list[dict[str, Any]]:
    """The targets, held to the rows under the keeping allocator."""
    return bars.judge(TARGETS, measured.rows, judged=["keeping"])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.foundation", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller tensors, about a minute")
    parser.add_argument("--filter", default="", help="only cases whose name contains this")
    parser.add_argument(
        "--json", type=output_file, help="write the rows, verdicts and machine here"
    )
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    options = parser.parse_args(arguments)
    selected = select(options.filter)
    if not selected:
        names = ", ".join(case.name for case in cases.FOUNDATION)
        parser.error(f"no case's name contains {options.filter!r}; there are {names}")
    description = machine.describe()
    print(_headline(description, options.quick), flush=True)
    settings = QUICK if options.quick else FULL
    measured = suite.measure(selected, settings, lambda name: print(f"... {name}", flush=True))
    judged = judge(measured)
    parts = [
        report.measured_rows(measured.rows),
        verdict_table(bars.verdicts(judged)),
        *report.remarks(measured),
    ]
    print("\n" + "\n\n".join(parts))
    saved = True
    if options.json:
        more = {
            "targets": judged,
            "eager_peak_bytes": measured.eager_peaks,
            "left_out": measured.left_out,
            "failed": measured.failed,
            "quick": options.quick,
        }
        saved = write_json(options.json, description, measured.rows, **more)
    missed = options.check and any(record["met"] is not True for record in judged)
    return int(bool(measured.failed) or missed or not saved)


def _headline(description: dict[str, Any], quick: bool) -> str:
    lines = [machine.headline(description)]
    if not machine.has_avx512() or description["threads"] != 2:
        lines.append("The targets are stated for 2 threads on 2 cores with AVX-512: not these.")
    if quick:
        lines.append("The targets are stated for the full shapes: these are smaller.")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
