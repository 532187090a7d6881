"""robustflow.nn: sampling is ``inverse=True``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from robustflow import nn as rnn
from robustflow.diagnostics._layers import Layer, Watched, Watcher
from robustflow.diagnostics._libraries._own import affine_params, watch_transform
from robustflow.diagnostics.kinds import Kind


class _Layer(Layer):
    library = "robustflow.nn"


class _Conditional(_Layer):
    """A layer with a transform and a conditioner; a level calls its ``transform_with``."""

    def __init__(self, module: rnn.ConditionalLayer) -> None:
        super().__init__(module)
        self.kind = _kind(module)
        self.affine = affine_params(module.transform)
        if isinstance(module, rnn.Coupling):
            kept, changed = module.kept_channels, module.channels - module.kept_channels
            first, last = slice(0, changed), slice(changed, None)
            if not module.reverse:
                first, last = slice(kept, None), slice(0, kept)
            self.spread, self.changed, self.kept = "coupling", first, last
            self.conditioner = module.conditioner
        elif isinstance(module, rnn.Injector):
            self.spread = "elementwise"
        elif isinstance(module, rnn.Autoregressive):
            self.spread = "channels"

    def watch(self, watcher: Watcher) -> None:
        module = self.module

        def layer(
            proceed: Callable[..., Any], z: Tensor, state: Any, *, inverse: bool = False
        ) -> Any:
            def probe(kept: Tensor) -> Tensor:
                return module.params_of(kept, state)

            density = inverse == self.flipped
            return watcher.call(
                self, density, (z,), lambda: proceed(z, state, inverse=inverse), probe=probe
            )

        watcher.intercept(module, "transform_with", layer)
        watch_transform(watcher, module.transform)


def _kind(module: rnn.ConditionalLayer) -> Kind:
    if isinstance(module, rnn.Split):
        return "split"
    if isinstance(module, rnn.Coupling):
        return "self-conditional"
    if isinstance(module, rnn.Injector):
        return "injector"
    return "autoregressive" if isinstance(module, rnn.Autoregressive) else "other"


class _Plain(_Layer):
    """A layer without context."""

    conditional = False

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        if isinstance(module, rnn.ActNorm):
            self.kind, self.spread = "actnorm", "elementwise"
        elif isinstance(module, rnn.InvertibleConv1x1):
            self.kind, self.spread = "1x1", "channels"
        elif isinstance(module, rnn.PhaseShift | rnn.Dequantize):
            self.kind, self.spread = "elementwise", "elementwise"
        else:
            self.kind, self.spread = "reshape", "replay"

    def watch(self, watcher: Watcher) -> None:
        def layer(
            proceed: Callable[..., Any], z: Tensor, context: Any = None, *, inverse: bool = False
        ) -> Any:
            def run(z: Tensor) -> Any:
                return proceed(z, context, inverse=inverse)

            density = inverse == self.flipped
            return watcher.call(
                self, density, (z,), lambda: run(z), replay=lambda inputs: run(*inputs)[:1]
            )

        watcher.intercept(self.module, "forward", layer)


def find(module: nn.Module) -> Watched | None:
    if isinstance(module, rnn.ConditionalLayer):
        return _Conditional(module)
    plain = rnn.ActNorm | rnn.InvertibleConv1x1 | rnn.Squeeze | rnn.PhaseShift | rnn.Dequantize
    if isinstance(module, plain):
        return _Plain(module)
    return None


def flips(module: nn.Module) -> bool:
    return False


def members(module: nn.Module) -> Iterable[nn.Module]:
    """Modules that are called as layers, whatever they are; a ModuleList stands for its own."""
    return (module.layers,) if isinstance(module, rnn.FlowLevel) else ()
