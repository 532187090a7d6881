"""Every configuration of every public function: how to call it, and its float64 oracle.

Parameters are held in canonical form, ``(*S, P)`` for an ``x`` of shape ``S``; conformance.layouts
turns that into what a user would pass.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import robustflow.functional as F
from robustflow import reference
from robustflow._transforms import PARAMETRIZATIONS, SCALES, TAILS, count_derivatives
from robustflow.reference.cubic_bspline import spline_in_box
from tests.conformance import knots

Pair = tuple[Tensor, Tensor]
Patterns = tuple[Tensor, Tensor]
# Knots are sampled as whole multiples of 1/64 of a box whose size is a power of two: exact in every
# dtype, so that they sum to the box in bfloat16 as they do in float64.
_KNOT_UNITS = 64


@dataclass(frozen=True)
class Operation(ABC):
    """One configuration; subclasses say how it is called."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Of the test's case."""

    @property
    @abstractmethod
    def num_params(self) -> int:
        """P, the raw parameters of one element."""

    @property
    @abstractmethod
    def box(self) -> tuple[float, float]:
        """Where the transform is not its tail: sets the range of inputs and the unit of errors."""

    @property
    def parts(self) -> tuple[int, ...]:
        """Sizes of the tensors in which the P parameters arrive; one size means packed."""
        return (self.num_params,)

    @abstractmethod
    def call(
        self, x: Tensor, params: tuple[Tensor, ...], inverse: bool, reduce: str, **options: Any
    ) -> Pair:
        """The public function, on tensors as a user holds them."""

    @abstractmethod
    def oracle(
        self, x: Tensor, params: Tensor, inverse: bool, batch_dims: int | None = None
    ) -> Pair:
        """The reference on canonical parameters; batch_dims None means one logabsdet an element."""

    def moved_oracle(
        self, x: Tensor, params: Tensor, inverse: bool, distance: float, patterns: Patterns
    ) -> Pair:
        """The oracle after inner knots moved by ``distance`` times the box's edge, M ways at once.

        x (*S, M), params (*S, M, P); patterns (M, 2) of the knots on x and on y: knots.move_knots.
        """
        return self.oracle(x, params, inverse)

    def sample_params(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Raw parameters (*shape, P) in float64, of the size that a conditioner gives."""
        noise = torch.randn(*shape, self.num_params, generator=generator, dtype=torch.float64)
        return 1.5 * noise

    def sample_x(self, params: Tensor, generator: torch.Generator, inverse: bool) -> Tensor:
        """Inputs for canonical params (*S, P): four fifths inside the box, the rest outside."""
        low, high = self.box
        u = torch.rand(params.shape[:-1], generator=generator, dtype=torch.float64)
        return low + (high - low) * (1.25 * u - 0.125)

    def seed(self, *salt: Any) -> int:
        """The same on every run and every machine (hash() is neither)."""
        return zlib.crc32(repr((self.name, *salt)).encode())


@dataclass(frozen=True)
class ModifiedRQ(Operation):
    """The paper's two-bin spline: 4 raw parameters an element."""

    derivative: str = "exp"
    interval: tuple[float, float] = (-0.5, 0.5)
    min_bin: float = 1e-3
    min_derivative: float = 1e-3

    @property
    def name(self) -> str:
        return f"modified_rq[{self.derivative},{self.interval[0]:g},{self.interval[1]:g}]"

    @property
    def num_params(self) -> int:
        return 4

    @property
    def box(self) -> tuple[float, float]:
        return self.interval

    def call(
        self, x: Tensor, params: tuple[Tensor, ...], inverse: bool, reduce: str, **options: Any
    ) -> Pair:
        options |= {"derivative": self.derivative, "reduce": reduce}
        return F.modified_rq_spline(
            x,
            params[0],
            inverse=inverse,
            interval=self.interval,
            min_bin=self.min_bin,
            min_derivative=self.min_derivative,
            **options,
        )

    def oracle(
        self, x: Tensor, params: Tensor, inverse: bool, batch_dims: int | None = None
    ) -> Pair:
        return reference.modified_rq(
            x,
            params,
            inverse,
            *self.interval,
            self.min_bin,
            self.min_derivative,
            self.derivative,
            x.dim() if batch_dims is None else batch_dims,
        )

    def moved_oracle(
        self, x: Tensor, params: Tensor, inverse: bool, distance: float, patterns: Patterns
    ) -> Pair:
        width, height, derivative, shift = params.unbind(-1)
        low, high = self.interval
        step = distance * max(-low, high)
        sizes = []
        for logit, pattern in zip((width, height), patterns, strict=True):
            logit = logit.clamp(-knots.LOGIT_LIMIT, knots.LOGIT_LIMIT)
            both = torch.stack([torch.sigmoid(logit), torch.sigmoid(-logit)], dim=-1)
            lengths = (high - low) * (self.min_bin + (1.0 - 2.0 * self.min_bin) * both)
            sizes.append(knots.move_knots(lengths, step, pattern))
        m = self.min_derivative
        if self.derivative == "softclip":
            slope = torch.exp(knots.softclip(derivative, knots.log_slope(m)))
        else:
            limit = knots.LOGIT_LIMIT
            slope = m + (1.0 - m) * torch.exp(derivative.clamp(-limit, limit))
        box = torch.tensor([low, high, low, high]).to(x)
        z = x - shift if inverse else x
        y, logabsdet = knots.through_knots(
            z, (sizes[0], sizes[1]), slope.unsqueeze(-1), box, "linear", inverse
        )
        return (y if inverse else y + shift), logabsdet

    def sample_x(self, params: Tensor, generator: torch.Generator, inverse: bool) -> Tensor:
        x = super().sample_x(params, generator, inverse)
        return x + params[..., 3] if inverse else x


@dataclass(frozen=True)
class CubicBspline(Operation):
    """The cubic B-spline: 11 raw parameters an element."""

    interval: tuple[float, float] = (-0.5, 0.5)
    min_bin: float = 1e-2

    @property
    def name(self) -> str:
        return f"cubic_bspline[{self.interval[0]:g},{self.interval[1]:g},{self.min_bin:g}]"

    @property
    def num_params(self) -> int:
        return 11

    @property
    def box(self) -> tuple[float, float]:
        return self.interval

    def call(
        self, x: Tensor, params: tuple[Tensor, ...], inverse: bool, reduce: str, **options: Any
    ) -> Pair:
        options |= {"interval": self.interval, "min_bin": self.min_bin, "reduce": reduce}
        return F.cubic_bspline(x, params[0], inverse=inverse, **options)

    def oracle(
        self, x: Tensor, params: Tensor, inverse: bool, batch_dims: int | None = None
    ) -> Pair:
        keep = x.dim() if batch_dims is None else batch_dims
        return reference.cubic_bspline(x, params, inverse, *self.interval, self.min_bin, keep)

    def moved_oracle(
        self, x: Tensor, params: Tensor, inverse: bool, distance: float, patterns: Patterns
    ) -> Pair:
        low, high = self.interval
        step = distance * max(-low, high)
        sizes = []
        for logits, beside, pattern in (
            (params[..., :4], 2, patterns[0]),
            (params[..., 4:10], 1, patterns[1]),
        ):
            free = self.min_bin + (1.0 - 8.0 * self.min_bin) * torch.softmax(logits, dim=-1)
            inside = torch.nn.functional.pad(free, (beside, beside), value=self.min_bin)
            moved = knots.move_knots((high - low) * inside, step, pattern)
            outside = (high - low) * self.min_bin
            sizes.append(torch.nn.functional.pad(moved, (beside, beside), value=outside))
        shift = params[..., -1]
        z = x - shift if inverse else x
        is_outside = (z <= low) | (z >= high)
        inner = torch.where(is_outside, low, z)
        y, logabsdet = spline_in_box(inner, sizes[0], sizes[1], low, high, inverse)
        y, logabsdet = torch.where(is_outside, z, y), torch.where(is_outside, 0.0, logabsdet)
        return (y if inverse else y + shift), logabsdet

    def sample_x(self, params: Tensor, generator: torch.Generator, inverse: bool) -> Tensor:
        x = super().sample_x(params, generator, inverse)
        return x + params[..., -1] if inverse else x


@dataclass(frozen=True)
class RQ(Operation):
    """The K-bin spline, packed or in three tensors, with its box as numbers or per dimension."""

    num_bins: int = 8
    tails: str | None = "linear"
    parametrization: str = "softmax"
    separate: bool = False
    per_dimension: bool = False
    logit_scale: float = 1.0
    bounds: tuple[float, float, float, float] = (-2.0, 2.0, -2.0, 2.0)  # left, right, bottom, top
    min_bin_width: float = 1e-3
    min_bin_height: float = 1e-3
    min_derivative: float = 1e-3

    @property
    def name(self) -> str:
        form = "separate" if self.separate else "packed"
        kind = f"{form},K={self.num_bins},{self.tails},{self.parametrization}"
        extras = ",per_dimension" if self.per_dimension else ""
        extras += "" if self.bounds == RQ.bounds else f",{self.bounds}".replace(" ", "")
        extras += f",logit_scale={self.logit_scale:g}" if self.logit_scale != 1.0 else ""
        return f"rq[{kind}{extras}]"

    @property
    def num_derivatives(self) -> int:
        return count_derivatives(self.num_bins, self.tails)

    @property
    def num_params(self) -> int:
        return 2 * self.num_bins + self.num_derivatives

    @property
    def parts(self) -> tuple[int, ...]:
        if self.separate:
            return (self.num_bins, self.num_bins, self.num_derivatives)
        return (self.num_params,)

    @property
    def box(self) -> tuple[float, float]:
        return min(self.bounds[0], self.bounds[2]), max(self.bounds[1], self.bounds[3])

    def dimension_bounds(self, shape: tuple[int, ...]) -> Tensor:
        """The box of each channel (dimension 1): (C, 1, ..., 1), powers of two in turn."""
        channels = 2.0 ** (torch.arange(shape[1]) % 3 - 1).double() * self.bounds[1]
        return channels.reshape(-1, *(1 for _ in shape[2:]))

    def _box_arguments(self, x: Tensor) -> dict[str, Any]:
        if self.per_dimension:
            return {"tail_bound": self.dimension_bounds(tuple(x.shape)).to(x.device)}
        left, right, bottom, top = self.bounds
        if left == bottom == -right == -top:
            return {"tail_bound": right}
        return {"left": left, "right": right, "bottom": bottom, "top": top}

    def call(
        self, x: Tensor, params: tuple[Tensor, ...], inverse: bool, reduce: str, **options: Any
    ) -> Pair:
        options |= {
            "tails": self.tails,
            "min_bin_width": self.min_bin_width,
            "min_bin_height": self.min_bin_height,
            "min_derivative": self.min_derivative,
            "parametrization": self.parametrization,
            "reduce": reduce,
            **self._box_arguments(x),
        }
        if self.logit_scale != 1.0:
            options["logit_scale"] = self.logit_scale
        if self.separate:
            widths, heights, derivatives = params
            return F.rq_spline(x, widths, heights, derivatives, inverse, **options)
        return F.rq_spline_packed(x, params[0], self.num_bins, inverse=inverse, **options)

    def box_tensor(self, x: Tensor) -> Tensor:
        """left, right, bottom, top of each element: broadcasts to (*S, 4)."""
        if not self.per_dimension:
            return torch.tensor(self.bounds, dtype=torch.float64).to(x)
        bound = self.dimension_bounds(tuple(x.shape)).to(x)
        return torch.stack([-bound, bound, -bound, bound], dim=-1)

    def moved_oracle(
        self, x: Tensor, params: Tensor, inverse: bool, distance: float, patterns: Patterns
    ) -> Pair:
        box = self.box_tensor(x)
        left, right, bottom, top = (edge.unsqueeze(-1) for edge in box.unbind(-1))
        groups = params.split([self.num_bins, self.num_bins, self.num_derivatives], dim=-1)
        slope = knots.log_slope(self.min_derivative)
        sizes = []
        for logits, low, high, min_bin, pattern in (
            (groups[0], left, right, self.min_bin_width, patterns[0]),
            (groups[1], bottom, top, self.min_bin_height, patterns[1]),
        ):
            if self.parametrization == "softmax":
                lengths = (high - low) * knots.softmax_sizes(self.logit_scale * logits, min_bin)
            elif self.parametrization == "softclip":
                clipped = knots.softclip(self.logit_scale * logits, slope / 2.0)
                lengths = (high - low) * torch.softmax(clipped, dim=-1)
            else:
                lengths = logits
            edge = torch.maximum(low.abs(), high.abs())
            sizes.append(knots.move_knots(lengths, distance * edge, pattern))
        derivatives = groups[2]
        if self.parametrization == "softmax":
            derivatives = self.min_derivative + knots.softplus(derivatives)
        elif self.parametrization == "softclip":
            derivatives = torch.exp(knots.softclip(derivatives, slope))
        return knots.through_knots(x, (sizes[0], sizes[1]), derivatives, box, self.tails, inverse)

    def oracle(
        self, x: Tensor, params: Tensor, inverse: bool, batch_dims: int | None = None
    ) -> Pair:
        box = self.box_tensor(x) if self.per_dimension else None
        return reference.rq(
            x,
            params,
            None,
            None,
            box,
            self.num_bins,
            inverse,
            self.tails,
            self.parametrization,
            *self.bounds,
            self.min_bin_width,
            self.min_bin_height,
            self.min_derivative,
            self.logit_scale,
            x.dim() if batch_dims is None else batch_dims,
        )

    def sample_params(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        params = super().sample_params(shape, generator)
        if self.parametrization != "knots":
            return params
        unit = torch.full(shape, 1.0 / _KNOT_UNITS, dtype=torch.float64)
        half = self.dimension_bounds(shape) if self.per_dimension else None
        left, right, bottom, top = self.bounds
        sizes = []
        for low, high in ((left, right), (bottom, top)):
            counts = _partition(shape, self.num_bins, generator)
            length = unit * (high - low) if half is None else unit * 2.0 * half
            sizes.append(counts * length.unsqueeze(-1))
        derivatives = torch.exp(0.5 * params[..., 2 * self.num_bins :])
        return torch.cat([*sizes, derivatives], dim=-1)

    def sample_x(self, params: Tensor, generator: torch.Generator, inverse: bool) -> Tensor:
        """Inside the box only where there are no tails: outside is NaN, and has its own test."""
        shape = tuple(params.shape[:-1])
        u = torch.rand(shape, generator=generator, dtype=torch.float64)
        u = 0.01 + 0.98 * u if self.tails is None else 1.25 * u - 0.125
        low, high = self.bounds[2:] if inverse else self.bounds[:2]
        if self.per_dimension:
            bound = self.dimension_bounds(shape)
            return (2.0 * u - 1.0) * bound
        return low + (high - low) * u


def _partition(shape: tuple[int, ...], parts: int, generator: torch.Generator) -> Tensor:
    """Whole numbers (*shape, parts), each at least 1, that sum to _KNOT_UNITS."""
    order = torch.rand(*shape, _KNOT_UNITS - 1, generator=generator).argsort(dim=-1)
    cuts = order[..., : parts - 1].sort(dim=-1).values + 1
    edge = torch.zeros(*shape, 1, dtype=cuts.dtype)
    return torch.cat([edge, cuts, edge + _KNOT_UNITS], dim=-1).diff(dim=-1).double()


@dataclass(frozen=True)
class Affine(Operation):
    """The conditional affine coupling: a shift and a scale logit an element."""

    scale: str = "sigmoid"
    shift_first: bool = True
    reciprocal: bool = False
    eps: float = 1e-4

    @property
    def name(self) -> str:
        order = "shift_first" if self.shift_first else "scale_first"
        return f"affine[{self.scale},{order}{',reciprocal' if self.reciprocal else ''}]"

    @property
    def num_params(self) -> int:
        return 2

    @property
    def box(self) -> tuple[float, float]:
        return -2.0, 2.0

    def call(
        self, x: Tensor, params: tuple[Tensor, ...], inverse: bool, reduce: str, **options: Any
    ) -> Pair:
        options |= {"scale": self.scale, "reduce": reduce}
        return F.conditional_affine(
            x,
            params[0],
            inverse=inverse,
            eps=self.eps,
            clamp=CLAMP,
            shift_first=self.shift_first,
            reciprocal=self.reciprocal,
            **options,
        )

    def oracle(
        self, x: Tensor, params: Tensor, inverse: bool, batch_dims: int | None = None
    ) -> Pair:
        return reference.affine(
            x,
            params,
            None,
            inverse,
            self.scale,
            self.eps,
            CLAMP,
            self.shift_first,
            self.reciprocal,
            x.dim() if batch_dims is None else batch_dims,
        )


CLAMP = 2.0  # of the soft-clamped scales; nothing depends on which

MODIFIED = (
    ModifiedRQ("exp"),
    ModifiedRQ("softclip", interval=(-3.0, 3.0)),
)
BSPLINES = (CubicBspline(), CubicBspline((-3.0, 3.0), min_bin=1e-3))
# 8 bins stands for the sizes with a kernel of their own, 5 and 33 for the generic one.
RQ_KINDS = tuple(
    RQ(8, tails, parametrization) for tails in TAILS for parametrization in PARAMETRIZATIONS
)
RQ_SIZES = tuple(RQ(bins, "linear", "softmax") for bins in (1, 2, 3, 5, 10, 16, 33))
RQ_BOXES = (
    RQ(8, "linear", "softmax", bounds=(-1.0, 3.0, -1.0, 3.0)),
    RQ(5, None, "softclip", bounds=(-1.0, 3.0, 0.0, 2.0)),
    RQ(8, "linear", "softmax", per_dimension=True),
    RQ(8, "circular", "knots", per_dimension=True),
    RQ(8, "linear", "softmax", logit_scale=0.125),
    RQ(8, "circular", "softclip", logit_scale=0.125),
)
RQ_SEPARATE = tuple(
    RQ(bins, tails, parametrization, separate=True)
    for bins in (5, 8)
    for tails in TAILS
    for parametrization in PARAMETRIZATIONS
)
AFFINE = tuple(
    Affine(scale, shift_first, reciprocal)
    for scale in SCALES
    for shift_first in (True, False)
    for reciprocal in (False, True)
)
ALL = MODIFIED + RQ_KINDS + RQ_SIZES + RQ_BOXES + RQ_SEPARATE + AFFINE + BSPLINES
# One of each kernel: where a property does not depend on the configuration.
REPRESENTATIVES: tuple[Operation, ...] = (
    ModifiedRQ("exp"),
    RQ(8, "linear", "softmax"),
    RQ(5, "linear", "softmax"),
    RQ(8, "linear", "softmax", separate=True),
    Affine("sigmoid"),
    CubicBspline(),
)
