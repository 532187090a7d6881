"""Checks of the arguments of layers, with clearer errors than a convolution's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from robustflow._checks import check_count, describe, fits

if TYPE_CHECKING:
    from robustflow.nn.upsampled import Upsampled


def check_counts(minimum: int = 1, **counts: int) -> None:
    """Whole numbers of at least so many, by their names."""
    for name, value in counts.items():
        check_count(name, value, minimum)


def check_transform(transform: object) -> None:
    """An elementwise transform, and not its class or a name."""
    usable = callable(transform) and hasattr(transform, "num_params")
    if isinstance(transform, type) or not usable:
        hint = f": write {transform.__name__}()" if isinstance(transform, type) else ""
        raise TypeError(
            "transform must be an elementwise transform such as ModifiedRQSpline(), got "
            f"{describe(transform)}{hint}."
        )


def check_flags(**flags: bool) -> None:
    """True or False, by their names."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True or False, got {describe(value)}.")


def check_module(name: str, module: object) -> None:
    """A module, and not its class or a list of modules."""
    if isinstance(module, nn.Module):
        return
    hint = ""
    if isinstance(module, type) and issubclass(module, nn.Module):
        hint = f": write {module.__name__}(...)"
    raise TypeError(f"{name} must be a torch.nn.Module, got {describe(module)}{hint}.")


def check_layers(layers: object, where: str = "layers") -> None:
    """Modules in a list, or in a container of torch's; ``where`` names it."""
    if not isinstance(layers, Sequence | nn.Sequential | nn.ModuleList) or isinstance(layers, str):
        hint = ""
        if isinstance(layers, nn.Module):
            hint = ": of layers for a single level, write [[...]]"
        raise TypeError(f"{where} must be a list of layers, got {describe(layers)}{hint}.")
    if not layers:
        raise ValueError(f"{where} must have at least one layer, got none.")
    for i, layer in enumerate(layers):
        if isinstance(layer, list | tuple):
            raise TypeError(
                f"{where}[{i}] must be a layer, got {describe(layer)}: put the layers of a "
                "flow_step into the level one by one, [*flow_step(...), ...]."
            )
        check_module(f"{where}[{i}]", layer)


def check_dtype(name: str, tensor: Tensor, weight: Tensor) -> None:
    """One dtype for what a layer reads and its weights, unless autocast chooses."""
    if tensor.dtype == weight.dtype:
        return
    double = torch.float64 in (tensor.dtype, weight.dtype)  # which autocast leaves alone
    if not double and torch.is_autocast_enabled(tensor.device.type):
        return
    raise TypeError(
        f"{name} is {tensor.dtype} and the weights are {weight.dtype}: convert x (or z, or the "
        f"context) by .to({weight.dtype}), or the flow by .to({tensor.dtype})."
    )


def check_shape(name: str, tensor: Tensor, channels: int, spatial_dims: int | None = None) -> None:
    """(N, channels, \\*S), with so many spatial dimensions where that is known."""
    if tensor.dim() < 2 or tensor.shape[1] != channels:
        raise ValueError(
            f"{name} must have {channels} channels, as dimension 1 of (N, C, *S) or (N, D), got "
            f"shape {tuple(tensor.shape)}."
        )
    if spatial_dims is not None and tensor.dim() != 2 + spatial_dims:
        raise ValueError(
            f"{name} must have {spatial_dims} spatial dimension(s) here, got shape "
            f"{tuple(tensor.shape)}: the default conditioners are told by spatial_dims=."
        )


def check_batch_fits(name: str, have: int, want: int) -> None:
    """One for each z, or one for all."""
    if not fits(have, want):
        raise ValueError(
            f"{name} must have the batch size of z, or 1: it has {have}, z has {want}."
        )


def check_one_batch_size(name: str, tensors: Sequence[Tensor | Upsampled]) -> None:
    sizes = [tensor.shape[0] for tensor in tensors]  # symbolic ones have no hash, for a set
    if any(size != sizes[0] for size in sizes):
        raise ValueError(f"{name} must have one batch size, got {sizes}.")


def check_context_fits(projected: Tensor, z: Tensor) -> None:
    """Tensors made from a context have z's batch and spatial size, or 1 instead."""
    have, want = projected.shape, z.shape
    if len(have) != len(want) or any(
        not fits(size, full)
        for dim, (size, full) in enumerate(zip(have, want, strict=True))
        if dim != 1
    ):
        raise ValueError(
            "A context must have the batch size of z, or 1, and its spatial size: what was "
            f"projected from it has {have[0]} and {tuple(have[2:])}, z has {want[0]} and "
            f"{tuple(want[2:])}."
        )


def check_options_are_used(own: nn.Module | None, options: Mapping[str, object]) -> None:
    """Options of the default conditioner are an error beside a conditioner of the user's."""
    if own is not None and options:
        raise TypeError(
            f"{', '.join(options)}: options of the default conditioner, but a conditioner was "
            "given. Leave out one or the other."
        )
