"""What accuracy is measured on: each transform three ways, and the inputs it is asked about.

``fused`` is robustflow in float32, ``eager`` the frozen textbook formula, ``oracle`` the float64
reference. Parameters are a dictionary of (n, P) tensors, one a kind, so that errors can be told
apart by kind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import robustflow
from robustflow import functional as F
from robustflow.benchmarks import eager

Parameters = dict[str, Tensor]
Transform = Callable[[Tensor, Parameters, bool], tuple[Tensor, Tensor]]

# The contract saturates logits at +-40, the textbook does not: inside this they are one function.
_LOGIT_LIMIT = 38.0


@dataclass(frozen=True)
class Knots:
    """A spline's knots: bin widths and heights (n, K), inner derivatives (n, K-1), shift (n,)."""

    widths: Tensor
    heights: Tensor
    derivatives: Tensor
    shift: Tensor


@dataclass(frozen=True)
class Subject:
    """One transform, per element: x (n,) and parameters to ``(y, logabsdet)``, both (n,).

    Attributes:
        half_width: B, half the width of the box (1 where there is none): the scale of x and y.
        sizes: parameters of each kind.
        knots: the constrained form of the parameters, differentiable; None for the affine.
    """

    name: str
    half_width: float
    sizes: dict[str, int]
    fused: Transform
    eager: Transform
    knots: Callable[[Parameters], Knots] | None = None

    def oracle(self, x: Tensor, params: Parameters, inverse: bool) -> tuple[Tensor, Tensor]:
        """The reference; in float64 where x and the parameters are."""
        with robustflow.use_backend("reference"):
            return self.fused(x, params, inverse)

    def inner_knots(self, params: Parameters, inverse: bool) -> Tensor:
        """(n, K-1): where the input's axis has its inner knots, the shift included."""
        assert self.knots is not None
        knots = self.knots(params)
        if not inverse:
            return knots.widths.cumsum(1)[:, :-1] - self.half_width
        return knots.heights.cumsum(1)[:, :-1] - self.half_width + knots.shift.unsqueeze(1)

    def moved(
        self,
        x: Tensor,
        params: Parameters,
        inverse: bool,
        *,
        x_by: float | Tensor = 0.0,
        x_knot: tuple[int, float] | None = None,
        y_knot: tuple[int, float] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The oracle with x, or the inner knot j on one axis, moved by a distance.

        Raises:
            ValueError: the transform has no knots.
        """
        if self.knots is None:
            raise ValueError(f"{self.name} has no knots to move.")
        knots = self.knots(params)
        value = x + x_by
        if inverse:
            value = value - knots.shift
        with robustflow.use_backend("reference"):
            result, logabsdet = F.rq_spline(
                value,
                _shifted(knots.widths, x_knot),
                _shifted(knots.heights, y_knot),
                knots.derivatives,
                inverse,
                tail_bound=self.half_width,
                parametrization="knots",
            )
        return result if inverse else result + knots.shift, logabsdet


def double(params: Parameters) -> Parameters:
    return {kind: tensor.double() for kind, tensor in params.items()}


def modified_rq(half_width: float, derivative: str) -> Subject:
    """The modified RQ spline on [-half_width, half_width]."""
    options: dict[str, Any] = {
        "interval": (-half_width, half_width),
        "derivative": derivative,
        "reduce": "none",
    }
    min_bin = min_derivative = 1e-3

    def knots(params: Parameters) -> Knots:
        logits = [params["width"], params["height"]]
        free = 1 - 2 * min_bin
        widths, heights = (
            2 * half_width * (min_bin + free * torch.sigmoid(torch.cat([logit, -logit], 1)))
            for logit in logits
        )
        d = params["derivative"]
        if derivative == "exp":
            inner = min_derivative + (1 - min_derivative) * torch.exp(d)
        else:
            inner = torch.exp(d / (1 + d.abs() / -torch.tensor(min_derivative).double().log()))
        return Knots(widths, heights, inner, params["shift"].squeeze(1))

    return Subject(
        name=f"modified_rq_spline({derivative}, B={half_width:g})",
        half_width=half_width,
        sizes={"width": 1, "height": 1, "derivative": 1, "shift": 1},
        fused=_planar(F.modified_rq_spline, options),
        eager=_planar(eager.modified_rq_spline, options),
        knots=knots,
    )


def rq(num_bins: int, parametrization: str, half_width: float = 3.0) -> Subject:
    """The K-bin spline with linear tails."""
    options: dict[str, Any] = {"tail_bound": half_width, "parametrization": parametrization}
    minimum = 1e-3

    def knots(params: Parameters) -> Knots:
        widths, heights = (
            2 * half_width * _sizes(params[kind], parametrization, minimum)
            for kind in ("widths", "heights")
        )
        d = params["derivatives"]
        if parametrization == "softmax":
            d = minimum + torch.nn.functional.softplus(d, threshold=40.0)
        else:
            d = torch.exp(d / (1 + d.abs() / -torch.tensor(minimum).double().log()))
        return Knots(widths, heights, d, torch.zeros_like(d[:, 0]))

    def rows(transform: Callable[..., tuple[Tensor, Tensor]]) -> Transform:
        def call(x: Tensor, params: Parameters, inverse: bool) -> tuple[Tensor, Tensor]:
            return transform(x, *params.values(), inverse, **options)

        return call

    return Subject(
        name=f"rq_spline({parametrization}, K={num_bins})",
        half_width=half_width,
        sizes={"widths": num_bins, "heights": num_bins, "derivatives": num_bins - 1},
        fused=rows(F.rq_spline),
        eager=rows(eager.rq_spline),
        knots=knots,
    )


def affine(scale: str) -> Subject:
    """The conditional affine."""
    options: dict[str, Any] = {"scale": scale, "reduce": "none"}
    return Subject(
        name=f"conditional_affine({scale})",
        half_width=1.0,
        sizes={"shift": 1, "scale": 1},
        fused=_planar(F.conditional_affine, options),
        eager=_planar(eager.conditional_affine, options),
    )


def ordinary(
    subject: Subject, n: int, inverse: bool, generator: torch.Generator
) -> tuple[Tensor, Parameters]:
    """Standard normal parameters, inputs uniform over the box and a little beyond it."""
    params = {
        kind: torch.randn(n, size, generator=generator) for kind, size in subject.sizes.items()
    }
    span = 1.2 * subject.half_width
    x = span * (2 * torch.rand(n, generator=generator) - 1)
    return _with_shift(subject, x, params, inverse), params


def adversarial(
    subject: Subject, n: int, inverse: bool, generator: torch.Generator
) -> tuple[Tensor, Parameters]:
    """Parameters of very different size from element to element, logits up to ±10 (derivatives
    from e^-10 to e^10, the smallest bins); inputs all over the box, in a bin's corners, outside."""
    scales, shift_scales = [0.0, 1.0, 3.0, 10.0], [0.0, 1.0, 10.0]
    params = _mixed(subject, n, generator, scales, 10.0, shift_scales)
    return _spread_out(subject, params, n, inverse, generator), params


def saturated(
    subject: Subject, n: int, inverse: bool, generator: torch.Generator
) -> tuple[Tensor, Parameters]:
    """As :func:`adversarial`, with logits up to where they saturate and shifts of a thousand.

    Splines have cliffs here, e^38 steep, that lie between two neighbouring float32 numbers.
    """
    scales, shift_scales = [0.0, 1.0, 5.0, 15.0, 60.0], [0.0, 1.0, 1e3]
    params = _mixed(subject, n, generator, scales, _LOGIT_LIMIT, shift_scales)
    return _spread_out(subject, params, n, inverse, generator), params


def knots(
    subject: Subject, n: int, inverse: bool, generator: torch.Generator
) -> tuple[Tensor, Parameters]:
    """The parameters of :func:`adversarial`; inputs at knots and edges to within four float32
    numbers, where float32 cannot but take the wrong bin now and then."""
    params = _mixed(subject, n, generator, [0.0, 1.0, 3.0, 10.0], 10.0, [0.0])
    left, _ = _random_bin(subject, params, n, inverse, generator)
    half = subject.half_width
    edge = torch.where(torch.rand(n, generator=generator) < 0.5, -half, half)
    place = torch.where(torch.rand(n, generator=generator) < 0.8, left.float(), edge)
    return _ulps_from(place, torch.randint(-4, 5, (n,), generator=generator)), params


def extreme(
    subject: Subject, n: int, inverse: bool, generator: torch.Generator
) -> tuple[Tensor, Parameters]:
    """Raw parameters of ±1e4 and ±1e38 among ordinary ones: only finiteness can be asked."""
    x, params = ordinary(subject, n, inverse, generator)
    values = torch.tensor([0.0, 1.0, -1.0, 1e4, -1e4, 1e38, -1e38])
    for kind, tensor in params.items():
        if kind != "shift":  # a shift is data: it may be as large as x, not as a logit
            index = torch.randint(len(values), tensor.shape, generator=generator)
            params[kind] = values[index] * tensor.abs().clamp(max=1.0)
    return x, params


def _pick(choices: list[float], n: int, generator: torch.Generator) -> Tensor:
    """(n, 1), each a random one of ``choices``."""
    return torch.tensor(choices)[torch.randint(len(choices), (n, 1), generator=generator)]


def _mixed(
    subject: Subject,
    n: int,
    generator: torch.Generator,
    scales: list[float],
    limit: float,
    shift_scales: list[float],
) -> Parameters:
    """Normal parameters, each element's and each kind's of a scale of its own."""
    params: Parameters = {}
    for kind, size in subject.sizes.items():
        scale = _pick(shift_scales if kind == "shift" else scales, n, generator)
        logits = scale * torch.randn(n, size, generator=generator)
        params[kind] = logits if kind == "shift" else logits.clamp(-limit, limit)
    return params


def _random_bin(
    subject: Subject, params: Parameters, n: int, inverse: bool, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Both ends (n,) of a random bin of each element, on the axis of the input."""
    assert subject.knots is not None
    knots = subject.knots(double(params))
    sizes = knots.heights if inverse else knots.widths
    edges = torch.nn.functional.pad(sizes.cumsum(1), (1, 0)) - subject.half_width
    which = torch.randint(sizes.shape[1], (n, 1), generator=generator)
    return edges.gather(1, which).squeeze(1), edges.gather(1, which + 1).squeeze(1)


def _spread_out(
    subject: Subject, params: Parameters, n: int, inverse: bool, generator: torch.Generator
) -> Tensor:
    """Inputs of every kind but at knots: those keep 8 roundings of the box away, if they can."""
    if subject.knots is None:
        scale = _pick([1e-3, 1.0, 1e3], n, generator).squeeze(1)
        return scale * torch.randn(n, generator=generator)
    left, right = _random_bin(subject, params, n, inverse, generator)
    half, size = subject.half_width, right - left
    share = 10 ** (-6 * torch.rand(n, generator=generator).double())
    inset = torch.minimum(torch.maximum(size * share, torch.tensor(half * 2.0**-20)), size / 2)
    from_left = torch.rand(n, generator=generator) < 0.5
    corner = torch.where(from_left, left + inset, right - inset).float()
    uniform = half * (2 * torch.rand(n, generator=generator) - 1)
    outside = 3 * half * torch.randn(n, generator=generator)
    ways = torch.stack([uniform, uniform, corner, outside])
    x = ways.gather(0, torch.randint(len(ways), (1, n), generator=generator)).squeeze(0)
    return _with_shift(subject, x, params, inverse)


def _planar(transform: Callable[..., tuple[Tensor, Tensor]], options: dict[str, Any]) -> Transform:
    """Call ``transform`` on one channel, its parameters packed as a convolution packs them."""

    def call(x: Tensor, params: Parameters, inverse: bool) -> tuple[Tensor, Tensor]:
        packed = torch.cat(list(params.values()), 1).t().contiguous().unsqueeze(0)
        y, logabsdet = transform(x[None, None], packed, inverse=inverse, **options)
        return y[0, 0], logabsdet[0, 0]

    return call


def _sizes(logits: Tensor, parametrization: str, minimum: float) -> Tensor:
    if parametrization == "softmax":
        num_bins = logits.shape[1]
        return minimum + (1 - num_bins * minimum) * torch.softmax(logits, 1)
    limit = -torch.tensor(minimum).double().log() / 2
    return torch.softmax(logits / (1 + logits.abs() / limit), 1)


def _shifted(sizes: Tensor, move: tuple[int, float] | None) -> Tensor:
    """Bin sizes once the inner knot j, between bins j-1 and j, has moved."""
    if move is None:
        return sizes
    j, distance = move
    change = torch.zeros(sizes.shape[1], dtype=sizes.dtype)
    change[j - 1], change[j] = distance, -distance
    return sizes + change


def _with_shift(subject: Subject, x: Tensor, params: Parameters, inverse: bool) -> Tensor:
    """An inverse is asked about values that its shift brings into the box."""
    if inverse and subject.knots is not None and "shift" in params:
        return x + params["shift"].squeeze(1)
    return x


def _ulps_from(value: Tensor, steps: Tensor) -> Tensor:
    """float32 ``value`` moved by ``steps`` representable numbers."""
    for _ in range(int(steps.abs().max())):
        toward = torch.where(steps > 0, torch.inf, -torch.inf)
        value = torch.where(steps == 0, value, torch.nextafter(value, toward))
        steps = steps - steps.sign()
    return value


SUBJECTS = (
    modified_rq(0.5, "exp"),
    modified_rq(3.0, "softclip"),
    rq(8, "softmax"),
    rq(8, "softclip"),
    rq(32, "softmax"),
    affine("sigmoid"),
    affine("exp"),
)
