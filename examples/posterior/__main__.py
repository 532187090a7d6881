"""sbi's neural-spline posterior estimator with ``robustflow.compat.patch`` off and on.

    python -m examples.posterior [--estimator NAME] [--simulations N] [--epochs E] [--samples N]
                                 [--seed S] [--json FILE] [--figure FILE]

Neural posterior estimation on a simulator whose posterior is known exactly. The estimator is
trained four times from the same seed, on the same batches: unpatched and patched, and both again
from weights that are one ulp higher. The latter two show how far rounding alone changes a training,
to compare the patch with. Needs ``pip install 'robustflow[sbi]'``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from examples.posterior import report
from examples.posterior.comparison import TURNS, Comparison, Judge
from examples.posterior.report import Outcome
from examples.posterior.simulator import TwistedSimulator
from examples.posterior.training import (
    LIBRARIES,
    MODES,
    Settings,
    Training,
    name_of,
    simulate,
    train,
)
from robustflow._extras import require
from robustflow.experiments.console import say

# Options of the command line: the smallest that makes sense, and what it is.
_NUMBERS = {
    "simulations": (100, "to train on"),
    "epochs": (2, "of each training"),
    "samples": (100, "of the posterior"),
    "seed": (0, "of everything"),
}


def run_example(
    settings: Settings, *, json_file: Path | None = None, figure_file: Path | None = None
) -> None:
    """Train, sample, compare, print; on one thread.

    Args:
        settings: of the estimator and its training.
        json_file, figure_file: where the numbers and the pair plot go, if anywhere.
    """
    console = Console()
    started = time.perf_counter()
    report.print_introduction(console, settings)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        outcome = _measure(settings, console)
    finally:
        torch.set_num_threads(threads)
    report.print_outcome(console, outcome, settings)
    seconds = time.perf_counter() - started
    if json_file is not None:
        json_file.write_bytes(report.to_json(outcome, settings, seconds))
        say(console, f"Numbers: {json_file}")
    if figure_file is not None:
        figure_file.write_bytes(report.draw(outcome, settings))
        say(console, f"Figure: {figure_file}")
    say(console, f"{seconds:.0f} s in all.")


def _measure(settings: Settings, console: Console) -> Outcome:
    columns = (
        TextColumn("{task.description:>26}"),
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    simulator = TwistedSimulator()
    judge = Judge(settings, simulator)
    # Rarely drawn: it takes time from what is measured.
    with Progress(*columns, console=console, refresh_per_second=1) as progress:
        trainings = _train_all(settings, simulator, progress)
        unpatched, patched, unpatched_again, patched_again = trainings
        task = progress.add_task("sampling by turns", total=TURNS)
        sampling = judge.time_sampling(
            unpatched, lambda done: progress.update(task, completed=done)
        )
    with console.status("comparing ..."):
        pairs = {
            "unpatched and patched": (unpatched, patched),
            "unpatched and nudged": (unpatched, unpatched_again),
            "patched and nudged": (patched, patched_again),
        }
        comparisons: list[Comparison] = [
            judge.patch_alone(unpatched, before=True),
            judge.patch_alone(unpatched),
            *(judge.trainings(what, *pair) for what, pair in pairs.items()),
        ]
        return Outcome(
            trainings,
            sampling,
            comparisons,
            [*map(judge.rightness, trainings), judge.floor()],
            {each.mode: judge.samples(each) for each in (unpatched, patched)}
            | {"exact": judge.exact},
        )


def _train_all(
    settings: Settings, simulator: TwistedSimulator, progress: Progress
) -> list[Training]:
    """In turns: unpatched, patched, and both again from nudged weights."""
    # What is loaded or allocated on the first call belongs to neither.
    warm_up = replace(
        settings, simulations=_NUMBERS["simulations"][0], epochs=_NUMBERS["epochs"][0]
    )
    for mode in MODES:
        train(warm_up, simulator, simulate(warm_up, simulator), mode, lambda _: None)
    data = simulate(settings, simulator)
    trainings = []
    for nudged in (False, True):
        for mode in MODES:
            words = f"training {name_of(mode, nudged)}"
            task = progress.add_task(words, total=settings.epochs)
            trainings.append(
                train(
                    settings,
                    simulator,
                    data,
                    mode,
                    lambda done, task=task: progress.update(task, completed=done),  # type: ignore[misc]
                    nudged=nudged,
                )
            )
    return trainings


def main(argv: Sequence[str] | None = None) -> None:
    """Run the example from the command line."""
    standard = Settings()
    parser = argparse.ArgumentParser(
        prog="python -m examples.posterior",
        description=(
            "Trains and samples sbi's neural-spline posterior estimator with robustflow's kernels "
            "off and on, and compares both with each other and with the exact posterior. Takes "
            "a few minutes on one core."
        ),
    )
    parser.add_argument(
        "--estimator",
        choices=LIBRARIES,
        default=standard.estimator,
        help="sbi's name of it (default: %(default)s)",
    )
    for name, (_, words) in _NUMBERS.items():
        parser.add_argument(
            f"--{name}",
            type=int,
            default=getattr(standard, name),
            metavar="N",
            help=f"{words} (default: %(default)s)",
        )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="write a pair plot there, PNG")
    args = parser.parse_args(argv)
    numbers = {name: getattr(args, name) for name in _NUMBERS}
    for name, (least, _) in _NUMBERS.items():
        if numbers[name] < least:
            parser.error(f"--{name} must be at least {least}, got {numbers[name]}")
    require("sbi", "This example", "sbi")
    settings = Settings(estimator=args.estimator, **numbers)
    run_example(settings, json_file=args.json, figure_file=args.figure)


if __name__ == "__main__":
    main()
