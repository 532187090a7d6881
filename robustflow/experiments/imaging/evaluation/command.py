"""The command `robustflow evaluate`: progress, a table on the terminal, files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from robustflow.diagnostics.posterior.quality import check_installed as check_torchmetrics
from robustflow.diagnostics.report.page import check_installed as check_jinja
from robustflow.experiments.console import say
from robustflow.experiments.imaging.evaluation.evaluate import evaluate
from robustflow.experiments.imaging.evaluation.figures import main_metrics
from robustflow.experiments.imaging.evaluation.results import Evaluation
from robustflow.experiments.imaging.evaluation.tables import check_folder, write

# On the terminal; the figure has more, the files have all.
_SHOWN = ("PSNR", "SSIM", "LPIPS", "diversity (pixels)", "CRPS", "LR-PSNR", "faulty")


def evaluate_and_write(
    checkpoints: Sequence[Path], out: Path, console: Console, **options: Any
) -> Evaluation:
    """:func:`evaluate` with progress; its files in ``out``, and its main figures on the terminal.

    Raises:
        BadRequest, CheckpointError: as there.
        UnwritablePath: nothing can be written to ``out``; raised before any work.
        ModuleNotFoundError: the extra ``evaluate`` is not installed.
    """
    check_torchmetrics()
    check_jinja()
    check_folder(out)
    parts = (TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn())
    with Progress(*parts, console=console, transient=True) as bar:
        line = bar.add_task("Loading", total=None)

        def progress(done: int, total: int, what: str) -> None:
            bar.update(line, completed=done, total=total, description=what)

        result = evaluate(checkpoints, progress=progress, **options)
    write(result, out)
    _print(result, console)
    say(console, f"Means over pictures; their intervals and all metrics: {out / 'evaluation.html'}")
    return result


def _short(value: float) -> str:
    return "" if math.isnan(value) else format(value, ".3g")


def _print(result: Evaluation, console: Console) -> None:
    metrics = [metric for metric in main_metrics(result) if metric.name in _SHOWN]
    for group, titles in result.titles.items():
        pictures = "1 picture" if len(titles) == 1 else f"{len(titles)} pictures"
        table = Table(
            box=SIMPLE_HEAD,
            title=f"{escape(group)}: {pictures}",
            title_justify="left",
            padding=(0, 1, 0, 0),
        )
        table.add_column("checkpoint", overflow="fold")
        table.add_column("T", justify="right")
        table.add_column("samples", no_wrap=True)
        for metric in metrics:  # one word a line: 80 columns hold the table
            title = f"{metric.name} {metric.unit}".strip().replace(" ", "\n")
            table.add_column(title, justify="right", no_wrap=True)
        for key in result.keys:
            if key.group == group:
                cells = [_short(result.estimate(key, metric).value) for metric in metrics]
                label = escape(key.checkpoint)
                table.add_row(label, f"{key.temperature:g}", key.column, *cells)
        console.print(table)
    for sentence in result.notices:
        say(console, sentence, style="yellow")
    for skipped in result.skipped:
        say(console, f"{skipped.path} is left out: {skipped.reason}.", style="yellow")
