"""The tensors of a case, the functions to time on them, and the comparison of their results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robustflow import functional as F
from robustflow.benchmarks import eager, peers
from robustflow.benchmarks.cases import Case
from robustflow.benchmarks.timing import Function

Transform = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Calls:
    """The functions of a case that are timed. All of them use the same tensors.

    Attributes:
        ours: one call of robustflow. It returns ``(y, logabsdet)``; with a backward pass, also the
            gradients with respect to x and each parameter tensor.
        competitors: the same for each competitor.
        left_out: competitors that cannot run here, with the reason.
    """

    case: Case
    ours: Function
    competitors: dict[str, Function]
    left_out: dict[str, str]


@dataclass(frozen=True)
class Inputs:
    """Tensors of a case: x and its parameters, and cotangents if it has a backward pass."""

    leaves: tuple[Tensor, ...]
    cotangents: tuple[Tensor, ...] = ()


def prepare(case: Case, seed: int = 0) -> Calls:
    """Make the tensors of a case and a function for each of its competitors."""
    return bind(case, make_inputs(case, seed))


def make_inputs(case: Case, seed: int = 0, device: torch.device | str = "cpu") -> Inputs:
    """Standard normal inputs.

    Zeros would be faster on some memory, and would hide results that were never written.
    """
    generator = torch.Generator(device).manual_seed(seed)

    def normal(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    x = normal(case.shape, case.dtype)
    params = (normal(shape, case.parameter_dtype) for shape in case.parameter_shapes)
    leaves = (x, *params)
    if not case.trains:
        return Inputs(leaves)
    cotangents = (normal(case.shape, case.dtype), normal(case.logabsdet_shape, torch.float32))
    return Inputs(leaves, cotangents)


def bind(case: Case, inputs: Inputs) -> Calls:
    """The calls of a case on these tensors, which are not copied and not changed."""
    leaves = [leaf.detach().requires_grad_(case.trains) for leaf in inputs.leaves]

    def call(transform: Transform) -> Function:
        if not case.trains:
            return lambda: transform(*leaves)

        def step() -> tuple[Tensor, ...]:
            y, logabsdet = transform(*leaves)
            gradients = torch.autograd.grad((y, logabsdet), leaves, inputs.cotangents)
            return y.detach(), logabsdet.detach(), *gradients

        return step

    competitors: dict[str, Function] = {}
    left_out: dict[str, str] = {}
    for competitor in case.competitors:
        try:
            competitors[competitor] = call(_transform(case, competitor))
        except peers.PeerMissing as error:
            left_out[competitor] = str(error)
    return Calls(case, call(_transform(case, "robustflow")), competitors, left_out)


def check_agreement(calls: Calls, rounding: float = 0.0) -> None:
    """Compare each competitor's results with ours, so that no wrong result is timed.

    In float32 the textbook formula loses digits in steep bins, and the gradient of logabsdet is not
    continuous at a knot. So the comparison has a tight bound for nearly all elements instead of a
    loose one for all. ``rounding``: see :func:`check_close`.

    Raises:
        AssertionError: a result differs; the message names it.
    """
    ours = _tensors(calls.ours())
    for name, function in calls.competitors.items():
        if name == "forward":
            continue
        theirs = _tensors(function())
        labels = ["y", "logabsdet", "grad x", *(f"grad parameter {i}" for i in range(len(ours)))]
        for label, mine, other in zip(labels, ours, theirs, strict=False):
            check_close(f"{calls.case.name}: {label} against {name}", mine, other, rounding)


def check_close(what: str, mine: Tensor, other: Tensor, rounding: float = 0.0) -> None:
    """Raise an AssertionError, starting with ``what``, if two results differ too much.

    Differences are relative to the larger of 1 and the value. 99 % of them must be within 1e-4 and
    99.99 % within 1e-2; ``rounding`` is added to both bounds, for example for a half type.
    """
    if mine.shape != other.shape:
        raise AssertionError(f"{what}: shapes {tuple(mine.shape)} and {tuple(other.shape)}.")
    # If both overflow a half type, they are equal, but their difference is NaN.
    error = torch.where(mine == other, 0.0, (mine - other).abs_() / other.abs().clamp_(min=1.0))
    for bound, share in ((1e-2 + rounding, 0.9999), (1e-4 + rounding, 0.99)):
        within = (error <= bound).double().mean().item() if error.numel() else 1.0
        if within < share:
            raise AssertionError(
                f"{what}: only {within:.4%} of the elements agree to {bound:g} "
                f"(of 1 or of the value, the larger), {share:.2%} should; "
                f"the largest difference is {error.max().item():.3g}."
            )


def _tensors(result: object) -> tuple[Tensor, ...]:
    assert isinstance(result, tuple)
    return result


def _transform(case: Case, who: str) -> Transform:
    """``who``'s transform as a function of x and the parameter tensors."""
    inverse = case.inverse
    if who == "forward":
        who, inverse = "robustflow", False
    operation, options = case.family.operation, case.family.options
    if who in peers.MASKED:
        peers.check(who)
        tails, bound = options["tails"], options["tail_bound"]
        return lambda *tensors: peers.masked_rq_spline(
            who, *tensors, inverse=inverse, tails=tails, tail_bound=bound
        )
    if who == "zuko" and operation == "rq_spline":
        bound = options["tail_bound"]
        return peers.zuko_rq_spline(inverse=inverse, tail_bound=bound, trains=case.trains)
    if who == "zuko":
        return peers.zuko_affine(inverse=inverse)
    library = F if who == "robustflow" else eager
    transform: Transform = getattr(library, operation)

    def call(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return transform(*tensors, inverse=inverse, **options)

    if who == "compiled":
        return peers.compiled(call, accumulates=case.trains and operation == "rq_spline")
    return call
