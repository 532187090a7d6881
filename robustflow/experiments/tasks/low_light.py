"""Low light: a dark, noisy photograph, made from a bright one by an inverse camera model."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from robustflow.experiments.tasks.base import Task, gaussian, to_8_bits

GAMMA = 2.2  # of the display: values of a file are linear light to the power 1 / GAMMA
_DARK = 1e-3  # below this a pixel's colour is unknown


@dataclass(frozen=True)
class LowLight(Task):
    """``y`` is x with less light: linear, times a gain, shot and read noise, gamma, 8 bits.

    In linear light v = gain * x^2.2 the noise has variance ``shot * v + read^2``. The pairs are
    made, not photographed: real pairs of dark and bright exposures cannot be had offline.

    Args:
        darkest, brightest: the range of the gain, drawn log-uniformly for each picture; in (0, 1].
        shot: variance of the photon noise at full light; at least 0.
        read: standard deviation of the sensor's noise; at least 0.

    Source: the noise model of a sensor, as in Foi et al., 2008 (doi:10.1109/TIP.2008.2001399).

    Example:
        >>> y = LowLight().observe(torch.full((1, 3, 8, 8), 0.8), torch.Generator().manual_seed(0))
        >>> bool(y.mean() < 0.4)
        True
    """

    name = "lowlight"
    random = True

    darkest: float = 0.02
    brightest: float = 0.1
    shot: float = 1e-3
    read: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.darkest <= self.brightest <= 1:
            raise ValueError(
                "darkest and brightest must satisfy 0 < darkest <= brightest <= 1, got "
                f"{self.darkest!r} and {self.brightest!r}."
            )
        if not (self.shot >= 0 and self.read >= 0):
            raise ValueError(f"shot and read must be at least 0, got {self.shot!r}, {self.read!r}.")

    def forward(self, x: Tensor) -> Tensor:
        """Without noise, at the gain in the middle of the range."""
        gain = math.sqrt(self.darkest * self.brightest)
        return (gain * x.clamp(min=0) ** GAMMA) ** (1 / GAMMA)

    def observe(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        shape = (x.shape[0], 1, 1, 1)
        place = torch.rand(shape, generator=generator).to(x)
        gain = self.darkest * (self.brightest / self.darkest) ** place
        light = gain * x.clamp(0, 1) ** GAMMA
        deviation = (self.shot * light + self.read**2).sqrt()
        noisy = light + deviation * gaussian(x, generator)
        return to_8_bits(noisy.clamp(min=0) ** (1 / GAMMA))

    def first_guess(self, y: Tensor) -> Tensor:
        """Zero: the flow models the picture itself."""
        return torch.zeros_like(y)

    def prior_mean(self, y: Tensor) -> Tensor:
        """The colour map y / mean over the channels: what darkness leaves of a picture.

        Divided by 2, so that grey is 1/2; 1/2 too where all is black.

        Source: the illumination-invariant colour map of LLFlow (Wang et al., AAAI 2022,
        arXiv:2109.05923).
        """
        grey = y.mean(dim=1, keepdim=True)
        return (0.5 * (y + _DARK) / (grey + _DARK)).clamp(0, 1.5)
