"""Whether a module still computes what it did when it was described."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as _every

from robustflow._call_state import is_plain_eager
from robustflow._intercept import any_interceptions
from robustflow.fused.program import SLOPE_NAMES, Activation, Builder, activation_of


def call_obstacle() -> str | None:
    """Why a call is not fused, whatever its layer, as a clause; None where it may be.

    Asked before a layer is described: what intercepts methods replaces them on their classes, and
    looks at parts of a layer that one call does not have.
    """
    if not is_plain_eager():
        return (
            "the call is traced, or in a transform of torch.func, in forward mode, or watched by a "
            "mode"
        )
    if any_interceptions():
        return "methods are intercepted, by a monitor for instance"
    return None


def _replaces_methods(module: nn.Module) -> bool:
    """Whether an attribute of the object hides a method of its class."""
    kind = type(module)
    return any(callable(getattr(kind, name, None)) for name in module.__dict__)


class Watch:
    """Modules, and what of them a description took for granted.

    :meth:`change` is asked at every call, so it looks at nothing but attributes.
    """

    def __init__(self) -> None:
        self._modules: list[tuple[nn.Module, type, tuple[Any, ...], int]] = []
        self._settings: list[tuple[dict[str, Any], str, Any]] = []
        self._dropouts: list[nn.Module] = []
        self._classes: list[tuple[Any, Any]] = []

    def module(self, module: nn.Module) -> None:
        """It keeps its class, its children and its class's methods, and gets no hook."""
        kind: Any = type(module)
        # A method replaced on the object alone is one attribute more.
        attributes = -1 if _replaces_methods(module) else len(module.__dict__)
        self._modules.append((module, kind, tuple(module._modules.values()), attributes))
        if not any(kind is each for each, _ in self._classes):
            self._classes.append((kind, kind.forward))

    def setting(self, module: nn.Module, name: str) -> Any:
        """An attribute of a module keeps its value; returns it."""
        value = module.__dict__[name] if name in module.__dict__ else getattr(module, name)
        if name in module.__dict__:
            self._settings.append((module.__dict__, name, value))
        return value

    def activation(self, function: Any) -> Activation | None:
        """What a function or a module is, whose setting stays; None if it is not known."""
        if isinstance(function, nn.Module):
            self.module(function)
            for name in SLOPE_NAMES:
                if name in vars(function):
                    self.setting(function, name)
        return activation_of(function)

    def dropout(self, module: nn.Module) -> None:
        """A dropout stays off."""
        self.module(module)
        self._dropouts.append(module)

    def change(self) -> str | None:
        """What is different now, as a clause; None if nothing is."""
        if (
            _every._global_forward_hooks
            or _every._global_forward_pre_hooks
            or _every._global_backward_hooks
            or _every._global_backward_pre_hooks
        ):
            return "hooks watch all modules"
        for module, kind, children, attributes in self._modules:
            state = module.__dict__
            if type(module) is not kind or tuple(state["_modules"].values()) != children:
                return "a module of its network was replaced"
            if (
                state["_forward_hooks"]
                or state["_forward_pre_hooks"]
                or state["_backward_hooks"]
                or state["_backward_pre_hooks"]
            ):
                return f"hooks watch a {kind.__name__} of its network"
            if len(state) != attributes and _replaces_methods(module):
                return f"a method of a {kind.__name__} was replaced"
        for state, name, value in self._settings:
            if state.get(name) is not value:
                return f"its {name} changed"
        for module in self._dropouts:
            if module.training and module.p > 0:  # type: ignore[operator]
                return "dropout is on"
        for kind, forward in self._classes:
            if kind.forward is not forward:
                return f"the forward of {kind.__name__} was replaced"
        return None


class Parameters:
    """Where a description's parameters and masks are, to be read at every call."""

    def __init__(self) -> None:
        self._parameters: list[tuple[dict[str, Any], str]] = []
        self._masks: list[tuple[dict[str, Any], str] | None] = []

    def _add(self, module: nn.Module, name: str, mask: str | None = None) -> None:
        """A parameter of a module, and a buffer of it that multiplies it."""
        self._parameters.append((module._parameters, name))
        self._masks.append(None if mask is None else (module._buffers, mask))

    def linear(self, builder: Builder, node: int, layer: Any) -> int:
        """Appends a linear layer to a program, with its buffer ``mask`` where it has one."""
        self._add(layer, "weight", "mask" if "mask" in layer._buffers else None)
        if layer.bias is not None:
            self._add(layer, "bias")
        return builder.linear(node, layer.weight.shape[0], layer.bias is not None)

    def now(self) -> list[Tensor | None]:
        return [state.get(name) for state, name in self._parameters]

    def masks(self) -> list[Tensor | None]:
        """One for each parameter; None where it has none."""
        return [None if mask is None else mask[0].get(mask[1]) for mask in self._masks]

    def all_masks(self) -> list[Tensor]:
        """Those that there are."""
        return [mask for mask in self.masks() if mask is not None]
