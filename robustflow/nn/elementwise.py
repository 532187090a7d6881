"""Elementwise transforms as small values: what a coupling does to each number.

A transform knows how many parameters an element needs, at which of them it is the identity, and
how to apply them; the layers (:class:`~robustflow.nn.Coupling`, :class:`~robustflow.nn.Injector`,
:class:`~robustflow.nn.Autoregressive`) know where they come from.

Each transform's fields, with their defaults, are its options; the ``...Options`` beside it name
their types for the layers that take them as keyword arguments.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, Protocol, TypedDict, TypeVar

from torch import Tensor

from robustflow import functional as F
from robustflow._checks import check_choice, count_derivatives
from robustflow._settings import affine_config, modified_rq_config, rq_config
from robustflow.nn._checks import check_flags

Scale = Literal["sigmoid", "exp", "softplus", "atan_exp", "tanh_exp", "softclip_exp"]
Derivative = Literal["exp", "softclip"]
Tails = Literal["linear", "circular"] | None
Parametrization = Literal["softmax", "softclip"]
TransformT = TypeVar("TransformT")

_DIMS = 2  # of x, where settings are checked without one: any number does


class ElementwiseTransform(Protocol):
    """What the layers ask of a transform."""

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


class AffineOptions(TypedDict, total=False):
    """Types of :class:`Affine`'s fields."""

    scale: Scale
    eps: float
    clamp: float | None
    shift_first: bool
    reciprocal: bool


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

    num_params: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_flags(shift_first=self.shift_first, reciprocal=self.reciprocal)
        settings = (self.scale, self.eps, self.clamp, self.shift_first, self.reciprocal)
        affine_config(False, *settings, "sum", _DIMS)

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


class ModifiedRQSplineOptions(TypedDict, total=False):
    """Types of :class:`ModifiedRQSpline`'s fields."""

    interval: tuple[float, float]
    min_bin: float
    min_derivative: float
    derivative: Derivative


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

    num_params: ClassVar[int] = 4
    identity_params: ClassVar[tuple[float, ...]] = (0.0, 0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        settings = (self.interval, self.min_bin, self.min_derivative, self.derivative)
        modified_rq_config(False, *settings, "sum", _DIMS)

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


class RQSplineOptions(TypedDict, total=False):
    """Types of :class:`RQSpline`'s fields."""

    num_bins: int
    tails: Tails
    tail_bound: float
    min_bin_width: float
    min_bin_height: float
    min_derivative: float
    parametrization: Parametrization


@dataclass(frozen=True)
class RQSpline:
    """The monotone rational-quadratic spline with K bins on [-tail_bound, tail_bound].

    Outside the box linear and circular tails are the identity; ``tails=None`` gives NaN there and
    is for data that lies inside. The arguments are those of
    :func:`robustflow.functional.rq_spline_packed`; the default box is that of
    :class:`ModifiedRQSpline`.

    Raises:
        ValueError: fewer than 1 bin, unknown tails or parametrization ("knots" takes positive
            sizes, which a conditioner does not make), a bound or minimum that is not positive,
            bins whose minima do not fit the box.

    Example:
        >>> RQSpline(num_bins=8).num_params, RQSpline(num_bins=8, tails="circular").num_params
        (23, 24)
    """

    num_bins: int = 8
    tails: Tails = "linear"
    tail_bound: float = 3.0
    min_bin_width: float = 1e-3
    min_bin_height: float = 1e-3
    min_derivative: float = 1e-3
    parametrization: Parametrization = "softmax"

    def __post_init__(self) -> None:
        check_choice("parametrization", self.parametrization, ("softmax", "softclip"))
        minima = (self.min_bin_width, self.min_bin_height, self.min_derivative)
        rq_config(
            self.num_bins,
            False,
            self.tails,
            self.tail_bound,
            *minima,
            self.parametrization,
            1.0,
            "sum",
            _DIMS,
        )

    @property
    def num_derivatives(self) -> int:
        """K-1 raw derivatives with linear tails, K circular, K+1 without tails."""
        return count_derivatives(self.num_bins, self.tails)

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

    def __call__(
        self, x: Tensor, params: Tensor, *, inverse: bool = False, reduce: F.Reduce = "sum"
    ) -> tuple[Tensor, Tensor]:
        return F.rq_spline_packed(
            x,
            params,
            self.num_bins,
            inverse=inverse,
            tails=self.tails,
            tail_bound=self.tail_bound,
            min_bin_width=self.min_bin_width,
            min_bin_height=self.min_bin_height,
            min_derivative=self.min_derivative,
            parametrization=self.parametrization,
            reduce=reduce,
        )


def take_options(
    kind: type[TransformT], options: Mapping[str, Any], others: Iterable[str]
) -> tuple[TransformT, dict[str, Any]]:
    """A transform from those of the options that are its fields, and the ``others``.

    Raises:
        TypeError: an option is neither.
    """
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    others = list(others)
    if unknown := [name for name in options if name not in (*names, *others)]:
        raise TypeError(
            f"{', '.join(unknown)}: no such option. There are {', '.join(names)} of the transform "
            f"and {', '.join(others)} of the default conditioner."
        )
    mine = {name: value for name, value in options.items() if name in names}
    return kind(**mine), {name: value for name, value in options.items() if name in others}


def _inverse_softplus(value: float, otherwise: str) -> float:
    if value <= 0:
        raise ValueError(f"{otherwise}: a layer starts at the identity, where the slope is 1.")
    return value + math.log(-math.expm1(-value))
