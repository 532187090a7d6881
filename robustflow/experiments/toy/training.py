"""Training by maximum likelihood on fresh pairs of a law."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robustflow import nn as rnn
from robustflow.experiments.fitting import fit
from robustflow.experiments.toy.law import Law

UNTRAINED = 0.2  # nats behind the reparametrised affine
_TEST_PAIRS = 16384


@dataclass(frozen=True)
class Settings:
    """Size of the flow and of its training; the same for every coupling.

    Attributes:
        steps: of coupling, 1x1 and actnorm.
        hidden_layers: of a conditioner; the published five (one, and four more).
        hidden_channels: their width.
        batch_size: fresh pairs a batch.
        iterations: updates. Fixed, never a time limit, so that a seed decides the result.
        learning_rate: Adam's, halved after 50, 75, 90 and 95 % of the iterations.
    """

    steps: int = 4
    hidden_layers: int = 5
    hidden_channels: int = 64
    batch_size: int = 256
    iterations: int = 1500
    learning_rate: float = 2e-3

    @property
    def meaningful(self) -> bool:
        """Whether the training is at least as long as the demonstration's own."""
        return self.iterations >= Settings().iterations


QUICK_SETTINGS = Settings(iterations=20)


def train(
    flow: rnn.ConditionalFlow,
    law: Law,
    settings: Settings,
    seed: int,
    report: Callable[[int, float], None],
) -> None:
    """Fit the flow; ``report(iteration, nats)`` after each update."""
    generator = torch.Generator().manual_seed(seed)

    def draw_loss() -> Tensor:
        x, y = law.sample(settings.batch_size, generator)
        return -flow.log_prob(x, y).mean()

    fit(flow, draw_loss, settings.iterations, settings.learning_rate, report)


@torch.no_grad()
def held_out_nats(flow: rnn.ConditionalFlow, law: Law) -> float:
    """Mean negative log-likelihood of pairs that every model of the law is tested on."""
    x, y = law.sample(_TEST_PAIRS, torch.Generator().manual_seed(2**20))
    return float(-flow.log_prob(x, y).mean())


def is_untrained(nats: float, reparametrised_nats: float) -> bool:
    """Whether an affine flow was not trained well enough to say anything about explosions.

    An affine flow whose scales stayed at their upper bound cannot explode, and is far behind in
    likelihood: more than 0.2 nats behind the reparametrised affine flow of the same seed, it is
    rejected. NaN counts as untrained.

    Example:
        >>> is_untrained(-1.64, -2.49), is_untrained(-2.36, -2.49)
        (True, False)
    """
    return not nats <= reparametrised_nats + UNTRAINED
