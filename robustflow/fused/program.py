"""A small network as a list of steps on nodes, each some adjacent units of a block of memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

LINEAR, ACTIVATION, GATE, SUM = range(4)  # as csrc/network/network.h numbers them

# Beyond so many units the matrix products of PyTorch's library are as fast, and what a call saves
# is little beside them.
MAX_UNITS = 256


class Activation(NamedTuple):
    """An elementwise function: its number in csrc/network/kernels.h, and its setting."""

    function: int
    slope: float = 0.0


# By number: each with its setting.
ACTIVATIONS: tuple[Callable[[Tensor, float], Tensor], ...] = (
    lambda x, slope: torch.relu(x),
    lambda x, slope: torch.tanh(x),
    lambda x, slope: functional.elu(x, slope),
    lambda x, slope: functional.leaky_relu(x, slope),
    lambda x, slope: torch.sigmoid(x),
    lambda x, slope: functional.silu(x),
)
_RELU, _TANH, _ELU, _LEAKY_RELU, _SIGMOID, _SILU = range(len(ACTIVATIONS))

_WITH_SLOPE = ((nn.ELU, "alpha", _ELU), (nn.LeakyReLU, "negative_slope", _LEAKY_RELU))
SLOPE_NAMES = tuple(name for _, name, _ in _WITH_SLOPE)
_FUNCTIONS: dict[Any, Activation] = {
    functional.relu: Activation(_RELU),
    torch.relu: Activation(_RELU),
    functional.tanh: Activation(_TANH),
    torch.tanh: Activation(_TANH),
    functional.elu: Activation(_ELU, 1.0),
    functional.leaky_relu: Activation(_LEAKY_RELU, 0.01),
    functional.sigmoid: Activation(_SIGMOID),
    torch.sigmoid: Activation(_SIGMOID),
    functional.silu: Activation(_SILU),
}


def activation_of(activation: Any) -> Activation | None:
    """The activation that a function or a module is; None for one that is not known."""
    if isinstance(activation, nn.Module):
        kind = type(activation)
        for own, name, function in _WITH_SLOPE:
            if kind is own:
                slope = float(getattr(activation, name))
                return Activation(function, slope) if slope >= 0 else None
        number = {nn.ReLU: _RELU, nn.Tanh: _TANH, nn.Sigmoid: _SIGMOID, nn.SiLU: _SILU}.get(kind)
        return None if number is None else Activation(number)
    try:
        return _FUNCTIONS.get(activation)
    except TypeError:  # not hashable
        return None


class Step(NamedTuple):
    """One step; ``other`` is the second node that a gate or a sum reads."""

    kind: int
    node: int
    other: int
    out: int
    weight: int = -1
    bias: int = -1
    function: int = 0
    slope: float = 0.0


@dataclass(frozen=True)
class Program:
    """A network of a layer.

    Attributes:
        features, context_features: of its inputs.
        nodes: (first unit, units) of each; the last is the output.
        steps: each makes a node.
        units: of all nodes but the output.
        num_parameters: how many weights and biases the steps read.
    """

    features: int
    context_features: int
    nodes: tuple[tuple[int, int], ...]
    steps: tuple[Step, ...]
    units: int
    num_parameters: int

    @property
    def outputs(self) -> int:
        return self.nodes[-1][1]

    @property
    def obstacle(self) -> str | None:
        """Why one call would not be faster, as a clause; None where it is."""
        hidden = max((size for _, size in self.nodes[:-1]), default=0)
        return f"its network has more than {MAX_UNITS} units" if hidden > MAX_UNITS else None


class Builder:
    """Builds a program step by step; each method returns the number of the node that it makes.

    Args:
        features: that the network reads.
        context_features: that it reads beside them.

    Example:
        >>> builder = Builder(features=2)
        >>> hidden = builder.activation(builder.linear(builder.features, 8), Activation(0))
        >>> builder.linear(hidden, 3)
        3
        >>> builder.program().units
        18
    """

    def __init__(self, features: int, context_features: int = 0) -> None:
        self._features, self._context_features = features, context_features
        self.features = 0  # nodes of the inputs
        self._nodes = [(0, features)]
        if context_features:
            self._nodes += [(features, context_features), (0, features + context_features)]
        self._units = features + context_features
        self._steps: list[Step] = []
        self._num_parameters = 0

    @property
    def context(self) -> int:
        assert self._context_features > 0
        return 1

    @property
    def both(self) -> int:
        """Features and context."""
        return 2 if self._context_features else 0

    def linear(self, node: int, units: int, bias: bool = True) -> int:
        """Its weight, and its bias where it has one, are the next of the parameters."""
        weight = self._num_parameters
        self._num_parameters += 1 + bias
        made = self._node(units)
        self._steps.append(Step(LINEAR, node, node, made, weight, weight + 1 if bias else -1))
        return made

    def activation(self, node: int, activation: Activation) -> int:
        made = self._node(self._nodes[node][1])
        self._steps.append(Step(ACTIVATION, node, node, made, -1, -1, *activation))
        return made

    def gate(self, node: int, logits: int) -> int:
        """``node * sigmoid(logits)``."""
        return self._pair(GATE, node, logits)

    def sum(self, node: int, other: int) -> int:
        return self._pair(SUM, node, other)

    def _pair(self, kind: int, node: int, other: int) -> int:
        assert self._nodes[node][1] == self._nodes[other][1]
        made = self._node(self._nodes[node][1])
        self._steps.append(Step(kind, node, other, made))
        return made

    def _node(self, units: int) -> int:
        self._nodes.append((self._units, units))
        self._units += units
        return len(self._nodes) - 1

    def program(self) -> Program:
        """The program, whose output is the node made last."""
        return Program(
            self._features,
            self._context_features,
            tuple(self._nodes),
            tuple(self._steps),
            self._units - self._nodes[-1][1],
            self._num_parameters,
        )


def run_program(
    program: Program,
    features: Tensor,
    context: Tensor | None,
    parameters: Sequence[Tensor],
    masks: Sequence[Tensor | None],
) -> Tensor:
    """The network in PyTorch's operations, (N, outputs).

    Args:
        program: the network.
        features: (N, features).
        context: (N, context_features), or None.
        parameters: its weights and biases, in order.
        masks: which multiply the parameters; None where there is none.
    """
    values: list[Any] = [features]
    if context is not None:
        values += [context, torch.cat((features, context), 1)]
    weights = [
        parameter if mask is None else parameter * mask
        for parameter, mask in zip(parameters, masks, strict=True)
    ]
    for step in program.steps:
        value = values[step.node]
        if step.kind == LINEAR:
            bias = weights[step.bias] if step.bias >= 0 else None
            value = functional.linear(value, weights[step.weight], bias)
        elif step.kind == ACTIVATION:
            value = ACTIVATIONS[step.function](value, step.slope)
        elif step.kind == GATE:
            value = value * torch.sigmoid(values[step.other])
        else:
            value = value + values[step.other]
        values.append(value)
    result: Tensor = values[-1]
    return result
