"""sbi's neural-spline posterior estimator with ``robustflow.compat.patch`` off and on.

    python -m robustflow.experiments.posterior [--estimator NAME] [--simulations N] [--epochs E]
                                               [--samples N] [--seed S]
                                               [--json FILE] [--figure FILE]

Neural posterior estimation on a simulator whose posterior is known exactly
(:mod:`~robustflow.experiments.twisted`). The estimator is trained four times from the same seed, on
the same batches: unpatched and patched, and both again from weights that are one ulp higher. The
latter two show how far rounding alone changes a training, to compare the patch with. Needs ``pip
install 'robustflow[sbi]'``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from robustflow._arguments import output_file, whole_number
from robustflow._extras import explain
from robustflow._files import check_writable, save
from robustflow.experiments.console import say
from robustflow.experiments.neural_posterior import (
    LIBRARIES,
    MODES,
    Settings,
    Training,
    name_of,
    simulate,
    train,
)
from robustflow.experiments.posterior_comparison import TURNS, Comparison, Judge
from robustflow.experiments.twisted import TwistedSimulator

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from robustflow.experiments.posterior_report import Outcome

# Of the command line: the least that makes sense, and what it is.
_NUMBERS = {
    "simulations": (100, "to train on"),
    "epochs": (2, "of each training"),
    "samples": (100, "of the posterior"),
    "seed": (0, "of everything"),
}


def run_example(
    settings: Settings,
    *,
    json_file: Path | None = None,
    figure_file: Path | None = None,
    console: Console | None = None,
) -> bool:
    """Train, sample, compare, print; on one thread.

    Args:
        settings: of the estimator and its training.
        json_file, figure_file: where the numbers and the pair plot go, if anywhere.
        console: where to print; default the terminal.

    Returns:
        Whether the files are there. Where one could not be written once the work was done,
        standard error says so and where its contents are instead.

    Raises:
        ModuleNotFoundError: sbi, or another package of the extra ``sbi``, is not installed.
        UnwritablePath: a file cannot be written; nothing was done yet.
        PatchError: the library is not one that the kernels know.
    """
    from rich.console import Console

    from robustflow.experiments import posterior_report

    console = console or Console()
    check_writable(*(file for file in (figure_file, json_file) if file is not None))
    started = time.perf_counter()
    posterior_report.print_introduction(console, settings)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        outcome = _measure(settings, console)
    finally:
        torch.set_num_threads(threads)
    posterior_report.print_outcome(console, outcome, settings)
    seconds = time.perf_counter() - started
    is_saved = True
    if json_file is not None:
        numbers = posterior_report.to_json(outcome, settings, seconds)
        is_saved = _save(console, "Numbers", json_file, numbers)
    if figure_file is not None:
        figure = posterior_report.draw(outcome, settings)
        is_saved = _save(console, "Figure", figure_file, figure) and is_saved
    say(console, f"{seconds:.0f} s in all.")
    return is_saved


def _save(console: Console, what: str, file: Path, content: bytes) -> bool:
    is_saved = save(file, content)
    if is_saved:
        say(console, f"{what}: {file}")
    return is_saved


def _measure(settings: Settings, console: Console) -> Outcome:
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    from robustflow.experiments.posterior_report import Outcome

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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example from the command line; 2 where packages are missing, 1 where a file is."""
    standard = Settings()
    parser = argparse.ArgumentParser(
        prog="python -m robustflow.experiments.posterior",
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
    for name, (least, words) in _NUMBERS.items():
        parser.add_argument(
            f"--{name}",
            type=whole_number(least),
            default=getattr(standard, name),
            metavar="N",
            help=f"{words} (default: %(default)s)",
        )
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write all numbers there")
    parser.add_argument(
        "--figure", type=output_file, metavar="FILE", help="write a pair plot there, PNG"
    )
    args = parser.parse_args(argv)
    numbers = {name: getattr(args, name) for name in _NUMBERS}
    settings = Settings(estimator=args.estimator, **numbers)
    try:
        is_saved = run_example(settings, json_file=args.json, figure_file=args.figure)
    except ModuleNotFoundError as error:
        sentence = explain("The example", error, "sbi")
        if sentence is None:
            raise
        print(sentence, file=sys.stderr)
        return 2
    return 0 if is_saved else 1


if __name__ == "__main__":
    sys.exit(main())
