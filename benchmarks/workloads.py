"""The cases: which operation, on which tensors, against which competitors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from benchmarks import eager, peers
from benchmarks.timing import Function
from benchmarks.traffic import Traffic
from robustflow import functional as F

# Super-resolution, first level: 12 channels at 80 x 80 an image in the published network; the 96
# here make 9.8 million elements of a batch of 16, well beyond any cache.
PLANAR = (16, 96, 80, 80)
AFFINE = (16, 100, 80, 80)
ROWS = (1 << 20,)
SMALL = (64, 8)

TAIL_BOUND = 3.0

Transform = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Workload:
    """One case.

    Attributes:
        name: unique; what ``--filter`` looks in.
        operation: a function of ``robustflow.functional``.
        direction: ``forward``, ``inverse`` or ``forward+backward``; the first two without grad.
        shape: of x.
        competitors: ``eager``, ``compiled`` (eager under torch.compile), ``nflows``, ``zuko``
            (under torch.compile), ``forward`` (robustflow's own forward, for an inverse).
        num_bins: K, of ``rq_spline``.
        parametrization: of ``rq_spline``.
        quick_shape: a smaller shape for a quick look.
    """

    name: str
    operation: str
    direction: str
    shape: tuple[int, ...]
    competitors: tuple[str, ...]
    num_bins: int = 0
    parametrization: str = "softmax"
    quick_shape: tuple[int, ...] | None = None

    @property
    def parameters(self) -> tuple[int, ...]:
        """Parameters an element, tensor by tensor."""
        if self.operation == "modified_rq_spline":
            return (4,)
        if self.operation == "conditional_affine":
            return (2,)
        return (self.num_bins, self.num_bins, self.num_bins - 1)

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def logabsdets(self) -> int:
        """Log-determinants returned: one an element for ``rq_spline``, else one a sample."""
        return self.elements if self.operation == "rq_spline" else self.shape[0]

    @property
    def traffic(self) -> Traffic:
        return Traffic(self.elements, sum(self.parameters), self.logabsdets)

    @property
    def bytes(self) -> int:
        return self.traffic.of(self.direction)

    @property
    def is_small(self) -> bool:
        """Whether the Python path, not the kernel, is what the case measures."""
        return self.elements < 1 << 16

    def quick(self) -> Workload:
        return self if self.quick_shape is None else replace(self, shape=self.quick_shape)

    def tiny(self) -> Workload:
        """The same case on a handful of elements: loads libraries, starts threads."""
        return replace(self, shape=tuple(min(size, 4) for size in self.shape))


_PLANAR: dict[str, Any] = {
    "operation": "modified_rq_spline",
    "shape": PLANAR,
    "quick_shape": (2, *PLANAR[1:]),
}
_ROWS: dict[str, Any] = {
    "operation": "rq_spline",
    "shape": ROWS,
    "num_bins": 8,
    "quick_shape": (1 << 17,),
}
_SMALL: dict[str, Any] = {**_ROWS, "shape": SMALL, "quick_shape": None}

FOUNDATION = (
    Workload(
        "modified_rq.forward", direction="forward", competitors=("eager", "compiled"), **_PLANAR
    ),
    Workload(
        "modified_rq.inverse",
        direction="inverse",
        competitors=("eager", "compiled", "forward"),
        **_PLANAR,
    ),
    Workload(
        "modified_rq.train",
        direction="forward+backward",
        competitors=("eager", "compiled"),
        **_PLANAR,
    ),
    Workload("rq.forward", direction="forward", competitors=("nflows",), **_ROWS),
    Workload("rq.train", direction="forward+backward", competitors=("nflows",), **_ROWS),
    Workload(
        "rq.softclip.forward",
        direction="forward",
        competitors=("zuko",),
        parametrization="softclip",
        **_ROWS,
    ),
    Workload(
        "rq.softclip.train",
        direction="forward+backward",
        competitors=("zuko",),
        parametrization="softclip",
        **_ROWS,
    ),
    Workload(
        "affine.forward",
        operation="conditional_affine",
        direction="forward",
        shape=AFFINE,
        competitors=("eager", "compiled"),
        quick_shape=(2, *AFFINE[1:]),
    ),
    Workload("small.forward", direction="forward", competitors=("nflows",), **_SMALL),
    Workload("small.train", direction="forward+backward", competitors=("nflows",), **_SMALL),
)


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


def find(name: str, workloads: Sequence[Workload] = FOUNDATION) -> Workload:
    for workload in workloads:
        if workload.name == name:
            return workload
    raise ValueError(f"No workload {name!r}; there are {', '.join(w.name for w in workloads)}.")


def prepare(workload: Workload, only: Sequence[str] | None = None, seed: int = 0) -> Case:
    """Make the tensors of a workload and a function for each competitor (or ``only`` those)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(workload.shape, generator=generator)
    if workload.operation == "rq_spline":
        shapes = [(*workload.shape, size) for size in workload.parameters]
    else:
        batch, channels, *space = workload.shape
        shapes = [(batch, channels * workload.parameters[0], *space)]
    params = [torch.randn(shape, generator=generator) for shape in shapes]
    trains = workload.direction == "forward+backward"
    leaves = [x, *params]
    cotangents: list[Tensor] = []
    if trains:
        for leaf in leaves:
            leaf.requires_grad_(True)
        cotangents.append(torch.randn(workload.shape, generator=generator))
        kept = workload.shape if workload.operation == "rq_spline" else workload.shape[:1]
        cotangents.append(torch.randn(kept, generator=generator))

    def call(transform: Transform) -> Function:
        if not trains:
            return lambda: transform(*leaves)

        def step() -> tuple[Tensor, ...]:
            y, logabsdet = transform(*leaves)
            gradients = torch.autograd.grad((y, logabsdet), leaves, cotangents)
            return y.detach(), logabsdet.detach(), *gradients

        return step

    competitors: dict[str, Function] = {}
    left_out: dict[str, str] = {}
    for competitor in workload.competitors if only is None else only:
        try:
            competitors[competitor] = call(_transform(workload, competitor))
        except peers.PeerMissing as error:
            left_out[competitor] = str(error)
    return Case(workload, call(_transform(workload, "robustflow")), competitors, left_out)


def check_agreement(case: Case) -> None:
    """Compare each competitor's results with ours, so that nothing wrong is ever timed.

    In float32 the textbook formula loses digits in steep bins, and the gradient of logabsdet
    jumps at a knot: hence a strict bound for nearly all elements, not a loose one for each.

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
            check_close(f"{case.workload.name}: {label} against {name}", mine, other)


def check_close(what: str, mine: Tensor, other: Tensor, rounding: float = 0.0) -> None:
    """Raise AssertionError, which starts with ``what``, unless two results are the same function's.

    Differences are relative to the value, or to 1 where it is smaller. ``rounding`` is added to
    what is allowed: a few units in the last place of a half type.
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
    options: dict[str, Any] = {"inverse": inverse}
    if workload.operation == "rq_spline":
        if who == "nflows":
            _require(workload, "softmax", who)
            peers.check(who)
            return lambda *tensors: peers.masked_rq_spline(
                who, *tensors, inverse=inverse, tail_bound=TAIL_BOUND
            )
        if who == "zuko":
            _require(workload, "softclip", who)
            trains = workload.direction == "forward+backward"
            return peers.zuko_rq_spline(inverse=inverse, tail_bound=TAIL_BOUND, trains=trains)
        options |= {"tail_bound": TAIL_BOUND, "parametrization": workload.parametrization}
    library = F if who == "robustflow" else eager
    transform: Transform = getattr(library, workload.operation)

    def call(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return transform(*tensors, **options)

    if who == "compiled":
        return peers.compiled(call, accumulates=workload.operation == "rq_spline")
    if who in ("eager", "robustflow"):
        return call
    raise ValueError(f"{workload.operation} has no competitor {who!r}.")


def _require(workload: Workload, parametrization: str, peer: str) -> None:
    if workload.parametrization != parametrization:
        raise ValueError(
            f"{peer} uses the {parametrization!r} parametrisation; workload {workload.name} asks "
            f"for {workload.parametrization!r}, which is another function."
        )
