"""`robustflow check`: artifacts in the picture files of any model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from robustflow._arguments import whole_number

HELP = "find artifacts in the picture files of any model"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `check` to the command line."""
    parser = subparsers.add_parser(
        "check",
        help=HELP,
        description=(
            "Looks for artifacts in pictures that a model made: regions of pure colour or black, "
            "grids of the model's squeezes and, with --lr, pictures that do not fit their "
            "low-resolution picture or the other samples of it. Prints a table; writes check.json "
            "and a mask for each picture and kind. Exits with 1 if anything was found, 0 if not, 2 "
            "for a bad request."
        ),
    )
    parser.add_argument("pictures", type=Path, metavar="DIR", help="the folder of pictures")
    parser.add_argument(
        "--lr",
        type=Path,
        metavar="DIR",
        help=(
            "the folder of low-resolution pictures that they were made from, by the same names: "
            "NAME.png or NAMEx4.png for NAME.png, NAME-00.png, NAME_sample1.png, ..."
        ),
    )
    parser.add_argument(
        "--scale",
        type=whole_number(1),
        default=4,
        metavar="N",
        help="a picture's side over its low-resolution picture's (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("robustflow-check"),
        metavar="DIR",
        help="where check.json and the masks go (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Check; 1 if anything was found, 0 if not, 2 for a bad request."""
    from rich.console import Console

    from robustflow.experiments.checking import BadRequest, check_pictures

    try:
        report = check_pictures(
            args.pictures, args.out, low=args.lr, scale=args.scale, console=Console()
        )
    except BadRequest as error:
        print(f"robustflow check: error: {error}", file=sys.stderr)
        return 2
    return 1 if report.found else 0
