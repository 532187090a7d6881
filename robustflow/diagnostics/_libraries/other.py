"""Modules of unknown libraries, by how they can be called."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from robustflow.diagnostics._layers import Layer, Watcher

_TURNS = ("reverse", "rev", "inverse")  # names of arguments that reverse the direction of a call


class OtherLayer(Layer):
    """Any module. Sampling is the first of these that it has:

    its method ``inverse``; ``forward`` with an argument ``reverse``, ``rev`` or ``inverse`` that
    is true; ``forward``. z is the first tensor that it is called with, and the first that it
    returns.
    """

    library = "other"

    def watch(self, watcher: Watcher) -> None:
        turn = turned_by(self.module)
        if turn is None and callable(getattr(type(self.module), "inverse", None)):
            watcher.intercept(self.module, "inverse", self._wrapper(watcher, True))
            watcher.intercept(self.module, "forward", self._wrapper(watcher, False))
        else:
            watcher.intercept(self.module, "forward", self._wrapper(watcher, turn or True))

    def _wrapper(self, watcher: Watcher, turned: bool | str) -> Callable[..., Any]:
        """The wrapper of a method that samples always, or if this argument is true."""
        signature = inspect.signature(self.module.forward)

        def layer(proceed: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            z = next(_tensors((*args, *kwargs.values())), None)
            if z is None:
                return proceed(*args, **kwargs)
            back = turned
            if isinstance(turned, str):
                bound = signature.bind(*args, **kwargs)
                bound.apply_defaults()
                back = bool(bound.arguments[turned])

            def replay(marked: Sequence[Tensor]) -> Sequence[Tensor]:
                others, named = _replaced([args, kwargs], z, marked[0])
                return self.outputs(proceed(*others, **named))

            density = back == self.flipped
            run = partial(proceed, *args, **kwargs)
            return watcher.call(self, density, (z,), run, replay=replay)

        return layer

    def outputs(self, result: Any) -> Sequence[Tensor]:
        return tuple(_tensors((result,)))[:1]

    def with_outputs(self, result: Any, outputs: Sequence[Tensor]) -> Any:
        if isinstance(result, Tensor):
            return outputs[0]
        return type(result)([self.with_outputs(result[0], outputs), *result[1:]])


def turned_by(module: nn.Module) -> str | None:
    """The argument of ``forward`` that reverses the call; None if there is none."""
    parameters = inspect.signature(module.forward).parameters
    return next((name for name in _TURNS if name in parameters), None)


def _tensors(values: Any) -> Iterator[Tensor]:
    """Floating-point tensors among values, and in the lists and tuples among them."""
    for value in values:
        if isinstance(value, Tensor) and value.is_floating_point():
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _replaced(values: Any, old: Tensor, new: Tensor) -> Any:
    """The same lists, tuples and dictionaries, with another tensor in one's place."""
    if values is old:
        return new
    if isinstance(values, list | tuple):
        return type(values)([_replaced(each, old, new) for each in values])
    if isinstance(values, dict):
        return {key: _replaced(each, old, new) for key, each in values.items()}
    return values
