"""A masked network as a list of operations on its units."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional

# Elementwise modules. Not PReLU, which may have a weight for each unit.
ELEMENTWISE = frozenset(
    {
        nn.CELU,
        nn.ELU,
        nn.GELU,
        nn.Hardswish,
        nn.Hardtanh,
        nn.Identity,
        nn.LeakyReLU,
        nn.LogSigmoid,
        nn.Mish,
        nn.ReLU,
        nn.ReLU6,
        nn.SELU,
        nn.Sigmoid,
        nn.SiLU,
        nn.Softplus,
        nn.Softsign,
        nn.Tanh,
    }
)


class Masked(NamedTuple):
    """A linear layer whose mask (out_features, in_features) is 1 where units are connected."""

    weight: Tensor
    bias: Tensor | None
    mask: Tensor
    offset: Tensor | None = None  # (N or 1, out_features), added to the result


class Gate(NamedTuple):
    """Multiplies by the sigmoid of a function of the context alone, (N or 1, units)."""

    values: Tensor


class Add(NamedTuple):
    """A residual connection: adds the values of an earlier node."""

    node: int


# Node 0 is the input; operation i computes node i + 1 from node i. A function is elementwise.
Operation = Masked | Gate | Add | Callable[[Tensor], Tensor]


def run_network(operations: Sequence[Operation], x: Tensor) -> Tensor:
    """The whole network, on (N, features and context)."""
    values = [x]
    for operation in operations:
        now = values[-1]
        if isinstance(operation, Masked):
            now = functional.linear(now, operation.weight * operation.mask, operation.bias)
            now = now if operation.offset is None else now + operation.offset
        elif isinstance(operation, Gate):
            now = now * operation.values.sigmoid()
        elif isinstance(operation, Add):
            now = now + values[operation.node]
        else:
            now = operation(now)
        values.append(now)
    return values[-1]
