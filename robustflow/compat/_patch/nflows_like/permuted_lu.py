"""normflows' LU layers with a permutation of the features, each in one call.

What is not served so runs the library's method, and in it the LU layer, which counts the call.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from robustflow._by_identity import ByIdentity
from robustflow.compat._patch.code import Change, CodeChange, original_of
from robustflow.compat._patch.nflows_like.lu import PARAMETERS, LULayers, Transformed
from robustflow.compat._patch.own_code import run_own_code, runs_own_code
from robustflow.compat._patch.recognise import (
    normal,
    refusals,
    require_function,
    require_parameters,
)
from robustflow.fused import Watch, has_lu_linear, run_lu_linear

_CLASSES = ("LULinearPermute", "_RandomPermutation", "_LULinear")


def permuted_lu_changes(library: str, module: ModuleType) -> list[Change]:
    """The changes of the LU layers with and without a permutation.

    Args:
        library: for counts and messages.
        module: normflows.flows.mixing.
    """
    kinds = [getattr(module, name, None) for name in _CLASSES]
    if not has_lu_linear() or not all(isinstance(kind, type) for kind in kinds):
        return []
    return _PermutedLULayers(library, *kinds).changes()


class _PermutedLULayers:
    def __init__(self, library: str, kind: Any, permutation: Any, linear: Any) -> None:
        self._library = library
        self._kind = kind
        self._permutation = permutation
        self._linear = LULayers(library, linear)
        self._watches = ByIdentity[Watch]()
        self._methods = [
            (owner, name, getattr(owner, name))
            for owner, names in (
                (self._permutation, ("forward", "inverse", "_permute", "_inverse_permutation")),
                (self._linear.kind, ("forward", "inverse", "forward_no_cache", "inverse_no_cache")),
            )
            for name in names
        ]
        self._is_known = self._probe()

    def changes(self) -> list[Change]:
        """The changes of both classes' methods."""
        # The layer's forward direction, to the data, is the inverse of the LU layer in it.
        return [
            *self._linear.changes(),
            self._change("forward", inverse=True),
            self._change("inverse", inverse=False),
        ]

    def _change(self, name: str, inverse: bool) -> Change:
        method = require_function(self._library, self._kind, name)
        require_parameters(self._library, method, ("self", "z", "context"))
        original = original_of(method)

        def call(self: Any, z: Tensor, context: Tensor | None) -> Transformed:
            if type(self) is kind and not torch.compiler.is_compiling() and not runs_own_code():
                result = serve(self, z, inverse)
                if not isinstance(result, str):
                    return result
            transformed: Transformed = original(self, z, context)
            return transformed

        kind, serve = self._kind, self._serve
        return CodeChange(method, call)

    def _serve(self, layer: Any, z: Tensor, inverse: bool) -> Transformed | str:
        permutation, linear = layer._modules.get("permutation"), layer._modules.get("linear")
        if type(permutation) is not self._permutation or type(linear) is not self._linear.kind:
            return "its modules are not the library's own"
        watch = self._watches.get(layer)
        if watch is None or watch.change():
            watch = Watch()
            watch.module(layer)
            watch.module(permutation)
            self._watches.set(layer, watch)
            if obstacle := watch.change():
                return obstacle
        if not self._is_known or any(
            getattr(owner, name, None) is not method for owner, name, method in self._methods
        ):
            return "its methods are not those that are known"
        if permutation._dim != 1:
            return "it permutes another dimension"
        if linear.using_cache and not linear.training:
            return "the library's cache is in use"
        return self._linear.serve(linear, z, inverse, permutation._buffers.get("_permutation"))

    def _probe(self) -> bool:
        """Whether a small layer computes what robustflow does."""
        try:
            layer = self._kind(4).double()
            linear, permutation = layer.linear, layer.permutation
            for seed, name in enumerate(PARAMETERS):
                parameter = getattr(linear, name)
                parameter.copy_(normal(*parameter.shape, seed=seed))
            permutation._permutation.copy_(torch.tensor([2, 0, 3, 1]))
            x = normal(5, 4, seed=100)
            lower, upper, diagonal, bias = [getattr(linear, name) for name in PARAMETERS]
            order = permutation._permutation.tolist()
            for method, inverse in (("forward", True), ("inverse", False)):
                original = original_of(require_function(self._library, self._kind, method))
                expected = run_own_code(original, layer, x, None)
                found = run_lu_linear(x, lower, upper, diagonal, bias, inverse, linear.eps, order)
                if not all(map(torch.allclose, found, expected)):
                    return False
        except refusals(self._kind.__init__):
            return False
        return True
