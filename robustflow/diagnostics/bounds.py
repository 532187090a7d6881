"""Bounds on elementwise transforms that hold for *every* value of their parameters.

A transform T maps data towards latents, one scalar at a time: y = T(x). Sampling applies its
inverse. :class:`Bounds` has the numbers; each function here derives them for one kind of
transform from the settings alone, and ``docs/robustness-bounds.md`` proves them. A transform
declares its bounds in one place, by registering with :func:`bounds_of`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import singledispatch
from typing import Literal

from robustflow._checks import check_choice
from robustflow._transforms import SCALES, default_clamp
from robustflow.nn.circle import CircularShift
from robustflow.nn.elementwise import Affine, CubicBSpline, ModifiedRQSpline, RQSpline
from robustflow.reference.numerics import LINEAR_LIMIT, LOGIT_LIMIT

INFINITY = math.inf

SRFLOW = "Lugmayr et al. 2020, arXiv:2006.14200"
REALNVP = "Dinh et al. 2017, arXiv:1605.08803"
NICE = "Dinh et al. 2014, arXiv:1410.8516"
ROBUST = "Hong, Park and Chun, ICCV 2023, arXiv:2212.04319"
BSPLINES = "Hong and Chun, AAAI 2023, arXiv:2304.04555"
SPLINES = "Durkan et al. 2019, arXiv:1906.04032"
TORI = "Rezende et al. 2020, arXiv:2002.02428"


@dataclass(frozen=True)
class Range:
    """The infimum and the supremum of a positive number, which may be 0 and infinite.

    Attributes:
        low, high: 0 <= low <= high.
    """

    low: float
    high: float

    @property
    def reciprocal(self) -> Range:
        """The range of 1 / value."""
        return Range(_over(self.high), _over(self.low))

    @property
    def ratio(self) -> float:
        """high / low."""
        return INFINITY if self.low == 0 or math.isinf(self.high) else self.high / self.low

    def __str__(self) -> str:
        return f"[{self.low:.5g}, {self.high:.5g}]"


ONE = Range(1.0, 1.0)


@dataclass(frozen=True)
class Line:
    """A bound on magnitude: \\|out\\| <= gain \\|in\\| + constant + shift \\|t\\|.

    t is the shift that the conditioner made for this element; no setting bounds it.

    Attributes:
        gain: of the input.
        constant: added, whatever the input and the parameters.
        shift: what multiplies the magnitude of the shift.
    """

    gain: float
    constant: float = 0.0
    shift: float = 0.0


UNCHANGED = Line(1.0)


@dataclass(frozen=True)
class Bounds:
    """Bounds on a transform y = T(x), for every x and every parameter.

    Attributes:
        derivative: of T. Its reciprocal is the range of the inverse's derivative.
        tail: derivative of T where \\|x\\| > ``radius``, with x before any shift; None if T is not
            defined there.
        radius: the size of the box, outside of which ``tail`` holds.
        displacement: the supremum of ``|T(x) - x - shift|``, which is also that of the inverse;
            infinite for a transform that scales.
        inverse: a bound on the magnitude of T's inverse.
        forward: one on T's.
        formula: of T.
        source: where T comes from.
        computed: range of the derivative as robustflow's kernels compute it, with logits that
            saturate, if that is narrower than ``derivative``.
        note: what else a reader must know.
    """

    derivative: Range
    tail: Range | None
    radius: float
    displacement: float
    inverse: Line
    forward: Line
    formula: str
    source: str
    computed: Range | None = None
    note: str = ""

    @property
    def reversed(self) -> Bounds:
        """The bounds of T's inverse, as a transform from data to latents."""
        return replace(
            self,
            derivative=self.derivative.reciprocal,
            tail=None if self.tail is None else self.tail.reciprocal,
            inverse=self.forward,
            forward=self.inverse,
            formula=f"the inverse of {self.formula}",
            computed=None if self.computed is None else self.computed.reciprocal,
        )


Where = Literal["data", "latents"]


def affine_bounds(
    scale: Range,
    shift: Where | None,
    *,
    formula: str,
    source: str = REALNVP,
    computed: Range | None = None,
    note: str = "",
) -> Bounds:
    """Bounds of y = (x + t) s (``shift="data"``), y = x s + t ("latents"), or y = x s (None).

    Args:
        scale: the range of s.
        shift: on which side of the scale t is added.
        formula, source, computed, note: as of :class:`Bounds`.

    Example:
        >>> affine_bounds(Range(1e-4, 1.0001), "data", formula="(x + t) s").inverse
        Line(gain=10000.0, constant=0.0, shift=1.0)
    """
    inverse = scale.reciprocal
    return Bounds(
        derivative=scale,
        tail=scale,
        radius=0.0,
        displacement=0.0 if scale == ONE else INFINITY,
        inverse=Line(inverse.high, shift=_shift(shift, "data", inverse.high)),
        forward=Line(scale.high, shift=_shift(shift, "latents", scale.high)),
        formula=formula,
        source=source,
        computed=None if computed == scale else computed,
        note=note,
    )


def _shift(where: Where | None, outermost: Where, gain: float) -> float:
    """The factor of a shift: 1 if it is added last, else the gain of the scale after it."""
    if where is None:
        return 0.0
    return 1.0 if where == outermost else gain


def exponential(log_bound: float) -> Range:
    """The range of exp(a) with \\|a\\| at most ``log_bound``, which may be infinite."""
    return Range(_exp(-log_bound), _exp(log_bound))


def scale_range(scale: str, eps: float, clamp: float | None) -> tuple[Range, Range]:
    """Of a scale function of :func:`robustflow.functional.conditional_affine`, and as computed.

    The computed range accounts for logits that saturate.

    Example:
        >>> scale_range("sigmoid", 1e-4, None)[0]
        Range(low=0.0001, high=1.0001)
    """
    check_choice("scale", scale, SCALES)
    bound = default_clamp(scale) if clamp is None else clamp
    limit = LOGIT_LIMIT
    if scale == "sigmoid":
        least = 1 / (1 + math.exp(limit))
        return Range(eps, 1 + eps), Range(least + eps, 1 + eps)
    if scale == "softplus":
        least = math.log1p(math.exp(-limit))
        return Range(eps, INFINITY), Range(least + eps, LINEAR_LIMIT + eps)
    log_bound = {
        "exp": INFINITY,
        "atan_exp": bound * 0.636 * math.pi / 2,
        "tanh_exp": bound,
        "softclip_exp": bound,
    }[scale]
    return exponential(log_bound), exponential(min(log_bound, limit))


_SCALE_FORMULAS = {
    "sigmoid": "sigmoid(a + 2) + {eps:g}",
    "exp": "exp(a)",
    "softplus": "softplus(a) + {eps:g}",
    "atan_exp": "exp({clamp:g} * 0.636 * atan(a))",
    "tanh_exp": "exp({clamp:g} * tanh(a))",
    "softclip_exp": "exp(a / (1 + |a| / {clamp:g}))",
}


def modified_rq_bounds(
    interval: tuple[float, float], min_bin: float, min_derivative: float, derivative: str
) -> Bounds:
    """Bounds of the modified rational-quadratic spline, from its settings.

    Example:
        >>> bounds = modified_rq_bounds((-0.5, 0.5), 1e-3, 1e-3, "exp")
        >>> bounds.displacement, bounds.tail.ratio
        (0.999, 1.0)
    """
    left, right = interval
    slopes = Range(min_bin / (1 - min_bin), (1 - min_bin) / min_bin)
    if derivative == "softclip":
        knots = computed_knots = Range(min_derivative, 1 / min_derivative)
    else:
        knots = Range(min_derivative, INFINITY)
        least, most = (
            min_derivative + (1 - min_derivative) * math.exp(sign * LOGIT_LIMIT) for sign in (-1, 1)
        )
        computed_knots = Range(least, most)
    displacement = (right - left) * (1 - min_bin)
    line = Line(1.0, displacement, 1.0)
    return Bounds(
        derivative=_rq_derivative(slopes, _with_one(knots)),
        tail=ONE,
        radius=max(abs(left), abs(right)),
        displacement=displacement,
        inverse=line,
        forward=line,
        formula=f"RQ(x) + t, RQ the identity outside [{left:g}, {right:g}]",
        source=ROBUST,
        computed=(
            None if derivative == "softclip" else _rq_derivative(slopes, _with_one(computed_knots))
        ),
    )


def cubic_bspline_bounds(interval: tuple[float, float], min_bin: float) -> Bounds:
    """Of the monotone cubic B-spline, from its settings.

    Example:
        >>> bounds = cubic_bspline_bounds((-0.5, 0.5), 1e-2)
        >>> bounds.displacement, str(bounds.derivative)
        (0.92, '[0.031579, 93]')
    """
    left, right = interval
    displacement = (right - left) * (1 - 8 * min_bin)
    line = Line(1.0, displacement, 1.0)
    return Bounds(
        derivative=Range(3 * min_bin / (1 - 5 * min_bin), (1 - 7 * min_bin) / min_bin),
        tail=ONE,
        radius=max(abs(left), abs(right)),
        displacement=displacement,
        inverse=line,
        forward=line,
        formula=f"B-spline(x) + t, B-spline the identity outside [{left:g}, {right:g}]",
        source=BSPLINES,
    )


def rq_bounds(
    num_bins: int,
    tails: str | None,
    box: tuple[float, float, float, float],
    min_bin: tuple[float, float],
    min_derivative: float,
    parametrization: str,
    *,
    saturates: bool = False,
    note: str = "",
) -> Bounds:
    """Bounds of the K-bin rational-quadratic spline, from its settings.

    Args:
        num_bins: K.
        tails: ``"linear"``, ``"circular"`` or None.
        box: left, right, bottom, top; a square on the diagonal where there are tails.
        min_bin: the smallest width and height, as fractions of the box; of "softmax".
        min_derivative: of a knot.
        parametrization: ``"softmax"`` (nflows, normflows) or ``"softclip"`` (zuko), as of
            :func:`robustflow.functional.rq_spline`.
        saturates: the raw derivatives saturate, as in robustflow's kernels.
        note: as of :class:`Bounds`.

    Example:
        >>> bounds = rq_bounds(8, "linear", (-3, 3, -3, 3), (1e-3, 1e-3), 1e-3, "softmax")
        >>> round(bounds.displacement, 6), bounds.tail.ratio
        (5.958, 1.0)
    """
    left, right, bottom, top = box
    others = num_bins - 1
    if parametrization == "softclip":
        least = min_derivative / (min_derivative + others)
        least_width, least_height = least, least
        widths = heights = Range(least, 1 / (1 + others * min_derivative))
        knots = computed_knots = Range(min_derivative, 1 / min_derivative)
    else:
        least_width, least_height = min_bin
        widths = Range(least_width, 1 - others * least_width)
        heights = Range(least_height, 1 - others * least_height)
        knots = Range(min_derivative, INFINITY)
        computed_knots = Range(min_derivative, min_derivative + LINEAR_LIMIT)
    if num_bins == 1:
        widths = heights = ONE
    aspect = (top - bottom) / (right - left)
    slopes = Range(aspect * heights.low / widths.high, aspect * heights.high / widths.low)
    if tails == "linear":
        knots, computed_knots = _with_one(knots), _with_one(computed_knots)
        if num_bins == 1:
            knots = computed_knots = ONE
    derivative = _rq_derivative(slopes, knots)
    if tails is not None:
        derivative = Range(min(derivative.low, 1.0), max(derivative.high, 1.0))
    within = 1 - others * min(least_width, least_height)
    return _in_box(
        derivative,
        tails,
        box,
        within,
        formula=f"RQ(x) of {num_bins} bins",
        computed=(
            _rq_derivative(slopes, computed_knots)
            if saturates and knots != computed_knots
            else None
        ),
        note=note,
    )


def monotone_bounds(
    tails: str | None, box: tuple[float, float, float, float], formula: str
) -> Bounds:
    """Bounds of any increasing map of a box onto itself or onto another box.

    Args:
        tails, box: as of :func:`rq_bounds`.
        formula: of the map.
    """
    return _in_box(Range(0.0, INFINITY), tails, box, 1.0, formula=formula)


def _in_box(
    derivative: Range,
    tails: str | None,
    box: tuple[float, float, float, float],
    within: float,
    *,
    formula: str,
    computed: Range | None = None,
    note: str = "",
) -> Bounds:
    """Bounds of a map of a box onto itself that is the identity, or undefined, outside.

    Args:
        within: how far it moves a value, as a fraction of the box.
    """
    left, right, bottom, top = box
    radius = max(abs(left), abs(right))
    if tails is None:
        tail = None
        displacement = max(right - bottom, top - left)
        inverse, forward = Line(0.0, radius), Line(0.0, max(abs(bottom), abs(top)))
        outside = "not defined"
        note = "Outside the box there is no result (NaN, or an error): nothing may leave it."
    else:
        tail = ONE
        displacement = (right - left) * within
        inverse = forward = Line(1.0, displacement)
        outside = "the identity"
    return Bounds(
        derivative=derivative,
        tail=tail,
        radius=radius,
        displacement=displacement,
        inverse=inverse,
        forward=forward,
        formula=f"{formula}, {outside} outside [{left:g}, {right:g}]",
        source=SPLINES,
        computed=computed,
        note=note,
    )


def _rq_derivative(slopes: Range, knots: Range) -> Range:
    """Range of T' in a bin of slope s = H/W between knots of derivatives d0 and d1.

    min(d0, d1, s^2/d0, s^2/d1) <= T' <= max(d0, d1, 2s), and s in place of 2s where both
    knots are steeper than the bin.
    """
    low = min(knots.low, 0.0 if math.isinf(knots.high) else slopes.low**2 / knots.high)
    steepest = slopes.high if knots.low >= slopes.high else 2 * slopes.high
    return Range(low, max(knots.high, steepest))


def _with_one(knots: Range) -> Range:
    """Extend the range by 1, the derivative at the knots at the box's edges."""
    return Range(min(knots.low, 1.0), max(knots.high, 1.0))


@singledispatch
def bounds_of(transform: object) -> Bounds | None:
    """The bounds of an elementwise transform of :mod:`robustflow.nn`; None of an unknown one.

    For a transform of your own: ``@bounds_of.register`` a function from it to its
    :class:`Bounds`, and :func:`robustflow.diagnostics.certify` knows it.

    Example:
        >>> bounds_of(Affine()).derivative
        Range(low=0.0001, high=1.0001)
        >>> bounds_of(ModifiedRQSpline.published()).tail
        Range(low=1.0, high=1.0)
    """
    return None


@bounds_of.register
def _(transform: Affine) -> Bounds:
    clamp = default_clamp(transform.scale) if transform.clamp is None else transform.clamp
    scale, computed = scale_range(transform.scale, transform.eps, clamp)
    formula = _SCALE_FORMULAS[transform.scale].format(eps=transform.eps, clamp=clamp)
    if transform.reciprocal:
        scale, computed = scale.reciprocal, computed.reciprocal
        formula = f"1 / ({formula})"
    # A sigmoid that saturates next to its infimum eps: one number is enough.
    close = math.isclose(scale.low, computed.low, rel_tol=1e-6) and math.isclose(
        scale.high, computed.high, rel_tol=1e-6
    )
    return affine_bounds(
        scale,
        "data" if transform.shift_first else "latents",
        formula=f"{'(x + t) s' if transform.shift_first else 'x s + t'}, s = {formula}",
        source=SRFLOW if transform.scale == "sigmoid" else REALNVP,
        computed=None if close else computed,
    )


@bounds_of.register
def _(transform: ModifiedRQSpline) -> Bounds:
    return modified_rq_bounds(
        transform.interval, transform.min_bin, transform.min_derivative, transform.derivative
    )


@bounds_of.register
def _(transform: CubicBSpline) -> Bounds:
    return cubic_bspline_bounds(transform.interval, transform.min_bin)


@bounds_of.register
def _(transform: RQSpline) -> Bounds:
    """If channels differ: bounds of the widest box, with circular tails if there are any."""
    tails, bounds = (
        value if isinstance(value, tuple) else (value,)
        for value in (transform.tails, transform.tail_bound)
    )
    bound = max(bounds)
    return rq_bounds(
        transform.num_bins,
        "circular" if "circular" in tails else tails[0],
        (-bound, bound, -bound, bound),
        (transform.min_bin_width, transform.min_bin_height),
        transform.min_derivative,
        transform.parametrization,
        saturates=True,
    )


@bounds_of.register
def _(transform: CircularShift) -> Bounds:
    return affine_bounds(ONE, "data", formula="x + t", source=TORI)


def rms(values: Sequence[float]) -> float:
    """The root mean square."""
    return math.sqrt(math.fsum(value * value for value in values) / len(values))


def _over(value: float) -> float:
    return INFINITY if value == 0 else 1 / value


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return INFINITY
