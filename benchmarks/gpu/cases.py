"""What there is to measure: cases of the transforms on tensors of a shape."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import torch

from robustflow.benchmarks.families import (
    AFFINE,
    CUBIC_BSPLINE,
    LOW_LIGHT,
    MODIFIED_RQ,
    RQ8_PACKED_PLANAR,
    RQ8_PACKED_ROWS,
    RQ8_PACKED_SOFTCLIP,
    SR,
    Family,
    Place,
)
from robustflow.benchmarks.traffic import Traffic

DIRECTIONS = (
    "forward",
    "inverse",
    "backward",  # alone, of the forward transform
    "forward+backward",
    "inverse-backward",
    "inverse+backward",
)

FAMILIES = (
    MODIFIED_RQ,
    RQ8_PACKED_ROWS,
    AFFINE,
    RQ8_PACKED_PLANAR,
    RQ8_PACKED_SOFTCLIP,
    CUBIC_BSPLINE,
)

# 64 M elements: the shapes that the targets are stated for.
LARGE = {"planar": Place("large", (16, 64, 256, 256)), "rows": Place("large", (1 << 26,))}
PICTURES = (*SR, LOW_LIGHT)
# Neural spline flows of ten dimensions.
TABLES = tuple(Place(f"nsf-1e{power}", (10**power, 10)) for power in (6, 5, 4, 3, 2))
# Launch-bound: one picture's third level, and the small batch of simulation-based inference.
TINY = {"planar": Place("one", (1, 96, 20, 20)), "rows": Place("64x8", (64, 8))}


@dataclass(frozen=True)
class Case:
    """A family, a direction, dtypes and a shape.

    Attributes:
        dtype: of x, y and the cotangent of y.
        parameter_dtype: of the parameters.
        scale: ``full``, or why the shape is smaller: ``quick``, ``rehearsal``, ``memory``.
        smaller_shape: of x, in place of the place's.
    """

    family: Family
    direction: str
    place: Place
    dtype: torch.dtype = torch.float32
    parameter_dtype: torch.dtype = torch.float32
    scale: str = "full"
    smaller_shape: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        """Unique; what ``--filter`` looks in."""
        return f"{self.family.name}.{self.direction}.{self.dtypes}.{self.place.name}"

    @property
    def dtypes(self) -> str:
        x, parameters = dtype_name(self.dtype), dtype_name(self.parameter_dtype)
        return x if x == parameters else f"{x}x{parameters}"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.smaller_shape or self.place.shape

    @property
    def parameter_shape(self) -> tuple[int, ...]:
        if len(self.shape) == 1:
            return (*self.shape, self.family.parameters)
        samples, channels, *space = self.shape
        return (samples, channels * self.family.parameters, *space)

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def inverse(self) -> bool:
        return self.direction.startswith("inverse")

    @property
    def trains(self) -> bool:
        """Whether there is a backward pass."""
        return "backward" in self.direction

    @property
    def alone(self) -> bool:
        """Whether the backward pass is timed alone."""
        return self.trains and "+" not in self.direction

    @property
    def traffic(self) -> Traffic:
        return Traffic(
            self.elements,
            self.family.parameters,
            logabsdets=self.shape[0],
            x_size=self.dtype.itemsize,
            parameter_size=self.parameter_dtype.itemsize,
        )

    @property
    def bytes(self) -> int:
        return self.traffic.of(self.direction)

    def shrunk(self, elements: int, scale: str) -> Case:
        """The same case on at most so many elements: its longest side halved again and again."""
        shape = list(self.shape)
        while prod(shape) > elements:
            longest = shape.index(max(shape))
            shape[longest] = -(-shape[longest] // 2)
        if tuple(shape) == self.shape:
            return self
        return replace(self, smaller_shape=tuple(shape), scale=scale)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
