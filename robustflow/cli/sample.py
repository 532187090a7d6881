"""`robustflow sample`: pictures from a trained flow, for observations in files."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from robustflow.cli._sampling import add_number, add_out, add_seed

HELP = "sample pictures from a trained flow"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `sample` to the command line."""
    parser = subparsers.add_parser(
        "sample",
        help=HELP,
        description=(
            "Reads observations (low-resolution, dark, noisy, ... pictures) and writes samples of "
            "what they may show, NAME-00.png and on, and a table of what is wrong with them by "
            "the published rule: values above 1.5 or below -0.5 before clamping, or not finite."
        ),
    )
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="a training's folder (its best checkpoint is taken) or a file of weights",
    )
    parser.add_argument(
        "pictures", type=Path, nargs="+", metavar="PICTURE", help="files, or folders of them"
    )
    add_number(parser, 4)
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.9,
        metavar="T",
        help="standard deviation of the latents (default: 0.9)",
    )
    add_seed(parser)
    parser.add_argument(
        "--tile",
        type=int,
        default=0,
        metavar="N",
        help="for large pictures: sample in tiles of N x N pixels, in bounded memory",
    )
    parser.add_argument(
        "--halo",
        type=int,
        default=64,
        metavar="N",
        help="pixels around a tile that are computed with it (default: 64)",
    )
    parser.add_argument(
        "--degrade",
        action="store_true",
        help="the pictures are whole ones: make the observations from them first",
    )
    add_out(parser, "robustflow-samples")


def run(args: argparse.Namespace) -> int:
    """Sample; 0 when all pictures were, 1 where some could not be read, 2 for a bad request."""
    from rich.console import Console

    from robustflow.experiments.imaging.checkpoints import CheckpointError
    from robustflow.experiments.imaging.sampling import BadRequest, sample_files

    try:
        skipped = sample_files(
            args.checkpoint,
            args.pictures,
            args.out,
            number=args.number,
            temperature=args.temperature,
            seed=args.seed,
            degrade=args.degrade,
            console=Console(),
            tile=args.tile,
            halo=args.halo,
        )
    except (CheckpointError, BadRequest) as error:
        print(f"robustflow sample: {error}", file=sys.stderr)
        return 2
    return 1 if skipped else 0
