"""Small conditional flows for 4x super-resolution that differ in their coupling only.

The flow models the residual of bicubic upsampling: x is the high-resolution picture minus the
upsampled low-resolution one, its 4x4 blocks squeezed into 48 channels, given features of the
low-resolution picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustflow import nn as rnn
from robustflow.experiments.encoders import TinyEncoder
from robustflow.experiments.fitting import fit
from robustflow.experiments.photographs import crop
from robustflow.experiments.tasks.base import WHITE

SCALE = 4

COUPLINGS: dict[str, rnn.ElementwiseTransform] = {
    "affine": rnn.Affine(),
    "reparametrised affine": rnn.Affine(reciprocal=True),
    "modified RQ": rnn.ModifiedRQSpline(),
}


@dataclass(frozen=True)
class Settings:
    """Size of the network and of its training; the same for every coupling.

    Attributes:
        steps: flow steps, each with an injector and a coupling.
        feature_channels: channels of the encoder's features.
        hidden_channels: width of the conditioners.
        crop: side of a training crop, a multiple of 4.
        batch_size: crops in a batch.
        iterations: updates. Fixed, never a time limit, so that a seed decides the result.
        learning_rate: Adam's, halved after 50, 75, 90 and 95 % of the iterations.
        sample_size: side of the squares that are sampled, a multiple of 4.
        seed: decides the initial weights, the crops and the latents.
    """

    steps: int = 16
    feature_channels: int = 32
    hidden_channels: int = 32
    crop: int = 32
    batch_size: int = 8
    iterations: int = 1200
    learning_rate: float = 1e-3
    sample_size: int = 160
    seed: int = 0

    @property
    def meaningful(self) -> bool:
        """Whether the models are as large, and trained as long, as the demonstration's own."""
        standard = Settings()
        return self.steps >= standard.steps and self.iterations >= standard.iterations


QUICK_SETTINGS = Settings(steps=2, iterations=20, sample_size=64)


def build_flow(transform: rnn.ElementwiseTransform, settings: Settings) -> rnn.ConditionalFlow:
    """A flow of one level over residuals (N, 3, 4H, 4W), given pictures (N, 3, H, W)."""
    channels = 3 * SCALE**2
    layers: list[nn.Module] = [rnn.Squeeze(SCALE)]
    for _ in range(settings.steps):
        layers += rnn.flow_step(
            channels,
            settings.feature_channels,
            transform,
            hidden_channels=settings.hidden_channels,
            head_kernel_size=1,
        )
    return rnn.ConditionalFlow([layers], TinyEncoder(settings.feature_channels))


@dataclass(frozen=True)
class Pair:
    """A picture at both resolutions, values in [0, 1].

    Attributes:
        high: (3, 4H, 4W).
        low: (3, H, W), 8 bits deep.
        upsampled: low by bicubic interpolation, (3, 4H, 4W).
    """

    high: Tensor
    low: Tensor
    upsampled: Tensor


def degrade(image: Tensor) -> Pair:
    """Make the low-resolution picture of (3, H, W), uint8, cut to multiples of 4."""
    height, width = (side - side % SCALE for side in image.shape[-2:])
    high = image[None, :, :height, :width].float() / WHITE
    small = functional.interpolate(high, scale_factor=1 / SCALE, mode="bicubic", antialias=True)
    low = (small.clamp(0, 1) * WHITE).round() / WHITE
    return Pair(high[0], low[0], upsample(low)[0])


def upsample(low: Tensor) -> Tensor:
    """Bicubic upsampling by 4, (N, C, H, W)."""
    return functional.interpolate(low, scale_factor=SCALE, mode="bicubic")


class CropSampler:
    """Random aligned crops of pairs, flipped at random: (residual, low) batches.

    Residuals carry uniform noise of one 8-bit step, so that their density bounds the
    probability of the 8-bit picture.
    """

    def __init__(self, pairs: Sequence[Pair], settings: Settings, seed: int) -> None:
        self.pairs = pairs
        self.size = settings.crop // SCALE
        self.batch_size = settings.batch_size
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self) -> tuple[Tensor, Tensor]:
        residuals, lows = zip(*(self._crop() for _ in range(self.batch_size)), strict=True)
        residual = torch.stack(residuals)
        noise = torch.rand(residual.shape, generator=self.generator) - 0.5
        return residual + noise / WHITE, torch.stack(lows)

    def _crop(self) -> tuple[Tensor, Tensor]:
        pair = self.pairs[self._below(len(self.pairs))]
        top = self._below(pair.low.shape[1] - self.size + 1)
        left = self._below(pair.low.shape[2] - self.size + 1)
        flip = bool(self._below(2))
        low = crop(pair.low, (top, left), self.size)
        corner, size = (top * SCALE, left * SCALE), self.size * SCALE
        residual = crop(pair.high, corner, size) - crop(pair.upsampled, corner, size)
        return (residual.flip(-1), low.flip(-1)) if flip else (residual, low)

    def _below(self, limit: int) -> int:
        return int(torch.randint(limit, (), generator=self.generator))


def bits_per_dimension(flow: rnn.ConditionalFlow, residual: Tensor, low: Tensor) -> Tensor:
    """Bits per value of an 8-bit picture, mean over a batch."""
    return flow.bits_per_dim(residual, low).mean() + math.log2(WHITE)


def train(
    flow: rnn.ConditionalFlow,
    pairs: Sequence[Pair],
    settings: Settings,
    report: Callable[[int, float], None],
) -> None:
    """Fit by maximum likelihood; ``report(iteration, bits per dimension)`` after each update."""
    sampler = CropSampler(pairs, settings, settings.seed + 1)
    fit(
        flow,
        lambda: bits_per_dimension(flow, *sampler()),
        settings.iterations,
        settings.learning_rate,
        report,
    )


@torch.no_grad()
def evaluate(flow: rnn.ConditionalFlow, pairs: Sequence[Pair], settings: Settings) -> float:
    """Bits per dimension over 16 batches of crops that every coupling sees alike."""
    sampler = CropSampler(pairs, settings, seed=2**20)
    return sum(float(bits_per_dimension(flow, *sampler())) for _ in range(16)) / 16


@torch.no_grad()
def super_resolve(
    flow: rnn.ConditionalFlow, pair: Pair, num_samples: int, temperature: float, seed: int
) -> Tensor:
    """Samples of the high-resolution picture, (num_samples, 3, 4H, 4W), not clamped."""
    generator = torch.Generator().manual_seed(seed)
    residuals = flow.sample(
        num_samples, pair.low[None], temperature=temperature, generator=generator
    )
    return pair.upsampled + residuals[0]
