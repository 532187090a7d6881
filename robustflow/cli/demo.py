"""`robustflow demo`: flows that differ in their coupling, on real photographs or on a 2-D toy."""

from __future__ import annotations

import argparse
import sys
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
            "minutes on two cores and downloads nothing. With --toy, small flows on data in two "
            "dimensions instead: eight couplings and two controls, in one to two minutes."
        ),
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("robustflow-demo"),
        metavar="DIR",
        help="where demo.png and demo.json, or toy.png and toy.json, go (default: %(default)s)",
    )
    parser.add_argument(
        "--toy", action="store_true", help="data in two dimensions, in place of photographs"
    )
    parser.add_argument(
        "--seeds",
        type=whole_number(1),
        metavar="N",
        help="with --toy: train with N seeds, from --seed on (default: 1)",
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
    if args.toy:
        return _run_toy(args)
    if args.seeds is not None:
        print(
            "robustflow demo: error: --seeds is of the toy: add --toy, or run it with another "
            "--seed.",
            file=sys.stderr,
        )
        return 2
    from robustflow.experiments.demonstration import run_demonstration
    from robustflow.experiments.super_resolution import QUICK_SETTINGS, Settings

    settings = replace(QUICK_SETTINGS if args.quick else Settings(), seed=args.seed)
    if args.iterations is not None:
        settings = replace(settings, iterations=args.iterations)
    return 0 if run_demonstration(settings, args.output) else 1


def _run_toy(args: argparse.Namespace) -> int:
    from robustflow.experiments.toy.demonstration import run_toy
    from robustflow.experiments.toy.training import QUICK_SETTINGS, Settings

    settings = QUICK_SETTINGS if args.quick else Settings()
    if args.iterations is not None:
        settings = replace(settings, iterations=args.iterations)
    seeds = range(args.seed, args.seed + (args.seeds or 1))
    return 0 if run_toy(settings, seeds, args.output) else 1
