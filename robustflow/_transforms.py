"""The transforms: what each is called, which parameters and settings it has, and their ranges.

To add a transform, begin here: docs/adding-a-transform.md.
"""

from __future__ import annotations

import math
from typing import Any

from robustflow._checks import (
    check_at_least_zero,
    check_choice,
    check_interval,
    check_minimum_bin,
    check_number,
    check_positive,
)
from robustflow._spec import Box, Choice, Flag, Group, Interval, Number, Settings, Spec


def _positive(name: str, value: Any, settings: Settings) -> None:
    check_positive(name, value)


def _at_least_zero(name: str, value: Any, settings: Settings) -> None:
    check_at_least_zero(name, value)


def _below_one(name: str, value: Any, settings: Settings) -> None:
    check_number(name, value)
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie in (0, 1), got {value!r}.")


# ---- the modified rational-quadratic spline (arXiv:2212.04319) ----------------------------------


def _half_a_box(name: str, value: Any, settings: Settings) -> None:
    check_minimum_bin(name, value, 2)


MODIFIED_RQ = Spec(
    "modified_rq",
    [Group("params", 4)],  # width, height, derivative and shift logits
    [
        Interval("interval", (-0.5, 0.5), ("left", "right")),
        Number("min_bin", 1e-3, _half_a_box),
        Number("min_derivative", 1e-3, _below_one),
        Choice("derivative", "exp", ("exp", "softclip"), "softclip", "bool"),
    ],
)

# ---- the rational-quadratic spline with K bins (arXiv:1906.04032) -------------------------------

# Number of derivatives minus number of bins. A spline has K + 1 knots; linear tails fix the
# derivative at both ends, and circular tails make them equal.
EXTRA_DERIVATIVES = {None: 1, "linear": -1, "circular": 0}
TAILS: tuple[str | None, ...] = tuple(EXTRA_DERIVATIVES)
PARAMETRIZATIONS = ("softmax", "softclip", "knots")

MAX_BINS = 256
"""Kernels keep the bins on their stack (csrc's kMaxBins)."""


def count_derivatives(num_bins: int, tails: str | None) -> int:
    """Number of derivatives of a spline with so many bins."""
    check_choice("tails", tails, TAILS)
    return num_bins + EXTRA_DERIVATIVES[tails]


def _num_bins(settings: Settings) -> int:
    return int(settings["num_bins"])


def _num_derivatives(settings: Settings) -> int:
    return count_derivatives(settings["num_bins"], settings["tails"])


def _edges(edges: Any, settings: Settings) -> tuple[float, ...]:
    """A tail bound; or left, right, bottom, top."""
    if not isinstance(edges, tuple):
        check_positive("tail_bound", edges)
        return -edges, edges, -edges, edges
    left, right = check_interval("(left, right)", edges[:2])
    bottom, top = check_interval("(bottom, top)", edges[2:])
    tails = settings["tails"]
    if tails is not None and (left, right) != (bottom, top):
        raise ValueError(
            f"With tails={tails!r} the outside is the identity, so left and right must equal "
            f"bottom and top, got {edges}; use tails=None for another box."
        )
    return left, right, bottom, top


def _part_of_the_box(name: str, value: Any, settings: Settings) -> None:
    check_minimum_bin(name, value, settings["num_bins"])


def _derivatives_around_one(settings: Settings) -> None:
    minimum = settings["min_derivative"]
    if settings["parametrization"] == "softclip" and minimum >= 1:
        raise ValueError(f"min_derivative must be below 1 with 'softclip', got {minimum!r}.")


RQ = Spec(
    "rq",
    [
        Group("widths", _num_bins),
        Group("heights", _num_bins),
        Group("derivatives", _num_derivatives),
    ],
    [
        Choice("tails", "linear", TAILS),
        Choice("parametrization", "softmax", PARAMETRIZATIONS),
        Box("tail_bound", 1.0, ("left", "right", "bottom", "top"), _edges),
        Number("min_bin_width", 1e-3, _part_of_the_box),
        Number("min_bin_height", 1e-3, _part_of_the_box),
        Number("min_derivative", 1e-3, _positive),
        Number("logit_scale", 1.0, _positive),
    ],
    size="num_bins",
    max_size=MAX_BINS,
    constants=["box"],  # (..., 4): the edges, where they differ from element to element
    check=_derivatives_around_one,
)

# ---- the conditional affine transform (arXiv:2006.14200) ----------------------------------------

# Scale functions, with the default bound on the log-scale; 1 for those that have none.
_CLAMPS = {
    "sigmoid": 1.0,
    "exp": 1.0,
    "softplus": 1.0,
    "atan_exp": 2.0,
    "tanh_exp": 2.0,
    "softclip_exp": math.log(1000.0),
}
SCALES: tuple[str, ...] = tuple(_CLAMPS)


def default_clamp(scale: str) -> float:
    """The bound on the log-scale of a scale function, where no other is asked for."""
    return _CLAMPS[scale]


def _clamp(settings: Settings) -> float:
    return default_clamp(settings["scale"])


AFFINE = Spec(
    "affine",
    [Group("params", 1), Group("log_scale", 1)],  # the shift, and the scale logit
    [
        Choice("scale", "sigmoid", SCALES),
        Number("eps", 1e-4, _at_least_zero),
        Number("clamp", None, _positive, _clamp),
        Flag("shift_first", True),
        Flag("reciprocal", False),
    ],
)

# ---- the monotone cubic B-spline (arXiv:2304.04555, arXiv:2212.04319) ---------------------------


def _eighth_of_a_box(name: str, value: Any, settings: Settings) -> None:
    check_minimum_bin(name, value, 8)


CUBIC_BSPLINE = Spec(
    "cubic_bspline",
    [Group("params", 11)],  # 4 knot logits, 6 control logits, the shift
    [
        Interval("interval", (-0.5, 0.5), ("left", "right")),
        Number("min_bin", 1e-2, _eighth_of_a_box),
    ],
)

ALL = (MODIFIED_RQ, RQ, AFFINE, CUBIC_BSPLINE)
