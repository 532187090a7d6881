"""Elementwise transforms as small values: what a coupling does to each number.

A transform knows how many parameters an element needs, at which of them it is the identity, and
how to apply them; the layers (:class:`~robustflow.nn.Coupling`, :class:`~robustflow.nn.Injector`,
:class:`~robustflow.nn.Autoregressive`) know where they come from.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from robustflow import functional as F
from robustflow._checks import check_choice
from robustflow._transforms import AFFINE, CUBIC_BSPLINE, MODIFIED_RQ, RQ, count_derivatives
from robustflow.nn._checks import check_flags
from robustflow.nn._constants import per_channel, take_channels
from robustflow.nn.precision import upcast_dtype

Scale = Literal["sigmoid", "exp", "softplus", "atan_exp", "tanh_exp", "softclip_exp"]
Derivative = Literal["exp", "softclip"]
Tails = Literal["linear", "circular"] | None
Parametrization = Literal["softmax", "softclip"]

_DIMS = 2  # of x, where settings are checked without one: any number does


class ElementwiseTransform(Protocol):
    """What the layers ask of a transform.

    One whose settings differ from channel to channel also has ``select(channels)``, the transform
    of some of them; one that acts on circles has ``circles(number of channels)``, half the length
    of each channel's circle or None, so that conditioners can read its channels without a jump.
    """

    @property
    def num_params(self) -> int:
        """Parameters per element; a conditioner makes ``channels * num_params`` channels."""

    @property
    def identity_params(self) -> tuple[float, ...]:
        """The ``num_params`` raw parameters that a new layer starts with: of the identity."""

    def __call__(
        self, x: Tensor, params: Tensor, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        """x (N, C, \\*S) and params (N or 1, C * num_params, \\*S) -> (y, logabsdet (N,))."""


@dataclass(frozen=True)
class Affine:
    """Conditional affine transform, by default SRFlow's: ``y = (x + shift) * s``.

    With ``s = sigmoid(a + 2) + 1e-4`` the inverse multiplies by up to 1e4: this is the transform
    whose inverse explodes. ``reciprocal=True`` takes ``1 / s`` as the scale, and then the inverse
    never multiplies by more than 1.0001. The arguments are those of
    :func:`robustflow.functional.conditional_affine`.

    New layers start at the identity, but for ``scale="sigmoid"``: that one starts at zero
    parameters, ``s = sigmoid(2)``, as published, since the sigmoid's gradient vanishes at 1.

    Raises:
        TypeError, ValueError: an unknown scale, a negative ``eps``, a ``clamp`` that is not
            positive.

    Example:
        >>> Affine(reciprocal=True).num_params
        2
    """

    scale: Scale = "sigmoid"
    eps: float = 1e-4
    clamp: float | None = None
    shift_first: bool = True
    reciprocal: bool = False

    num_params: ClassVar[int] = AFFINE.num_params

    def __post_init__(self) -> None:
        check_flags(shift_first=self.shift_first, reciprocal=self.reciprocal)
        settings = (self.scale, self.eps, self.clamp, self.shift_first, self.reciprocal)
        AFFINE.config(False, *settings, "sum", _DIMS)

    @property
    def identity_params(self) -> tuple[float, ...]:
        """Shift and scale logit of the identity; of ``s = sigmoid(2) + eps`` with "sigmoid".

        Raises:
            ValueError: a softplus scale with ``eps`` of 1 or more, which is never the identity.
        """
        if self.scale != "softplus":
            return (0.0, 0.0)
        return (0.0, _inverse_softplus(1 - self.eps, f"eps must be below 1, got {self.eps}"))

    def __call__(
        self, x: Tensor, params: Tensor, *, inverse: bool = False, reduce: F.Reduce = "sum"
    ) -> tuple[Tensor, Tensor]:
        return F.conditional_affine(
            x,
            params,
            inverse=inverse,
            scale=self.scale,
            eps=self.eps,
            clamp=self.clamp,
            shift_first=self.shift_first,
            reciprocal=self.reciprocal,
            reduce=reduce,
        )


@dataclass(frozen=True)
class ModifiedRQSpline:
    """The modified rational-quadratic spline: it moves no value further than its box is long.

    The defaults (a box of +-3 and a bounded inner derivative) are those for new layers behind an
    :class:`~robustflow.nn.ActNorm`; :meth:`published` gives the paper's. The arguments are those
    of :func:`robustflow.functional.modified_rq_spline`.

    Raises:
        TypeError, ValueError: an interval that is not finite and increasing, a ``min_bin`` outside
            (0, 0.5), a ``min_derivative`` outside (0, 1), an unknown derivative.

    Example:
        >>> ModifiedRQSpline.published().interval
        (-0.5, 0.5)
    """

    interval: tuple[float, float] = (-3.0, 3.0)
    min_bin: float = 1e-3
    min_derivative: float = 1e-3
    derivative: Derivative = "softclip"

    num_params: ClassVar[int] = MODIFIED_RQ.num_params
    identity_params: ClassVar[tuple[float, ...]] = (0.0,) * num_params

    def __post_init__(self) -> None:
        settings = (self.interval, self.min_bin, self.min_derivative, self.derivative)
        MODIFIED_RQ.config(False, *settings, "sum", _DIMS)

    @classmethod
    def published(cls) -> ModifiedRQSpline:
        """The transform of Hong, Park and Chun, ICCV 2023: a box of +-0.5, an exp derivative."""
        return cls(interval=(-0.5, 0.5), derivative="exp")

    def __call__(
        self, x: Tensor, params: Tensor, *, inverse: bool = False, reduce: F.Reduce = "sum"
    ) -> tuple[Tensor, Tensor]:
        return F.modified_rq_spline(
            x,
            params,
            inverse=inverse,
            interval=self.interval,
            min_bin=self.min_bin,
            min_derivative=self.min_derivative,
            derivative=self.derivative,
            reduce=reduce,
        )


@dataclass(frozen=True)
class CubicBSpline:
    """The monotone cubic B-spline: smooth, its slope bounded whatever its parameters.

    The default box is that of :class:`ModifiedRQSpline`; :meth:`published` gives the paper's. The
    arguments are those of :func:`robustflow.functional.cubic_bspline`.

    Raises:
        TypeError, ValueError: an interval that is not finite and increasing, a ``min_bin`` outside
            (0, 1/8).

    Example:
        >>> CubicBSpline.published().interval
        (-0.5, 0.5)
    """

    interval: tuple[float, float] = (-3.0, 3.0)
    min_bin: float = 1e-2

    num_params: ClassVar[int] = CUBIC_BSPLINE.num_params
    # Equal knots; control points whose differences are the means of three knot spacings.
    identity_params: ClassVar[tuple[float, ...]] = (
        *(0.0,) * 4,
        *(math.log(share) for share in (1, 2, 3, 3, 2, 1)),
        0.0,
    )

    def __post_init__(self) -> None:
        CUBIC_BSPLINE.config(False, self.interval, self.min_bin, "sum", _DIMS)

    @classmethod
    def published(cls) -> CubicBSpline:
        """The transform of Hong, Park and Chun, ICCV 2023: a box of +-0.5."""
        return cls(interval=(-0.5, 0.5))

    def __call__(
        self, x: Tensor, params: Tensor, *, inverse: bool = False, reduce: F.Reduce = "sum"
    ) -> tuple[Tensor, Tensor]:
        return F.cubic_bspline(
            x,
            params,
            inverse=inverse,
            interval=self.interval,
            min_bin=self.min_bin,
            reduce=reduce,
        )


@dataclass(frozen=True)
class RQSpline:
    """The monotone rational-quadratic spline with K bins on [-tail_bound, tail_bound].

    Outside the box linear and circular tails are the identity; ``tails=None`` gives NaN there and
    is for data that lies inside. The arguments are those of
    :func:`robustflow.functional.rq_spline_packed`; the default box is that of
    :class:`ModifiedRQSpline`.

    ``tails`` and ``tail_bound`` may be sequences, of one for each channel of the layer (of all of
    them, for a coupling, which takes those of the half that it transforms). Linear and circular
    tails mix: every channel then has the parameters of a circular one, and a linear one ignores
    the last.

    Raises:
        TypeError, ValueError: fewer than 1 bin, unknown tails or parametrization ("knots" takes
            positive sizes, which a conditioner does not make), a bound or minimum that is not
            positive, bins whose minima do not fit the box, sequences of different lengths, tails
            None in a sequence of others.

    Example:
        >>> RQSpline(num_bins=8).num_params, RQSpline(num_bins=8, tails="circular").num_params
        (23, 24)
        >>> mixed = RQSpline(tails=("circular", "linear"), tail_bound=(math.pi, 5.0))
        >>> mixed.num_params
        24
    """

    num_bins: int = 8
    tails: Tails | Sequence[Tails] = "linear"
    tail_bound: float | Sequence[float] = 3.0
    min_bin_width: float = 1e-3
    min_bin_height: float = 1e-3
    min_derivative: float = 1e-3
    parametrization: Parametrization = "softmax"

    def __post_init__(self) -> None:
        for name in ("tails", "tail_bound"):
            value = getattr(self, name)
            if isinstance(value, Tensor) and value.dim() == 1:
                value = value.tolist()
            if isinstance(value, list):
                value = tuple(value)
            object.__setattr__(self, name, value)
        check_choice("parametrization", self.parametrization, ("softmax", "softclip"))
        minima = (self.min_bin_width, self.min_bin_height, self.min_derivative)
        for tails in _each(self.tails):
            for bound in _each(self.tail_bound):
                RQ.config(
                    self.num_bins,
                    False,
                    tails,
                    self.parametrization,
                    bound,
                    *minima,
                    1.0,
                    "sum",
                    _DIMS,
                )
        listed = [value for value in (self.tails, self.tail_bound) if isinstance(value, tuple)]
        if len({len(value) for value in listed}) > 1 or () in listed:
            raise ValueError(
                "tails and tail_bound must have one value for all channels, or one for each, got "
                f"{' and '.join(str(len(value)) for value in listed)}."
            )
        if None in self._kinds and len(self._kinds) > 1:
            raise ValueError('tails must be "linear" or "circular" where they differ, got None.')

    @property
    def channels(self) -> int | None:
        """Of how many channels the settings are; None for any number."""
        for value in (self.tails, self.tail_bound):
            if isinstance(value, tuple):
                return len(value)
        return None

    @property
    def num_derivatives(self) -> int:
        """K-1 raw derivatives with linear tails, K circular, K+1 without tails."""
        return max(count_derivatives(self.num_bins, tails) for tails in self._kinds)

    @property
    def num_params(self) -> int:
        """Parameters per element: K width logits, K height logits, derivatives."""
        return 2 * self.num_bins + self.num_derivatives

    @property
    def identity_params(self) -> tuple[float, ...]:
        """Equal bins, and derivatives of 1.

        Raises:
            ValueError: ``min_derivative`` of 1 or more, which no identity has.
        """
        derivative = 0.0
        if self.parametrization == "softmax":
            derivative = _inverse_softplus(
                1 - self.min_derivative,
                f"min_derivative must be below 1, got {self.min_derivative}",
            )
        return (0.0,) * (2 * self.num_bins) + (derivative,) * self.num_derivatives

    def circles(self, channels: int) -> tuple[float | None, ...]:
        """Half the length of each channel's circle, None for a channel that is none."""
        kinds, bounds = self._of_channels(channels)
        return tuple(
            bound if kind == "circular" else None for kind, bound in zip(kinds, bounds, strict=True)
        )

    def select(self, chosen: Sequence[int]) -> RQSpline:
        """The transform of some of the channels."""
        return _selected(self, tuple(chosen)) if self.channels is not None else self

    def __call__(
        self, x: Tensor, params: Tensor, *, inverse: bool = False, reduce: F.Reduce = "sum"
    ) -> tuple[Tensor, Tensor]:
        if self.channels is None:
            assert not isinstance(self.tails, Sequence) or isinstance(self.tails, str)
            return self._spline(x, params, self.tails, self.tail_bound, inverse, reduce)
        kinds, bounds = self._of_channels(x.shape[1])
        if len(self._kinds) == 1:
            box = per_channel(bounds, x, upcast_dtype(x.dtype))
            return self._spline(x, params, kinds[0], box, inverse, reduce)
        return self._mixed(x, params, kinds, bounds, inverse, reduce)

    @property
    def _kinds(self) -> set[Tails]:
        return set(_each(self.tails))

    def _of_channels(self, channels: int) -> tuple[tuple[Tails, ...], tuple[float, ...]]:
        """Tails and bound of each of so many channels."""
        if self.channels not in (None, channels):
            raise ValueError(
                f"The transform's tails or tail_bound are for {self.channels} channels, and there "
                f"are {channels}."
            )
        kinds, bounds = _each(self.tails), _each(self.tail_bound)
        return (
            kinds if len(kinds) == channels else kinds * channels,
            bounds if len(bounds) == channels else bounds * channels,
        )

    def _mixed(
        self,
        x: Tensor,
        params: Tensor,
        kinds: tuple[Tails, ...],
        bounds: tuple[float, ...],
        inverse: bool,
        reduce: F.Reduce,
    ) -> tuple[Tensor, Tensor]:
        """A call for the channels of each kind; what they read of the parameters is a view."""
        params = params.unflatten(1, (x.shape[1], self.num_params)).movedim(2, -1)
        order: list[int] = []
        values, changes = [], []
        for kind in sorted(self._kinds, key=kinds.index):
            chosen = [i for i, each in enumerate(kinds) if each == kind]
            size = 2 * self.num_bins + count_derivatives(self.num_bins, kind)
            box = per_channel([bounds[i] for i in chosen], x, upcast_dtype(x.dtype))
            its_params = take_channels(params, chosen)[..., :size]
            value, change = self._spline(
                take_channels(x, chosen), its_params, kind, box, inverse, reduce
            )
            values.append(value)
            changes.append(change)
            order += chosen
        back = sorted(range(len(order)), key=order.__getitem__)
        y = take_channels(torch.cat(values, dim=1), back)
        if reduce == "sum":
            return y, changes[0] + changes[1]
        return y, take_channels(torch.cat(changes, dim=1), back)

    def _spline(
        self,
        x: Tensor,
        params: Tensor,
        tails: Any,
        tail_bound: Any,
        inverse: bool,
        reduce: F.Reduce,
    ) -> tuple[Tensor, Tensor]:
        return F.rq_spline_packed(
            x,
            params,
            self.num_bins,
            inverse=inverse,
            tails=tails,
            tail_bound=tail_bound,
            min_bin_width=self.min_bin_width,
            min_bin_height=self.min_bin_height,
            min_derivative=self.min_derivative,
            parametrization=self.parametrization,
            reduce=reduce,
        )


def _each(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


@functools.lru_cache(maxsize=1024)  # an inverse in order asks for each step's in every call
def _selected(transform: RQSpline, chosen: tuple[int, ...]) -> RQSpline:
    changes: dict[str, Any] = {
        name: tuple(value[i] for i in chosen)
        for name in ("tails", "tail_bound")
        if isinstance(value := getattr(transform, name), tuple)
    }
    return replace(transform, **changes)


def select(transform: ElementwiseTransform, chosen: Sequence[int]) -> ElementwiseTransform:
    """The transform of some of a layer's channels."""
    method = getattr(transform, "select", None)
    return transform if method is None else method(chosen)


def circles_of(transform: ElementwiseTransform, channels: int) -> tuple[float | None, ...]:
    """Half the length of the circle that each of so many channels is on, or None.

    Raises:
        ValueError: a transform whose settings are of another number of channels.
    """
    method = getattr(transform, "circles", None)
    return (None,) * channels if method is None else method(channels)


def _inverse_softplus(value: float, problem: str) -> float:
    if value <= 0:
        raise ValueError(f"{problem}: a layer starts at the identity, where the slope is 1.")
    return value + math.log(-math.expm1(-value))
