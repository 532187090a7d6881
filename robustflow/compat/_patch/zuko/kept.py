"""What a patched transform keeps in place of its knots: its parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

KNOTS = ("horizontal", "vertical", "derivatives")
ATTRIBUTE = "_robustflow_parameters"  # of a transform, that holds its Kept

MODIFIED = (
    "The parameters of this MonotonicRQSTransform were modified in place after it was made, so "
    "that its knots cannot be had any more: make it again, or clone the parameters before it is "
    "made."
)


@dataclass(slots=True)  # one a transform: a named tuple takes twice as long to make
class Kept:
    """The parameters of a transform, for the kernels.

    Attributes:
        parameters: the packed tensor alone, or widths, heights and derivatives.
        num_bins: K.
        bound, slope: the transform's.
        versions: of the parameters, to see a later write; None if there are knots.
        knots: those of a transform that was traced, else None: they are computed if they are read.
    """

    parameters: tuple[Tensor, ...]
    num_bins: int
    bound: Any
    slope: float
    versions: list[int] | None = None
    knots: tuple[Tensor, ...] | None = None


class LostKnots:
    """In place of knots that cannot be computed any more; every use of it raises."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(MODIFIED)

    def __reduce__(self) -> Any:
        raise RuntimeError(MODIFIED)

    @classmethod
    def __torch_function__(cls, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(MODIFIED)


def as_it_is_now(parameter: Any) -> Any:
    """A parameter to keep: without a gradient if none is recorded now, no leaf otherwise."""
    if not isinstance(parameter, Tensor) or not parameter.requires_grad:
        return parameter
    if not torch.is_grad_enabled():
        return parameter.detach()
    return parameter.clone() if parameter.is_leaf else parameter  # an optimizer writes on leaves
