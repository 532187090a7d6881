"""The demonstration: train three models side by side, sample them, count, draw, and time."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from robustflow import nn as rnn
from robustflow._files import check_writable, save
from robustflow.experiments import report, throughput
from robustflow.experiments.comparison import ModelResult, train_and_sample
from robustflow.experiments.super_resolution import COUPLINGS, Settings
from robustflow.experiments.throughput import Timing
from robustflow.experiments.workers import run_in_processes


def run_demonstration(settings: Settings, output: Path, console: Console | None = None) -> bool:
    """Run it all; writes ``demo.png`` and ``demo.json`` into ``output``.

    Args:
        settings: of the networks and their training.
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
    figure, summary = output / "demo.png", output / "demo.json"
    check_writable(figure, summary)
    report.print_introduction(console, settings)
    results = _train_all(settings, console)
    report.print_results(console, results)
    timings: list[Timing] = []
    try:
        drawn = save(figure, report.draw(results, settings))
        timings = time_transforms(results, console)
        report.print_throughput(console, timings)
    finally:  # also if that is stopped or fails, because training took the time
        seconds = time.perf_counter() - started
        content = report.to_json(results, timings, settings, report.machine(), seconds)
        noted = save(summary, content)
    written = {"Figure": (figure, drawn), "Numbers": (summary, noted)}
    report.print_files(console, written, seconds)
    return drawn and noted


def _train_all(settings: Settings, console: Console) -> dict[str, ModelResult]:
    columns = (
        TextColumn("{task.description:>21}"),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        TextColumn("{task.fields[word]:<13}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        tasks = {
            name: progress.add_task(name, total=settings.iterations, word="starting")
            for name in COUPLINGS
        }
        return run_in_processes(
            train_and_sample,
            {name: (name, settings) for name in COUPLINGS},
            lambda name, done, word: progress.update(tasks[name], completed=done, word=word),
        )


def time_transforms(results: dict[str, ModelResult], console: Console) -> list[Timing]:
    """Fused, eager and compiled, with one thread, as the models had."""
    candidates: list[tuple[str, rnn.ElementwiseTransform, throughput.Transform]] = [
        ("modified RQ", COUPLINGS["modified RQ"], throughput.eager_modified_rq),
        ("affine", COUPLINGS["affine"], throughput.eager_affine),
    ]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with console.status("timing the transforms (torch.compile takes a while) ..."):
            return [
                throughput.measure(name, fused, eager, *inputs, training=training)
                for name, fused, eager in candidates
                for training, inputs in (
                    (True, results[name].inputs.training),
                    (False, results[name].inputs.sampling),
                )
            ]
    finally:
        torch.set_num_threads(threads)
