"""nflows' ``rational_quadratic_spline``, which has a box and raises for inputs outside it."""

from __future__ import annotations

from collections.abc import Sequence
from types import FunctionType
from typing import Any

from torch import Tensor

from robustflow import functional as F
from robustflow._checks import static
from robustflow.compat._patch.code import Change, CodeChange, Function, original_of
from robustflow.compat._patch.counts import fell_back, served_rq
from robustflow.compat._patch.nflows_like.arguments import (
    CHANGES_SOFTPLUS,
    MINIMA,
    TENSORS,
    spline_obstacle,
)
from robustflow.compat._patch.obstacles import (
    broadcasts_to,
    in_dtype,
    is_outside,
    promoted_dtype,
)
from robustflow.compat._patch.own_code import run_own_code, runs_own_code
from robustflow.compat._patch.recognise import COUNT, compare, normal, uniform

NAME = "rational_quadratic_spline"
PARAMETERS = (*TENSORS, "inverse", "left", "right", "bottom", "top", *MINIMA)


def change_boxed(function: FunctionType, library: str) -> Change:
    original = original_of(function)
    ours = _boxed(library, original)
    groups = [normal(COUNT, size, seed=i) for i, size in enumerate((5, 5, 6))]
    for inverse, (low, high) in ((False, (-2.0, 3.0)), (True, (-1.0, 2.0))):
        x = uniform(COUNT, low=low, high=high)
        arguments = (x, *groups, inverse, -2.0, 3.0, -1.0, 2.0, 1e-3, 2e-3, 3e-3)
        compare(library, NAME, original, ours, *arguments)
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
            reason: str | None = CHANGES_SOFTPLUS
        else:
            reason = spline_obstacle(*tensors, 1, *minima) or _box_obstacle(inputs, box, inverse)
        if reason is not None:
            fell_back(library, NAME, reason)
            return run_own_code(original, *tensors, inverse, *box, *minima, *identity_init)
        served_rq(library, inputs, static(widths.shape[-1]))
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
