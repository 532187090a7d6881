"""Layers whose backward pass rebuilds their inputs from their outputs.

No activations are kept between layers, nor projections of the context, so the memory of a training
step does not grow with the number of layers, except for their weights. In the backward pass each
layer is inverted and run again with gradients; a step takes about twice the time. The rebuilt
inputs differ from the original ones by rounding errors, multiplied by the local gains of the
inverses, layer after layer. These errors are small for flows as they are trained here. They are
large where an affine coupling's scale has collapsed, and in deep flows of splines that are steep
inside their box (`benchmarks/reversible.py` measures it).

Source: Gomez et al., The Reversible Residual Network, 2017 (arXiv:1707.04585), for the idea.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from robustflow.nn.condition import projected
from robustflow.nn.precision import zero_logabsdet

Apply = Callable[..., tuple[Tensor, Tensor]]  # apply(layer, z, state, inverse=...)


def run_reversibly(
    layers: Sequence[nn.Module], states: Sequence[Any], z: Tensor, apply: Apply
) -> tuple[Tensor, Tensor]:
    """z through all layers, and the sum of their log-determinants; nothing between them is kept.

    Every layer must be deterministic (no dropout) and invertible. Gradients of gradients,
    ``torch.func`` and forward mode are not supported.

    Args:
        layers: in order.
        states: what each layer needs of the context: tensors, in tuples or lists, None, or
            :class:`Unprojected`, which is projected when the layer runs.
        z: (N, C, \\*S).
        apply: calls a layer.
    """
    leaves, structure = tree_flatten(tuple(states))
    # Layers may share a tensor, which then has one gradient.
    tensors = list({id(leaf): leaf for leaf in leaves if isinstance(leaf, Tensor)}.values())
    weights = [weight for layer in layers for weight in layer.parameters() if weight.requires_grad]
    weights = list({id(weight): weight for weight in weights}.values())
    call = _Call(list(layers), leaves, structure, weights, apply, _Autocast.current(z))
    out: tuple[Tensor, Tensor] = _Reversible.apply(call, z, *tensors, *weights)
    return out


@dataclass(frozen=True)
class _Autocast:
    """The state of autocast in the forward pass, for the backward pass."""

    device: str
    dtype: torch.dtype
    enabled: bool

    @staticmethod
    def current(z: Tensor) -> _Autocast:
        device = z.device.type
        return _Autocast(
            device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        )

    @contextmanager
    def restored(self) -> Iterator[None]:
        with torch.autocast(self.device, dtype=self.dtype, enabled=self.enabled):
            yield


@dataclass(frozen=True)
class _Call:
    """What a call needs beside z."""

    layers: list[nn.Module]
    leaves: list[Any]
    structure: Any
    weights: list[nn.Parameter]
    apply: Apply
    autocast: _Autocast

    def states(self, tensors: Sequence[Tensor]) -> tuple[Any, ...]:
        """The layers' states, with ``tensors`` in place of the tensors that they had."""
        places: dict[int, Tensor] = {}
        following = iter(tensors)
        for leaf in self.leaves:
            if isinstance(leaf, Tensor) and id(leaf) not in places:
                places[id(leaf)] = next(following)
        leaves = [places.get(id(leaf), leaf) for leaf in self.leaves]
        states: tuple[Any, ...] = tree_unflatten(leaves, self.structure)
        return states


class _Reversible(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: _Call, z: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        states = call.states(tensors[: len(tensors) - len(call.weights)])
        logabsdet = zero_logabsdet(z)
        for layer, state in zip(call.layers, states, strict=True):
            z, change = call.apply(layer, z, state, inverse=False)
            logabsdet = logabsdet + change
        ctx.call = call
        ctx.save_for_backward(z, *tensors)
        return z, logabsdet

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_z: Tensor, grad_logabsdet: Tensor) -> tuple[Tensor | None, ...]:
        call: _Call = ctx.call
        z, *tensors = ctx.saved_tensors
        num_state_tensors = len(tensors) - len(call.weights)
        inputs = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in tensors]
        states = call.states(inputs[:num_state_tensors])
        # The weights themselves: the layers read these, and not the detached tensors in `inputs`.
        inputs[num_state_tensors:] = call.weights
        gradients: dict[int, Tensor] = {}
        with call.autocast.restored():
            for layer, state in zip(reversed(call.layers), reversed(states), strict=True):
                with torch.enable_grad():
                    projected_state = projected(layer, state)
                with torch.no_grad():
                    z = call.apply(layer, z, projected_state, inverse=True)[0]
                with torch.enable_grad():
                    rebuilt_input = z.detach().requires_grad_()
                    out, change = call.apply(layer, rebuilt_input, projected_state, inverse=False)
                layer_inputs = [rebuilt_input, *_differentiable_inputs(layer, state)]
                outputs = [(out, grad_z), (change, grad_logabsdet)]
                outputs = [pair for pair in outputs if pair[0].requires_grad]
                layer_grads = torch.autograd.grad(
                    [output for output, _ in outputs],
                    layer_inputs,
                    [gradient.to(output.dtype) for output, gradient in outputs],
                    allow_unused=True,
                )
                for tensor, gradient in zip(layer_inputs[1:], layer_grads[1:], strict=True):
                    if gradient is not None:
                        before = gradients.get(id(tensor))
                        gradients[id(tensor)] = gradient if before is None else before + gradient
                grad_z = torch.zeros_like(z) if layer_grads[0] is None else layer_grads[0]
        return (None, grad_z, *(gradients.get(id(tensor)) for tensor in inputs))


def _differentiable_inputs(layer: nn.Module, state: Any) -> list[Tensor]:
    """The tensors of a layer's call, beside z, that require gradients."""
    leaves = [leaf for leaf in tree_flatten(state)[0] if isinstance(leaf, Tensor)]
    tensors = [*leaves, *layer.parameters()]
    return list({id(tensor): tensor for tensor in tensors if tensor.requires_grad}.values())
