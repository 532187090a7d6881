"""Computing once what depends on the features alone: a memory with an owner and an end.

A remembered result is used only where computing it again would give the same: for the same
feature tensor and the same weights, none of them written to since, under the same modes.
"""

from __future__ import annotations

import operator
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from robustflow._call_state import PLAIN_TYPES, is_plain_eager
from robustflow._versions import are_counted, versions

Compute = Callable[[Tensor], Tensor]
Weights = Callable[[], Sequence[Tensor]]


class _Snapshot:
    """Which tensors they were, and in what state."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tuple(tensors)
        self._versions = versions(tensors)
        # Aliases keep the storage: its address says nothing once something else may have taken it.
        self._storages = tuple(tensor.detach() for tensor in tensors)

    def holds_for(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these are the same objects, unwritten, on the same storage."""
        return (
            len(tensors) == len(self._tensors)
            and all(map(operator.is_, tensors, self._tensors))
            and versions(tensors) == self._versions
            and all(
                tensor.dtype == storage.dtype and tensor.is_set_to(storage)
                for tensor, storage in zip(tensors, self._storages, strict=True)
            )
        )


@dataclass(frozen=True)
class _Entry:
    snapshot: _Snapshot
    modes: tuple[Any, ...]
    result: Tensor


class _Memory(threading.local):
    """One thread's entries, one a conditioner: the latest features replace those before."""

    def __init__(self) -> None:
        self.depth = 0
        self.warned = False
        self.entries: WeakKeyDictionary[nn.Module, _Entry] = WeakKeyDictionary()


_memory = _Memory()


@contextmanager
def condition_once() -> Iterator[None]:
    """Within it, each coupling of this module projects a feature tensor once, not once a call.

    For repeated sampling of one condition by an otherwise unmodified published network. Encode
    the picture once and pass the encoding, since a new encoding is a new condition:

        with torch.no_grad(), condition_once():
            features = encoder(low_resolution)
            samples = [flow(latents, features, reverse=True) for latents in drawn]

    Everything that the injector does to the features, and the features' part of the coupling's
    first convolution, is remembered: for each coupling the latest feature tensor, held until the
    end of the block, or until another tensor comes. Computed anew when the tensor is another
    object or was written to in place, when a weight was replaced, moved, converted or written to
    (an optimiser's step, ``load_state_dict``), and under another inference, autocast or
    training mode or on another stream. Results equal those without it, to rounding.

    It holds for the thread that enters it. Blocks may be nested: all are one, and the outermost
    frees the memory. Nothing is remembered that a gradient is wanted of, under torch.compile and
    torch.func, or while a CUDA graph is captured.

    Two kinds of writing escape PyTorch's count of versions: through ``tensor.data`` or an array
    that shares memory (enter a new block after such), and on tensors made under
    ``torch.inference_mode()``, which are therefore never remembered, with a warning: sample under
    ``torch.no_grad()``.
    """
    # One generator may be entered in one thread and closed in another: hold the thread's own.
    state = _memory.__dict__
    state["depth"] += 1
    try:
        yield
    finally:
        state["depth"] -= 1
        if state["depth"] == 0:
            state["entries"].clear()
            state["warned"] = False


def once(owner: nn.Module, context: Tensor, weights: Weights, compute: Compute) -> Tensor:
    """``compute(context)``, remembered for ``owner`` within :func:`condition_once`.

    Args:
        owner: whose result it is; it has one.
        context: what the result is computed from, with these weights and nothing else.
        weights: gives all tensors that ``compute`` reads besides.
    """
    # Asked first: torch.compile cannot read a thread's own state.
    if not is_plain_eager() or _memory.depth == 0:
        return compute(context)
    tensors = (context, *weights())
    if not _can_be_followed(tensors):
        return compute(context)
    modes = _modes(owner, context)
    entry = _memory.entries.get(owner)
    if entry is not None and entry.modes == modes and entry.snapshot.holds_for(tensors):
        return entry.result
    del entry
    _memory.entries.pop(owner, None)  # two results need not exist at once
    result = compute(context)
    # The versions of now: computing may have initialised an actnorm.
    _memory.entries[owner] = _Entry(_Snapshot(tensors), modes, result)
    return result


def _can_be_followed(tensors: Sequence[Tensor]) -> bool:
    """Whether every change can be seen, and the result is good for more than one use."""
    if any(type(tensor) not in PLAIN_TYPES for tensor in tensors):
        return False
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return False  # a graph serves one backward
    if not are_counted(tensors):
        if not _memory.warned:
            _memory.warned = True
            warnings.warn(
                "condition_once() remembers nothing of features or weights made under "
                "torch.inference_mode(), whose changes cannot be seen: make them under "
                "torch.no_grad().",
                stacklevel=2,
            )
        return False
    return not (tensors[0].is_cuda and torch.cuda.is_current_stream_capturing())


def _modes(owner: nn.Module, context: Tensor) -> tuple[Any, ...]:
    """What else decides over a result: its dtype, its kind, actnorm's first batch, its stream."""
    kind = context.device.type
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    stream = torch.cuda.current_stream(context.device) if context.is_cuda else None
    inference = torch.is_inference_mode_enabled()
    return autocast, inference, owner.training, stream
