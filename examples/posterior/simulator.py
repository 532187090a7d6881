"""A simulator whose posterior is known in closed form: bent, with two modes, in five dimensions.

Twisting a plane, turning each of its points by an angle that grows with its radius, changes neither
volumes nor a standard normal distribution. So with z = twist(theta), theta ~ N(0, 1),

    x = z + sign·offset + noise·N(0, 1),    sign = +1 or -1 with equal odds

has for a posterior of z a mixture of two normal distributions, and for one of theta the same
density at twist(theta), without a Jacobian.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

_PLANES = ((0, 1), (2, 3), (4, 0))  # twisted one after the other


@dataclass(frozen=True)
class TwistedSimulator:
    """Five parameters, five measurements with noise and an offset of unknown sign.

    Attributes:
        twist: angle, in radians, by which a point of radius 1 is turned.
        offset: what is added to or subtracted from every measurement.
        noise: standard deviation of the measurements' noise.
    """

    twist: float = 0.5
    offset: float = 0.5
    noise: float = 0.5

    dimensions = 5

    def prior(self) -> MultivariateNormal:
        """The prior of theta: standard normal."""
        return MultivariateNormal(torch.zeros(self.dimensions), torch.eye(self.dimensions))

    def __call__(self, theta: Tensor, generator: torch.Generator) -> Tensor:
        """Measurements (N, 5) for parameters (N, 5)."""
        sign = 1 - 2 * torch.randint(2, (len(theta), 1), generator=generator)
        noise = torch.randn(theta.shape, generator=generator)
        return _turn(theta, self.twist, _PLANES) + sign * self.offset + self.noise * noise

    def log_posterior(self, theta: Tensor, x: Tensor) -> Tensor:
        """log p(theta | x), exact: (N, 5) and (N, 5), or (5,), to (N,) in float64."""
        z = _turn(theta.double(), self.twist, _PLANES)
        weights, means, deviation = self._mixture(x.double())
        distances = (z.unsqueeze(-2) - means).square().sum(-1) / deviation**2
        normaliser = self.dimensions * (math.log(deviation) + 0.5 * math.log(2 * math.pi))
        return (weights - 0.5 * distances).logsumexp(-1) - normaliser

    def sample_posterior(self, num_samples: int, x: Tensor, generator: torch.Generator) -> Tensor:
        """Exact samples (num_samples, 5) for one measurement (5,)."""
        weights, means, deviation = self._mixture(x)
        chosen = torch.multinomial(weights.exp(), num_samples, True, generator=generator)
        noise = torch.randn(num_samples, self.dimensions, generator=generator)
        return _turn(means[chosen] + deviation * noise, -self.twist, _PLANES[::-1])

    def _mixture(self, x: Tensor) -> tuple[Tensor, Tensor, float]:
        """The mixture of z given x: (..., 2) log-weights, (..., 2, 5) means, the deviation."""
        variance = 1 + self.noise**2  # of x given the sign
        centred = torch.stack([x - self.offset, x + self.offset], -2)
        weights = (-0.5 * centred.square().sum(-1) / variance).log_softmax(-1)
        return weights, centred / variance, self.noise / math.sqrt(variance)


def _turn(points: Tensor, angle: float, planes: Sequence[tuple[int, int]]) -> Tensor:
    """Turn every point (..., 5) in each plane by ``angle`` times its radius there."""
    columns = list(points.unbind(-1))
    for i, j in planes:
        a, b = columns[i], columns[j]
        turn = angle * torch.hypot(a, b)
        cos, sin = turn.cos(), turn.sin()
        columns[i], columns[j] = cos * a - sin * b, sin * a + cos * b
    return torch.stack(columns, -1)
