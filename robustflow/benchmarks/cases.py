"""A workload with its tensors made: what is called, and whether the results are the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robustflow import functional as F
from robustflow.benchmarks import eager, peers
from robustflow.benchmarks.timing import Function
from robustflow.benchmarks.workloads import Workload

Transform = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Case:
    """A workload with its tensors made.

    Attributes:
        ours: one call of robustflow. It returns ``(y, logabsdet)``, followed by the gradients of
            x and of each parameter tensor where the direction has a backward pass.
        competitors: the same of each competitor.
        left_out: competitors that cannot run here, and why.
    """

    workload: Workload
    ours: Function
    competitors: dict[str, Function]
    left_out: dict[str, str]


@dataclass(frozen=True)
class Inputs:
    """Tensors of a workload: x and its parameters; cotangents where it has a backward pass."""

    leaves: tuple[Tensor, ...]
    cotangents: tuple[Tensor, ...] = ()


def prepare(workload: Workload, seed: int = 0) -> Case:
    """Make the tensors of a workload and a function for each of its competitors."""
    return bind(workload, make_inputs(workload, seed))


def make_inputs(workload: Workload, seed: int = 0) -> Inputs:
    """Normal tensors of a workload's shapes."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [workload.shape]
    if workload.operation == "rq_spline":
        shapes += [(*workload.shape, size) for size in workload.parameters]
    else:
        batch, channels, *space = workload.shape
        shapes += [(batch, channels * workload.parameters[0], *space)]
    leaves = tuple(torch.randn(shape, generator=generator) for shape in shapes)
    if workload.direction != "forward+backward":
        return Inputs(leaves)
    kept = workload.shape if workload.operation == "rq_spline" else workload.shape[:1]
    cotangents = (torch.randn(shape, generator=generator) for shape in (workload.shape, kept))
    return Inputs(leaves, tuple(cotangents))


def bind(workload: Workload, inputs: Inputs) -> Case:
    """The calls of a workload on given tensors, which it shares and does not change."""
    trains = workload.direction == "forward+backward"
    leaves = [leaf.detach().requires_grad_(trains) for leaf in inputs.leaves]

    def call(transform: Transform) -> Function:
        if not trains:
            return lambda: transform(*leaves)

        def step() -> tuple[Tensor, ...]:
            y, logabsdet = transform(*leaves)
            gradients = torch.autograd.grad((y, logabsdet), leaves, inputs.cotangents)
            return y.detach(), logabsdet.detach(), *gradients

        return step

    competitors: dict[str, Function] = {}
    left_out: dict[str, str] = {}
    for competitor in workload.competitors:
        try:
            competitors[competitor] = call(_transform(workload, competitor))
        except peers.PeerMissing as error:
            left_out[competitor] = str(error)
    return Case(workload, call(_transform(workload, "robustflow")), competitors, left_out)


def check_agreement(case: Case, rounding: float = 0.0) -> None:
    """Compare each competitor's results with ours, so that nothing wrong is ever timed.

    In float32 the textbook formula loses digits in steep bins, and the gradient of logabsdet
    jumps at a knot: hence a strict bound for nearly all elements, not a loose one for each.
    ``rounding`` is :func:`check_close`'s.

    Raises:
        AssertionError: a result differs; the message names it.
    """
    ours = _tensors(case.ours())
    for name, function in case.competitors.items():
        if name == "forward":
            continue
        theirs = _tensors(function())
        labels = ["y", "logabsdet", "grad x", *(f"grad parameter {i}" for i in range(len(ours)))]
        for label, mine, other in zip(labels, ours, theirs, strict=False):
            check_close(f"{case.workload.name}: {label} against {name}", mine, other, rounding)


def check_close(what: str, mine: Tensor, other: Tensor, rounding: float = 0.0) -> None:
    """Raise AssertionError, which starts with ``what``, unless two results are the same function's.

    Differences are relative to the value, or to 1 where it is smaller. ``rounding`` is added to
    what is allowed: a few units in the last place of a half type, say.
    """
    if mine.shape != other.shape:
        raise AssertionError(f"{what}: shapes {tuple(mine.shape)} and {tuple(other.shape)}.")
    # Where a half type overflows in both, their difference is NaN.
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


def _transform(workload: Workload, who: str) -> Transform:
    """``who``'s transform as a function of x and the parameter tensors."""
    inverse = workload.direction == "inverse"
    if who == "forward":
        who, inverse = "robustflow", False
    trains = workload.direction == "forward+backward"
    options = workload.options
    if who in peers.MASKED:
        peers.check(who)
        tails, bound = options["tails"], options["tail_bound"]
        return lambda *tensors: peers.masked_rq_spline(
            who, *tensors, inverse=inverse, tails=tails, tail_bound=bound
        )
    if who == "zuko" and workload.operation == "rq_spline":
        bound = options["tail_bound"]
        return peers.zuko_rq_spline(inverse=inverse, tail_bound=bound, trains=trains)
    if who == "zuko":
        return peers.zuko_affine(inverse=inverse)
    library = F if who == "robustflow" else eager
    transform: Transform = getattr(library, workload.operation)

    def call(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return transform(*tensors, inverse=inverse, **options)

    if who == "compiled":
        return peers.compiled(call, accumulates=trains and workload.operation == "rq_spline")
    return call
