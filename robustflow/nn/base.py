"""The distribution of a flow's latents: standard normal, or one that the user gives."""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from robustflow._checks import describe
from robustflow.nn.precision import sum_per_sample, upcast_half


class LatentBase(nn.Module, ABC):
    """A distribution of latents."""

    @abstractmethod
    def draw(self, shape: Sequence[int], generator: torch.Generator | None, like: Tensor) -> Tensor:
        """Latents of this shape, (N, C, \\*S), in the dtype and on the device of ``like``."""

    @abstractmethod
    def log_prob(self, latent: Tensor) -> Tensor:
        """(N, C, \\*S) -> (N,), in nats."""


def normal_log_prob(latent: Tensor) -> Tensor:
    """Standard normal log-density of (N, C, \\*S), in nats, (N,)."""
    size = math.prod(latent.shape[1:])
    square = sum_per_sample(upcast_half(latent).square())
    return -0.5 * (square + size * math.log(2 * math.pi))


# What users may give: a distribution, a pair of functions, or an object with both as methods.
Functions = tuple[Callable[[int], Tensor], Callable[[Tensor], Tensor]]
Base = Distribution | Functions | nn.Module


def as_base(base: Any, name: str = "base") -> LatentBase:
    """What a user gave, as a :class:`LatentBase`; None is standard normal.

    Raises:
        TypeError: something else.
    """
    if base is None:
        return StandardNormal()
    if isinstance(base, LatentBase):
        return base
    if isinstance(base, Distribution):
        return _OfDistribution(base)
    if isinstance(base, tuple) and len(base) == 2:
        base = _Functions(*base)
    methods = (getattr(base, "sample", None), getattr(base, "log_prob", None))
    if all(map(callable, methods)) and not isinstance(base, type):
        return _OfMethods(base)
    raise TypeError(
        f"{name} must be a torch.distributions Distribution, a CircularBase, or a pair of "
        f"functions sample(number) and log_prob(z), got {describe(base)}."
    )


class _Functions(NamedTuple):
    sample: Callable[[int], Tensor]
    log_prob: Callable[[Tensor], Tensor]


class StandardNormal(LatentBase):
    """The default base, and the only one that a temperature scales."""

    def draw(self, shape: Sequence[int], generator: torch.Generator | None, like: Tensor) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)

    def log_prob(self, latent: Tensor) -> Tensor:
        return normal_log_prob(latent)


class _OfDistribution(LatentBase):
    """A distribution of one latent: its batch and event shape expand to (C, \\*S)."""

    def __init__(self, distribution: Distribution) -> None:
        super().__init__()
        self.distribution = distribution

    def _of(self, shape: Sequence[int]) -> Distribution:
        expected, event = torch.Size(shape[1:]), self.distribution.event_shape
        whole = self.distribution.batch_shape + event
        if whole == expected:
            return self.distribution
        batch = expected[: len(expected) - len(event)]
        if expected[len(batch) :] == event:
            with contextlib.suppress(RuntimeError):  # of shapes that do not broadcast
                return self.distribution.expand(batch)
        raise ValueError(
            f"base must have a shape that expands to that of a latent, {tuple(expected)}: it has "
            f"batch shape {tuple(self.distribution.batch_shape)} and event shape {tuple(event)}."
        )

    def draw(self, shape: Sequence[int], generator: torch.Generator | None, like: Tensor) -> Tensor:
        distribution = self._of(shape)
        reparametrised = torch.is_grad_enabled() and distribution.has_rsample
        draw = distribution.rsample if reparametrised else distribution.sample
        with _seeded_by(generator, like.device):
            return draw(torch.Size(shape[:1])).to(like)

    def log_prob(self, latent: Tensor) -> Tensor:
        return sum_per_sample(self._of(latent.shape).log_prob(upcast_half(latent)))

    def extra_repr(self) -> str:
        return repr(self.distribution)


class _OfMethods(LatentBase):
    """An object with ``sample(number)`` and ``log_prob(z)``; a module joins the flow."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.source = source

    def draw(self, shape: Sequence[int], generator: torch.Generator | None, like: Tensor) -> Tensor:
        with _seeded_by(generator, like.device):
            drawn = self.source.sample(shape[0])
        if not isinstance(drawn, Tensor) or drawn.shape != torch.Size(shape):
            raise ValueError(
                f"base: sample({shape[0]}) must return a tensor of shape {tuple(shape)}, got "
                f"{describe(drawn)}."
            )
        return drawn.to(like)

    def log_prob(self, latent: Tensor) -> Tensor:
        density = self.source.log_prob(upcast_half(latent))
        if not isinstance(density, Tensor) or density.shape[:1] != latent.shape[:1]:
            raise ValueError(
                f"base: log_prob(z) must return a tensor of shape ({latent.shape[0]},), got "
                f"{describe(density)}."
            )
        return sum_per_sample(density)


@contextlib.contextmanager
def _seeded_by(generator: torch.Generator | None, device: torch.device) -> Iterator[None]:
    """Within it, torch's global generator is seeded from another; afterwards it is restored."""
    if generator is None:
        yield
        return
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(seed))
        yield
