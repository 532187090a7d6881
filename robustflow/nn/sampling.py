"""How a flow samples: in blocks whose size depends on the data's shape alone.

A convolution or a matrix product rounds a row differently in another batch size. So samples that
are to have the same bits, however many are asked for at a time, must go through the flow in the
same groups. These groups are the blocks: large enough for a layer's fixed cost not to count, and
small enough for a block's tensors to stay in the caches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from robustflow.nn.condition import Condition

# Values of x in a block. With more, a CPU touches new memory for every tensor of a pass; with
# fewer, a GPU idles.
CPU_BLOCK, GPU_BLOCK = 2**18, 2**21


class SamplingOptions(TypedDict, total=False):
    """Types of the options of :meth:`robustflow.nn.ConditionalFlow.sample`."""

    condition: Condition | None
    temperature: float | Sequence[float]
    generator: torch.Generator | None
    size: Sequence[int] | None


def block_size(shapes: Sequence[Sequence[int]], device: torch.device) -> int:
    """Samples in a block, a power of two, for latents of these shapes."""
    values = sum(math.prod(shape) for shape in shapes)
    most = (CPU_BLOCK if device.type == "cpu" else GPU_BLOCK) // max(1, values)
    return 1 << (max(1, most).bit_length() - 1)


@dataclass(frozen=True)
class Block:
    """Samples that go through the flow together.

    Attributes:
        group: of all samples: a context's; or, where there are more contexts than samples of
            each, the samples of all contexts of one turn.
        start, stop: the range of samples in the group.
        condition: of these samples, or of batch size 1 for all of them; None without one.
    """

    group: int
    start: int
    stop: int
    condition: Condition | None


@dataclass(frozen=True)
class Order:
    """In which groups and blocks ``num_samples`` samples of each context are drawn."""

    num_samples: int
    condition: Condition | None
    block: int

    @property
    def by_turns(self) -> bool:
        """Whether a group has one sample of each context, not the samples of one."""
        return self.condition is not None and self.num_samples < len(self.condition)

    @property
    def contexts(self) -> int:
        """Number of contexts; 1 without a condition."""
        return 1 if self.condition is None else len(self.condition)

    def blocks(self) -> Iterator[Block]:
        """In order; a single empty one where there are no contexts."""
        if self.by_turns:
            groups = [(self.contexts, self.condition)] * self.num_samples
        elif self.condition is None:
            groups = [(self.num_samples, None)]
        else:
            groups = [(self.num_samples, self.condition[i]) for i in range(self.contexts)]
        for group, (number, condition) in enumerate(groups or [(0, self.condition)]):
            for start in range(0, max(1, number), self.block):
                stop = min(start + self.block, number)
                part = condition[start:stop] if condition and self.by_turns else condition
                yield Block(group, start, stop, part)

    def pieces(self, batch_size: int | None) -> Iterator[list[Block]]:
        """Blocks of at least ``batch_size`` samples together, or all of them."""
        piece: list[Block] = []
        held = 0
        for block in self.blocks():
            piece.append(block)
            held += block.stop - block.start
            if batch_size is not None and held >= batch_size:
                yield piece
                piece, held = [], 0
        if piece:
            yield piece


class Gathered:
    """Collects the results of the blocks, (N, ...) each, into (contexts, num_samples, ...).

    Without gradients in one tensor, allocated once.
    """

    def __init__(self, order: Order) -> None:
        self.order = order
        self._whole: Tensor | None = None
        self._groups: list[list[Tensor]] = []

    def add(self, block: Block, values: Tensor) -> None:
        """The values of the next block."""
        if torch.is_grad_enabled():
            if block.start == 0:
                self._groups.append([])
            self._groups[-1].append(values)
            return
        if self._whole is None:
            shape = (self.order.contexts, self.order.num_samples, *values.shape[1:])
            self._whole = values.new_empty(shape)
        if len(values):
            whole = self._whole.transpose(0, 1) if self.order.by_turns else self._whole
            whole[block.group, block.start : block.stop] = values

    def result(self) -> Tensor:
        """(contexts, num_samples, ...), or (num_samples, ...) without a condition."""
        if self._whole is None:
            groups = [torch.cat(group) for group in self._groups]
            whole = torch.stack(groups, dim=1 if self.order.by_turns else 0)
            whole = whole.reshape(self.order.contexts, self.order.num_samples, *whole.shape[2:])
        else:
            whole = self._whole
        return whole if self.order.condition is not None else whole[0]
