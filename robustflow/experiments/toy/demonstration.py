"""``robustflow demo --toy``: train every coupling on the toy, read them, print, draw."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from robustflow._files import check_writable, save
from robustflow.experiments import report
from robustflow.experiments.toy import figures, tables
from robustflow.experiments.toy.runs import Run, RunResult, perform, runs_of
from robustflow.experiments.toy.summary import Outcome, to_json
from robustflow.experiments.toy.training import Settings
from robustflow.experiments.workers import run_in_processes


def run_toy(
    settings: Settings, seeds: Sequence[int], output: Path, console: Console | None = None
) -> bool:
    """Run it all; writes ``toy.png`` and ``toy.json`` into ``output``.

    Args:
        settings: of every flow and its training.
        seeds: each trains every flow anew.
        output: a folder, created if missing.
        console: where to print; default the terminal.

    Returns:
        Whether both files are there. Where one could not be written once the work was done,
        standard error says so and where its contents are instead.

    Raises:
        UnwritablePath: nothing can be written into ``output``; nothing was done yet.
    """
    console = console or Console()
    started = time.perf_counter()
    figure, numbers = output / "toy.png", output / "toy.json"
    check_writable(figure, numbers)
    runs = runs_of(seeds)
    tables.print_introduction(console, settings, runs)
    outcome = Outcome(tuple(_train_all(runs, settings, console)), settings)
    tables.print_outcome(console, outcome)
    is_noted = save(numbers, to_json(outcome, time.perf_counter() - started))
    is_drawn = save(figure, figures.draw(outcome))
    written = {"Figure": (figure, is_drawn), "Numbers": (numbers, is_noted)}
    report.print_files(console, written, time.perf_counter() - started)
    return is_drawn and is_noted


def _train_all(runs: Sequence[Run], settings: Settings, console: Console) -> list[RunResult]:
    """Train in one process for each core, with one thread each."""
    shares = share_out(runs, _cores())
    columns = (
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TextColumn("{task.fields[word]:<44}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        tasks = {
            name: progress.add_task(name, total=len(share) * settings.iterations, word="starting")
            for name, share in shares.items()
        }
        performed = run_in_processes(
            perform,
            {name: (share, settings) for name, share in shares.items()},
            lambda name, done, word: progress.update(tasks[name], completed=done, word=word),
        )
    by_run = {result.run: result for results in performed.values() for result in results}
    return [by_run[run] for run in runs]


def share_out(runs: Sequence[Run], processes: int) -> dict[str, list[Run]]:
    """Runs for each process, in turn; no process without one.

    Example:
        >>> [len(share) for share in share_out(runs_of([0]), 2).values()]
        [6, 6]
    """
    count = min(processes, len(runs))
    return {f"process {i + 1}": list(runs[i::count]) for i in range(count)}


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
