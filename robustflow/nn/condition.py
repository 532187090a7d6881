"""A condition: a context, encoded and projected once for all layers of a flow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import register_pytree_node


@dataclass(frozen=True)
class Unprojected:
    """The state of a layer that projects these features whenever it runs, and keeps nothing."""

    features: Tensor


register_pytree_node(
    Unprojected, lambda state: ([state.features], None), lambda leaves, _: Unprojected(*leaves)
)


def projected(layer: nn.Module, state: Any) -> Any:
    """What a layer needs of its features to run."""
    return layer.project(state.features) if isinstance(state, Unprojected) else state  # type: ignore[operator]


@dataclass(frozen=True)
class Condition:
    """What :meth:`robustflow.nn.ConditionalFlow.condition` returns, for use in many calls.

    Attributes:
        states: level by level and layer by layer, what the layer's ``project`` returned; None
            for an unconditional layer, the features themselves for a module that does not say
            whether it is one, and :class:`Unprojected` where a training step keeps no projections.
        sizes: the spatial size of z in each level, as its features have it.
        batch_size: number of contexts.

    ``condition[i]`` is the i-th context alone, with a batch size of 1, and ``condition[i:j]`` those
    from the i-th on; both are views.
    """

    states: tuple[tuple[Any, ...], ...]
    sizes: tuple[torch.Size, ...]
    batch_size: int

    def __len__(self) -> int:
        return self.batch_size

    def __getitem__(self, index: int | slice) -> Condition:
        if isinstance(index, slice):
            chosen = range(self.batch_size)[index]
            if chosen.step != 1:
                raise IndexError(f"contexts are taken in steps of 1, got {index}.")
            if len(chosen) == self.batch_size:
                return self
        elif 0 <= index < self.batch_size:
            chosen = range(index, index + 1)
        else:
            raise IndexError(f"index {index} is out of range for {self.batch_size} contexts.")
        part = slice(chosen.start, chosen.stop)
        states = tuple(tuple(_select(state, part) for state in level) for level in self.states)
        return Condition(states, self.sizes, len(chosen))


def _select(state: Any, part: slice) -> Any:
    if state is None:
        return None
    if isinstance(state, Tensor):
        return state[part]
    if isinstance(state, Unprojected):
        return Unprojected(state.features[part])
    if isinstance(state, tuple | list):
        return type(state)(_select(each, part) for each in state)
    raise TypeError(
        "A conditioner's project() must return a tensor, or a tuple or list of tensors, "
        f"to be sampled from; got {type(state).__name__}."
    )
