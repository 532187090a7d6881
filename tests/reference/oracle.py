"""The transforms in 100-digit arithmetic, one scalar at a time, by the textbook formulas.

Independent of the package: no homogeneous coordinates, no saturation trick, no rearrangement
against rounding. With 100 digits the cancellation of the textbook's quadratic (up to 42 of them,
for the largest derivatives that float32 transforms meet) does not matter.

Arguments are Python floats and are taken as the exact numbers that they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from mpmath import mp, mpf

mp.dps = 100

Number: TypeAlias = "float | mpf"
Pair: TypeAlias = tuple[mpf, mpf]


@dataclass(frozen=True)
class Spline:
    """A monotone rational-quadratic spline through knots (xs, ys) with derivatives ds.

    ``tails`` is "identity" outside the open box, "circle" (the identity outside the closed one) or
    "nan" there.
    """

    xs: tuple[mpf, ...]
    ys: tuple[mpf, ...]
    ds: tuple[mpf, ...]
    tails: str = "identity"

    def forward(self, x: Number) -> Pair:
        """y and log dy/dx: equations 4 and 5 of Durkan et al. 2019."""
        x = mpf(x)
        if (tail := self._tail(x, inverse=False)) is not None:
            return tail
        k = _search(self.xs, x)
        x0, x1, y0, y1, d0, d1 = self._bin(k)
        s = (y1 - y0) / (x1 - x0)
        t = (x - x0) / (x1 - x0)
        denominator = s + (d1 + d0 - 2 * s) * t * (1 - t)
        y = y0 + (y1 - y0) * (s * t**2 + d0 * t * (1 - t)) / denominator
        return y, mp.log(self._derivative(k, t))

    def inverse(self, y: Number) -> Pair:
        """x and log dx/dy: equations 6 to 8."""
        y = mpf(y)
        if (tail := self._tail(y, inverse=True)) is not None:
            return tail
        k = _search(self.ys, y)
        x0, x1, y0, y1, d0, d1 = self._bin(k)
        s = (y1 - y0) / (x1 - x0)
        curvature = d1 + d0 - 2 * s
        a = (y1 - y0) * (s - d0) + (y - y0) * curvature
        b = (y1 - y0) * d0 - (y - y0) * curvature
        c = -s * (y - y0)
        t = 2 * c / (-b - mp.sqrt(b**2 - 4 * a * c))
        return x0 + t * (x1 - x0), -mp.log(self._derivative(k, t))

    def smallest_side(self, value: Number, *, inverse: bool) -> mpf:
        """The smaller of width and height of the bin that ``value`` (an x, or a y) is in."""
        k = _search(self.ys if inverse else self.xs, mpf(value))
        return min(self.xs[k + 1] - self.xs[k], self.ys[k + 1] - self.ys[k])

    def is_outside(self, value: Number, *, inverse: bool) -> bool:
        """Whether ``value`` (an x, or a y) is the tails'."""
        knots = self.ys if inverse else self.xs
        if self.tails == "identity":
            return not knots[0] < mpf(value) < knots[-1]
        return mpf(value) < knots[0] or mpf(value) > knots[-1]

    def _tail(self, value: mpf, *, inverse: bool) -> Pair | None:
        if not self.is_outside(value, inverse=inverse):
            return None
        return (mp.nan, mp.nan) if self.tails == "nan" else (value, mpf(0))

    def _bin(self, k: int) -> tuple[mpf, mpf, mpf, mpf, mpf, mpf]:
        xs, ys, ds = self.xs, self.ys, self.ds
        return xs[k], xs[k + 1], ys[k], ys[k + 1], ds[k], ds[k + 1]

    def _derivative(self, k: int, t: mpf) -> mpf:
        x0, x1, y0, y1, d0, d1 = self._bin(k)
        s = (y1 - y0) / (x1 - x0)
        numerator = s**2 * (d1 * t**2 + 2 * s * t * (1 - t) + d0 * (1 - t) ** 2)
        return numerator / (s + (d1 + d0 - 2 * s) * t * (1 - t)) ** 2


def rq_spline(
    widths: Sequence[float],
    heights: Sequence[float],
    derivatives: Sequence[float],
    *,
    box: tuple[float, float, float, float],
    tails: str | None,
    parametrization: str,
    min_bin_width: float = 1e-3,
    min_bin_height: float = 1e-3,
    min_derivative: float = 1e-3,
    logit_scale: float = 1.0,
) -> Spline:
    """The K-bin spline of raw parameters; tails "linear", "circular" or None."""
    left, right, bottom, top = (mpf(edge) for edge in box)
    slope = mpf(min_derivative)

    def sizes(raw: Sequence[float], length: mpf, min_bin: float) -> list[mpf]:
        if parametrization == "knots":
            return [mpf(r) for r in raw]
        logits = [mpf(logit_scale) * mpf(r) for r in raw]
        if parametrization == "softclip":
            return [length * p for p in _softmax([_softclip(w, mp.log(slope) / 2) for w in logits])]
        free = 1 - len(raw) * mpf(min_bin)
        return [length * (mpf(min_bin) + free * p) for p in _softmax(logits)]

    def derivative(raw: float) -> mpf:
        if parametrization == "knots":
            return mpf(raw)
        if parametrization == "softclip":
            return mp.exp(_softclip(mpf(raw), mp.log(slope)))
        return slope + _softplus(_clip(raw, None, mpf(2) ** 60))

    ds = [derivative(raw) for raw in derivatives]
    if tails == "linear":
        ds = [mpf(1), *ds, mpf(1)]
    elif tails == "circular":
        ds = [*ds, ds[0]]
    return Spline(
        _cumulate(left, sizes(widths, right - left, min_bin_width), right),
        _cumulate(bottom, sizes(heights, top - bottom, min_bin_height), top),
        tuple(ds),
        {"linear": "identity", "circular": "circle", None: "nan"}[tails],
    )


def modified_rq_spline(
    params: Sequence[float],
    *,
    interval: tuple[float, float] = (-0.5, 0.5),
    min_bin: float = 1e-3,
    min_derivative: float = 1e-3,
    derivative: str = "exp",
) -> Spline:
    """The two-bin spline of (width, height, derivative) logits, without its shift."""
    w, h, d = (mpf(p) for p in params[:3])
    left, right = (mpf(edge) for edge in interval)
    m = mpf(min_derivative)

    def middle(logit: mpf) -> mpf:
        share = mpf(min_bin) + (1 - 2 * mpf(min_bin)) * _sigmoid(_clip(logit, -40, 40))
        return left + (right - left) * share

    if derivative == "softclip":
        d_mid = mp.exp(_softclip(d, mp.log(m)))
    else:
        d_mid = m + (1 - m) * mp.exp(_clip(d, -40, 40))
    return Spline((left, middle(w), right), (left, middle(h), right), (mpf(1), d_mid, mpf(1)))


@dataclass(frozen=True)
class CubicBspline:
    """A cubic B-spline by de Boor's recursion, the identity outside the box.

    ``knots`` are 13, of which the third to the eleventh end the eight bins; ``points`` are 11.
    """

    knots: tuple[mpf, ...]
    points: tuple[mpf, ...]

    def forward(self, x: Number) -> Pair:
        """y and log dy/dx."""
        x = mpf(x)
        if self.is_outside(x):
            return x, mpf(0)
        k = _search(self.knots[2:11], x)
        knots, points = self.knots[k : k + 6], list(self.points[k : k + 4])
        slopes = [3 * (points[j + 1] - points[j]) / (knots[j + 3] - knots[j]) for j in range(3)]
        return _de_boor(x, knots, points), mp.log(_de_boor(x, knots, slopes))

    def is_outside(self, value: mpf) -> bool:
        """Of an x or a y: the box is a square."""
        return not self.knots[2] < value < self.knots[10]

    def inverse(self, y: Number) -> Pair:
        """x and log dx/dy, by bisection."""
        y, low, high = mpf(y), self.knots[2], self.knots[10]
        if self.is_outside(y):
            return y, mpf(0)
        while (middle := (low + high) / 2) not in (low, high):
            low, high = (middle, high) if self.forward(middle)[0] <= y else (low, middle)
        return low, -self.forward(low)[1]


def cubic_bspline(
    params: Sequence[Number], *, interval: tuple[float, float], min_bin: float
) -> CubicBspline:
    """The spline of four knot logits and six control logits, without its shift."""
    left, right = (mpf(edge) for edge in interval)
    length, smallest = right - left, (right - left) * mpf(min_bin)

    def free(logits: Sequence[Number]) -> list[mpf]:
        shares = _softmax([mpf(logit) for logit in logits])
        return [smallest + (length - 8 * smallest) * share for share in shares]

    spacings = 4 * [smallest] + free(params[:4]) + 4 * [smallest]
    rises = 2 * [smallest] + free(params[4:10]) + 2 * [smallest]

    def sums(start: mpf, steps: Sequence[mpf]) -> tuple[mpf, ...]:
        return tuple(start + sum(steps[:i]) for i in range(len(steps) + 1))

    return CubicBspline(sums(left - 2 * smallest, spacings), sums(left - smallest, rises))


def _de_boor(x: mpf, knots: Sequence[mpf], points: Sequence[mpf]) -> mpf:
    """A B-spline of degree len(points) - 1 between the third and the fourth of 6 knots."""
    values, degree = list(points), len(points) - 1
    for r in range(1, degree + 1):
        for j in range(degree, r - 1, -1):
            low, high = knots[j - degree + 2], knots[j + 3 - r]
            share = (x - low) / (high - low)
            values[j] = (1 - share) * values[j - 1] + share * values[j]
    return values[degree]


def affine(
    x: float,
    shift: float,
    logit: float,
    *,
    inverse: bool,
    scale: str,
    eps: float,
    clamp: float,
    shift_first: bool,
    reciprocal: bool,
) -> Pair:
    """y and log |dy/dx|."""
    a = mpf(logit)
    if scale == "sigmoid":
        s = _sigmoid(_clip(a + 2, -40, 40)) + mpf(eps)
    elif scale == "softplus":
        s = _softplus(_clip(a, -40, mpf(2) ** 60)) + mpf(eps)
    else:
        log_scale = {
            "exp": lambda: a,
            "atan_exp": lambda: mpf(clamp) * mpf(0.636) * mp.atan(a),
            "tanh_exp": lambda: mpf(clamp) * mp.tanh(a),
            "softclip_exp": lambda: a / (1 + abs(a) / mpf(clamp)),
        }[scale]()
        s = mp.exp(_clip(log_scale, -40, 40))
    if reciprocal:
        s = 1 / s
    t = mpf(shift)
    if inverse:
        return (mpf(x) / s - t if shift_first else (mpf(x) - t) / s), -mp.log(s)
    return ((mpf(x) + t) * s if shift_first else mpf(x) * s + t), mp.log(s)


def _search(knots: Sequence[mpf], value: mpf) -> int:
    """The bin k of knots[k] <= value < knots[k + 1]; the last one is closed."""
    for k in range(len(knots) - 2):
        if value < knots[k + 1]:
            return k
    return len(knots) - 2


def _cumulate(start: mpf, sizes: Sequence[mpf], end: mpf) -> tuple[mpf, ...]:
    knots = [start]
    for size in sizes[:-1]:
        knots.append(knots[-1] + size)
    return (*knots, end)


def _clip(value: Number, low: Number | None, high: Number) -> mpf:
    value = min(mpf(value), mpf(high))
    return value if low is None else max(value, mpf(low))


def _sigmoid(z: mpf) -> mpf:
    return 1 / (1 + mp.exp(-z))


def _softplus(z: mpf) -> mpf:
    return z if z > 500 else mp.log(1 + mp.exp(max(z, mpf(-(2**20)))))


def _softclip(z: mpf, limit: mpf) -> mpf:
    return z / (1 + abs(z / limit))


def _softmax(logits: Sequence[mpf]) -> list[mpf]:
    largest = max(logits)
    # An exponent of -1e38 is a zero, but one that takes mpmath's exp a long time to find.
    powers = [mp.exp(max(z - largest, mpf(-(2**20)))) for z in logits]
    return [p / sum(powers) for p in powers]
