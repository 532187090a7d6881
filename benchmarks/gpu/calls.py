"""The tensors of a case, each contestant as a function of them, and the check before the clock."""

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

# Elements of one stretch that is compared with the oracle, which needs some 40 times its memory.
_STRETCH = 1 << 20
_ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


@dataclass(frozen=True)
class Call:
    """A function and the backend that is to be chosen around it, outside what is timed."""

    function: Callable[[], tuple[Tensor, ...]]
    backend: str = ""

    def chosen(self) -> AbstractContextManager[Any]:
        return robustflow.use_backend(self.backend) if self.backend else nullcontext()

    def __call__(self) -> tuple[Tensor, ...]:
        with self.chosen():
            return self.function()


@dataclass(frozen=True)
class Tensors:
    """Inputs of a case; cotangents where it has a backward pass."""

    case: Case
    x: Tensor
    params: Tensor
    cotangents: tuple[Tensor, ...]

    def stretch(self, begin: int, end: int) -> Tensors:
        """Samples ``begin`` to ``end`` in float64, as leaves of their own."""

        def cut(tensor: Tensor) -> Tensor:
            return tensor.detach()[begin:end].double().requires_grad_(tensor.requires_grad)

        cotangents = tuple(cut(cotangent) for cotangent in self.cotangents)
        return Tensors(self.case, cut(self.x), cut(self.params), cotangents)


def make_tensors(case: Case, device: torch.device, seed: int) -> Tensors:
    """Standard normal inputs of a case whose parameters are one tensor."""
    inputs = make_inputs(case, seed, device)
    x, params = (leaf.requires_grad_(case.trains) for leaf in inputs.leaves)
    return Tensors(case, x, params, inputs.cotangents)


def make_call(who: str, tensors: Tensors) -> Call:
    """A backend of robustflow, or one of ``AGAINST``, on the tensors of a case.

    It returns what :func:`labels` names. Backward alone goes through a graph made here.

    Raises:
        PeerMissing: it is not installed.
        ValueError: the peer has no such transform.
    """
    case = tensors.case
    # Of the C++ that Inductor makes, not of its GPU code: peers.compiled says what is wrong.
    accumulates = tensors.x.is_cpu and case.trains and case.family.spec.name == "rq"
    transform = _transform(who, case, accumulates)
    backend = "" if who in (EAGER, *MASKED, ZUKO) else REFERENCE if who == COMPILED else who
    leaves = (tensors.x, tensors.params)

    def call() -> tuple[Tensor, ...]:
        return transform(*leaves)

    def gradients(outputs: tuple[Tensor, ...], again: bool) -> tuple[Tensor, ...]:
        return torch.autograd.grad(outputs, leaves, tensors.cotangents, retain_graph=again)

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
    """Names of the results of a case's calls."""
    gradients = ("gradient of x", "gradient of the parameters") if case.trains else ()
    return gradients if case.only_backward else ("y", "logabsdet", *gradients)


def why_not(who: str, case: Case) -> str:
    """Why a contestant has no part in a case; empty where it has."""
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
    """Compare a call with the float64 reference, so that no speed of a wrong result is reported.

    What the call returned a first time is overwritten with NaN and freed, for the allocator to hand
    out again: a NaN in the second results, anywhere, is a number that was not written. The values
    are compared on the first, a middle and the last stretch of samples (on all, where the case is
    small), within the rounding of the results' dtypes.

    Raises:
        AssertionError: a result is wrong; the message names it.
    """
    for result in call():
        result.detach().fill_(torch.nan)
    results = call()
    for label, result in zip(labels(tensors.case), results, strict=True):
        if bool(result.isnan().any()):
            raise AssertionError(f"{what}: {label} has NaN, or numbers that were never written.")
    for begin, end in _stretches(tensors.case):
        expected = make_call(REFERENCE, tensors.stretch(begin, end))()
        for label, result, truth in zip(labels(tensors.case), results, expected, strict=True):
            part, rounded = result.detach()[begin:end].double(), truth.detach().to(result.dtype)
            where = f"{what}: {label} of samples {begin} to {end} against the float64 reference"
            check_close(where, part, rounded.double(), _ROUNDING[result.dtype])


def _stretches(case: Case) -> list[tuple[int, int]]:
    samples = case.shape[0]
    length = max(1, _STRETCH * samples // case.elements)
    if 3 * length >= samples:
        return [(0, samples)]
    begins = (0, (samples - length) // 2, samples - length)
    return [(begin, begin + length) for begin in begins]


def _transform(who: str, case: Case, accumulates: bool) -> Transform:
    """``who``'s transform of x and the packed parameters."""
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
