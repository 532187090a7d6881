"""`robustflow evaluate`: trained flows on pictures, in one table."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from robustflow._arguments import numbers, whole_number, words_of

HELP = "measure trained flows on pictures: quality, diversity, artifacts, time"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `evaluate` to the command line."""
    parser = subparsers.add_parser(
        "evaluate",
        help=HELP,
        description=(
            "Samples flows of one task on the same pictures and latents, and measures the samples: "
            "against the truth, against the observation, against each other, and what is wrong "
            "with them; raw, projected onto the observation, and guarded. Prints a table and "
            "writes evaluation.html (which needs no other file), evaluation.json, table.csv, "
            "pictures.csv, evaluation.png and errorpixels/*.csv, a line for each faulty sample. "
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
    parser.add_argument(
        "-n",
        "--number",
        type=whole_number(1),
        default=5,
        metavar="N",
        help="samples of each picture (default: %(default)s)",
    )
    parser.add_argument(
        "--temperatures",
        type=numbers,
        default="0,0.8,0.9",
        metavar="LIST",
        help="joined by commas (default: %(default)s)",
    )
    parser.add_argument(
        "--columns",
        type=words_of(("raw", "projected", "guarded")),
        default="raw,projected,guarded",
        metavar="LIST",
        help="what is done to the samples, joined by commas (default: %(default)s)",
    )
    parser.add_argument(
        "--size",
        type=whole_number(0),
        default=192,
        metavar="N",
        help="side of the squares; 0: whole pictures (default: %(default)s; MS-SSIM needs 176)",
    )
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
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the latents")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("robustflow-evaluation"),
        metavar="DIR",
        help="where the files go (default: %(default)s)",
    )


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
