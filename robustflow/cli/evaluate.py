"""`robustflow evaluate`: trained flows on pictures, in one table."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from robustflow._arguments import whole_number, words_of
from robustflow.cli._sampling import (
    add_number,
    add_out,
    add_seed,
    add_size,
    add_temperatures,
)

HELP = "measure trained flows on pictures: quality, diversity, artifacts, time"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `evaluate` to the command line."""
    parser = subparsers.add_parser(
        "evaluate",
        help=HELP,
        description=(
            "Samples flows of one task on the same pictures and latents, and measures the samples: "
            "against the truth, against the observation, against each other, and what is wrong "
            "with them; raw, projected onto the observation, of one fixed latent, and guarded. "
            "Prints a table and writes evaluation.html (which needs no other file), "
            "evaluation.json, table.csv, pictures.csv, evaluation.png and errorpixels/*.csv, a "
            "line for each faulty sample. "
            "Exits with 1 if a picture file could not be used, 2 for a bad request."
        ),
    )
    parser.add_argument(
        "checkpoints",
        type=Path,
        nargs="+",
        metavar="CHECKPOINT",
        help="trainings' folders (the best checkpoint of each is taken) or files of weights",
    )
    parser.add_argument(
        "--data",
        nargs="+",
        default=["held_out", "ood"],
        metavar="DIR",
        help=(
            "folders or files of pictures, each a group of the table; train, held_out and ood are "
            "the pictures that packages ship (default: held_out ood)"
        ),
    )
    parser.add_argument(
        "--no-truth",
        action="store_true",
        help="the pictures are observations: what needs the truth is left out",
    )
    add_number(parser, 5)
    add_temperatures(parser, "0,0.8,0.9")
    parser.add_argument(
        "--columns",
        type=words_of(("raw", "projected", "fixed", "guarded")),
        default="raw,projected,fixed,guarded",
        metavar="LIST",
        help="what is done to the samples, joined by commas (default: %(default)s)",
    )
    add_size(parser, 192, minimum=0, more="; 0: whole pictures; MS-SSIM needs 176")
    parser.add_argument(
        "--colour",
        choices=("rgb", "y"),
        default="rgb",
        help="compare with the truth in RGB or in luma (default: %(default)s)",
    )
    parser.add_argument(
        "--border",
        type=whole_number(0),
        default=0,
        metavar="N",
        help="pixels at each side that are left out of that (default: %(default)s)",
    )
    parser.add_argument(
        "--lpips",
        type=Path,
        metavar="FILE",
        help="AlexNet's weights, as torchvision has them, for LPIPS and its diversity",
    )
    add_seed(parser)
    add_out(parser, "robustflow-evaluation")


def run(args: argparse.Namespace) -> int:
    """Evaluate; 0 when all pictures were, 1 where some could not be used, 2 for a bad request."""
    from rich.console import Console

    from robustflow.experiments.data.squares import split_or_path
    from robustflow.experiments.imaging.checkpoints import CheckpointError
    from robustflow.experiments.imaging.evaluation.command import evaluate_and_write
    from robustflow.experiments.imaging.evaluation.evaluate import BadRequest

    try:
        result = evaluate_and_write(
            args.checkpoints,
            args.out,
            Console(),
            sources=[split_or_path(each) for each in args.data],
            number=args.number,
            temperatures=args.temperatures,
            columns=args.columns,
            size=args.size,
            with_truth=not args.no_truth,
            colour=args.colour,
            border=args.border,
            lpips=args.lpips,
            seed=args.seed,
        )
    except (CheckpointError, BadRequest) as error:
        print(f"robustflow evaluate: {error}", file=sys.stderr)
        return 2
    return 1 if result.skipped else 0
