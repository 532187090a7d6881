"""Hugging Face transformers: the spline of VITS' duration predictor, nflows' under another name."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch import Tensor

from robustflow.compat._patch.code import Change, CodeChange, Function, original_of
from robustflow.compat._patch.nflows_like.arguments import MINIMA, TENSORS
from robustflow.compat._patch.nflows_like.unconstrained import unconstrained
from robustflow.compat._patch.recognise import (
    COUNT,
    compare,
    import_library,
    normal,
    require_function,
    require_parameters,
    uniform,
)

_NAME = "_unconstrained_rational_quadratic_spline"


def modules() -> list[ModuleType]:
    """Import those that define what is changed."""
    return import_library("transformers", "transformers.models.vits.modeling_vits")


def changes() -> list[Change]:
    """What to change in transformers."""
    (vits,) = modules()
    function = require_function("transformers", vits, _NAME)
    require_parameters("transformers", function, (*TENSORS, "reverse", "tail_bound", *MINIMA))
    original = original_of(function)
    replacement = _linear(original)
    groups = [normal(COUNT, 2, size, seed=i) for i, size in enumerate((5, 5, 4))]
    x = uniform(COUNT, 2, low=-4.0, high=4.0)
    for reverse in (False, True):
        arguments = (x, *groups, reverse, 2.5, 1e-3, 2e-3, 3e-3)
        compare("transformers", _NAME, original, replacement, *arguments)
    return [CodeChange(function, replacement)]


def _linear(original: Function) -> Function:
    """VITS' function, by way of nflows': no choice of tails, ``reverse`` for ``inverse``."""

    def own(*args: Any) -> tuple[Tensor, Tensor]:
        before, after = args[:5], args[6:]  # around the tails
        return original(*before, *after)

    served = unconstrained("transformers", _NAME, own, frozenset(["linear"]))

    def call(
        inputs: Tensor,
        widths: Tensor,
        heights: Tensor,
        derivatives: Tensor,
        reverse: bool,
        *bound_and_minima: float,
    ) -> tuple[Tensor, Tensor]:
        return served(inputs, widths, heights, derivatives, reverse, "linear", *bound_and_minima)

    return call
