"""`python -m robustflow.experiments.robustness`: the demonstration's flows under the diagnostics.

Trains the demonstration's three flows, writes the robustness report of each, and answers: does the
monitor name the layer where explosions begin (holding that layer's scale at its median removes
them)? Do the certificates agree with what sampling does? What do detectors of artifacts find of
what onsets reached? What do guards remove, and what do they change?
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from robustflow import nn as rnn
from robustflow._files import UnwritablePath, check_writable, write_atomically
from robustflow.diagnostics import (
    InverseMonitor,
    clamp_inverse,
    cool_latents,
    find_artifacts,
    hold_scale,
    judge_detectors,
    measure_guards,
    project_onto_observation,
    resample_onsets,
)
from robustflow.diagnostics.report.report import robustness_report
from robustflow.diagnostics.report.result import RobustnessReport
from robustflow.experiments.console import say
from robustflow.experiments.data.builtin import Split, split_of
from robustflow.experiments.photographs import TRAINING, crop, load
from robustflow.experiments.super_resolution import (
    COUPLINGS,
    QUICK_SETTINGS,
    Pair,
    Settings,
    build_flow,
    degrade,
    train,
    upsample,
)
from robustflow.experiments.tasks import SuperResolution
from robustflow.experiments.workers import run_in_processes

NUM_SAMPLES = 5
TEMPERATURES = (0.7, 0.8, 0.9, 1.0)
_SPLITS: tuple[Split, ...] = ("train", "held_out", "ood")


def squares(split: Split, size: int) -> dict[str, Pair]:
    """The square of each picture of a split, by title, at both resolutions."""
    return {
        picture.title: degrade(crop(load(picture), picture.corner, size))
        for picture in split_of(split)
    }


def trained(
    coupling: str, settings: Settings, report: Callable[[int, str], None]
) -> dict[str, Tensor]:
    """The weights of a demonstration's flow: a worker's job."""
    torch.manual_seed(settings.seed)
    flow = build_flow(COUPLINGS[coupling], settings)
    pairs = [degrade(load(picture)) for picture in TRAINING]

    def after_update(iteration: int, bits: float) -> None:
        if iteration % 100 == 0:
            report(iteration, f"{bits:.2f} bits/dim")

    train(flow, pairs, settings, after_update)
    return flow.state_dict()


def sampler_of(flow: rnn.ConditionalFlow) -> Any:
    """Samples of the picture, not of the residual."""

    def draw(low: Tensor, number: int, temperature: float, generator: torch.Generator) -> Tensor:
        residuals = flow.sample(number, low, temperature=temperature, generator=generator)
        return upsample(low) + residuals[0]

    return draw


def report_of(
    flow: rnn.ConditionalFlow, settings: Settings, out: Path, title: str
) -> RobustnessReport:
    """The robustness report of a demonstration's flow."""

    def contexts(split: Split) -> dict[str, Tensor]:
        pairs = squares(split, settings.sample_size)
        return {name: pair.low[None] for name, pair in pairs.items()}

    return robustness_report(
        flow,
        contexts("train"),
        contexts("ood"),
        held_out=contexts("held_out"),
        sample=sampler_of(flow),
        num_samples=NUM_SAMPLES,
        temperatures=TEMPERATURES,
        seed=settings.seed,
        out=out,
        title=title,
    )


def held_at_the_median(
    flow: rnn.ConditionalFlow, report: RobustnessReport, seed: int
) -> list[dict[str, Any]]:
    """For each context with onsets: those of its first layer to explode, before and with that
    layer's scale held at its median."""
    rows = []
    draw = sampler_of(flow)
    for each in report.evidence:
        before = each.sampled[report.temperature].onsets
        if not before:
            continue
        layer = before[0].layer

        def onsets(context: Tensor = each.context) -> list[Any]:
            with torch.no_grad(), InverseMonitor(flow) as monitor:
                generator = torch.Generator().manual_seed(seed)
                draw(context, NUM_SAMPLES, report.temperature, generator)
            return monitor.onsets

        with hold_scale(flow, layer):
            after = onsets()
        rows.append(
            {
                "context": each.title,
                "first layer": layer,
                "onsets": len(before),
                "onsets in that layer": sum(onset.layer == layer for onset in before),
                "onsets, scale held": len(after),
                "in that layer, scale held": sum(onset.layer == layer for onset in after),
            }
        )
    return rows


def detectors(
    flow: rnn.ConditionalFlow, settings: Settings, temperature: float
) -> dict[str, dict[str, Any]]:
    """Every kind of artifact, judged by what onsets reached, over all pictures."""
    draw = sampler_of(flow)
    masks_by_kind: dict[str, list[Tensor]] = {}
    scored: dict[str, list[Tensor]] = {}
    truth = []
    for split in _SPLITS:
        for pair in squares(split, settings.sample_size).values():
            with torch.no_grad(), InverseMonitor(flow) as monitor:
                generator = torch.Generator().manual_seed(settings.seed)
                samples = draw(pair.low[None], NUM_SAMPLES, temperature, generator)
            safe = draw(pair.low[None], 1, 0.0, torch.Generator())
            artifacts = find_artifacts(samples, pair.low[None], "sr4", safe)
            truth.append(monitor.contaminated.any(dim=1))
            for kind, mask in artifacts.masks.items():
                masks_by_kind.setdefault(kind, []).append(mask)
            for kind, score in artifacts.scores.items():
                scored.setdefault(kind, []).append(score)
    judged = judge_detectors(
        {kind: torch.cat(masks) for kind, masks in masks_by_kind.items()},
        torch.cat(truth),
        scores={kind: torch.cat(scores) for kind, scores in scored.items()},
        resamples=200,
    )
    return {kind: judgement.to_dict() for kind, judgement in judged.items()}


def guards(
    flow: rnn.ConditionalFlow, settings: Settings, temperature: float
) -> list[dict[str, Any]]:
    """Each guard on one sample of every picture, beside a plain temperature cut."""
    pairs = [pair for split in _SPLITS for pair in squares(split, settings.sample_size).values()]
    condition = flow.condition(torch.stack([pair.low for pair in pairs]))
    guess = torch.stack([pair.upsampled for pair in pairs])
    low = torch.stack([pair.low for pair in pairs])
    task = SuperResolution(4)
    channels, *size = (48, *low.shape[2:])
    generator = torch.Generator().manual_seed(settings.seed)
    latents = [temperature * torch.randn(len(pairs), channels, *size, generator=generator)]

    def decode(values: Sequence[Tensor]) -> Tensor:
        return guess + flow.inverse(tuple(values), condition=condition)[0]

    def clamped(gain: float) -> Tensor:
        with clamp_inverse(flow, max_gain=gain):
            return decode(latents)

    def projected() -> Tensor:
        samples = decode(latents)
        return project_onto_observation(samples, low, task.forward, task.pseudo_inverse)

    def cooled() -> Tensor:
        with InverseMonitor(flow) as monitor:
            decode(latents)
        where = monitor.contaminated.any(dim=1)
        return decode(cool_latents(latents, where, 0.5))

    def resampled() -> Tensor:
        fresh = torch.Generator().manual_seed(settings.seed + 1)
        return resample_onsets(flow, decode, latents, temperature=temperature, generator=fresh)[0]

    ways = {
        "none": lambda: decode(latents),
        "temperature cut by 10 %": lambda: decode([0.9 * latents[0]]),
        "temperature cut by 30 %": lambda: decode([0.7 * latents[0]]),
        "gain of each inverse at most 10": lambda: clamped(10.0),
        "gain of each inverse at most 3": lambda: clamped(3.0),
        "latents drawn anew around onsets": resampled,
        "temperature halved where an onset reached": cooled,
        "projected onto the observation": projected,
    }
    return [row.to_dict() for row in measure_guards(flow, ways, plain="none")]


def run(settings: Settings, out: Path, console: Console) -> dict[str, Any]:
    """Train, report and answer; the answers, which ``robustness.json`` holds."""
    names = list(COUPLINGS)
    console.print(f"Training {', '.join(names)}: {settings.iterations} iterations each.")
    weights = run_in_processes(trained, {name: (name, settings) for name in names}, lambda *_: None)
    answers: dict[str, Any] = {}
    for name in names:
        flow = build_flow(COUPLINGS[name], settings).eval()
        flow.load_state_dict(weights[name])
        folder = out / name.replace(" ", "-")
        report = report_of(flow, settings, folder, f"the demonstration, {name}")
        console.rule(name)
        say(console, str(report))
        answers[name] = {
            "summary": str(report).splitlines(),
            "page": str(report.path),
            "scale held": held_at_the_median(flow, report, settings.seed),
            "detectors": detectors(flow, settings, report.temperature),
        }
        if name == "affine":
            answers[name]["guards"] = {
                temperature: guards(flow, settings, temperature) for temperature in TEMPERATURES[1:]
            }
        write_atomically(out / "robustness.json", json.dumps(answers, indent=2))
    return answers


def main(argv: list[str] | None = None) -> int:
    """The command line; 0 when all is written."""
    parser = argparse.ArgumentParser(
        prog="python -m robustflow.experiments.robustness", description=__doc__
    )
    parser.add_argument("--out", type=Path, default=Path("robustflow-robustness"), metavar="DIR")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--quick", action="store_true", help="tiny models: shows that it runs")
    args = parser.parse_args(argv)
    try:
        check_writable(args.out / "robustness.json")
    except UnwritablePath as error:
        print(f"robustness: {error}", file=sys.stderr)
        return 2
    base = QUICK_SETTINGS if args.quick else Settings()
    run(Settings(**{**vars(base), "seed": args.seed}), args.out, Console())
    return 0


if __name__ == "__main__":
    sys.exit(main())
