"""Draw what benchmarks measured, from their JSON files alone: nothing is measured or run here.

    python -m benchmarks.plots JSON [JSON ...] --out DIR

``robustflow bench``, ``benchmarks.foundation`` and ``benchmarks.gpu`` give a picture of speed-ups,
whole flows (``benchmarks.end_to_end``) one of their own; ``benchmarks.scaling`` time against N and
K beside the floor, and the fraction of the floor; ``benchmarks.dropin`` what a patch gains;
``benchmarks.reversible`` error and memory against depth. Each is written as FILE-PICTURE.svg and
.png, with the command and the machine below it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from benchmarks import plot_bars, plot_lines, plot_reversible, plot_style
from robustflow.benchmarks.rows import read_json

Record = Mapping[str, Any]

_ALLOCATORS = {
    "keeping": "an allocator that keeps its memory",
    "default": "the default allocator",
}
# What wrote a file of before there was a "command" in it, by a key that only it has.
_WRITERS = {
    "targets": "benchmarks.foundation",
    "dropin": "benchmarks.dropin",
    "beyond_cache": "benchmarks.scaling",
}


def pictures(record: Record) -> Iterator[tuple[str, Figure]]:
    """The pictures of a file of :func:`robustflow.benchmarks.rows.write_json`, with their names."""
    rows = record["rows"]
    if any("sweep" in row for row in rows):
        yield from _scaling(record)
        rows = [row for row in rows if "sweep" not in row]
    if "reversible" in record:
        yield "reversible", plot_reversible.reversible(record["reversible"])
    compared = [row for row in rows if row.get("ratio")]
    flows = [row for row in compared if row["name"].startswith("end-to-end.")]
    kernels = [row for row in compared if row not in flows]
    if kernels:
        yield "speedups", plot_bars.speedups(kernels, "How many times faster than …")
    if flows:
        title = "Whole flows: how many times faster than …"
        yield "end-to-end", plot_bars.speedups(flows, title, by_direction=False)
    for allocator, dropin in _by_allocator(record.get("dropin", [])):
        title = f"A stock flow with the patch off and on, {_ALLOCATORS[allocator]}"
        yield f"dropin-{allocator}", plot_bars.dropin(dropin, title)


def _scaling(record: Record) -> Iterator[tuple[str, Figure]]:
    cache = record.get("last_cache_bytes")
    for allocator, rows in _by_allocator(record["rows"]):
        where = _ALLOCATORS[allocator]
        if any(row["sweep"] == "n" for row in rows):
            title = f"Time an element against N, {where}"
            yield f"elements-{allocator}", plot_lines.against_elements(rows, title, cache)
            title = f"Fraction of the floor against N, {where}"
            judged = [v for v in record["beyond_cache"] if v["allocator"] == allocator]
            fractions = plot_lines.floor_fractions(rows, title, cache, judged)
            yield f"floor-{allocator}", fractions
        if any(row["sweep"] == "k" for row in rows):
            title = f"Time an element against K, {where}"
            yield f"bins-{allocator}", plot_lines.against_bins(rows, title)


def _by_allocator(rows: Sequence[Record]) -> list[tuple[str, list[Record]]]:
    present = {row["allocator"] for row in rows}
    return [
        (name, [row for row in rows if row["allocator"] == name])
        for name in _ALLOCATORS
        if name in present
    ]


def caption_of(record: Record) -> str:
    """The command and the machine that made a file, in two lines."""
    machine = record["machine"]
    written = [module for key, module in _WRITERS.items() if key in record]
    command = record.get("command") or (f"python -m {written[0]}" if written else None)
    build = machine.get("robustflow", {})
    facts = [
        machine.get("gpu") if isinstance(machine.get("gpu"), str) else None,
        machine.get("cpu"),
        f"{machine['cores']} cores" if machine.get("cores") else None,
        # A scaling run sets the number of threads itself, and its pictures say it.
        None if "beyond_cache" in record else _threads(machine.get("threads")),
        f"kernels {build['isa']}" if build.get("isa") else None,
        f"PyTorch {machine['torch']}" if machine.get("torch") else None,
        machine.get("platform"),
    ]
    first = f"Made by: {command}" if command else "The command that made this is not recorded."
    if record.get("quick"):
        first += " (a quick run: small shapes, short times)"
    return f"{first}\nOn: {', '.join(fact for fact in facts if fact)}"


def _threads(count: int | None) -> str | None:
    return None if count is None else "1 thread" if count == 1 else f"{count} threads"


def draw(file: Path, out: Path) -> list[Path]:
    """Draw all pictures of a file into the folder ``out``; returns what was written.

    Raises:
        ValueError: it is no benchmark's file, or has nothing that is drawn.
        OSError: the pictures cannot be written.
    """
    record = read_json(file)
    written = []
    with rc_context(plot_style.RC):
        for name, figure in pictures(record):
            plot_style.caption(figure, caption_of(record))
            out.mkdir(parents=True, exist_ok=True)
            svg, png = (out / f"{file.stem}-{name}.{kind}" for kind in ("svg", "png"))
            figure.savefig(svg, transparent=True, metadata={"Date": None})
            figure.savefig(
                png, transparent=True, metadata={"Software": None}, pil_kwargs={"optimize": True}
            )
            written += [svg, png]
    if not written:
        raise ValueError(
            f"{file} has nothing to draw: pass what robustflow bench, benchmarks.foundation, "
            "benchmarks.scaling, benchmarks.end_to_end, benchmarks.dropin or benchmarks.reversible "
            "wrote with --json."
        )
    return written


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plots", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="JSON", help="what to draw")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to")
    options = parser.parse_args(arguments)
    for file in options.files:
        try:
            written = draw(file, options.out)
        except (ValueError, OSError) as error:
            parser.error(str(error))
        for path in written:
            print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
