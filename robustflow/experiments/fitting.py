"""Fitting a model by Adam, with the published halvings of its rate."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

_HALVINGS = (0.5, 0.75, 0.9, 0.95)  # parts of the iterations


def fit(
    model: nn.Module,
    draw_loss: Callable[[], Tensor],
    iterations: int,
    learning_rate: float,
    report: Callable[[int, float], None],
) -> None:
    """Minimise a loss, in training mode; the model is in evaluation mode afterwards.

    Args:
        model: whose parameters are trained.
        draw_loss: a new batch's loss, a scalar.
        iterations: updates.
        learning_rate: Adam's, halved after 50, 75, 90 and 95 % of the iterations.
        report: called as ``report(iteration, loss)`` after each update, from 1 on.
    """
    optimiser = torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True)
    milestones = [round(iterations * part) for part in _HALVINGS]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, milestones, gamma=0.5)
    model.train()
    for iteration in range(iterations):
        loss = draw_loss()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        report(iteration + 1, loss.item())
    model.eval()
