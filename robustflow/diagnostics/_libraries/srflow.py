"""robustflow.compat.srflow: three transforms in one module; sampling is ``reverse=True``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from robustflow.compat.srflow import SeparatedAndCond
from robustflow.diagnostics._layers import Block, Layer, Watched, Watcher
from robustflow.diagnostics._libraries._own import affine_params, watch_transform

_LIBRARY = "robustflow.compat.srflow"


class _Step(Layer):
    """One of the three transforms; the block passes its calls on."""

    library = _LIBRARY

    def __init__(self, module: SeparatedAndCond, net: str) -> None:
        super().__init__(module)
        self.part = net
        self.transform = _itself(module._transform_of(net))
        self.affine = affine_params(self.transform)
        if net == "fFeatures":
            self.kind, self.spread = "injector", "elementwise"
            return
        self.kind = "std-conditional" if net.endswith("_std") else "self-conditional"
        self.spread = "coupling"
        self.kept, self.changed = slice(0, module.kept_channels), slice(module.kept_channels, None)
        self.conditioner = module.get_submodule(net)

    def watch(self, watcher: Watcher) -> None:
        watch_transform(watcher, self.transform)


class _Coupling(Block):
    """A coupling; its parts are named after the nets that make their parameters."""

    library = _LIBRARY

    def __init__(self, module: SeparatedAndCond) -> None:
        super().__init__(module)
        nets = ["fFeatures", module._net_name]
        if module.uses_std:
            nets.append(f"{module._net_name}_std")
        self.parts = [_Step(module, net) for net in nets]

    def watch(self, watcher: Watcher) -> None:
        module = self.module

        def layer(
            proceed: Callable[..., Any],
            input: Tensor,
            logdet: Any = None,
            reverse: bool = False,
            *args: Any,
            **kwargs: Any,
        ) -> Any:
            return watcher.call_block(
                self,
                bool(reverse) == self.flipped,
                (input,),
                lambda: proceed(input, logdet, reverse, *args, **kwargs),
            )

        def transform_of(proceed: Callable[..., Any], net: str) -> Any:
            transform = proceed(net)
            part = next((part for part in self.parts if part.part == net), None)
            if part is None:
                return transform

            def call(x: Tensor, params: Tensor, *, inverse: bool = False) -> Any:
                density = inverse == self.flipped
                return watcher.call(
                    part, density, (x,), lambda: transform(x, params, inverse=inverse)
                )

            return _Watching(call, _itself(transform))

        watcher.intercept(module, "forward", layer)
        watcher.intercept(module, "_transform_of", transform_of)
        for part in self.parts:
            part.watch(watcher)


class _Watching:
    """A transform whose calls are watched, and the transform itself."""

    def __init__(self, call: Callable[..., Any], transform: Any) -> None:
        self.transform = transform
        self._call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)


def _itself(transform: Any) -> Any:
    """A transform that another watcher may have wrapped."""
    return transform.transform if isinstance(transform, _Watching) else transform


def find(module: nn.Module) -> Watched | None:
    return _Coupling(module) if isinstance(module, SeparatedAndCond) else None


def flips(module: nn.Module) -> bool:
    return False


def members(module: nn.Module) -> Iterable[nn.Module]:
    return ()
