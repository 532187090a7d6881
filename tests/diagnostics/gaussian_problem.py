"""A linear inverse problem whose posterior is known exactly, and samples that miss it by design."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binom, norm
from torch import Tensor

SIDE = 12
_SCALE = 2
_NOISE = 0.05
_DEVIATION = 0.1
_LENGTH = 2.0  # of the prior's correlation, in pixels

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Miss:
    """How samples miss the posterior N(m, S): they are m + bias * sd + width * (x - m).

    Attributes:
        bias: in standard deviations of each pixel.
        width: factor on all deviations.
    """

    bias: float = 0.0
    width: float = 1.0


MISSES = {
    "calibrated": Miss(),
    "too wide": Miss(width=1.6),
    "too narrow": Miss(width=0.6),
    "biased": Miss(bias=0.5),
}


@lru_cache(maxsize=1)
def posterior() -> tuple[Tensor, Tensor, Tensor]:
    """The prior's root, the gain G of m = mean + G (y - A mean), and the posterior's S; float64."""
    places = torch.arange(SIDE, dtype=torch.float64)
    points = torch.cartesian_prod(places, places)
    prior = _DEVIATION**2 * torch.exp(-torch.cdist(points, points) / _LENGTH)
    observe = observation_matrix()
    seen = observe @ prior @ observe.T + _NOISE**2 * torch.eye(len(observe), dtype=torch.float64)
    gain = torch.linalg.solve(seen, observe @ prior).T
    covariance = prior - gain @ observe @ prior
    return torch.linalg.cholesky(prior), gain, (covariance + covariance.T) / 2


def observation_matrix() -> Tensor:
    """A: means of 2 x 2 pixels."""
    pictures = torch.eye(SIDE**2, dtype=torch.float64).view(-1, 1, SIDE, SIDE)
    return torch.nn.functional.avg_pool2d(pictures, _SCALE).flatten(1).T.contiguous()


def problems(number: int, seed: int) -> tuple[Tensor, Tensor]:
    """Truths and the means of their posteriors, each (N, 1, SIDE, SIDE); float64."""
    generator = torch.Generator().manual_seed(seed)
    root, gain, _ = posterior()
    truth = torch.randn(number, SIDE**2, generator=generator, dtype=torch.float64) @ root.T
    observe = observation_matrix()
    noise = torch.randn(number, len(observe), generator=generator, dtype=torch.float64)
    mean = (truth @ observe.T + _NOISE * noise) @ gain.T
    shape = (number, 1, SIDE, SIDE)
    return 0.5 + truth.view(shape), 0.5 + mean.view(shape)


def draw(mean: Tensor, number: int, miss: Miss, seed: int) -> Tensor:
    """Samples (N, K, 1, SIDE, SIDE) of the posteriors with these means, or what misses them."""
    covariance = posterior()[2]
    root = torch.linalg.cholesky(covariance)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(mean), number, SIDE**2, generator=generator, dtype=torch.float64)
    off = miss.bias * covariance.diagonal().sqrt() + miss.width * noise @ root.T
    return mean[:, None] + off.view(len(mean), number, 1, SIDE, SIDE)


def bias_of(weights: Tensor, miss: Miss) -> Array:
    """The bias of sum(w x), in its own standard deviations, for weights (F, pixels)."""
    covariance = posterior()[2]
    flat = weights.double().flatten(1)
    deviation = torch.einsum("fi,ij,fj->f", flat, covariance, flat).sqrt()
    return (miss.bias * (flat @ covariance.diagonal().sqrt()) / deviation).numpy()


def rank_law(number: int, bias: float, width: float) -> Array:
    """P(rank = 0), ..., P(rank = K) of the truth z ~ N(0, 1) among K draws of N(bias, width^2)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    chance = norm.cdf((nodes - bias) / width)
    law = binom.pmf(np.arange(number + 1)[:, None], number, chance)
    found: Array = law @ weights / math.sqrt(2 * math.pi)
    return found
