"""Accuracy in float32, over ordinary and adversarial inputs, judged by the eager formula's own.

The float64 reference is the truth, and the error of the textbook formula in float32
(robustflow/benchmarks/eager.py) is the measure. A kernel's error may be 1.5 times that at the
median and at the 99.9th percentile, and twice at the maximum; or what moving x and the knots by an
ulp of the box explains (the derivative of the log-determinant jumps at a knot, so an element
beside one has two values). An inverse may be judged by its backward error: a nearly flat spline
does not determine x. benchmarks/accuracy.py does the same at length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from robustflow.benchmarks import eager
from tests.conformance.compare import Results, movement, run_oracle
from tests.conformance.operations import RQ, Affine, CubicBspline, ModifiedRQ, Operation, Pair
from tests.conformance.targets import Target

COUNT = 30_000
EPS = torch.finfo(torch.float32).eps
TINY = 1e-7
SPLINES: tuple[Operation, ...] = (
    ModifiedRQ("exp"),
    ModifiedRQ("softclip", interval=(-3.0, 3.0)),
    CubicBspline(),
    RQ(8, "linear", "softmax", bounds=(-3.0, 3.0, -3.0, 3.0)),
    RQ(8, "circular", "softclip", bounds=(-5.0, 5.0, -5.0, 5.0)),
    RQ(20, "linear", "softmax"),
)
WITH_SHIFT = (ModifiedRQ, CubicBspline)  # their last parameter
AFFINES: tuple[Operation, ...] = (Affine("sigmoid"), Affine("exp", shift_first=False))
each_operation = pytest.mark.parametrize("operation", SPLINES + AFFINES, ids=lambda op: op.name)
each_spline = pytest.mark.parametrize("operation", SPLINES, ids=lambda op: op.name)
both_directions = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
KINDS = ["ordinary", "adversarial", "saturated"]
each_kind = pytest.mark.parametrize("kind", KINDS)


@dataclass(frozen=True)
class Inputs:
    """float32 values held in float64: x (N,), params (N, P), two cotangents (N,)."""

    x: Tensor
    params: Tensor
    cotangents: tuple[Tensor, Tensor]

    def to(self, device: str) -> Inputs:
        """For the oracle on a GPU, which is the faster place for it."""
        grad_y, grad_logabsdet = (cotangent.to(device) for cotangent in self.cotangents)
        return Inputs(self.x.to(device), self.params.to(device), (grad_y, grad_logabsdet))


def _float32(tensor: Tensor) -> Tensor:
    return tensor.float().double()


def _mixed(params: Tensor, scales: list[float], limit: float, generator: torch.Generator) -> Tensor:
    """Logits of each row of a scale of its own, and of each parameter again: up to +-limit."""
    chosen = torch.tensor(scales, dtype=torch.float64)
    row = chosen[torch.randint(0, len(scales), (params.shape[0], 1), generator=generator)]
    one = chosen[torch.randint(0, len(scales), params.shape, generator=generator)]
    keep = torch.rand(params.shape[0], 1, generator=generator) < 0.5
    return (params * torch.where(keep, row, one)).clamp(-limit, limit)


def _spread_out(operation: Operation, x: Tensor, generator: torch.Generator) -> Tensor:
    """A third of the inputs at distances from an edge that are uniform in their logarithm."""
    low, high = operation.box
    u = torch.rand(3, x.numel(), generator=generator, dtype=torch.float64)
    distance = (high - low) * 10.0 ** (-6.0 * u[0])
    near = torch.where(u[1] < 0.5, low + distance, high - distance)
    return torch.where(u[2] < 1.0 / 3.0, near, x)


def _inputs(operation: Operation, kind: str, inverse: bool) -> Inputs:
    """Inputs of a kind.

    "ordinary": what a conditioner gives. "adversarial": logits of very different size, up to 10
    (derivatives from e^-10 to e^10, the smallest bins), inputs close to the edges. "saturated": the
    same up to where logits saturate.
    """
    generator = torch.Generator().manual_seed(operation.seed(kind, inverse))
    params = operation.sample_params((COUNT,), generator)
    shift = params[:, -1].clone() if isinstance(operation, WITH_SHIFT) else None
    if kind == "adversarial":
        params = _mixed(params, [0.0, 1.0, 2.0, 7.0], 10.0, generator)
    elif kind == "saturated":
        params = _mixed(params, [0.0, 1.0, 4.0, 10.0, 40.0], 40.0, generator)
    if shift is not None:
        params[:, -1] = shift
    params = _float32(params)
    x = operation.sample_x(params, generator, inverse)
    if kind != "ordinary" and not isinstance(operation, Affine):
        offset = params[:, -1] if shift is not None and inverse else torch.zeros(())
        x = _spread_out(operation, x - offset, generator) + offset
    noise = torch.randn(2, COUNT, generator=generator, dtype=torch.float64)
    return Inputs(_float32(x), params, (_float32(noise[0]), _float32(noise[1])))


def _eager_call(operation: Operation, x: Tensor, params: Tensor, inverse: bool) -> Pair:
    """The textbook formula on x (N,) and params (N, P)."""
    options: dict[str, Any]
    if isinstance(operation, RQ):
        bins = operation.num_bins
        options = {"tails": operation.tails, "parametrization": operation.parametrization}
        return eager.rq_spline(
            x,
            params[:, :bins],
            params[:, bins : 2 * bins],
            params[:, 2 * bins :],
            inverse,
            tail_bound=operation.bounds[1],
            **options,
        )
    options = {"inverse": inverse, "reduce": "none"}
    x = x.unsqueeze(1)
    if isinstance(operation, ModifiedRQ):
        options |= {"interval": operation.interval, "derivative": operation.derivative}
        y, logabsdet = eager.modified_rq_spline(x, params, **options)
    elif isinstance(operation, CubicBspline):
        options |= {"interval": operation.interval, "min_bin": operation.min_bin}
        y, logabsdet = eager.cubic_bspline(x, params, **options)
    else:
        assert isinstance(operation, Affine)
        options |= {"scale": operation.scale, "shift_first": operation.shift_first}
        y, logabsdet = eager.conditional_affine(x, params, **options)
    return y.squeeze(1), logabsdet.squeeze(1)


def _run(
    operation: Operation, inputs: Inputs, inverse: bool, device: str, *, textbook: bool = False
) -> Results:
    """Values and gradients in float32 on a device, handed back in float64 where the inputs are."""
    x = inputs.x.to(device, torch.float32).requires_grad_()
    params = inputs.params.to(device, torch.float32).requires_grad_()
    if textbook:
        y, logabsdet = _eager_call(operation, x, params, inverse)
    else:
        y, logabsdet = operation.call(x, (params,), inverse, "none")
    cotangents = [c.to(device, torch.float32) for c in inputs.cotangents]
    grad_x, grad_params = torch.autograd.grad((y, logabsdet), (x, params), cotangents)
    results = (y.detach(), logabsdet.detach(), grad_x, grad_params)
    return Results(*(t.to(inputs.x.device).double() for t in results))


def _errors(operation: Operation, actual: Results, exact: Results) -> Results:
    """Relative errors, in the unit of the box, of a log-determinant of 1, of a cotangent of 1."""
    edge = max(abs(edge) for edge in operation.box)
    floors = Results(*(exact.y.new_tensor(f) for f in (edge, 1.0, 1.0, 1.0)))
    return Results(
        *(
            (value - truth).abs() / truth.abs().clamp(min=floor)
            for (_, value), (_, truth), (_, floor) in zip(
                actual.items(), exact.items(), floors.items(), strict=True
            )
        )
    )


def _judged(operation: Operation, actual: Results, inputs: Inputs, inverse: bool) -> Results:
    """Errors against the oracle; of an inverse the smaller of forward and backward error."""
    exact = run_oracle(operation, inputs.x, inputs.params, inverse, inputs.cotangents)
    forward = _errors(operation, actual, exact)
    if not inverse or isinstance(operation, Affine):
        return forward
    image, _ = operation.oracle(actual.y, inputs.params, False)
    at_image = run_oracle(operation, image, inputs.params, True, inputs.cotangents)
    edge = max(abs(edge) for edge in operation.box)
    backward = _errors(operation, actual, at_image)
    missed = (image - inputs.x).abs() / inputs.x.abs().clamp(min=edge)
    backward = Results(missed, backward.logabsdet, backward.grad_x, backward.grad_params)
    return Results(
        *(
            torch.fmin(one, other)
            for (_, one), (_, other) in zip(forward.items(), backward.items(), strict=True)
        )
    )


def _quantile(error: Tensor, q: float) -> float:
    flat = error.flatten().sort().values
    return float(flat[min(flat.numel() - 1, int(q * flat.numel()))])


@each_kind
@both_directions
@each_operation
def test_error_is_the_eager_formulas(
    native_target: Target, operation: Operation, inverse: bool, kind: str
) -> None:
    inputs = _inputs(operation, kind, inverse).to(native_target.device)
    actual = _run(operation, inputs, inverse, native_target.device)
    for name, value in actual.items():
        assert bool(value.isfinite().all()), f"{name} is not finite"
    textbook = _run(operation, inputs, inverse, "cpu", textbook=True)
    error = dict(_judged(operation, actual, inputs, inverse).items())
    textbook_error = dict(_judged(operation, textbook, inputs, inverse).items())
    explained: Results | None = None
    for name, found in error.items():
        measure = textbook_error[name]
        measure = measure[measure.isfinite()]  # where it overflows, it measures nothing
        for q in (0.5, 0.999):
            ours, theirs = _quantile(found, q), _quantile(measure, q)
            assert ours <= 1.5 * theirs + TINY, f"{name} at {q}: {ours:.3g}, eager {theirs:.3g}"
        limit = 2.0 * float(measure.max()) + TINY
        beyond = found > limit
        if not bool(beyond.any()):
            continue
        if explained is None:
            explained = _explained(operation, inputs, inverse)
        unexplained = beyond & (found > getattr(explained, name) + limit)
        assert not bool(unexplained.any()), (
            f"{name}: {float(found[unexplained].max()):.3g} at its worst, eager {limit / 2:.3g}; "
            f"an ulp explains {float(getattr(explained, name)[unexplained].max()):.3g}"
        )


def _explained(operation: Operation, inputs: Inputs, inverse: bool) -> Results:
    """The relative errors that an ulp of the box in x and in every knot would make."""
    x, params, cotangents = inputs.x, inputs.params, inputs.cotangents
    exact = run_oracle(operation, x, params, inverse, cotangents)
    moved = movement(operation, x, params, inverse, cotangents, exact, EPS)
    shifted = Results(
        *(value + by for (_, value), (_, by) in zip(exact.items(), moved.items(), strict=True))
    )
    return _errors(operation, shifted, exact)


def _half_ulp(value: Tensor) -> Tensor:
    """Half the distance between float32 numbers at the size of ``value``."""
    _, exponent = torch.frexp(value)
    return torch.ldexp(torch.ones_like(value), exponent - 1) * (EPS / 2.0)


@pytest.mark.parametrize("kind", KINDS[:2])
@each_spline
def test_round_trip(native_target: Target, operation: Operation, kind: str) -> None:
    """|inverse(forward(x)) - x| in units of what rounding y, through the slope, and x must cost.

    Not where logits saturate: there the slope may change a millionfold within half an ulp of y, and
    says nothing of how well y determines x.
    """
    inputs = _inputs(operation, kind, False).to(native_target.device)
    x, params = inputs.x.float(), inputs.params.float()
    y, _ = operation.call(x, (params,), False, "none")
    back, _ = operation.call(y, (params,), True, "none")
    _, logabsdet = operation.oracle(inputs.x, inputs.params, False)
    edge = max(abs(edge) for edge in operation.box)
    rounding = _half_ulp(y.double().abs().clamp(min=edge)) / logabsdet.exp()
    rounding = rounding + _half_ulp(inputs.x.abs().clamp(min=edge))
    ratio = (back.double() - inputs.x).abs() / rounding
    assert _quantile(ratio, 0.999) <= 6.0
    assert _quantile(ratio, 0.5) <= 1.0


@each_spline
def test_an_inverse_cannot_explode(native_target: Target, operation: Operation) -> None:
    """Whatever the parameters, the inverse moves its input by less than the box."""
    inputs = _inputs(operation, "saturated", True).to(native_target.device)
    y, params = inputs.x.float(), inputs.params.float()
    x, _ = operation.call(y, (params,), True, "none")
    shift = params[:, -1] if isinstance(operation, WITH_SHIFT) else torch.zeros_like(y)
    low, high = operation.box
    assert float((x.double() - (y.double() - shift.double())).abs().max()) < high - low
