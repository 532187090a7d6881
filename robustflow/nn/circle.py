"""Circles: channels whose values are angles, of which -bound and bound are one point.

Beside splines with circular tails, a flow on circles, or on a torus, needs turns
(:class:`PhaseShift`, :class:`CircularShift`), features without a jump at that point for its
conditioners (:class:`PeriodicFeatures`), and a base that is uniform (:class:`CircularBase`).

Source: Rezende et al., Normalizing Flows on Tori and Spheres, 2020 (arXiv:2002.02428).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robustflow import functional as F
from robustflow._checks import check_positive, fits
from robustflow.nn._checks import check_counts, check_shape
from robustflow.nn._constants import per_channel, take_channels
from robustflow.nn.base import LatentBase, normal_log_prob
from robustflow.nn.precision import sum_per_sample, upcast_dtype, zero_logabsdet

# For each channel half the length of its circle, or None where it is none.
Circles = tuple[float | None, ...]
Bound = float | Sequence[float | None]


def circles_from(bound: Bound, channels: int) -> Circles:
    """A bound for all channels, or one for each, checked."""
    if isinstance(bound, Sequence) and not isinstance(bound, str):
        if len(bound) != channels:
            raise ValueError(
                f"bound must be a number, or one for each of the {channels} channels (None where a "
                f"channel is no circle), got {len(bound)}."
            )
        for i, each in enumerate(bound):
            if each is not None:
                check_positive(f"bound[{i}]", each)
        return tuple(None if each is None else float(each) for each in bound)
    check_positive("bound", bound)
    return (float(bound),) * channels


def wrap(z: Tensor, bounds: Circles) -> Tensor:
    """The same points of the circles, within [-bound, bound]; other channels as they are.

    The gradient is 1, at the seam too.
    """
    known = [bound for bound in bounds if bound is not None]
    if not known:
        return z
    if len(known) < len(bounds):
        filled = [1.0 if bound is None else bound for bound in bounds]
        is_circle = per_channel([float(bound is not None) for bound in bounds], z) > 0
        return torch.where(is_circle, _wrap(z, per_channel(filled, z)), z)
    return _wrap(z, known[0] if len(set(known)) == 1 else per_channel(known, z))


def _wrap(z: Tensor, bound: float | Tensor) -> Tensor:
    turned = z - (z / (2 * bound)).round() * (2 * bound)
    # Rounding can leave a value beyond the seam, which would be outside a spline's box.
    edge: Any = bound  # a number or a tensor, of which clamp takes two of a kind
    inside = turned.clamp(-edge, edge)
    wrapped: Tensor = turned + (inside - turned).detach()
    return wrapped


def periodic(z: Tensor, bounds: Circles, num_frequencies: int) -> Tensor:
    """What :class:`PeriodicFeatures` makes of z (N, C, \\*S)."""
    flat = [i for i, bound in enumerate(bounds) if bound is None]
    round_ = [i for i, bound in enumerate(bounds) if bound is not None]
    if not round_:
        return z
    parts = [take_channels(z, flat)] if flat else []
    angles = take_channels(z, round_)
    angles = angles * per_channel([math.pi / (bounds[i] or 1.0) for i in round_], angles)
    for frequency in range(1, num_frequencies + 1):
        parts += [torch.cos(frequency * angles), torch.sin(frequency * angles)]
    return torch.cat(parts, dim=1)


class PeriodicFeatures(nn.Module):
    """Cosine and sine of the angles, for a network to read: no jump where a circle closes.

    The default conditioners have them for the channels that their layer's transform has on
    circles. In a conditioner or an encoder of your own, put this first.

    Args:
        channels: of z.
        bound: the circle is [-bound, bound]; one for each channel, None for a channel that is no
            circle and is handed on as it is.
        num_frequencies: how many multiples of an angle, from the angle itself on.

    Attributes:
        out_channels: 1 for a channel that is no circle, 2 * num_frequencies for one that is. First
            come the former, then cosines and sines frequency by frequency.
        sources: for each of them, the channel that it is made from.

    Raises:
        TypeError, ValueError: no whole numbers, or bounds that are not positive.

    Example:
        >>> features = PeriodicFeatures(3, bound=[math.pi, None, 1.0])
        >>> features(torch.tensor([[math.pi, 7.0, -0.5]])).round(decimals=3).abs().tolist()
        [[7.0, 1.0, 0.0, 0.0, 1.0]]
    """

    def __init__(self, channels: int, *, bound: Bound = math.pi, num_frequencies: int = 1) -> None:
        super().__init__()
        check_counts(channels=channels, num_frequencies=num_frequencies)
        self.channels = channels
        self.bounds = circles_from(bound, channels)
        self.num_frequencies = num_frequencies
        flat = [i for i, each in enumerate(self.bounds) if each is None]
        round_ = [i for i, each in enumerate(self.bounds) if each is not None]
        self.sources = (*flat, *(2 * num_frequencies * round_))
        self.out_channels = len(self.sources)

    def forward(self, z: Tensor) -> Tensor:
        """z (N, channels, \\*S) -> (N, out_channels, \\*S)."""
        check_shape("z", z, self.channels)
        return periodic(z, self.bounds, self.num_frequencies)

    def extra_repr(self) -> str:
        return f"bounds={self.bounds}, num_frequencies={self.num_frequencies}"


class PhaseShift(nn.Module):
    """Turns each circle by an angle of its own, which is learnt: ``z -> z + phase``, wrapped.

    Splines with circular tails keep -bound fixed. Rotations between them move that point, so that
    the flow can change the density there as it does elsewhere. The log-determinant is 0.

    Args:
        channels: of z.
        bound: the circle is [-bound, bound]; one for each channel, None for a channel that is no
            circle and is shifted without end.

    Raises:
        TypeError, ValueError: no whole number of channels, or bounds that are not positive.

    Example:
        >>> shift = PhaseShift(2)
        >>> with torch.no_grad():
        ...     _ = shift.phase.fill_(1.0)
        >>> z, logabsdet = shift(torch.tensor([[3.0, 0.5]]))
        >>> z.round(decimals=3).tolist(), logabsdet.tolist()
        ([[-2.2829999923706055, 1.5]], [0.0])
    """

    context_channels: ClassVar[int] = 0

    def __init__(self, channels: int, *, bound: Bound = math.pi) -> None:
        super().__init__()
        check_counts(channels=channels)
        self.channels = channels
        self.bounds = circles_from(bound, channels)
        self.phase = nn.Parameter(torch.zeros(channels))

    def forward(
        self, z: Tensor, context: Tensor | None = None, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        """z (N, channels, \\*S) -> (z, logabsdet (N,)); the context is not used."""
        check_shape("z", z, self.channels)
        phase = self.phase.view(-1, *[1] * (z.dim() - 2))
        return wrap(z - phase if inverse else z + phase, self.bounds), zero_logabsdet(z)

    def extra_repr(self) -> str:
        return f"{self.channels}, bounds={self.bounds}"


@dataclass(frozen=True)
class CircularShift:
    """The elementwise transform that turns a circle by its parameter: ``x + shift``, wrapped.

    For a :class:`Coupling`, an :class:`Injector` or an :class:`Autoregressive` layer, whose
    conditioner decides how far; :class:`PhaseShift` turns by a constant.

    Args:
        bound: the circle is [-bound, bound]; or one for each channel of the layer, None for a
            channel that is no circle and is shifted without end.

    Raises:
        TypeError, ValueError: bounds that are not positive numbers.

    Example:
        >>> transform = CircularShift()
        >>> y, logabsdet = transform(torch.tensor([[3.0]]), torch.tensor([[1.0]]))
        >>> y.round(decimals=3).tolist(), logabsdet.tolist()
        ([[-2.2829999923706055]], [0.0])
    """

    bound: Bound = math.pi

    num_params: ClassVar[int] = 1
    identity_params: ClassVar[tuple[float, ...]] = (0.0,)

    def __post_init__(self) -> None:
        if isinstance(self.bound, list):
            object.__setattr__(self, "bound", tuple(self.bound))
        circles_from(self.bound, len(self.bound) if isinstance(self.bound, tuple) else 1)

    def circles(self, channels: int) -> Circles:
        """Half the length of each channel's circle, None for a channel that is none."""
        return circles_from(self.bound, channels)

    def select(self, chosen: Sequence[int]) -> CircularShift:
        """The transform of some of the channels."""
        if not isinstance(self.bound, tuple):
            return self
        return replace(self, bound=tuple(self.bound[i] for i in chosen))

    def __call__(
        self, x: Tensor, params: Tensor, *, inverse: bool = False, reduce: F.Reduce = "sum"
    ) -> tuple[Tensor, Tensor]:
        if params.shape[1:] != x.shape[1:] or not fits(params.shape[0], x.shape[0]):
            raise ValueError(
                f"params must have x's shape, {tuple(x.shape)}, or a batch size of 1, got "
                f"{tuple(params.shape)}."
            )
        y = wrap((x - params if inverse else x + params).to(x.dtype), self.circles(x.shape[1]))
        dtype = torch.promote_types(upcast_dtype(x.dtype), params.dtype)
        return y, x.new_zeros(x.shape if reduce == "none" else x.shape[:1], dtype=dtype)


class CircularBase(LatentBase):
    """The base of flows on circles: uniform on them, standard normal on channels that are none.

    Args:
        channels: of the latent.
        bound: the circle is [-bound, bound]; one for each channel, None for a channel that is no
            circle.

    Raises:
        TypeError, ValueError: no whole number of channels, or bounds that are not positive.

    Example:
        >>> from robustflow.nn import ConditionalFlow, PhaseShift, RQSplineCoupling
        >>> layers = [
        ...     layer
        ...     for turn in (False, True)
        ...     for layer in (
        ...         RQSplineCoupling(
        ...             2, tails="circular", tail_bound=math.pi, spatial_dims=0, reverse=turn
        ...         ),
        ...         PhaseShift(2),
        ...     )
        ... ]
        >>> flow = ConditionalFlow([layers], base=CircularBase(2))
        >>> bool((flow.sample(100).abs() <= math.pi).all())
        True
        >>> density = flow.log_prob(torch.zeros(1, 2))  # a new flow is uniform: 1 / (2 pi)^2
        >>> bool((density.exp() - 1 / (4 * math.pi**2)).abs() < 1e-5)
        True
    """

    def __init__(self, channels: int, *, bound: Bound = math.pi) -> None:
        super().__init__()
        check_counts(channels=channels)
        self.channels = channels
        self.bounds = circles_from(bound, channels)

    def draw(self, shape: Sequence[int], generator: torch.Generator | None, like: Tensor) -> Tensor:
        """Latents of this shape, (N, channels, \\*S)."""
        size = (shape[0], 1, *shape[2:])

        def one(bound: float | None) -> Tensor:
            draw = torch.randn if bound is None else torch.rand
            drawn = draw(size, generator=generator, dtype=like.dtype, device=like.device)
            return drawn if bound is None else (2 * drawn - 1) * bound

        return torch.cat([one(bound) for bound in self.bounds], dim=1)

    def log_prob(self, latent: Tensor) -> Tensor:
        """(N, channels, \\*S) -> (N,); a point of a circle may be any of its angles."""
        check_shape("latent", latent, self.channels)
        positions = math.prod(latent.shape[2:])
        circle = sum(math.log(2 * bound) for bound in self.bounds if bound is not None)
        flat = [i for i, bound in enumerate(self.bounds) if bound is None]
        total = sum_per_sample(latent - latent) - circle * positions  # NaN stays NaN
        if flat:
            total = total + normal_log_prob(take_channels(latent, flat))
        return total

    def extra_repr(self) -> str:
        return f"{self.channels}, bounds={self.bounds}"
