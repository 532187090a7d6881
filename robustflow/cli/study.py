"""`robustflow study`: a question about exploding inverses, answered by flows that it trains."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from robustflow._extras import explain
from robustflow.cli._sampling import add_out

HELP = "answer a question about robustness: train flows, measure, write a table and a picture"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `study` to the command line."""
    parser = subparsers.add_parser(
        "study",
        help=HELP,
        description=(
            "Trains the flows of a study that are missing in OUT/models, measures each, and writes "
            "table.csv, result.json and a picture to OUT/NAME. Stopped (Ctrl-C), the same command "
            "goes on where it was."
        ),
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="one of those that --list names")
    parser.add_argument("--list", action="store_true", help="the studies and their questions")
    parser.add_argument(
        "--models",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a folder of finished trainings to use, named MODEL-SEED; may be repeated",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of the study, seeds, or TABLE.OPTION of all its trainings; may be repeated",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print the trainings' configurations, and stop"
    )
    add_out(parser, "robustflow-studies")


def run(args: argparse.Namespace) -> int:
    """Run a study; 0 when all is written, 1 where a training failed, 2 for a bad request."""
    from rich.console import Console

    from robustflow.experiments.imaging.checkpoints import CheckpointError
    from robustflow.experiments.imaging.config import ConfigError
    from robustflow.experiments.imaging.training import TrainingStopped
    from robustflow.experiments.studies import command
    from robustflow.experiments.studies.study import StudyError, load_study

    console = Console()
    if args.list:
        command.print_list(console)
        return 0
    try:
        if args.name is None:
            raise StudyError("Name a study: --list has them.")
        study = load_study(args.name)
        for setting in args.set:
            key, equals, value = setting.partition("=")
            if not equals:
                raise StudyError(f"--set wants KEY=VALUE, got {setting!r}.")
            study = study.changed(key.strip(), value.strip())
        assert study.module  # whose packages may be missing
        for each in study.models.values():
            each.check()
        if args.print_config:
            command.print_configs(study)
            return 0
        command.run_and_print(study, args.out, args.models, console)
    except ModuleNotFoundError as error:
        extra = study.extra or "study"
        sentence = explain(f"The study {study.name!r}", error, extra)
        if sentence is None:
            raise
        print(f"robustflow study: {sentence}", file=sys.stderr)
        return 2
    except (StudyError, ConfigError) as error:
        print(f"robustflow study: {error}", file=sys.stderr)
        return 2
    except (TrainingStopped, CheckpointError) as error:
        print(f"robustflow study: {error}", file=sys.stderr)
        return 1
    return 0
