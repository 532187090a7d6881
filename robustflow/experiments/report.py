"""The output of the demonstration: tables, the figure, and a JSON file."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import robustflow
from robustflow.diagnostics.artifacts import HIGHEST, LOWEST
from robustflow.experiments import photographs
from robustflow.experiments.comparison import (
    NUM_SAMPLES,
    PICTURES,
    SHOWN_TEMPERATURE,
    TEMPERATURES,
    ModelResult,
    square,
)
from robustflow.experiments.console import say
from robustflow.experiments.data.builtin import Picture
from robustflow.experiments.faults import Faults, total_faults
from robustflow.experiments.figures import Row, comparison_figure
from robustflow.experiments.super_resolution import Settings
from robustflow.experiments.throughput import Timing

NOT_MEANINGFUL = "Smaller or less trained than the demonstration: the numbers mean nothing."


def kind(picture: Picture) -> str:
    """What a picture is to the models."""
    if picture in photographs.TRAINING:
        return "training"
    return "held out" if picture == photographs.HELD_OUT else "unfamiliar"


def print_introduction(console: Console, settings: Settings) -> None:
    """Print what is about to happen."""
    console.print(
        f"Three flows for 4x super-resolution, alike but for their coupling: {settings.steps} "
        f"steps, {settings.iterations} iterations on {len(photographs.TRAINING)} photographs, "
        f"seed {settings.seed}; a process with one thread for each."
    )
    if not settings.meaningful:
        console.print(NOT_MEANINGFUL, style="bold yellow")
    native = robustflow.backends()["cpu"]
    if native is not True:
        console.print(f"The fused kernels are not in use. {native}", style="bold yellow")


def print_results(console: Console, results: dict[str, ModelResult]) -> None:
    """Faulty samples by picture and temperature, and the likelihoods."""
    table = Table(
        title="Faulty samples, faulty values, largest |value|",
        caption=f"faulty: above {HIGHEST} or below {LOWEST} before clamping, or not finite",
        box=SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
    )
    table.add_column("picture", no_wrap=True)
    table.add_column("T", justify="right")
    for name in results:
        table.add_column(name.replace(" ", "\n"), justify="right", no_wrap=True)
    for picture in PICTURES:
        labels = [picture.title, f"[dim]{kind(picture)}[/]", *[""] * (len(TEMPERATURES) - 2)]
        for label, temperature in zip(labels, TEMPERATURES, strict=True):
            faults = [result.faults[picture.title][temperature] for result in results.values()]
            table.add_row(label, f"{temperature}", *map(_cell, faults))
        table.add_section()
    totals = [_total(result) for result in results.values()]
    table.add_row("all of them", "", *map(_cell, totals), end_section=True)
    table.add_row("bits/dim")
    table.add_row("training", "", *(f"{result.bits_training:.3f}" for result in results.values()))
    table.add_row("held out", "", *(f"{result.bits_held_out:.3f}" for result in results.values()))
    console.print(table)


def _total(result: ModelResult) -> Faults:
    return total_faults(each for by_t in result.faults.values() for each in by_t.values())


def _cell(faults: Faults) -> str:
    largest = f"{faults.largest:.2f}" if faults.largest < 1e3 else f"{faults.largest:.0e}"
    text = f"{faults.faulty}/{faults.samples} {100 * faults.pixels:5.1f}% {largest:>6}"
    return f"[bold red]{text}[/]" if faults.faulty else text


def print_throughput(console: Console, timings: Sequence[Timing]) -> None:
    """Millions of elements a second, and how many times faster robustflow is."""
    table = Table(
        title="Million elements a second on the models' own tensors, one thread",
        caption="training: forward and backward; sampling: the inverse, one condition's samples",
        box=SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
    )
    table.add_column("transform", no_wrap=True)
    table.add_column("task", no_wrap=True)
    headings = ("elements", "robustflow", "eager", "compiled", "/eager", "/compiled")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for timing in timings:
        compiled = timing.compiled
        table.add_row(
            timing.transform,
            timing.task,
            f"{timing.elements:,}",
            _rate(timing, timing.robustflow),
            _rate(timing, timing.eager),
            _rate(timing, compiled) if compiled else "failed",
            f"{timing.eager / timing.robustflow:.1f}x",
            f"{compiled / timing.robustflow:.1f}x" if compiled else "",
        )
    console.print(table)


def _rate(timing: Timing, seconds: float) -> str:
    return f"{timing.elements / seconds / 1e6:.1f}"


def draw(results: dict[str, ModelResult], settings: Settings) -> bytes:
    """The figure, a PNG: the worst sample of each coupling for each picture."""
    rows = []
    for picture in PICTURES:
        pair = square(picture, settings.sample_size)
        rows.append(
            Row(
                picture.title,
                kind(picture),
                pair.low,
                pair.high,
                {name: result.worst[picture.title] for name, result in results.items()},
                {
                    name: result.faults[picture.title][SHOWN_TEMPERATURE]
                    for name, result in results.items()
                },
            )
        )
    title = (
        f"4x super-resolution: the worst of {NUM_SAMPLES} samples at temperature "
        f"{SHOWN_TEMPERATURE}"
    )
    if not settings.meaningful:
        title += f"\n{NOT_MEANINGFUL}"
    return comparison_figure(
        rows,
        title,
        "Worst: the sample with the largest |value|; shown clamped to [0, 1], NaN black. "
        "Error: mean over colours, 0 (dark) to 0.3 (bright); turquoise: a value above "
        f"{HIGHEST} or below {LOWEST}, or not finite.",
    )


def to_json(
    results: dict[str, ModelResult],
    timings: Sequence[Timing],
    settings: Settings,
    machine: dict[str, Any],
    seconds: float,
) -> str:
    """Everything that was printed, and what it ran on."""
    content = {
        "meaningful": settings.meaningful,
        "settings": asdict(settings),
        "couplings": {name: _model_json(result) for name, result in results.items()},
        "throughput": [asdict(timing) for timing in timings],
        "machine": machine,
        "seconds": seconds,
    }
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _model_json(result: ModelResult) -> dict[str, Any]:
    pictures = []
    for picture in PICTURES:
        for temperature, faults in result.faults[picture.title].items():
            row = {"picture": picture.title, "kind": kind(picture), "temperature": temperature}
            pictures.append(row | faults.as_json())
    return {
        "total": _total(result).as_json(),
        "bits_per_dimension": {"training": result.bits_training, "held_out": result.bits_held_out},
        "train_seconds": result.train_seconds,
        "sample_seconds": result.sample_seconds,
        "pictures": pictures,
    }


def print_files(console: Console, files: Mapping[str, tuple[Path, bool]], seconds: float) -> None:
    """Name the files that are there, by what they hold, and the time of it all."""
    for words, (file, is_there) in files.items():
        if is_there:
            say(console, f"{words}: {file}")
    say(console, f"{seconds:.0f} s in all.")


def machine() -> dict[str, Any]:
    """What an experiment ran on, for its JSON file."""
    return {
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "robustflow": robustflow.__version__,
        "backends": robustflow.backends(),
        "native": robustflow.build_info(),
    }
