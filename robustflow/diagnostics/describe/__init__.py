"""The structure of a model: a module for each library's layers, :func:`describe` for the rest."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

from robustflow.compat.adapters import adapters
from robustflow.diagnostics.describe import published
from robustflow.diagnostics.describe._tree import (
    CONVERTED,
    Branch,
    Chain,
    Halves,
    Part,
    Tree,
    joined,
    parts_of,
    unknown,
)

__all__ = [
    "CONVERTED",
    "Branch",
    "Chain",
    "Halves",
    "Part",
    "Tree",
    "describe",
    "joined",
    "parts_of",
]

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def describe(model: nn.Module, ignore: Collection[str] = ()) -> Tree:
    """The tree of a model's parts, from data to latents.

    Containers of the libraries have a known order. For any other module that contains flow layers,
    each child is assumed to be applied once, in an unknown order. A child that is no flow layer,
    and is not ignored, becomes an unknown part.

    Args:
        ignore: qualified names of modules that transform no z: encoders, conditioners, losses.

    Raises:
        ValueError: there is no flow layer in the model, or nothing of a name to ignore.
    """
    return _Describer(model, ignore).tree


class _Describer:
    """Finds the parts of one model; adapters call it for the modules inside their own."""

    def __init__(self, model: nn.Module, ignore: Collection[str]) -> None:
        names = {name for name, _ in model.named_modules(remove_duplicate=False)}
        if missing := [name for name in ignore if name not in names]:
            raise ValueError(
                f"ignore names {', '.join(map(repr, missing))}, which the model does not have: "
                "its modules are named as by named_modules()."
            )
        self.ignore = frozenset(ignore)
        self.adapters: list[Any] = [*adapters(__name__), published]
        self._has: dict[nn.Module, bool] = {}
        if not self._has_layers(model, ""):
            raise ValueError(
                f"No flow layer was found in this {type(model).__name__}. Known are those of "
                "robustflow.nn, robustflow.compat.srflow, nflows, glasflow, normflows, FrEIA and "
                "zuko; import the library before this call."
            )
        self.tree = self(model, "")

    def __call__(self, module: nn.Module, name: str) -> Tree:
        if name in self.ignore:
            return Chain()
        tree = self._known(module, name)
        if tree is not None:
            return tree
        if not self._has_layers(module, name):
            empty = isinstance(module, _CONTAINERS) and not list(module.children())
            return Chain() if empty else unknown(name, module)
        children = [self(child, joined(name, key)) for key, child in module.named_children()]
        children = [child for child in children if child != Chain()]
        ordered = isinstance(module, nn.Sequential) or len(children) == 1
        return Chain(tuple(children), ordered)

    def _known(self, module: nn.Module, name: str) -> Tree | None:
        for adapter in self.adapters:
            tree: Tree | None = adapter.describe(module, name, self)
            if tree is not None:
                return tree
        return None

    def _has_layers(self, module: nn.Module, name: str) -> bool:
        if module not in self._has:
            self._has[module] = self._known(module, name) is not None or any(
                self._has_layers(child, joined(name, key)) for key, child in module.named_children()
            )
        return self._has[module]
