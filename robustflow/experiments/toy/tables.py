"""What the toy prints."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import robustflow
from robustflow.experiments.toy import attack, reading
from robustflow.experiments.toy.law import LAWS
from robustflow.experiments.toy.runs import LAYER_SAMPLES, Run, RunResult
from robustflow.experiments.toy.summary import NOT_MEANINGFUL, Outcome, Span, magnitude, percent
from robustflow.experiments.toy.training import UNTRAINED, Settings

_LAW = "widening"


def print_introduction(console: Console, settings: Settings, runs: Sequence[Run]) -> None:
    """Print what is about to happen."""
    seeds = sorted({run.seed for run in runs})
    words = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"
    console.print(
        f"{len(runs)} conditional flows in two dimensions, alike but for their coupling: "
        f"{settings.steps} steps, {settings.iterations} iterations of {settings.batch_size} fresh "
        f"pairs, {words}; a process with one thread for each core.",
        highlight=False,
    )
    if not settings.meaningful:
        console.print(NOT_MEANINGFUL, style="bold yellow")
    native = robustflow.backends()["cpu"]
    if native is not True:
        console.print(f"The fused kernels are not in use. {native}", style="bold yellow")


def print_outcome(console: Console, outcome: Outcome) -> None:
    """The tables, and what the controls did."""
    for table in (_couplings(outcome), _radii(outcome), _attacks(outcome)):
        console.print(table)
    for line in (*_explosions(outcome), *_rejected(outcome), *_controls(outcome)):
        console.print(line, highlight=False)


def _table(title: str, caption: str, headings: Sequence[str]) -> Table:
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("coupling", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _couplings(outcome: Outcome) -> Table:
    law, outside = LAWS[_LAW], reading.OUTSIDE
    table = _table(
        "Likelihood, certificate, and absurd samples",
        f"nats: negative log-likelihood, at least {law.entropy:.2f}; gain: certified, of the "
        f"couplings together; absurd: |x| above {reading.absurd_limit(law, outside):.0f} at radius "
        f"{outside:g}, in directions and in samples; ms: of a processor, an update",
        ("nats", "gain", "directions", "samples", "ms"),
    )
    for coupling in outcome.couplings(_LAW):
        results = outcome.of(_LAW, coupling)
        at = [result.at(outside) for result in results]
        cells = (
            Span.of(result.nats for result in results).text("{:.2f}"),
            Span.of(result.certified.gain for result in results).text(magnitude),
            Span.of(each.directions for each in at).text(percent),
            Span.of(each.absurd for each in at).text(percent),
            Span.of(result.step_milliseconds for result in results).text("{:.1f}"),
        )
        table.add_row(coupling, *cells, style=_style(results))
    return table


def _radii(outcome: Outcome) -> Table:
    table = _table(
        "Largest |x| by the radius of the condition",
        f"{reading.DIRECTIONS} directions, {reading.LATENTS} latents each; training conditions "
        f"have radius 1 at most, training data |x| {LAWS[_LAW].largest:g}",
        [f"{radius:g}" for radius in reading.RADII],
    )
    for coupling in outcome.couplings(_LAW):
        results = outcome.of(_LAW, coupling)
        spans = (
            Span.of(result.at(radius).largest for result in results) for radius in reading.RADII
        )
        table.add_row(coupling, *(span.text(magnitude) for span in spans), style=_style(results))
    return table


def _attacks(outcome: Outcome) -> Table:
    table = _table(
        "Largest |x| of the worst condition within a radius, and the certified bound",
        "the largest over seeds; found by gradient; the bound is given the shifts that the "
        "conditioners made there; shift: the largest of them, at the largest radius",
        [f"{radius:g}\n{what}" for radius in attack.RADII for what in ("found", "bound")]
        + ["\nshift"],
    )
    for coupling in outcome.couplings(_LAW):
        results = outcome.of(_LAW, coupling)
        cells = []
        for attacks in zip(*(result.attacks for result in results), strict=True):
            cells.append(magnitude(max(each.largest for each in attacks)))
            cells.append(magnitude(max(each.bound for each in attacks)))
        cells.append(magnitude(max(result.attacks[-1].shifts for result in results)))
        table.add_row(coupling, *cells, style=_style(results))
    return table


def _style(results: Sequence[RunResult]) -> str:
    return "bold red" if any(each.absurd for result in results for each in result.radii) else ""


def _explosions(outcome: Outcome) -> list[str]:
    lines = []
    for coupling in outcome.couplings(_LAW):
        explosions = {result.run.seed: result.explosion for result in outcome.of(_LAW, coupling)}
        words = "; ".join(
            f"{layer.name} (seed {seed}, {percent(layer.onsets / LAYER_SAMPLES)} of the samples)"
            for seed, layer in explosions.items()
            if layer is not None
        )
        if words:
            lines.append(
                f"Where a value grows by {reading.EXPLOSION:g} at radius {reading.OUTSIDE:g}, "
                f"counted from the latents: {coupling}: {words}."
            )
    return lines


def _rejected(outcome: Outcome) -> list[str]:
    return [
        f"Rejected as untrained: {run}, {behind:.2f} nats behind the reparametrised affine "
        f"coupling (more than {UNTRAINED:g}). It says nothing about explosions; it needs more "
        "iterations."
        for run, behind in outcome.rejected.items()
    ]


def _controls(outcome: Outcome) -> list[str]:
    lines = []
    fixed = outcome.of("fixed width", "affine")
    radius = reading.RADII[-1]
    largest = Span.of(result.at(radius).largest for result in fixed)
    absurd = max(each.absurd for result in fixed for each in result.radii)
    lines.append(
        f"Control, a width that is the same for every condition: affine, largest |x| at radius "
        f"{radius:g}: {largest.text(magnitude)}; absurd samples: {percent(absurd)}."
    )
    entropy = LAWS["checkerboard"].entropy
    above = {
        coupling: Span.of(r.nats - entropy for r in outcome.of("checkerboard", coupling))
        for coupling in outcome.couplings("checkerboard")
    }
    words = "; ".join(f"{coupling}: {span.text('{:.2f}')}" for coupling, span in above.items())
    lines.append(f"Control, a checkerboard: nats above its entropy: {words}.")
    return lines
