"""`robustflow bench`: the kernels beside eager and compiled PyTorch and the flow libraries."""

from __future__ import annotations

import argparse
from pathlib import Path

from robustflow._arguments import output_file, whole_number

HELP = "measure the kernels beside eager and compiled PyTorch and the flow libraries"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `bench` to the command line."""
    parser = subparsers.add_parser(
        "bench",
        help=HELP,
        description=(
            "Measures every transform, forward, inverse and in a training step, on the shapes of "
            "real uses, each in processes of its own under two allocators; compares results with "
            "the competitors' first, then times them in alternation. "
            "Plan for half an hour on two cores."
        ),
    )
    parser.add_argument("--quick", action="store_true", help="a small set, a few minutes")
    parser.add_argument(
        "--filter", default="", metavar="TEXT", help="only cases whose name contains this"
    )
    parser.add_argument(
        "--against",
        metavar="LIST",
        help="competitors, joined by commas, of eager, compiled, nflows, zuko, normflows "
        "(default: those installed)",
    )
    parser.add_argument(
        "--json", type=output_file, metavar="FILE", help="write rows and machine here"
    )
    parser.add_argument(
        "--threads", type=whole_number(1), metavar="N", help="threads (default: PyTorch's)"
    )
    parser.add_argument(
        "--bars",
        action="store_true",
        help="with --quick: exit with 1 where a ratio falls under its stated bar by more than its "
        "spread",
    )
    parser.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("A.json", "B.json"),
        help="measure nothing: say what is slower in B by more than the noise; exit with 1 if any",
    )


def run(args: argparse.Namespace) -> int:
    """Measure or compare; 0, 1 where something failed or is too slow, 2 for a bad request."""
    from robustflow.benchmarks import command

    return command.run(args)
