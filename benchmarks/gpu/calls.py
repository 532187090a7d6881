"""The tensors of a case, the functions to time on them, and the check of their results."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import robustflow
from robustflow import functional as F
from robustflow.benchmarks import eager, peers
from robustflow.benchmarks.calls import check_close, make_inputs
from robustflow.benchmarks.cases import Case
from robustflow.benchmarks.families import Family

Transform = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

REFERENCE = "reference"  # robustflow's own plain PyTorch, which is a backend too
COMPILED = "compiled-reference"  # the same under torch.compile
EAGER = "eager"  # the frozen textbook formulas of robustflow/benchmarks/eager.py
MASKED = ("nflows", "normflows")
ZUKO = "zuko"
AGAINST = (REFERENCE, COMPILED, EAGER, *MASKED, ZUKO)

# Elements that are compared with the float64 reference at once: it needs 40 times their memory.
_CHECKED_AT_ONCE = 1 << 20
_ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


@dataclass(frozen=True)
class Call:
    """A function to time, and the backend to select before the clock starts."""

    function: Callable[[], tuple[Tensor, ...]]
    backend: str = ""

    def selected(self) -> AbstractContextManager[Any]:
        """A context manager that selects the backend."""
        return robustflow.use_backend(self.backend) if self.backend else nullcontext()

    def __call__(self) -> tuple[Tensor, ...]:
        with self.selected():
            return self.function()


@dataclass(frozen=True)
class Tensors:
    """Inputs of a case; with a backward pass also cotangents."""

    case: Case
    x: Tensor
    params: Tensor
    cotangents: tuple[Tensor, ...]

    def in_float64(self, begin: int, end: int) -> Tensors:
        """Samples ``begin`` to ``end`` in float64, as leaves of autograd."""

        def convert(tensor: Tensor) -> Tensor:
            return tensor.detach()[begin:end].double().requires_grad_(tensor.requires_grad)

        cotangents = tuple(convert(cotangent) for cotangent in self.cotangents)
        return Tensors(self.case, convert(self.x), convert(self.params), cotangents)


def make_tensors(case: Case, device: torch.device, seed: int) -> Tensors:
    """Standard normal inputs for a case that has its parameters in one tensor."""
    inputs = make_inputs(case, seed, device)
    x, params = (leaf.requires_grad_(case.trains) for leaf in inputs.leaves)
    return Tensors(case, x, params, inputs.cotangents)


def make_call(who: str, tensors: Tensors) -> Call:
    """A call on the tensors of a case.

    It returns what :func:`labels` names. If the backward pass is timed alone, the forward pass runs
    here, once.

    Args:
        who: a backend of robustflow, or one of ``AGAINST``.
        tensors: of the case.

    Raises:
        PeerMissing: the peer is not installed.
        ValueError: the peer has no such transform.
    """
    case = tensors.case
    # The defect that peers.compiled describes is in Inductor's code for CPUs, not in that for GPUs.
    accumulates = tensors.x.is_cpu and case.trains and case.family.spec.name == "rq"
    transform = _transform(who, case, accumulates)
    backend = "" if who in (EAGER, *MASKED, ZUKO) else REFERENCE if who == COMPILED else who
    leaves = (tensors.x, tensors.params)

    def call() -> tuple[Tensor, ...]:
        return transform(*leaves)

    def gradients(outputs: tuple[Tensor, ...], keep_graph: bool) -> tuple[Tensor, ...]:
        return torch.autograd.grad(outputs, leaves, tensors.cotangents, retain_graph=keep_graph)

    if not case.trains:
        return Call(call, backend)
    if case.only_backward:
        outputs = Call(call, backend)()
        return Call(lambda: gradients(outputs, True), backend)

    def step() -> tuple[Tensor, ...]:
        y, logabsdet = transform(*leaves)
        return y.detach(), logabsdet.detach(), *gradients((y, logabsdet), False)

    return Call(step, backend)


def labels(case: Case) -> tuple[str, ...]:
    """The names of the results that a case's calls return."""
    gradients = ("gradient of x", "gradient of the parameters") if case.trains else ()
    return gradients if case.only_backward else ("y", "logabsdet", *gradients)


def why_not(who: str, case: Case) -> str:
    """Why ``who`` cannot compute a case; an empty text if it can."""
    family = case.family
    if who in (*MASKED, ZUKO):
        parametrization = "softclip" if who == ZUKO else "softmax"
        own = family.options.get("parametrization", "softmax")
        if family.spec.name != "rq" or own != parametrization:
            return f"{who} has no {family.name}."
        if family.layout != "rows":
            return f"{who} takes the parameters of an element side by side."
    if who in (EAGER, *MASKED, ZUKO) and case.dtypes != "float32":
        return f"{who} computes in the dtype it is given; only float32 is compared."
    return ""


def check(what: str, tensors: Tensors, call: Call) -> None:
    """Compare a call with the float64 reference, so that no wrong result is timed.

    The results of a first call are overwritten with NaN and freed, so that the second call is
    likely to get the same memory. A NaN in its results is then a number that the kernel did not
    write. The values are compared on samples at the start, in the middle and at the end (for small
    cases, on all samples), to the rounding of the results' dtypes.

    Raises:
        AssertionError: a result is wrong; the message names it.
    """
    for result in call():
        result.detach().fill_(torch.nan)
    results = call()
    for label, result in zip(labels(tensors.case), results, strict=True):
        if bool(result.isnan().any()):
            raise AssertionError(f"{what}: {label} has NaN, or numbers that were never written.")
    for begin, end in _checked_ranges(tensors.case):
        expected = make_call(REFERENCE, tensors.in_float64(begin, end))()
        for label, result, truth in zip(labels(tensors.case), results, expected, strict=True):
            part, rounded = result.detach()[begin:end].double(), truth.detach().to(result.dtype)
            where = f"{what}: {label} of samples {begin} to {end} against the float64 reference"
            check_close(where, part, rounded.double(), _ROUNDING[result.dtype])


def _checked_ranges(case: Case) -> list[tuple[int, int]]:
    """Ranges of samples to compare."""
    samples = case.shape[0]
    length = max(1, _CHECKED_AT_ONCE * samples // case.elements)
    if 3 * length >= samples:
        return [(0, samples)]
    begins = (0, (samples - length) // 2, samples - length)
    return [(begin, begin + length) for begin in begins]


def _transform(who: str, case: Case, accumulates: bool) -> Transform:
    """The transform of ``who`` as a function of x and the packed parameters."""
    family, inverse = case.family, case.inverse
    if reason := why_not(who, case):
        raise ValueError(reason)
    if who in MASKED:
        peers.check(who)
        return _summed(
            family,
            lambda x, *groups: peers.masked_rq_spline(
                who, x, *groups, inverse=inverse, tail_bound=family.options["tail_bound"]
            ),
        )
    if who == ZUKO:
        return _summed(
            family,
            peers.zuko_rq_spline(
                inverse=inverse, tail_bound=family.options["tail_bound"], trains=accumulates
            ),
        )
    options = {**family.options, "inverse": inverse}
    function = getattr(F, family.operation)
    if who == EAGER:
        function = (
            _eager_rq(family) if family.spec.name == "rq" else getattr(eager, family.operation)
        )
    elif family.spec.name == "rq":
        options["num_bins"] = family.num_bins

    def transform(x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        result: tuple[Tensor, Tensor] = function(x, params, **options)
        return result

    return peers.compiled(transform, accumulates=accumulates) if who == COMPILED else transform


def _eager_rq(family: Family) -> Callable[..., tuple[Tensor, Tensor]]:
    def call(x: Tensor, params: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        widths, heights, derivatives = _groups(family, x, params)
        return eager.rq_spline(x, widths, heights, derivatives, **options)

    return call


def _groups(family: Family, x: Tensor, params: Tensor) -> tuple[Tensor, ...]:
    """Views (*x.shape, K), (*x.shape, K), (*x.shape, K-1) of packed parameters."""
    if x.dim() > 1:
        params = params.unflatten(1, (x.shape[1], family.parameters)).movedim(2, -1)
    bins = family.num_bins
    return params.split([bins, bins, bins - 1], dim=-1)


def _summed(family: Family, transform: Callable[..., tuple[Tensor, Tensor]]) -> Transform:
    """A peer's transform, its log-determinants per element summed over each sample."""

    def call(x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        y, logabsdet = transform(x, *_groups(family, x, params))
        return y, logabsdet.flatten(1).sum(1) if logabsdet.dim() > 1 else logabsdet

    return call
