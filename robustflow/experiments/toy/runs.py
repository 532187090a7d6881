"""Train one flow and read it: a worker's job."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustflow import nn as rnn
from robustflow.diagnostics import certify
from robustflow.experiments.toy import attack, reading
from robustflow.experiments.toy.attack import Attack
from robustflow.experiments.toy.law import LAWS
from robustflow.experiments.toy.models import COUPLINGS, build_flow
from robustflow.experiments.toy.reading import LayerReading, RadiusReading
from robustflow.experiments.toy.training import Settings, held_out_nats, train

CORNERS = 4
_CORNER_SAMPLES = 256
_BOARD_SAMPLES = 2048
LAYER_SAMPLES = 4096

Report = Callable[[int, str], None]


@dataclass(frozen=True)
class Run:
    """One flow to train.

    Attributes:
        law: a key of ``LAWS``.
        coupling: a key of ``COUPLINGS``.
        seed: decides the initial weights and the training pairs.
    """

    law: str
    coupling: str
    seed: int

    def __str__(self) -> str:
        return f"{self.coupling}, seed {self.seed}"


# With which couplings: the effect and the remedies; and the controls.
CONTENT: dict[str, tuple[str, ...]] = {
    "widening": tuple(COUPLINGS),
    "fixed width": ("affine",),
    "checkerboard": ("affine", "modified RQ, ±3", "RQ, 8 bins"),
}


def runs_of(seeds: Sequence[int]) -> list[Run]:
    """All that the demonstration trains."""
    return [
        Run(law, coupling, seed)
        for seed in seeds
        for law, couplings in CONTENT.items()
        for coupling in couplings
    ]


@dataclass(frozen=True)
class Certified:
    """What ``robustflow.diagnostics.certify`` says of a trained flow.

    Attributes:
        gain: what the couplings multiply by in all, whatever the condition.
        A, B: of \\|x\\| <= A \\|z\\| + B + what the shifts add.
        passed: the verdict.
    """

    gain: float
    A: float
    B: float
    passed: bool


@dataclass(frozen=True)
class RunResult:
    """The results of one flow.

    Attributes:
        run: which one.
        nats: negative log-likelihood of held-out pairs.
        step_milliseconds: the processor's time for one update.
        radii: its samples by the radius of the condition.
        inside, outside: its layers, for the law's own conditions and for those of radius 3.
        attacks: the worst that a search found, by radius.
        certified: the bounds.
        corners_inside, corners_outside: samples at the four corners of the squares of radius 1 and
            3, (4, n, 2).
        centre: samples at y = 0, (n, 2).
    """

    run: Run
    nats: float
    step_milliseconds: float
    radii: list[RadiusReading]
    inside: list[LayerReading]
    outside: list[LayerReading]
    attacks: list[Attack]
    certified: Certified
    corners_inside: Tensor
    corners_outside: Tensor
    centre: Tensor

    @property
    def explosion(self) -> LayerReading | None:
        """The layer in which most explosions begin at radius 3; None where nothing explodes."""
        most = max(self.outside, key=lambda layer: layer.onsets)
        return most if most.onsets else None

    def at(self, radius: float) -> RadiusReading:
        """The reading at one of the radii."""
        return next(reading for reading in self.radii if reading.radius == radius)


def perform(runs: Sequence[Run], settings: Settings, report: Report) -> list[RunResult]:
    """Train and read one flow after the other.

    Args:
        runs: which ones.
        settings: of all of them.
        report: called as ``report(iterations done, a word)``, counted over all the runs.
    """
    results: list[RunResult] = []
    for run in runs:
        before = len(results) * settings.iterations

        def report_all(done: int, word: str, before: int = before) -> None:
            report(before + done, word)

        results.append(train_and_read(run, settings, report_all))
    return results


def train_and_read(run: Run, settings: Settings, report: Report) -> RunResult:
    """Train and read one flow."""
    torch.manual_seed(run.seed)
    law = LAWS[run.law]
    flow = build_flow(COUPLINGS[run.coupling], settings)
    recent: list[float] = []

    def after_update(iteration: int, nats: float) -> None:
        recent.append(nats)
        if iteration % 50 == 0 or iteration == settings.iterations:
            report(iteration, f"{run}: {sum(recent) / len(recent):.2f} nats")
            recent.clear()

    started = time.process_time()  # not the clock: the cores may be shared
    train(flow, law, settings, run.seed + 1, after_update)
    seconds = time.process_time() - started
    _, familiar = law.sample(LAYER_SAMPLES, torch.Generator().manual_seed(2**20))
    unfamiliar = reading.conditions(reading.OUTSIDE).repeat_interleave(
        LAYER_SAMPLES // reading.DIRECTIONS, dim=0
    )
    certificate = certify(flow)
    return RunResult(
        run,
        held_out_nats(flow, law),
        1000 * seconds / settings.iterations,
        [reading.read_radius(flow, law, radius) for radius in reading.RADII],
        reading.read_layers(flow, familiar),
        reading.read_layers(flow, unfamiliar),
        [attack.attack(flow, radius) for radius in attack.RADII],
        Certified(
            certificate.growth.conditional,
            certificate.growth.A,
            certificate.growth.B,
            certificate.passed,
        ),
        reading.sample_at(flow, 1.0, CORNERS, _CORNER_SAMPLES),
        reading.sample_at(flow, reading.OUTSIDE, CORNERS, _CORNER_SAMPLES),
        _sample_centre(flow),
    )


@torch.no_grad()
def _sample_centre(flow: rnn.ConditionalFlow) -> Tensor:
    samples, _ = flow.inverse((reading.latents(_BOARD_SAMPLES),), torch.zeros(1, 2))
    return samples
