"""One latent for all pictures, optimised on training pictures, in place of random ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from robustflow.experiments.data.builtin import split_of
from robustflow.experiments.data.reading import read_picture
from robustflow.experiments.imaging.sampling_flow import Conditioned, SamplingFlow
from robustflow.experiments.photographs import crop
from robustflow.experiments.tasks.base import WHITE

_SIDE = 32  # of the training squares, at least
_UPDATES, _RATE = 30, 0.05


def find_latent(flow: SamplingFlow) -> list[Tensor]:
    """The latent, alike at every position, whose pictures are nearest to the training's.

    Each latent is one vector over channels, (1, C, 1, 1): it fits pictures of any size. It starts
    at zero, the latent of temperature 0, and follows the gradient of mean |x - truth| on squares
    of the built-in training photographs; the best of all updates is kept. The flow's weights stay
    as they are.

    Source: BFSR (Tsao et al., CVPR 2024, arXiv:2403.10988) replaces the drawn latent of a trained
    flow by one that a network predicts from the observation. This is the simplest of that kind.
    """
    device = next(flow.parameters()).device
    step = flow.size_multiple
    side = -(-_SIDE // step) * step
    squares = [crop(read_picture(each.file), each.corner, side) for each in split_of("train")]
    truth = flow.task.from_rgb(torch.stack(squares).float() / WHITE)
    y = flow.task.observe(truth, torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad():
        prepared = flow.prepare(y)
    latents = [
        torch.zeros(1, shape[0], 1, 1, device=device, requires_grad=True)
        for shape in flow.latent_shapes(prepared.size)
    ]
    best, smallest = [latent.detach().clone() for latent in latents], torch.inf
    optimiser = torch.optim.Adam(latents, lr=_RATE)
    with torch.enable_grad():
        for _ in range(_UPDATES):
            pictures = _pictures(flow, prepared, latents, len(truth))
            loss = (pictures - truth.to(device)).abs().mean()
            if not bool(loss.isfinite()):  # an explosion: keep the best latent before it
                break
            if loss.item() < smallest:
                best, smallest = [latent.detach().clone() for latent in latents], loss.item()
            gradients = torch.autograd.grad(loss, latents)
            for latent, gradient in zip(latents, gradients, strict=True):
                latent.grad = gradient.nan_to_num()
            optimiser.step()
    return best


@torch.no_grad()
def decode_fixed(flow: SamplingFlow, prepared: Conditioned, latents: Sequence[Tensor]) -> Tensor:
    """The picture (1, C, H, W) of a latent of :func:`find_latent`, for one observation; not
    clamped."""
    return _pictures(flow, prepared, latents, 1)


def _pictures(
    flow: SamplingFlow, prepared: Conditioned, latents: Sequence[Tensor], number: int
) -> Tensor:
    scaled = [
        latent.expand(number, *shape)
        for latent, shape in zip(latents, flow.latent_shapes(prepared.size), strict=True)
    ]
    if prepared.mean is not None:
        scaled[-1] = scaled[-1] + prepared.mean
    residual = flow.invert(scaled, prepared.condition)
    return residual if prepared.guess is None else residual + prepared.guess
