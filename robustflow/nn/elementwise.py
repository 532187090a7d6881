"""Elementwise transforms as small values: what a coupling does to each number.

A transform knows how many parameters an element needs and how to apply them; the layers
(:class:`~robustflow.nn.Coupling`, :class:`~robustflow.nn.Injector`) know where they come from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from torch import Tensor

from robustflow import functional as F


class ElementwiseTransform(Protocol):
    """What the layers ask of a transform."""

    @property
    def num_params(self) -> int:
        """Parameters per element; a conditioner makes ``channels * num_params`` channels."""

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

    Example:
        >>> Affine(reciprocal=True).num_params
        2
    """

    scale: Literal["sigmoid", "exp", "softplus", "atan_exp", "tanh_exp", "softclip_exp"] = "sigmoid"
    eps: float = 1e-4
    clamp: float | None = None
    shift_first: bool = True
    reciprocal: bool = False

    num_params: ClassVar[int] = 2

    def __call__(
        self, x: Tensor, params: Tensor, *, inverse: bool = False
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
        )


@dataclass(frozen=True)
class ModifiedRQSpline:
    """The modified rational-quadratic spline: it moves no value further than its box is long.

    The defaults (a box of +-3 and a bounded inner derivative) are those for new layers behind an
    :class:`~robustflow.nn.ActNorm`; :meth:`published` gives the paper's. The arguments are those
    of :func:`robustflow.functional.modified_rq_spline`.

    Example:
        >>> ModifiedRQSpline.published().interval
        (-0.5, 0.5)
    """

    interval: tuple[float, float] = (-3.0, 3.0)
    min_bin: float = 1e-3
    min_derivative: float = 1e-3
    derivative: Literal["exp", "softclip"] = "softclip"

    num_params: ClassVar[int] = 4

    @classmethod
    def published(cls) -> ModifiedRQSpline:
        """The transform of Hong, Park and Chun, ICCV 2023: a box of +-0.5, an exp derivative."""
        return cls(interval=(-0.5, 0.5), derivative="exp")

    def __call__(
        self, x: Tensor, params: Tensor, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        return F.modified_rq_spline(
            x,
            params,
            inverse=inverse,
            interval=self.interval,
            min_bin=self.min_bin,
            min_derivative=self.min_derivative,
            derivative=self.derivative,
        )
