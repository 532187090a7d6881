"""What it costs to watch a flow while it samples: the demonstration's flow, with and without.

    python -m benchmarks.monitor [--coupling affine "modified RQ" ...] [--iterations N]
                                 [--seconds S] [--threads N] [--json FILE]

Each flow is trained first, as the demonstration trains it (about two minutes a coupling at the
default 1200 iterations; few iterations give a flow in which nothing explodes). Then five samples of
a picture are drawn plainly and within a new :class:`robustflow.diagnostics.InverseMonitor`, in
alternation, at a temperature where little or nothing explodes and at one where most does: behind
an explosion there is more to do. The target is for medians, of a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from robustflow import nn as rnn
from robustflow._arguments import output_file, whole_number
from robustflow.benchmarks import machine, timing
from robustflow.benchmarks.rows import duration, write_json
from robustflow.benchmarks.verdicts import Verdict, verdict_table
from robustflow.diagnostics import InverseMonitor
from robustflow.experiments import photographs
from robustflow.experiments.comparison import square
from robustflow.experiments.data.builtin import Picture
from robustflow.experiments.photographs import load
from robustflow.experiments.super_resolution import (
    COUPLINGS,
    Settings,
    build_flow,
    degrade,
    super_resolve,
    train,
)

SAMPLES = 5
CASES: tuple[tuple[Picture, float], ...] = (
    (photographs.CONTROL, 0.5),
    (photographs.CONTROL, 0.9),
    (photographs.OUT_OF_DISTRIBUTION[2], 1.0),
)
TARGET = 1.15  # watched sampling takes at most this much of plain sampling's time


@dataclass(frozen=True)
class Result:
    """One flow, picture and temperature.

    Attributes:
        plain, watched: median seconds of five samples.
        ratio, spread: of the two, round by round.
        onsets: how many explosions began.
    """

    coupling: str
    picture: str
    temperature: float
    plain: float
    watched: float
    ratio: float
    spread: float
    onsets: int

    @property
    def met(self) -> bool:
        return self.ratio <= TARGET


def measure(
    flow: rnn.ConditionalFlow, coupling: str, settings: Settings, seconds: float
) -> list[Result]:
    """Every case, for one flow."""
    results = []
    for picture, temperature in CASES:
        pair = square(picture, settings.sample_size)

        def plain(pair: Any = pair, temperature: float = temperature) -> None:
            super_resolve(flow, pair, SAMPLES, temperature, settings.seed)

        monitors: list[InverseMonitor] = []

        def watched() -> None:
            with InverseMonitor(flow) as monitor:
                plain()
            monitors[:] = [monitor]  # noqa: B023

        times = timing.alternate({"plain": plain, "watched": watched}, seconds=seconds)
        results.append(
            Result(
                coupling,
                picture.title,
                temperature,
                times["plain"].median,
                times["watched"].median,
                times["watched"].median / times["plain"].median,
                timing.ratio_spread(times["watched"], times["plain"]),
                monitors[0].report().onset_count,
            )
        )
    return results


def report(results: Sequence[Result]) -> str:
    verdicts = [
        Verdict(
            f"{each.coupling}, {each.picture} at {each.temperature:g}",
            {
                "onsets": str(each.onsets),
                "plain": duration(each.plain),
                "watched": duration(each.watched),
                "ratio": f"{each.ratio:.2f}",
                "spread": f"{each.spread:.0%}",
            },
            each.met,
        )
        for each in results
    ]
    return verdict_table(verdicts, f"coupling, picture and temperature: at most {TARGET}")


def trained(coupling: str, settings: Settings) -> rnn.ConditionalFlow:
    torch.manual_seed(settings.seed)
    pairs = [degrade(load(picture)) for picture in photographs.TRAINING]
    flow = build_flow(COUPLINGS[coupling], settings)

    def say(iteration: int, bits: float) -> None:
        if iteration % 100 == 0:
            print(f"{coupling}: {iteration} iterations, {bits:.2f} bits/dim", file=sys.stderr)

    train(flow, pairs, settings, say)
    return flow.eval()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    standard = Settings()
    parser.add_argument("--coupling", nargs="+", choices=COUPLINGS, default=list(COUPLINGS))
    parser.add_argument("--iterations", type=whole_number(1), default=standard.iterations)
    parser.add_argument("--steps", type=whole_number(1), default=standard.steps)
    parser.add_argument("--seconds", type=float, default=20.0, help="a case, beyond warm-up")
    parser.add_argument("--threads", type=whole_number(1), help="default: torch's own number")
    parser.add_argument("--json", type=output_file, help="write the results there")
    options = parser.parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    settings = replace(standard, iterations=options.iterations, steps=options.steps)
    results: list[Result] = []
    for coupling in options.coupling:
        results += measure(trained(coupling, settings), coupling, settings, options.seconds)
    print(report(results))
    saved = True
    if options.json:
        content = {
            "settings": asdict(settings),
            "threads": torch.get_num_threads(),
            "results": [asdict(each) for each in results],
        }
        saved = write_json(options.json, machine.describe(), [], monitor=content)
    return int(not saved)


if __name__ == "__main__":
    sys.exit(main())
