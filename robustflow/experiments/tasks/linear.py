"""Denoising, deblurring and inpainting: problems whose forward operator is linear."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from robustflow._resizing import symmetric_pad
from robustflow.experiments.tasks.base import Task, gaussian, to_8_bits


def _check_not_negative(name: str, value: float) -> None:
    if not value >= 0:
        raise ValueError(f"{name} must be at least 0, got {value!r}.")


@dataclass(frozen=True)
class Denoising(Task):
    """``y = x + sigma * noise``, clamped to [0, 1] and rounded to 8 bits.

    Args:
        sigma: standard deviation of the noise, where white is 1; at least 0.
    """

    name = "denoise"
    random = True
    linear = True

    sigma: float = 0.1

    def __post_init__(self) -> None:
        _check_not_negative("sigma", self.sigma)

    def forward(self, x: Tensor) -> Tensor:
        return x

    def observe(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return to_8_bits(x + self.sigma * gaussian(x, generator))

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        return y


@dataclass(frozen=True)
class Deblurring(Task):
    """``y`` is x blurred by a Gaussian, with mirrored edges, plus noise, rounded to 8 bits.

    Args:
        blur: standard deviation of the Gaussian, in pixels; positive.
        sigma: standard deviation of the noise; at least 0.
    """

    name = "deblur"
    random = True
    linear = True

    blur: float = 1.5
    sigma: float = 0.01

    def __post_init__(self) -> None:
        if not self.blur > 0:
            raise ValueError(f"blur must be positive, got {self.blur!r}.")
        _check_not_negative("sigma", self.sigma)

    @property
    def margin(self) -> int:  # type: ignore[override]
        return max(1, round(3 * self.blur))

    def forward(self, x: Tensor) -> Tensor:
        radius = self.margin
        offsets = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
        kernel = torch.exp(-0.5 * (offsets / self.blur) ** 2)
        kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, 1, -1)
        padded = symmetric_pad(x, radius)
        blurred_rows = functional.conv2d(padded, kernel, groups=x.shape[1])
        return functional.conv2d(blurred_rows, kernel.mT, groups=x.shape[1])

    def observe(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        blurred = self.forward(x)
        return to_8_bits(blurred + self.sigma * gaussian(blurred, generator))

    def first_guess(self, y: Tensor) -> Tensor:
        """y itself: the pseudo-inverse of a blur would amplify the noise of y."""
        return y


@dataclass(frozen=True)
class Inpainting(Task):
    """``y`` is x where it is seen and 0 elsewhere; its fourth channel is 1 where x is seen.

    The seed determines a mask of 64 x 64 pixels, which is tiled over the picture. No noise.

    Args:
        seen: the fraction of pixels that are seen, in (0, 1].
        seed: of the pattern.
    """

    name = "inpaint"
    linear = True
    observation_channels = 4

    seen: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.seen <= 1:
            raise ValueError(f"seen must lie in (0, 1], got {self.seen!r}.")

    def mask(self, x: Tensor) -> Tensor:
        """(1, 1, H, W): 1 where a pixel of x is seen."""
        pattern = torch.rand(64, 64, generator=torch.Generator().manual_seed(self.seed)) < self.seen
        rows, columns = (torch.arange(side) % 64 for side in x.shape[-2:])
        return pattern[rows][:, columns][None, None].to(x)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W); :meth:`observe` adds the mask as a fourth channel."""
        return x * self.mask(x)

    def observe(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        mask = self.mask(x).expand(x.shape[0], 1, -1, -1)
        return torch.cat([to_8_bits(self.forward(x)), mask], dim=1)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """What is seen; the rest is 0."""
        return y[:, : self.channels]
