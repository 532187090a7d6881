"""Finding a flow's layers in a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from robustflow.compat.adapters import adapters
from robustflow.diagnostics import _libraries
from robustflow.diagnostics._layers import Block, Watched, set_name
from robustflow.diagnostics._libraries import published
from robustflow.diagnostics._libraries.other import OtherLayer


def find_layers(model: nn.Module, only: Iterable[str | nn.Module] | None = None) -> list[Watched]:
    """The layers and blocks of a model, in the order of ``named_modules()``.

    Args:
        model: any module.
        only: names or modules to restrict them to. A container stands for the layers in it; any
            other module becomes a layer of kind "other".

    Raises:
        TypeError, ValueError: not a module, one that is compiled, none found, or ``only`` names
            what the model does not have.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
    found_layers = _Search().layers(model)
    if only is not None:
        return _restricted(model, found_layers, only)
    if not found_layers:
        raise ValueError(
            f"No flow layer was found in this {type(model).__name__}. Known are the layers of "
            "robustflow, nflows, glasflow, normflows, zuko, FrEIA and SRFlow's published code. "
            "Name others by layers=[...]: modules, or names from model.named_modules()."
        )
    return found_layers


class _Search:
    """A walk through a model's modules that stops at layers."""

    def __init__(self) -> None:
        self.adapters: list[Any] = [*adapters(_libraries.__name__), published]
        self.seen: set[nn.Module] = set()

    def layers(
        self, module: nn.Module, name: str = "", flipped: bool = False, member: bool = False
    ) -> list[Watched]:
        """The layers in a module.

        Args:
            module, name: in which to look.
            flipped: it runs in the direction opposite to that of the flow around it.
            member: it is called as a layer, so it is one even if its class is unknown.
        """
        if module in self.seen:
            return []
        self.seen.add(module)
        _check_can_be_watched(module, name)
        for adapter in self.adapters:
            watched: Watched | None = adapter.find(module)
            if watched is not None:
                return [_named(watched, name, flipped)]
        inside = flipped != any(adapter.flips(module) for adapter in self.adapters)
        members = [each for adapter in self.adapters for each in adapter.members(module)]
        flow_layers: list[Watched] = []
        for part, child in module.named_children():
            called = child in members or (member and isinstance(module, nn.ModuleList))
            flow_layers += self.layers(child, f"{name}.{part}" if name else part, inside, called)
        if member and not flow_layers and not isinstance(module, nn.ModuleList):
            flow_layers = [_named(OtherLayer(module), name, flipped)]
        return flow_layers


def _named(watched: Watched, name: str, flipped: bool) -> Watched:
    set_name(watched, name)
    watched.flipped = flipped
    if isinstance(watched, Block):
        for part in watched.parts:
            part.flipped = flipped
    return watched


def _check_can_be_watched(module: nn.Module, name: str) -> None:
    """Raise if calls of a module do not run its own methods."""
    where = f"its submodule {name!r}" if name else "model"
    if isinstance(module, torch.jit.ScriptModule):
        raise ValueError(
            f"{where} is a TorchScript module, whose layers cannot be watched: give the module "
            "that it was made from."
        )
    if type(module).__name__ == "OptimizedModule":
        inside = f"model.{name}._orig_mod" if name else "model._orig_mod"
        raise ValueError(
            f"{where} is compiled by torch.compile, and compiled code cannot be watched: use "
            f"{inside} for it, and sample from that."
        )
    if getattr(module, "_compiled_call_impl", None) is not None:
        raise ValueError(
            f"{where} was compiled in place by .compile(), and compiled code cannot be watched: "
            "give a model that was not, such as another one with the same state_dict."
        )


def _restricted(
    model: nn.Module, found_layers: Sequence[Watched], only: Iterable[str | nn.Module]
) -> list[Watched]:
    if isinstance(only, (str, nn.Module)):
        only = [only]
    modules = dict(model.named_modules())
    names = {module: name for name, module in modules.items()}
    chosen: list[Watched] = []
    for item in only:
        name = item if isinstance(item, str) else names.get(item)
        if name is None:
            raise ValueError(f"layers has a {type(item).__name__} that is no part of model.")
        if name not in modules:
            known = ", ".join(repr(each.name) for each in found_layers[:4]) or "no flow layers"
            raise ValueError(
                f"layers has {name!r}, which is no name in model.named_modules(). Among them are "
                f"{known}."
            )
        inside = [each for each in found_layers if each.name == name or _is_in(each.name, name)]
        for block in found_layers:
            if isinstance(block, Block) and block.name != name:
                parts = [part for part in block.parts if part.name == name]
                if parts:
                    block.parts, inside = parts, [block]
        if not inside:
            inside = [_named(OtherLayer(modules[name]), name, False)]
        chosen += [each for each in inside if each not in chosen]
    if not chosen:
        raise ValueError("layers is empty: name at least one, or leave it out for all.")
    return chosen


def _is_in(name: str, other: str) -> bool:
    """Whether a module's name lies under another's."""
    return name != other and (other == "" or name.startswith(other + "."))
