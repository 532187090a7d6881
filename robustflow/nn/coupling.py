"""Coupling: half of the channels decide, with the context, how the other half is transformed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from robustflow.nn.conditioner import Conditioner
from robustflow.nn.elementwise import ElementwiseTransform, ModifiedRQSpline
from robustflow.nn.layer import ConditionalLayer


class Coupling(ConditionalLayer):
    """Self-conditional coupling: the second half given the first half and the context.

    Args:
        channels: channels of z, at least 2; the first ``channels // 2`` stay as they are.
        context_channels: channels of the context.
        transform: the elementwise transform; default :class:`ModifiedRQSpline`.
        conditioner: any module called as ``conditioner(z1, context)`` that returns the
            parameters, (N, (channels - channels // 2) * num_params, \\*S). If it has a method
            ``project(context)``, that is called once a condition and its result takes the
            context's place. Default a :class:`Conditioner`.
        hidden_channels, spatial_dims, kernel_size, head_kernel_size: for the default conditioner.

    Source: Dinh et al., Real NVP, 2017 (arXiv:1605.08803); with features, SRFlow
    (arXiv:2006.14200).

    Example:
        >>> coupling = Coupling(12, context_channels=16)
        >>> z, context = torch.randn(5, 12, 8, 8), torch.randn(5, 16, 8, 8)
        >>> y, logabsdet = coupling(z, context)
        >>> bool(torch.equal(y[:, :6], z[:, :6]))
        True
    """

    def __init__(
        self,
        channels: int,
        context_channels: int,
        transform: ElementwiseTransform | None = None,
        conditioner: nn.Module | None = None,
        *,
        hidden_channels: int = 64,
        spatial_dims: int = 2,
        kernel_size: int = 3,
        head_kernel_size: int | None = None,
    ) -> None:
        if channels < 2:
            raise ValueError(f"A coupling needs at least 2 channels to split, got {channels}.")
        transform = transform or ModifiedRQSpline()
        kept = channels // 2
        conditioner = conditioner or Conditioner(
            kept,
            context_channels,
            (channels - kept) * transform.num_params,
            hidden_channels=hidden_channels,
            spatial_dims=spatial_dims,
            kernel_size=kernel_size,
            head_kernel_size=head_kernel_size,
        )
        super().__init__(channels, transform, conditioner)
        self.kept_channels = kept

    def project(self, context: Tensor | None) -> Any:
        """The context's part of the conditioner, or the context where it has no such part."""
        project = getattr(self.conditioner, "project", None)
        return context if project is None else project(context)

    def transform_with(
        self, z: Tensor, state: Any, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Transform the second half of z, given the projected context."""
        if isinstance(state, Tensor) and not hasattr(self.conditioner, "project"):
            # It may concatenate z1 and the context, which takes equal batch sizes.
            state = state.expand(z.shape[0], *state.shape[1:])
        z1, z2 = z.split((self.kept_channels, z.shape[1] - self.kept_channels), dim=1)
        z2, logabsdet = self.transform(z2, self.conditioner(z1, state), inverse=inverse)
        return torch.cat([z1, z2], dim=1), logabsdet
