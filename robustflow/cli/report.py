"""`robustflow report`: how robust a trained flow is, in one page."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from robustflow.cli._sampling import (
    add_number,
    add_out,
    add_seed,
    add_size,
    add_temperatures,
)

HELP = "say in one page how robust a trained flow is, and which score foretells its failures"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `report` to the command line."""
    parser = subparsers.add_parser(
        "report",
        help=HELP,
        description=(
            "Samples a flow of `robustflow train` under a monitor, on pictures like those of its "
            "training and on others; finds where explosions begin and what they reach; says which "
            "scores foretell them; bounds the inverse. Writes report.html, which needs no other "
            "file and no network, and report.json."
        ),
    )
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="a training's folder or a file"
    )
    parser.add_argument(
        "--training",
        type=Path,
        metavar="DIR",
        help="pictures of the training (default, here and below: those that packages ship)",
    )
    parser.add_argument("--held-out", type=Path, metavar="DIR", help="others of the same kind")
    parser.add_argument("--ood", type=Path, metavar="DIR", help="pictures of another kind")
    add_size(parser, 160)
    add_number(parser, 5)
    add_temperatures(parser, "0.7,0.8,0.9,1.0")
    parser.add_argument(
        "--growth",
        type=float,
        metavar="X",
        help="of |value| in one layer, which is an explosion (default: InverseMonitor's)",
    )
    add_seed(parser)
    add_out(parser, "robustflow-report")


def run(args: argparse.Namespace) -> int:
    """Report; 0 when it is written, 2 for a bad request."""
    from robustflow._files import UnwritablePath
    from robustflow.diagnostics.monitor import GROWTH
    from robustflow.experiments.imaging.checkpoints import CheckpointError
    from robustflow.experiments.imaging.robustness import BadPictures, report_on

    try:
        report = report_on(
            args.checkpoint,
            training=args.training,
            held_out=args.held_out,
            ood=args.ood,
            size=args.size,
            number=args.number,
            temperatures=args.temperatures,
            growth=GROWTH if args.growth is None else args.growth,
            seed=args.seed,
            out=args.out,
        )
    except (CheckpointError, BadPictures, UnwritablePath, ValueError) as error:
        print(f"robustflow report: {error}", file=sys.stderr)
        return 2
    print(report)
    print(f"The page: {report.path}")
    return 0
