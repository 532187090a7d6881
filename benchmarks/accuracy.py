"""Accuracy in float32: the kernels and the textbook formula, both against the float64 oracle.

    python -m benchmarks.accuracy [--quick] [--filter TEXT] [--json FILE] [--check]

An error is |computed - exact| over the larger of |exact| and the quantity's scale: the box's half
width for y, 1 for the log-determinant and for gradients (whose cotangents are standard normal).
The inverse is judged by the smaller of forward and backward error, because a nearly flat spline
does not determine x. At the maximum an error is excused where the exact answer itself moves as
far when x, or one knot, moves by 2 ulp of the box: the derivative of the log-determinant jumps at
knots. The eager formula's own error is the yardstick; where its result is not finite it has none.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks import subjects
from benchmarks.subjects import Parameters, Subject, double
from robustflow._arguments import output_file
from robustflow._files import save
from robustflow.benchmarks import machine
from robustflow.benchmarks.verdicts import Verdict, verdict_table

ELEMENTS, QUICK_ELEMENTS = 1 << 17, 1 << 13

TINY = 1e-7
TYPICAL_FACTOR = 1.5  # at the median and the 99.9th percentile
MAXIMUM_FACTOR = 2.0
MOVE_ULPS = 2.0
ROUND_TRIP_BAR = 6.0

Quantities = dict[str, Tensor]
Inputs = Callable[[Subject, int, bool, torch.Generator], tuple[Tensor, Parameters]]
INPUTS: dict[str, Inputs] = {
    "ordinary": subjects.ordinary,
    "adversarial": subjects.adversarial,
    "saturated": subjects.saturated,
    "knots": subjects.knots,
}
# At a knot an error is a jump or none, and how often depends on luck: no percentile is judged.
PERCENTILE_INPUTS = ("ordinary", "adversarial", "saturated")
# Where the slope changes a millionfold within half an ulp of y, the local slope says nothing of
# how well y determines x: the round trip is not asked of saturated parameters.
ROUND_TRIP_INPUTS = ("ordinary", "adversarial")


@dataclass(frozen=True)
class Errors:
    """Order statistics of the errors of one quantity over all elements."""

    median: float
    p999: float
    maximum: float

    @classmethod
    def of(cls, errors: Tensor) -> Errors:
        finite = errors[errors.isfinite()]
        if finite.numel() == 0:
            return cls(0.0, 0.0, 0.0)
        return cls(quantile(finite, 0.5), quantile(finite, 0.999), finite.max().item())


@dataclass(frozen=True)
class Line:
    """The verdict on one quantity of one case.

    Attributes:
        nonfinite, eager_nonfinite: results that are not finite though the exact one is.
        excused, unexcused: errors beyond the bar for the maximum that moving x or a knot explains,
            or does not.
    """

    operation: str
    parameters: str
    direction: str
    quantity: str
    elements: int
    fused: Errors
    eager: Errors
    nonfinite: int
    eager_nonfinite: int
    excused: int
    unexcused: int
    passes: bool


@dataclass(frozen=True)
class RoundTrip:
    """The round trip in units of the error that rounding y and x alone would cause."""

    operation: str
    parameters: str
    median: float
    p999: float
    maximum: float
    passes: bool


def quantile(values: Tensor, q: float) -> float:
    """The smallest value that at least a fraction ``q`` of the values do not exceed.

    Example:
        >>> quantile(torch.arange(1.0, 1001.0), 0.999)
        999.0
    """
    flat = values.flatten()
    return flat.kthvalue(max(1, math.ceil(q * flat.numel()))).values.item()


def evaluate(
    transform: Callable[[Tensor, Parameters, bool], tuple[Tensor, Tensor]],
    x: Tensor,
    params: Parameters,
    inverse: bool,
    cotangents: tuple[Tensor, Tensor],
) -> Quantities:
    """y, logabsdet and the gradients of x and of every kind of parameter, each (n, ...)."""
    x = x.detach().clone().requires_grad_(True)
    params = {kind: p.detach().clone().requires_grad_(True) for kind, p in params.items()}
    y, logabsdet = transform(x, params, inverse)
    outputs = (y, logabsdet)
    gradients = torch.autograd.grad(
        outputs,
        [x, *params.values()],
        [c.to(output.dtype) for c, output in zip(cotangents, outputs, strict=True)],
        allow_unused=True,
        materialize_grads=True,
    )
    names = ["grad x", *(f"grad {kind}" for kind in params)]
    return {
        "y": y.detach(),
        "logabsdet": logabsdet.detach(),
        **dict(zip(names, gradients, strict=True)),
    }


def compare(
    subject: Subject, parameters: str, inverse: bool, n: int = ELEMENTS, seed: int = 0
) -> list[Line]:
    """Judge every quantity of one subject, on one kind of inputs, in one direction."""
    generator = torch.Generator().manual_seed(seed)
    x, params = INPUTS[parameters](subject, n, inverse, generator)
    cotangents = (torch.randn(n, generator=generator), torch.randn(n, generator=generator))
    exact = evaluate(subject.oracle, x.double(), double(params), inverse, cotangents)
    computed = {
        "fused": evaluate(subject.fused, x, params, inverse, cotangents),
        "eager": evaluate(subject.eager, x, params, inverse, cotangents),
    }
    errors = {
        who: _errors(subject, x, params, inverse, cotangents, exact, result)
        for who, result in computed.items()
    }
    lines = []
    for quantity, truth in exact.items():
        finite = truth.isfinite()
        fused, eager = errors["fused"][quantity], errors["eager"][quantity]
        limit = MAXIMUM_FACTOR * Errors.of(eager).maximum + TINY
        beyond = (fused > limit) & fused.isfinite()
        rows = beyond.flatten(1).any(1) if beyond.dim() > 1 else beyond
        variation = _variation(subject, x, params, inverse, cotangents, quantity, rows)
        unexcused = int((beyond[rows] & (fused[rows] > limit + variation)).sum())
        nonfinite = int((finite & ~computed["fused"][quantity].isfinite()).sum())
        stats, yardstick = Errors.of(fused), Errors.of(eager)
        typical = stats.median <= TYPICAL_FACTOR * yardstick.median + TINY
        if parameters in PERCENTILE_INPUTS:
            typical &= stats.p999 <= TYPICAL_FACTOR * yardstick.p999 + TINY
        lines.append(
            Line(
                operation=subject.name,
                parameters=parameters,
                direction="inverse" if inverse else "forward",
                quantity=quantity,
                elements=truth.numel(),
                fused=stats,
                eager=yardstick,
                nonfinite=nonfinite,
                eager_nonfinite=int((finite & ~computed["eager"][quantity].isfinite()).sum()),
                excused=int(beyond.sum()) - unexcused,
                unexcused=unexcused,
                passes=typical and unexcused == 0 and nonfinite == 0,
            )
        )
    return lines


def count_nonfinite(subject: Subject, inverse: bool, n: int = ELEMENTS, seed: int = 0) -> int:
    """Results and gradients that are not finite, with raw parameters up to ±1e38."""
    generator = torch.Generator().manual_seed(seed)
    x, params = subjects.extreme(subject, n, inverse, generator)
    cotangents = (torch.randn(n, generator=generator), torch.randn(n, generator=generator))
    result = evaluate(subject.fused, x, params, inverse, cotangents)
    return sum(int((~tensor.isfinite()).sum()) for tensor in result.values())


def round_trip(subject: Subject, parameters: str, n: int = ELEMENTS, seed: int = 0) -> RoundTrip:
    """|T⁻¹(T(x)) - x| over (half an ulp of max(|y|, B) over the local slope + half an ulp of
    max(|x|, B)), element by element."""
    generator = torch.Generator().manual_seed(seed)
    x, params = INPUTS[parameters](subject, n, False, generator)
    with torch.no_grad():
        y, _ = subject.fused(x, params, False)
        back, _ = subject.fused(y, params, True)
        _, log_slope = subject.oracle(x.double(), double(params), False)
        half = subject.half_width
        unit = ulp(y, half) / 2 / log_slope.exp() + ulp(x, half) / 2
        figure = (back.double() - x.double()).abs() / unit
    p999 = quantile(figure, 0.999)
    return RoundTrip(
        operation=subject.name,
        parameters=parameters,
        median=quantile(figure, 0.5),
        p999=p999,
        maximum=figure.max().item(),
        passes=p999 <= ROUND_TRIP_BAR,
    )


def ulp(value: Tensor, at_least: float) -> Tensor:
    """The spacing of float32 numbers at ``max(|value|, at_least)``, in float64.

    Example:
        >>> ulp(torch.tensor([0.0, -1.5, 2.0]), 1.0) * 2**23
        tensor([1., 1., 2.], dtype=torch.float64)
    """
    _, exponent = torch.frexp(value.float().abs().clamp(min=at_least))
    return torch.ldexp(torch.ones(value.shape, dtype=torch.float64), exponent - 24)


def _scale(subject: Subject, quantity: str) -> float:
    return subject.half_width if quantity == "y" else 1.0


def _relative(computed: Tensor, exact: Tensor, scale: float) -> Tensor:
    """Errors; a result that is not finite has an infinite one."""
    error = (computed.double() - exact).abs() / exact.abs().clamp(min=scale)
    return torch.where(computed.isfinite(), error, torch.inf)


def _errors(
    subject: Subject,
    x: Tensor,
    params: Parameters,
    inverse: bool,
    cotangents: tuple[Tensor, Tensor],
    exact: Quantities,
    computed: Quantities,
) -> Quantities:
    """Errors of every quantity; in the inverse, the smaller of forward and backward error.

    The backward view: ``computed["y"]`` is the exact inverse of some other input. The error is
    that input's distance from the given one, or the error against the exact results there.
    """
    forward = {
        name: _relative(computed[name], truth, _scale(subject, name))
        for name, truth in exact.items()
    }
    if not inverse:
        return forward
    params = double(params)
    with torch.no_grad():
        nearby, _ = subject.oracle(computed["y"].double(), params, False)
    distance = _relative(nearby, x.double(), subject.half_width)
    there = evaluate(subject.oracle, nearby, params, True, cotangents)
    backward = {}
    for name, truth in there.items():
        error = _relative(computed[name], truth, _scale(subject, name))
        apart = distance if error.dim() == 1 else distance.unsqueeze(1)
        backward[name] = torch.maximum(error, apart)
    backward["y"] = distance
    # A NaN here means that the backward view does not exist.
    return {
        name: torch.fmin(error, backward[name].nan_to_num(nan=torch.inf, posinf=torch.inf))
        for name, error in forward.items()
    }


def _variation(
    subject: Subject,
    x: Tensor,
    params: Parameters,
    inverse: bool,
    cotangents: tuple[Tensor, Tensor],
    quantity: str,
    rows: Tensor,
) -> Tensor:
    """How far the exact ``quantity`` of some ``rows`` goes, in units of its error, when x or one
    inner knot moves by 2 ulp of the box; zero where there are no knots."""
    x = x[rows].double()
    params = {kind: tensor[rows].double() for kind, tensor in params.items()}
    chosen = (cotangents[0][rows], cotangents[1][rows])
    exact = evaluate(subject.oracle, x, params, inverse, chosen)[quantity]
    variation = torch.zeros_like(exact)
    if subject.knots is None or not len(x):
        return variation
    for move in _moves(subject, x, params, inverse):

        def moved(
            x: Tensor, params: Parameters, inverse: bool, move: dict[str, Any] = move
        ) -> tuple[Tensor, Tensor]:
            return subject.moved(x, params, inverse, **move)

        there = evaluate(moved, x, params, inverse, chosen)[quantity]
        variation = torch.fmax(variation, _relative(there, exact, _scale(subject, quantity)))
    return variation


def _moves(
    subject: Subject, x: Tensor, params: Parameters, inverse: bool
) -> Iterator[dict[str, Any]]:
    """Moves of at most 2 ulp: x or a knot by all of it and by half, and x to either side of every
    knot in reach, where the answer is furthest off if the spline bends sharply there."""
    unit = ulp(torch.tensor(0.0), subject.half_width).item()
    num_bins = max(2, *subject.sizes.values())
    for ulps in (-MOVE_ULPS, -MOVE_ULPS / 2, MOVE_ULPS / 2, MOVE_ULPS):
        yield {"x_by": ulps * unit}
        for j in range(1, num_bins):
            yield {"x_knot": (j, ulps * unit)}
            yield {"y_knot": (j, ulps * unit)}
    for knot in subject.inner_knots(params, inverse).unbind(1):
        for side in (-1.0, 1.0):
            distance = knot - x + side * unit * 2.0**-16
            yield {"x_by": torch.where(distance.abs() <= MOVE_ULPS * unit, distance, 0.0)}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer elements")
    parser.add_argument("--filter", default="", help="only transforms whose name contains this")
    parser.add_argument("--json", type=output_file, help="write the numbers and the machine here")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a bar is missed")
    options = parser.parse_args(arguments)
    chosen = [subject for subject in subjects.SUBJECTS if options.filter in subject.name]
    if not chosen:
        names = ", ".join(subject.name for subject in subjects.SUBJECTS)
        parser.error(f"no transform's name contains {options.filter!r}; there are {names}")
    n = QUICK_ELEMENTS if options.quick else ELEMENTS

    lines: list[Line] = []
    trips: list[RoundTrip] = []
    extremes: dict[str, int] = {}
    for subject in chosen:
        print(f"... {subject.name}", file=sys.stderr, flush=True)
        for parameters in INPUTS:
            if parameters == "knots" and subject.knots is None:
                continue
            for inverse in (False, True):
                lines += compare(subject, parameters, inverse, n)
            if subject.knots is not None and parameters in ROUND_TRIP_INPUTS:
                trips.append(round_trip(subject, parameters, n))
        extremes[subject.name] = sum(count_nonfinite(subject, inv, n) for inv in (False, True))
    print(_report(lines, trips, extremes))
    saved = True
    if options.json:
        record = {
            "machine": machine.describe(),
            "accuracy": [asdict(line) for line in lines],
            "round_trips": [asdict(trip) for trip in trips],
            "nonfinite_at_extreme_parameters": extremes,
        }
        saved = save(options.json, json.dumps(record, indent=2) + "\n")
    verdicts = [line.passes for line in lines] + [trip.passes for trip in trips]
    missed = not all(verdicts) or any(extremes.values())
    return int(not saved or (options.check and missed))


def _report(lines: Sequence[Line], trips: Sequence[RoundTrip], extremes: dict[str, int]) -> str:
    def pair(ours: float, theirs: float) -> str:
        return f"{ours:.1e} / {theirs:.1e}"

    errors = [
        Verdict(
            f"{line.operation}, {line.parameters}, {line.direction}: {line.quantity}",
            {
                "median": pair(line.fused.median, line.eager.median),
                "99.9 %": pair(line.fused.p999, line.eager.p999),
                "maximum": pair(line.fused.maximum, line.eager.maximum),
                "excused / not": f"{line.excused} / {line.unexcused}",
                "not finite": f"{line.nonfinite} / {line.eager_nonfinite}",
            },
            line.passes,
        )
        for line in lines
    ]
    round_trips = [
        Verdict(
            f"{trip.operation}, {trip.parameters}",
            {
                "median": f"{trip.median:.2f}",
                "99.9 %": f"{trip.p999:.2f}",
                "maximum": f"{trip.maximum:.2f}",
            },
            trip.passes,
        )
        for trip in trips
    ]
    finite = [
        Verdict(name, {"not finite": str(count)}, count == 0) for name, count in extremes.items()
    ]
    return "\n\n".join(
        [
            verdict_table(errors, "float32 error, fused / eager"),
            verdict_table(round_trips, "round trip, in roundings"),
            verdict_table(finite, "raw parameters up to ±1e38"),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
