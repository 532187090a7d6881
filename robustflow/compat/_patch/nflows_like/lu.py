"""The LU linear layers of nflows, its copies, and normflows, each in one call.

A layer is recognised by its class, which computed the same as robustflow when the library was
patched. A call asks whether its settings are still what they were, and reads its parameters afresh.
Layers and calls that cannot be served so run the library's own method.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from robustflow._backend import current_backend
from robustflow._by_identity import ByIdentity
from robustflow.compat._patch.code import Change, CodeChange, original_of
from robustflow.compat._patch.counts import served_fused, served_unfused
from robustflow.compat._patch.own_code import runs_own_code
from robustflow.compat._patch.recognise import (
    normal,
    refusals,
    require_function,
    require_parameters,
)
from robustflow.fused import Watch, call_obstacle, has_lu_linear, lu_linear, run_lu_linear

Transformed = tuple[Tensor, Tensor]

PARAMETERS = ("lower_entries", "upper_entries", "unconstrained_upper_diag", "bias")
_INDICES = ("lower_indices", "upper_indices", "diag_indices")
# Of a layer's class, in which the library's methods compute: whoever replaces one means another
# layer.
_PARTS = ("_create_lower_upper", "logabsdet", "upper_diag")


def lu_changes(library: str, module: ModuleType) -> list[Change]:
    """The changes of the two methods of a library's LU layers that compute without its cache.

    Args:
        library: for counts and messages.
        module: that defines ``LULinear``.
    """
    kind = getattr(module, "LULinear", None)
    if not has_lu_linear() or not isinstance(kind, type):
        return []
    return LULayers(library, kind).changes()


class _Plan(NamedTuple):
    """What a layer must keep, and why it cannot be served even so, or None."""

    watch: Watch
    obstacle: str | None


class LULayers:
    """A library's LU layers.

    Args:
        library: for counts and messages.
        kind: the class.
    """

    def __init__(self, library: str, kind: Any) -> None:
        self._library = library
        self.kind = kind
        self._parts = [(name, getattr(kind, name, None)) for name in _PARTS]
        self._plans = ByIdentity[_Plan]()
        self._run = lu_linear()
        self._obstacle = self._probe()

    def changes(self) -> list[Change]:
        """The changes of its methods."""
        return [self._change("forward_no_cache", False), self._change("inverse_no_cache", True)]

    def _change(self, name: str, inverse: bool) -> Change:
        method = require_function(self._library, self.kind, name)
        require_parameters(self._library, method, ("self", "inputs"))
        original = original_of(method)

        def call(self: Any, inputs: Tensor) -> Transformed:
            if type(self) is kind and not torch.compiler.is_compiling() and not runs_own_code():
                result = serve(self, inputs, inverse)
                if not isinstance(result, str):
                    return result
                served_unfused(library, what, result)
            transformed: Transformed = original(self, inputs)
            return transformed

        kind, library, serve = self.kind, self._library, self.serve
        what = f"{kind.__name__}.{name}"
        return CodeChange(method, call)

    def serve(
        self, layer: Any, x: Tensor, inverse: bool, permutation: Tensor | None = None
    ) -> Transformed | str:
        """The layer in one call, or why it is not."""
        if obstacle := self._obstacle or call_obstacle():
            return obstacle
        if current_backend() not in ("auto", "cpu"):
            return "another backend than the CPU kernels was chosen"
        plan = self._plans.get(layer)
        change = None if plan is None else plan.watch.change()
        if plan is None or change:
            plan = _plan(layer)
            self._plans.set(layer, plan)
            change = plan.watch.change()
        if obstacle := plan.obstacle or change:
            return obstacle
        kind = self.kind
        for name, part in self._parts:
            if getattr(kind, name, None) is not part:
                return f"the {name} of {kind.__name__} was replaced"
        eps = layer.eps
        if not isinstance(eps, (int, float)):
            return "its eps is not a number"
        parameters = layer._parameters
        result: Transformed | str = self._run(
            x, *[parameters.get(name) for name in PARAMETERS], inverse, eps, permutation
        )
        if not isinstance(result, str):
            served_fused(self._library, 0)
        return result

    def _probe(self) -> str | None:
        """Whether a small layer computes what robustflow does."""
        methods = [
            original_of(require_function(self._library, self.kind, name))
            for name in ("forward_no_cache", "inverse_no_cache")
        ]
        try:
            layer = self.kind(4, eps=0.05).double()
            for seed, name in enumerate(PARAMETERS):
                parameter = getattr(layer, name)
                parameter.copy_(normal(*parameter.shape, seed=seed))
            if obstacle := _plan(layer).obstacle:
                return obstacle
            x = normal(5, 4, seed=100)
            lower, upper, diagonal, bias = [getattr(layer, name) for name in PARAMETERS]
            for inverse, method in enumerate(methods):
                expected = method(layer, x)
                found = run_lu_linear(x, lower, upper, diagonal, bias, bool(inverse), layer.eps)
                for ours, theirs in zip(found, expected, strict=True):
                    if ours.shape != theirs.shape or not torch.allclose(ours, theirs):
                        return "robustflow does not know how the library computes it"
        except refusals(self.kind.__init__) as error:
            return f"a small layer of the library's raised {error!r}"
        return None


def _plan(layer: Any) -> _Plan:
    watch = Watch()
    watch.module(layer)
    size = watch.setting(layer, "features")
    indices = [watch.setting(layer, name) for name in _INDICES]
    expected = (np.tril_indices(size, -1), np.triu_indices(size, 1), np.diag_indices(size))
    obstacle = None
    if not all(map(np.array_equal, indices, expected)):
        obstacle = "its entries have other places than the library's"
    return _Plan(watch, obstacle)
