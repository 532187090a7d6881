"""`robustflow info`: what is in a checkpoint."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HELP = "say what is in a checkpoint"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `info` to the command line."""
    parser = subparsers.add_parser(
        "info",
        help=HELP,
        description="Prints a checkpoint's step, size, layers and configuration.",
    )
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="a training's folder or a file"
    )


def run(args: argparse.Namespace) -> int:
    """Print; 0, or 2 where there is no such checkpoint."""
    from robustflow.experiments.imaging.checkpoints import CheckpointError
    from robustflow.experiments.imaging.description import describe

    try:
        print(describe(args.checkpoint))
    except CheckpointError as error:
        print(f"robustflow info: {error}", file=sys.stderr)
        return 2
    return 0
