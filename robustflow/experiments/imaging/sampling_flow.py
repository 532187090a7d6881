"""Base class of flows that can be sampled given observations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustflow.experiments.tasks import Task
from robustflow.nn.sampling import block_size


@dataclass(frozen=True)
class Conditioned:
    """What a flow computed from its observations, once for any number of samples.

    Attributes:
        condition: of the flow's layers, as the flow itself made it.
        guess: what the residual is added to, (N, C, H, W); None for a flow of x itself.
        mean: of the last latent, (N, C', H', W'); None for zero.
        size: height and width of x.
    """

    condition: Any
    guess: Tensor | None
    mean: Tensor | None
    size: tuple[int, int]


class SamplingFlow(nn.Module, ABC):
    """A conditional flow of pictures; subclasses prepare observations and invert the layers.

    Attributes:
        task: the inverse problem.
        size_multiple: the sides of x must be multiples of this.
    """

    task: Task
    size_multiple: int

    @abstractmethod
    def prepare(self, y: Tensor, *, features: Tensor | None = None) -> Conditioned:
        """Everything computed from observations (N, C', H', W'), for any number of samples.

        Raises:
            ValueError: a size that the flow's levels do not divide.
        """

    @abstractmethod
    def latent_shapes(self, size: Sequence[int]) -> list[tuple[int, int, int]]:
        """(C, H, W) of each latent, the last level's last, for pictures of this size."""

    @abstractmethod
    def invert(self, latents: Sequence[Tensor], condition: Any) -> Tensor:
        """The flow's inverse alone: latents -> x, or its residual over the guess."""

    def checked_size(self, y: Tensor) -> tuple[int, int]:
        """Height and width of x for observations.

        Raises:
            ValueError: the flow's levels do not divide it.
        """
        size = self.task.picture_size(y)
        if any(side % self.size_multiple for side in size):
            raise ValueError(
                f"This flow needs pictures whose sides are multiples of {self.size_multiple}; an "
                f"observation of {tuple(y.shape[-2:])} asks for one of {size}. Crop or pad it."
            )
        return size

    def draw_latents(
        self,
        number: int,
        size: Sequence[int],
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> list[Tensor]:
        """Standard normal latents of ``number`` pictures; drawn on the CPU, so alike everywhere.

        Args:
            number: of pictures.
            size: their height and width.
            generator: on the CPU.
            device: where the latents go; by default to the flow.
        """
        device = device or next(self.parameters()).device
        return [
            torch.randn(number, *shape, generator=generator).to(device)
            for shape in self.latent_shapes(size)
        ]

    @torch.no_grad()
    def decode(
        self, latents: Sequence[Tensor], prepared: Conditioned, temperature: float = 1.0
    ) -> Tensor:
        """Pictures (N, C, H, W) of latents, not clamped; a prepared batch of 1 serves all of them.

        Args:
            latents: as :meth:`draw_latents` gives them.
            prepared: of N observations, or 1.
            temperature: factor on the latents.
        """
        scaled = [temperature * latent for latent in latents]
        if prepared.mean is not None:
            scaled[-1] = scaled[-1] + prepared.mean
        residual = self.invert(scaled, prepared.condition)
        return residual if prepared.guess is None else residual + prepared.guess

    def block_size(self, size: Sequence[int]) -> int:
        """How many samples of this size are decoded together: memory does not grow beyond that."""
        return block_size(self.latent_shapes(size), next(self.parameters()).device)

    @torch.no_grad()
    def sample(
        self,
        y: Tensor,
        num_samples: int = 1,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        features: Tensor | None = None,
    ) -> Tensor:
        """Samples of each observation, (N, num_samples, C, H, W), not clamped.

        Beyond the result and its latents, memory is that of one observation and one block of
        samples (:meth:`block_size`).

        Args:
            y: (N, C', H', W').
            num_samples: for each of them.
            temperature: standard deviation of the latents, at least 0.
            generator: of the latents, on the CPU.
            features: of the flow's ``features(y)``, where they are at hand.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples!r}.")
        if not temperature >= 0:
            raise ValueError(f"temperature must be at least 0, got {temperature!r}.")
        samples = []
        for index in range(y.shape[0]):
            part = slice(index, index + 1)
            part_features = None if features is None else features[part]
            prepared = self.prepare(y[part], features=part_features)
            latents = self.draw_latents(num_samples, prepared.size, generator)
            blocks = zip(*(z.split(self.block_size(prepared.size)) for z in latents), strict=True)
            decoded = [self.decode(block, prepared, temperature) for block in blocks]
            samples.append(torch.cat(decoded))
        return torch.stack(samples)
