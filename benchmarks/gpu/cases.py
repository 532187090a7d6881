"""What there is to measure: families of transforms, and cases of them on tensors of a shape."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import torch

from robustflow.benchmarks.traffic import Traffic
from robustflow.benchmarks.workloads import SPECS, TAIL_BOUND

DIRECTIONS = (
    "forward",
    "inverse",
    "backward",  # alone, of the forward transform
    "forward+backward",
    "inverse-backward",
    "inverse+backward",
)

# Below this many elements, launching takes longer than the kernel.
_SMALL = 1 << 16


@dataclass(frozen=True)
class Family:
    """A transform in one layout.

    Attributes:
        name: what cases are named after.
        operation: the function of ``robustflow.functional``; x (N, C, *S) and packed parameters.
        layout: ``planar`` (N, C*P, *S), a plane of pixels a parameter; or ``rows`` (N, C*P) or,
            for x (N,), (N, P): the parameters of an element adjacent.
        num_bins: K of the K-bin spline, else 0.
        options: further arguments of ``operation``.
    """

    name: str
    operation: str
    layout: str
    num_bins: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def transform(self) -> str:
        """As the operators name it."""
        return SPECS[self.operation].name

    @property
    def parameters(self) -> int:
        """Of an element."""
        spec = SPECS[self.operation]
        settings = {**spec.defaults, **self.options, "num_bins": self.num_bins}
        return sum(spec.counts(settings))


def _rq(name: str, layout: str, num_bins: int = 8, **options: Any) -> Family:
    options = {"tail_bound": TAIL_BOUND, "reduce": "sum", **options}
    return Family(name, "rq_spline_packed", layout, num_bins, options)


MODIFIED_RQ = Family("modified_rq", "modified_rq_spline", "planar")
AFFINE = Family("affine", "conditional_affine", "planar")
RQ_ROWS = _rq("rq8_rows", "rows")
RQ_PLANAR = _rq("rq8_planar", "planar")
RQ_SOFTCLIP = _rq("rq8_softclip_rows", "rows", parametrization="softclip")
FAMILIES = (MODIFIED_RQ, RQ_ROWS, AFFINE, RQ_PLANAR, RQ_SOFTCLIP)


@dataclass(frozen=True)
class Place:
    """A shape of x, by name. ``small``: timed as the latency of calls that follow each other."""

    name: str
    shape: tuple[int, ...]
    small: bool = False


def _place(name: str, *shape: int) -> Place:
    return Place(name, shape, prod(shape) < _SMALL)


# 64 M elements: the shapes that the targets are stated for.
LARGE = {"planar": _place("large", 16, 64, 256, 256), "rows": _place("large", 1 << 26)}
# Super-resolution levels of the published 4x network and low light (192 channels at an eighth of
# 400 x 600), batches of 16.
PICTURES = (
    _place("sr1", 16, 12, 80, 80),
    _place("sr2", 16, 24, 40, 40),
    _place("sr3", 16, 96, 20, 20),
    _place("low-light", 16, 192, 50, 75),
)
# Neural spline flows of ten dimensions.
TABLES = tuple(_place(f"nsf-1e{power}", 10**power, 10) for power in (6, 5, 4, 3, 2))
# Launch-bound: one picture's third level, and the small batch of simulation-based inference.
TINY = {"planar": _place("one", 1, 96, 20, 20), "rows": _place("64x8", 64, 8)}


@dataclass(frozen=True)
class Case:
    """A family, a direction, dtypes and a shape.

    Attributes:
        dtype: of x, y and the cotangent of y.
        parameter_dtype: of the parameters.
        scale: ``full``, or why the shape is smaller: ``quick``, ``rehearsal``, ``memory``.
    """

    family: Family
    direction: str
    place: Place
    dtype: torch.dtype = torch.float32
    parameter_dtype: torch.dtype = torch.float32
    scale: str = "full"

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
        return self.place.shape

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
        return replace(self, place=replace(self.place, shape=tuple(shape)), scale=scale)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
