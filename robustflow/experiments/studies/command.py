"""The command `robustflow study`: progress and the table on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from robustflow.experiments.console import say
from robustflow.experiments.imaging.config import Config, to_toml
from robustflow.experiments.imaging.progress import Bar
from robustflow.experiments.studies.runner import run_study
from robustflow.experiments.studies.study import Row, Study, load_study, study_names


def print_list(console: Console) -> None:
    """Names, minutes and questions of all studies."""
    table = Table(box=SIMPLE_HEAD)
    for title in ("study", "minutes", "question"):
        table.add_column(title, justify="right" if title == "minutes" else "left")
    for name in study_names():
        study = load_study(name)
        table.add_row(name, f"{study.minutes:g}", escape(study.question))
    console.print(table)
    say(console, "Minutes: about so many on one core, with all trainings.")


def print_configs(study: Study) -> None:
    """Every training's configuration as TOML."""
    for name, config in study.models.items():
        print(f"# {name}\n{to_toml(config, explain=False)}")


def run_and_print(study: Study, out: Path, models: Sequence[Path], console: Console) -> None:
    """:func:`run_study` with progress, and its table; raises what it raises."""

    def listener(name: str, config: Config) -> Bar:
        say(console, f"Training {name}: {config.training.iterations} updates.")
        return Bar(console, config)

    result = run_study(
        study,
        out,
        models=models,
        listener=listener,
        progress=lambda sentence: say(console, sentence),
    )
    say(console, study.question)
    print_table(result.rows, console)
    say(console, f"The table, all numbers and the picture: {result.folder}")


def print_table(rows: Sequence[Row], console: Console) -> None:
    """All rows, short: a table for each model and seed, above it what its rows have in common."""
    for model, seed in dict.fromkeys((row["model"], row["seed"]) for row in rows):
        cell_rows = [row for row in rows if (row["model"], row["seed"]) == (model, seed)]
        names = list(dict.fromkeys(name for row in cell_rows for name in row))
        cells = {name: [_short(row.get(name)) for row in cell_rows] for name in names}
        alike = [name for name in names if len(set(cells[name])) == 1]
        differ = [name for name in names if name not in alike] if len(cell_rows) > 1 else []
        say(console, ", ".join(f"{name} {cells[name][0]}" for name in alike if cells[name][0]))
        columns = [[name, *cells[name]] for name in differ]
        widths = [max(map(len, column)) for column in columns]
        for line in zip(*columns, strict=True):
            words = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            say(console, f"  {'  '.join(words)}".rstrip())
        say(console, "")


def _short(value: object) -> str:
    if value is None or value == "nan":
        return ""
    return format(value, ".3g") if isinstance(value, float) else str(value)
