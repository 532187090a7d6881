"""`robustflow demo`: three flows that differ in their coupling, on real photographs."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from robustflow._arguments import whole_number

HELP = "train three flows on photographs and see which coupling's inverse explodes"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `demo` to the command line."""
    parser = subparsers.add_parser(
        "demo",
        help=HELP,
        description=(
            "Trains small conditional flows for 4x super-resolution, alike but for their "
            "coupling, on photographs that scikit-image and scikit-learn ship; samples familiar "
            "and unfamiliar pictures; counts faulty samples by the published rule. Takes a few "
            "minutes on two cores and downloads nothing."
        ),
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("robustflow-demo"),
        metavar="DIR",
        help="where demo.png and demo.json go (default: %(default)s)",
    )
    parser.add_argument(
        "--iterations", type=whole_number(1), metavar="N", help="training iterations of each model"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of everything (default: %(default)s)"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="tiny models, hardly trained: shows that everything runs, and nothing else",
    )


def run(args: argparse.Namespace) -> int:
    """Run the demonstration; 0 once its files are written, 1 where they could not be."""
    from robustflow.experiments.demonstration import run_demonstration
    from robustflow.experiments.super_resolution import QUICK_SETTINGS, Settings

    settings = replace(QUICK_SETTINGS if args.quick else Settings(), seed=args.seed)
    if args.iterations is not None:
        settings = replace(settings, iterations=args.iterations)
    return 0 if run_demonstration(settings, args.output) else 1
