"""nflows' two spline functions, which normflows, glasflow and many packages carry copies of.

``unconstrained_rational_quadratic_spline`` has tails; ``rational_quadratic_spline`` has a box and
raises for inputs outside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor

from robustflow import functional as F
from robustflow._backend import is_recorded
from robustflow._checks import static
from robustflow._transforms import EXTRA_DERIVATIVES
from robustflow.compat._patch.code import Change, CodeChange, Function, original_of
from robustflow.compat._patch.counts import fell_back, logger, served_rq
from robustflow.compat._patch.errors import PatchError
from robustflow.compat._patch.obstacles import (
    bound_obstacle,
    broadcasts_to,
    in_dtype,
    minimum_obstacle,
    promoted_dtype,
    tensor_obstacle,
)
from robustflow.compat._patch.own_code import run_own_code, runs_own_code
from robustflow.compat._patch.recognise import (
    COUNT,
    compare,
    normal,
    refusals,
    require_parameters,
    uniform,
)

TENSORS = (
    "inputs",
    "unnormalized_widths",
    "unnormalized_heights",
    "unnormalized_derivatives",
)
MINIMA = ("min_bin_width", "min_bin_height", "min_derivative")
_UNCONSTRAINED = (*TENSORS, "inverse", "tails", "tail_bound", *MINIMA)
_BOXED = (*TENSORS, "inverse", "left", "right", "bottom", "top", *MINIMA)
_MAIN = "enable_identity_init"  # nflows' main branch: it changes the softplus

UNCONSTRAINED = "unconstrained_rational_quadratic_spline"
BOXED = "rational_quadratic_spline"

# Kinds of tails that a copy of the functions may have; nflows has the first only.
_MIXED = "a list"
_KINDS = ("linear", "circular", _MIXED)


def changes_of_module(module: ModuleType, library: str) -> list[Change]:
    """The spline functions that a module defines, and the changes for them.

    Raises:
        PatchError: there are none, or they are others.
    """
    found = {
        name: function
        for name in _MAKERS
        if isinstance(function := vars(module).get(name), FunctionType)
    }
    for name, function in found.items():
        known = _MAKERS[name][0]
        require_parameters(library, function, known, (*known, _MAIN))
    changes: list[Change] = [
        _MAKERS[name][1](function, library) for name, function in found.items()
    ]
    if not changes:
        raise PatchError(
            f"{library} cannot be patched: {module.__name__} defines neither {UNCONSTRAINED} nor "
            f"{BOXED}."
        )
    return changes


def _change_unconstrained(function: FunctionType, library: str) -> Change:
    original = original_of(function)
    kinds = frozenset(kind for kind in _KINDS if _agrees(library, original, kind))
    if "linear" not in kinds:
        raise PatchError(f"{library} cannot be patched: its {UNCONSTRAINED} has no linear tails.")
    return CodeChange(function, unconstrained(library, UNCONSTRAINED, original, kinds))


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
    ours = unconstrained(library, UNCONSTRAINED, original, frozenset(_KINDS))
    for inverse in (False, True):
        arguments = (x, *groups, inverse, tails, 2.5, 1e-3, 2e-3, 3e-3)
        if kind != "linear":
            try:
                original(*(a.clone() if isinstance(a, Tensor) else a for a in arguments))
            except refusals(original) as error:
                logger.debug("%s: %s has no tails=%r: %r.", library, UNCONSTRAINED, tails, error)
                return False
        compare(library, f"{UNCONSTRAINED} with tails={tails!r}", original, ours, *arguments)
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
            reason: str | None = f"{_MAIN} changes the softplus"
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
        served_rq(library, inputs, widths, static(widths.shape[-1]), bool(inverse))
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


def spline_obstacle(
    inputs: Tensor,
    widths: Tensor,
    heights: Tensor,
    derivatives: Tensor,
    extra: int,
    min_bin_width: float,
    min_bin_height: float,
    min_derivative: float,
) -> str | None:
    """Why the kernels cannot serve these arguments, or None; ``extra``: derivatives beyond K."""
    reason = tensor_obstacle(inputs, widths, heights, derivatives)
    if reason is not None:
        return reason
    num_bins = static(widths.shape[-1]) if widths.dim() else 0
    for group, size in ((widths, num_bins), (heights, num_bins), (derivatives, num_bins + extra)):
        if group.shape != (*inputs.shape, size):
            return "the parameters' shapes are not those of the inputs and the number of bins"
    return minimum_obstacle(num_bins, min_bin_width, min_bin_height, min_derivative)


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


def _change_boxed(function: FunctionType, library: str) -> Change:
    original = original_of(function)
    ours = _boxed(library, original)
    groups = [normal(COUNT, size, seed=i) for i, size in enumerate((5, 5, 6))]
    for inverse, (low, high) in ((False, (-2.0, 3.0)), (True, (-1.0, 2.0))):
        x = uniform(COUNT, low=low, high=high)
        arguments = (x, *groups, inverse, -2.0, 3.0, -1.0, 2.0, 1e-3, 2e-3, 3e-3)
        compare(library, BOXED, original, ours, *arguments)
    return CodeChange(function, ours)


def _boxed(library: str, original: Function) -> Function:
    def call(
        inputs: Tensor,
        widths: Tensor,
        heights: Tensor,
        derivatives: Tensor,
        inverse: bool,
        left: Any,
        right: Any,
        bottom: Any,
        top: Any,
        min_bin_width: float,
        min_bin_height: float,
        min_derivative: float,
        *identity_init: bool,
    ) -> tuple[Tensor, Tensor]:
        tensors = (inputs, widths, heights, derivatives)
        box = (left, right, bottom, top)
        minima = (min_bin_width, min_bin_height, min_derivative)
        if runs_own_code():
            return original(*tensors, inverse, *box, *minima, *identity_init)
        if any(identity_init):
            reason: str | None = f"{_MAIN} changes the softplus"
        else:
            reason = spline_obstacle(*tensors, 1, *minima) or _box_obstacle(inputs, box, inverse)
        if reason is not None:
            fell_back(library, BOXED, reason)
            return run_own_code(original, *tensors, inverse, *box, *minima, *identity_init)
        served_rq(library, inputs, widths, static(widths.shape[-1]), bool(inverse))
        dtype = promoted_dtype(*tensors)
        y, logabsdet = F.rq_spline(
            in_dtype(inputs, dtype),
            widths,
            heights,
            derivatives,
            bool(inverse),
            tails=None,
            left=left,
            right=right,
            bottom=bottom,
            top=top,
            min_bin_width=min_bin_width,
            min_bin_height=min_bin_height,
            min_derivative=min_derivative,
        )
        return y, in_dtype(logabsdet, dtype)

    return call


def _box_obstacle(inputs: Tensor, box: Sequence[Any], inverse: bool) -> str | None:
    left, right, bottom, top = box
    for edge in box:
        if isinstance(edge, Tensor):
            if edge.requires_grad or not broadcasts_to(edge, inputs):
                return "an edge of the box requires grad or does not broadcast to the inputs"
        elif not isinstance(edge, (int, float)):
            return "an edge of the box is not a number"
    numbers = not any(isinstance(edge, Tensor) for edge in box)
    if numbers and not (left < right and bottom < top):
        return "the box is empty"
    if inputs.numel() == 0:
        return "there are no inputs"
    if is_outside(inputs, left, right) or (inverse and is_outside(inputs, bottom, top)):
        return "an input is outside the box"
    return None


def is_outside(inputs: Tensor, low: Any, high: Any) -> bool:
    """Whether any input is outside a closed interval; on a GPU this synchronises.

    The interval is rounded to the inputs' dtype, as torch does when it compares with a number. A
    traced program cannot raise: it gives NaN for such an input.
    """
    if is_recorded():
        return False
    low, high = (
        in_dtype(edge, inputs.dtype) if isinstance(edge, Tensor) else edge for edge in (low, high)
    )
    return bool(((inputs < low) | (inputs > high)).any())


_MAKERS: dict[str, tuple[tuple[str, ...], Callable[[FunctionType, str], Change]]] = {
    UNCONSTRAINED: (_UNCONSTRAINED, _change_unconstrained),
    BOXED: (_BOXED, _change_boxed),
}
