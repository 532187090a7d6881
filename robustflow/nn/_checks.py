"""Checks of what layers are called with: sentences in place of a convolution's complaint."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


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
    if have not in (1, want):
        raise ValueError(
            f"{name} must have the batch size of z, or 1: it has {have}, z has {want}."
        )


def check_context_fits(projected: Tensor, z: Tensor) -> None:
    """What was made from a context has z's batch and spatial size, or 1 in their place."""
    have, want = projected.shape, z.shape
    if len(have) != len(want) or any(
        size not in (1, full)
        for dim, (size, full) in enumerate(zip(have, want, strict=True))
        if dim != 1
    ):
        raise ValueError(
            "A context must have the batch size of z, or 1, and its spatial size: what was "
            f"projected from it has {have[0]} and {tuple(have[2:])}, z has {want[0]} and "
            f"{tuple(want[2:])}."
        )


def check_options_are_used(own: nn.Module | None, options: Mapping[str, object]) -> None:
    """Options of the default conditioner reach none but that one."""
    if own is not None and options:
        raise TypeError(
            f"{', '.join(options)}: options of the default conditioner, but a conditioner was "
            "given. Leave out one or the other."
        )
