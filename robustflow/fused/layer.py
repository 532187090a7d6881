"""A layer around a network: which features it reads and transforms, and how."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustflow import _native
from robustflow._transforms import RQ
from robustflow.fused.order import Order
from robustflow.fused.program import Program, run_program
from robustflow.ops import TRANSFORMS
from robustflow.ops.registry import reference_gradients

Config = tuple[Any, ...]
"""A transform's configuration, with the log-determinant summed over (N, D)."""


@dataclass(frozen=True)
class FusedLayer:
    """A layer that one call computes.

    Attributes:
        program: its network.
        features: D.
        read: the features that the network reads.
        changed: those whose transform it makes the parameters of, ``changed * num_params``. Others
            are kept as they are, or have an unconditional transform.
        num_params: of the transform of a feature.
        configs: of the transform, forward and inverse.
        unconditional: of the transform of the kept features, which are then those that the network
            reads, in both directions; its parameters are the layer's, not made by the network. None
            where they are kept as they are.
        transform: its name, of one whose only tensor beside x is the packed parameters.
        order: of the inverse of an autoregressive layer, which changes all features that its
            network reads; None where it cannot be inverted so.
    """

    program: Program
    features: int
    read: tuple[int, ...]
    changed: tuple[int, ...]
    num_params: int
    configs: tuple[Config, Config]
    unconditional: tuple[Config, Config] | None = None
    transform: str = RQ.name
    order: Order | None = None

    @property
    def is_autoregressive(self) -> bool:
        """Whether the network reads what the layer changes."""
        return len(self.changed) == self.features

    def in_cpp(self) -> Any:
        """The layer of `robustflow._autograd`: ``layer(inverse, tensors)``.

        It returns (y, logabsdet), or a clause that says why it does not serve the call. The tensors
        are x; the context, or None; the network's parameters; those of the unconditional transform,
        widths, heights and derivatives (D_kept, K); and a mask or None for each of the network's
        parameters. The inverse of an autoregressive layer has no gradients.
        """
        return _in_cpp(self)

    def run(self, inverse: bool, *tensors: Any) -> tuple[Tensor, Tensor]:
        """The layer in operations that autograd knows, on the same tensors."""
        x, context, *rest = tensors
        count = self.program.num_parameters
        parameters, unconditional, masks = rest[:count], rest[count:-count], rest[-count:]
        kept = [i for i in range(self.features) if i not in self.changed]
        y_kept, logabsdet = x[:, kept], None
        if self.unconditional is not None:
            groups = [group.unsqueeze(0) for group in unconditional]
            y_kept, logabsdet = self._apply(y_kept, groups, self.unconditional[inverse])
        read = y_kept if self.unconditional is not None and inverse else x[:, list(self.read)]
        params = run_program(self.program, read, context, parameters, masks)
        params = params.unflatten(1, (len(self.changed), self.num_params))
        y_changed, change = self._apply(x[:, list(self.changed)], [params], self.configs[inverse])
        order = torch.tensor([*kept, *self.changed], device=x.device).argsort()
        y = torch.cat((y_kept, y_changed), 1)[:, order]
        return y, change if logabsdet is None else logabsdet + change

    def _apply(self, x: Tensor, parameters: list[Any], config: Config) -> tuple[Tensor, Tensor]:
        transform = TRANSFORMS[self.transform]
        left_out = [None] * (len(transform.spec.tensors) - len(parameters))
        return transform.apply(x, *parameters, *left_out, *config)


@functools.cache  # a graph may refer to a layer for as long as the process lives
def _in_cpp(layer: FusedLayer) -> Any:
    def gradients(
        inverse: bool,
        tensors: Sequence[Tensor | None],
        needed: Sequence[bool],
        cotangents: Sequence[Tensor | None],
    ) -> list[Tensor | None]:
        def run(*arguments: Any) -> tuple[Tensor, Tensor]:
            return layer.run(inverse, *arguments)

        with torch.enable_grad():
            return reference_gradients(run, tensors, (), needed, cotangents)

    program = layer.program
    description = {
        "features": layer.features,
        "context_features": program.context_features,
        "read": list(layer.read),
        "changed": list(layer.changed),
        "num_params": layer.num_params,
        "num_parameters": program.num_parameters,
        "units": program.units,
        "nodes": list(program.nodes),
        "steps": [tuple(step) for step in program.steps],
        "configs": _by_block(layer.configs),
        "unconditional": layer.unconditional and _by_block(layer.unconditional),
        "order": layer.order,
    }
    return _native.autograd().Layer(
        description, TRANSFORMS[layer.transform].implementations["native"].eager, gradients
    )


def _by_block(configs: tuple[Config, Config]) -> list[Config]:
    """Configurations over (block, sample, feature), with every element's log-determinant."""
    return [(*config[:-1], 3) for config in configs]


def is_available() -> bool:
    """Whether `robustflow._autograd` is loaded, which has these layers."""
    return hasattr(_native.autograd(), "Layer")


@functools.lru_cache(maxsize=4096)
def fused_layer(*fields: Any) -> FusedLayer:
    """A layer of these fields, one for all that are equal."""
    return FusedLayer(*fields)
