"""Base class of inverse problems: from a picture to an observation, and a first guess back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

WHITE = 255  # of an 8-bit picture; one step of it is 1 / 255 here
_LUMA = (0.299, 0.587, 0.114)  # of red, green, blue: ITU-R BT.601


class Task(ABC):
    """An inverse problem ``y = A(x) + noise``: a picture x is sought, given an observation y.

    A subclass needs :meth:`forward` and, where the problem has one, :meth:`pseudo_inverse`. Make
    it a frozen dataclass, and its fields are options of the configuration's table ``[task]``.
    Values of pictures lie in [0, 1].

    Attributes:
        name: of the task, as the command line has it.
        linear: whether A is, so that :meth:`adjoint` exists.
        random: whether :meth:`observe` draws noise.
        scale: the side of x over the side of y.
        size_multiple: the sides of x must be multiples of this.
        margin: how many pixels beyond a part of x the observation of that part depends on.
        channels: of x.
        observation_channels: of y.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Shift(Task):
        ...     name = "shift"
        ...     linear = True
        ...     pixels: int = 1
        ...     def forward(self, x):
        ...         return x.roll(self.pixels, dims=-1)
        ...     def pseudo_inverse(self, y):
        ...         return y.roll(-self.pixels, dims=-1)
        >>> x = torch.rand(1, 3, 8, 8)
        >>> bool(torch.equal(Shift(2).adjoint(Shift(2)(x)), x))
        True
    """

    name: ClassVar[str]
    linear: bool = False
    random: bool = False
    scale: int = 1
    size_multiple: int = 1
    margin: int = 0
    channels: int = 3
    observation_channels: int = 3

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """A(x), without noise: (N, channels, H, W) -> (N, channels of y without masks, H', W')."""

    def __call__(self, x: Tensor) -> Tensor:
        """The same as :meth:`forward`."""
        return self.forward(x)

    def observe(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """An observation of x as a camera or a file gives it: noise, then clamped, in 8 bits.

        A task with noise draws it from the generator; here there is none.
        """
        return to_8_bits(self.forward(x))

    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y, by automatic differentiation of :meth:`forward`.

        Raises:
            TypeError: A is not linear.
        """
        if not self.linear:
            raise TypeError(f"The task {self.name!r} is not linear, so it has no adjoint.")
        x = y.new_zeros(y.shape[0], self.channels, *self.picture_size(y)).requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(self.forward(x), x, y)
        return gradient

    def pseudo_inverse(self, y: Tensor) -> Tensor | None:
        """A^+ y: the smallest x with A(x) closest to y; None where the task has none."""
        return None

    def from_rgb(self, pictures: Tensor) -> Tensor:
        """x of pictures from files, (N, 3, H, W): themselves, or their luma for one channel.

        Raises:
            ValueError: x has another number of channels, so it cannot come from picture files.
        """
        if self.channels == 3:
            return pictures
        if self.channels == 1:
            weights = pictures.new_tensor(_LUMA).view(1, 3, 1, 1)
            return (weights * pictures).sum(dim=1, keepdim=True)
        raise ValueError(
            f"x of the task {self.name!r} has {self.channels} channels, and picture files have 3: "
            "train on your own data by ImagingFlow.log_prob."
        )

    def first_guess(self, y: Tensor) -> Tensor:
        """The picture whose residual the flow models, (N, channels, H, W).

        The pseudo-inverse, or zero where there is none.
        """
        guess = self.pseudo_inverse(y)
        if guess is None:
            return y.new_zeros(y.shape[0], self.channels, *self.picture_size(y))
        return guess

    def prior_mean(self, y: Tensor) -> Tensor | None:
        """A picture (N, channels, H, W) that the latents' mean is made from; None for zero."""
        return None

    def picture_size(self, y: Tensor) -> tuple[int, int]:
        """Height and width of x, for an observation y."""
        height, width = (side * self.scale for side in y.shape[-2:])
        return height, width


def to_8_bits(y: Tensor) -> Tensor:
    """Values as an 8-bit file holds them: clamped to [0, 1], in steps of 1 / 255."""
    return (y.clamp(0, 1) * WHITE).round() / WHITE


def gaussian(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers, drawn on the CPU: the same for a seed on every device."""
    return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)
