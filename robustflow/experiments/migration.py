"""A trained affine flow of the demonstration, converted and trained on: before and after.

    python -m robustflow.experiments.migration --json migration.json

Trains the demonstration's affine flow on its photographs, converts a copy by
:func:`robustflow.convert_affine`, and trains the copy and the original on, alike. Compares bits per
dimension, and faulty samples by the published rule.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from robustflow import convert_affine
from robustflow import nn as rnn
from robustflow._arguments import output_file, whole_number
from robustflow._files import save
from robustflow.compat.convert import ConversionReport
from robustflow.experiments import photographs, report
from robustflow.experiments.comparison import sample_pictures
from robustflow.experiments.faults import Faults, total_faults
from robustflow.experiments.photographs import load
from robustflow.experiments.super_resolution import (
    COUPLINGS,
    SCALE,
    CropSampler,
    Pair,
    Settings,
    build_flow,
    degrade,
    evaluate,
    train,
)

CALIBRATION_CROPS = 64


@dataclass(frozen=True)
class Stage:
    """One state of the model.

    Attributes:
        bits_training, bits_held_out: bits per dimension on crops of the training pictures and of
            the held-out one.
        faults: by picture and temperature; None where it was not sampled.
        train_seconds: of the training that led here.
    """

    bits_training: float
    bits_held_out: float
    faults: dict[str, dict[float, Faults]] | None
    train_seconds: float


@dataclass(frozen=True)
class Migration:
    """The stages, by name and in order, and the conversion's report."""

    stages: dict[str, Stage]
    conversion: ConversionReport


def run_migration(
    settings: Settings, more_iterations: int, console: Console | None = None
) -> Migration:
    """Train, convert a copy, train both on.

    Args:
        settings: of the network and of its first training.
        more_iterations: of the training after that, of the copy and of the original.
        console: where progress is shown; default the terminal.
    """
    torch.manual_seed(settings.seed)
    pairs = [degrade(load(picture)) for picture in photographs.TRAINING]
    held_out = [degrade(load(photographs.HELD_OUT))]
    more = replace(settings, iterations=more_iterations, seed=settings.seed + 1000)
    columns = (
        TextColumn("{task.description:>20}"),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:

        def trained(name: str, flow: rnn.ConditionalFlow, settings: Settings) -> Stage:
            task = progress.add_task(name, total=settings.iterations)
            started = time.perf_counter()
            train(flow, pairs, settings, lambda done, _: progress.update(task, completed=done))
            return stage(flow, time.perf_counter() - started, sampled=True)

        def stage(flow: rnn.ConditionalFlow, seconds: float, *, sampled: bool) -> Stage:
            return Stage(
                evaluate(flow, pairs, settings),
                evaluate(flow, held_out, settings),
                sample_pictures(flow, settings)[0] if sampled else None,
                seconds,
            )

        affine = build_flow(COUPLINGS["affine"], settings)
        stages = {"affine": trained("affine", affine, settings)}
        flow = copy.deepcopy(affine)
        conversion = convert_affine(flow, calibration_batch(pairs, settings))
        stages["converted"] = stage(flow, 0.0, sampled=False)
        stages["converted, then trained"] = trained("converted", flow, more)
        stages["affine, trained on"] = trained("affine, trained on", affine, more)
    return Migration(stages, conversion)


def calibration_batch(pairs: Sequence[Pair], settings: Settings) -> tuple[torch.Tensor, ...]:
    """Crops as the flow is trained on: (residual, low)."""
    crops = replace(settings, batch_size=CALIBRATION_CROPS)
    return CropSampler(pairs, crops, settings.seed + 2000)()


def print_migration(console: Console, migration: Migration) -> None:
    """A row a stage."""
    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("", no_wrap=True)
    for heading in (
        "bits/dim\ntraining",
        "bits/dim\nheld out",
        "faulty\nsamples",
        "largest\nvalue",
    ):
        table.add_column(heading, justify="right")
    for name, stage in migration.stages.items():
        bits = (f"{stage.bits_training:.3f}", f"{stage.bits_held_out:.3f}")
        if stage.faults is None:
            table.add_row(name, *bits)
        else:
            every = _total(stage.faults)
            table.add_row(name, *bits, f"{every.faulty}/{every.samples}", f"{every.largest:.3g}")
    console.print(table)
    conversion = migration.conversion
    console.print(f"Replaced {len(conversion.replaced)}, kept {len(conversion.kept)}.")


def _total(faults: dict[str, dict[float, Faults]]) -> Faults:
    return total_faults(each for by_t in faults.values() for each in by_t.values())


def to_json(migration: Migration, settings: Settings, more_iterations: int, seconds: float) -> str:
    """Everything that was found, and what it ran on."""
    stages = {}
    for name, stage in migration.stages.items():
        stages[name] = content = asdict(stage)
        if stage.faults is not None:
            content["total"] = _total(stage.faults).as_json()
            content["faults"] = {
                title: {str(t): each.as_json() for t, each in by_temperature.items()}
                for title, by_temperature in stage.faults.items()
            }
    everything = {
        "meaningful": settings.meaningful,
        "settings": asdict(settings) | {"more_iterations": more_iterations},
        "stages": stages,
        "conversion": asdict(migration.conversion),
        "machine": report.machine(),
        "seconds": seconds,
    }
    return json.dumps(everything, indent=2, allow_nan=False) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run it from the command line."""
    standard = Settings()
    parser = argparse.ArgumentParser(
        prog="python -m robustflow.experiments.migration",
        description=(
            "Trains the demonstration's affine flow on photographs, converts a copy to the "
            "modified RQ spline, trains both on, and compares likelihood and faulty samples. "
            "Takes several minutes on one core and downloads nothing."
        ),
    )
    numbers = {
        "steps": (1, standard.steps, "flow steps, an injector and a coupling each"),
        "iterations": (1, standard.iterations, "updates of the affine flow"),
        "more-iterations": (1, standard.iterations // 2, "updates after the conversion"),
        "sample-size": (SCALE, standard.sample_size, "side of the squares that are sampled"),
        "seed": (0, standard.seed, "seed of everything"),
    }
    for name, (minimum, default, words) in numbers.items():
        parser.add_argument(
            f"--{name}",
            type=whole_number(minimum),
            default=default,
            metavar="N",
            help=f"{words} (%(default)s)",
        )
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write all numbers there")
    args = parser.parse_args(argv)
    settings = replace(
        standard,
        steps=args.steps,
        iterations=args.iterations,
        sample_size=args.sample_size,
        seed=args.seed,
    )
    console = Console()
    started = time.perf_counter()
    migration = run_migration(settings, args.more_iterations, console)
    print_migration(console, migration)
    if args.json is not None:
        seconds = time.perf_counter() - started
        content = to_json(migration, settings, args.more_iterations, seconds)
        return 0 if save(args.json, content) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
