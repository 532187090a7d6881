"""nflows' ``unconstrained_rational_quadratic_spline``, which has tails."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from robustflow import functional as F
from robustflow._checks import static
from robustflow._transforms import EXTRA_DERIVATIVES
from robustflow.compat._patch.code import Change, CodeChange, Function, original_of
from robustflow.compat._patch.counts import fell_back, logger, served_rq
from robustflow.compat._patch.errors import PatchError
from robustflow.compat._patch.nflows_like.arguments import (
    CHANGES_SOFTPLUS,
    MINIMA,
    TENSORS,
    spline_obstacle,
)
from robustflow.compat._patch.obstacles import bound_obstacle, in_dtype
from robustflow.compat._patch.own_code import run_own_code, runs_own_code
from robustflow.compat._patch.recognise import COUNT, compare, normal, refusals, uniform

NAME = "unconstrained_rational_quadratic_spline"
PARAMETERS = (*TENSORS, "inverse", "tails", "tail_bound", *MINIMA)

# Kinds of tails that a copy of the functions may have; nflows has the first only.
_MIXED = "a list"
_KINDS = ("linear", "circular", _MIXED)


def change_unconstrained(function: FunctionType, library: str) -> Change:
    original = original_of(function)
    kinds = frozenset(kind for kind in _KINDS if _agrees(library, original, kind))
    if "linear" not in kinds:
        raise PatchError(f"{library} cannot be patched: its {NAME} has no linear tails.")
    return CodeChange(function, unconstrained(library, NAME, original, kinds))


def _agrees(library: str, original: Function, kind: str) -> bool:
    """Whether the function has this kind of tails; if so, it must agree with ours."""
    num_bins, tails = 5, ["linear", "circular"] if kind == _MIXED else kind
    extra = 1 if kind == _MIXED else EXTRA_DERIVATIVES[kind]
    sizes = (num_bins, num_bins, num_bins + extra)
    groups = [normal(COUNT, 2, size, seed=i) for i, size in enumerate(sizes)]
    # A list of tails is compared inside the box: see _mixed.
    reach = 2.5 if kind == _MIXED else 4.0
    x = uniform(COUNT, 2, low=-reach, high=reach)
    x.view(-1)[:2] = 0.1  # the copies differ for a batch that is all outside
    ours = unconstrained(library, NAME, original, frozenset(_KINDS))
    for inverse in (False, True):
        arguments = (x, *groups, inverse, tails, 2.5, 1e-3, 2e-3, 3e-3)
        if kind != "linear":
            try:
                original(*(a.clone() if isinstance(a, Tensor) else a for a in arguments))
            except refusals(original) as error:
                logger.debug("%s: %s has no tails=%r: %r.", library, NAME, tails, error)
                return False
        compare(library, f"{NAME} with tails={tails!r}", original, ours, *arguments)
    return True


def unconstrained(library: str, name: str, original: Function, kinds: frozenset[str]) -> Function:
    """The replacement of ``original``, an unconstrained spline with these kinds of tails."""

    def call(
        inputs: Tensor,
        widths: Tensor,
        heights: Tensor,
        derivatives: Tensor,
        inverse: bool,
        tails: Any,
        tail_bound: Any,
        min_bin_width: float,
        min_bin_height: float,
        min_derivative: float,
        *identity_init: bool,
    ) -> tuple[Tensor, Tensor]:
        tensors = (inputs, widths, heights, derivatives)
        minima = (min_bin_width, min_bin_height, min_derivative)
        if runs_own_code():
            return original(*tensors, inverse, tails, tail_bound, *minima, *identity_init)
        listed = isinstance(tails, (list, tuple))
        kind = _MIXED if listed else tails
        if any(identity_init):
            reason: str | None = CHANGES_SOFTPLUS
        elif kind not in kinds:
            reason = f"tails={tails!r} are not served"
        else:
            extra = 1 if listed else EXTRA_DERIVATIVES[tails]
            reason = (
                spline_obstacle(*tensors, extra, *minima)
                or bound_obstacle(inputs, tail_bound)
                or (_mixed_obstacle(inputs, tails) if listed else None)
            )
        if reason is not None:
            fell_back(library, name, reason)
            return run_own_code(
                original, *tensors, inverse, tails, tail_bound, *minima, *identity_init
            )
        served_rq(library, inputs, static(widths.shape[-1]))
        if listed:
            tails, derivatives = _mixed(tails, derivatives, min_derivative)
        y, logabsdet = F.rq_spline(
            inputs,
            widths,
            heights,
            derivatives,
            bool(inverse),
            tails=tails,
            tail_bound=tail_bound,
            min_bin_width=min_bin_width,
            min_bin_height=min_bin_height,
            min_derivative=min_derivative,
        )
        return y, in_dtype(logabsdet, inputs.dtype)

    return call


def _mixed_obstacle(inputs: Tensor, tails: Sequence[str]) -> str | None:
    if not all(kind in ("linear", "circular") for kind in tails):
        return "the list has tails other than linear and circular"
    if inputs.dim() == 0 or inputs.shape[-1] != len(tails):
        return "the list of tails is not one of the inputs' last dimension"
    return None


def _mixed(tails: Sequence[str], derivatives: Tensor, min_derivative: float) -> tuple[str, Tensor]:
    """A list of tails as circular ones: linear tails are circular with a derivative of 1.

    Of the K+1 derivatives of each feature, a linear one ignores the first and the last, a circular
    one the last. Outside the box ours is the identity; normflows returns 0 there.
    """
    if all(kind == "linear" for kind in tails):
        return "linear", derivatives[..., 1:-1]
    derivatives = derivatives[..., :-1]
    if all(kind == "circular" for kind in tails):
        return "circular", derivatives
    one = math.log(math.expm1(1 - min_derivative))  # min_derivative + softplus(this) is 1
    fixed = torch.tensor([kind == "linear" for kind in tails], device=derivatives.device)
    first = torch.where(fixed, one, derivatives[..., 0])
    return "circular", torch.cat([first.unsqueeze(-1), derivatives[..., 1:]], -1)
