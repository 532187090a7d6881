"""A flow without context as the flow of patches in deepinv's PatchNR."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustflow import nn as rnn
from robustflow.nn.base import StandardNormal


class PatchFlow(nn.Module):
    """The interface that ``deepinv.optim.PatchNR(normalizing_flow=...)`` expects of a flow.

    Called with flat patches (N, D) it returns latents (N, D) and log-determinants (N,); with
    ``rev=True`` the other way round. From these PatchNR computes the negative log-density of a
    patch, without the constant D / 2 log(2 pi).

    Args:
        flow: without context, over standard normal latents.
        shape: of a patch as the flow takes it, such as (C, H, W); None: flat.

    Raises:
        ValueError: a flow that takes a context, or whose base is another.

    Source: Altekrueger et al., PatchNR, 2023 (arXiv:2205.12021).

    Example:
        >>> halves = (False, True)
        >>> layers = [rnn.RQSplineCoupling(36, spatial_dims=0, reverse=half) for half in halves]
        >>> flow = rnn.ConditionalFlow([layers])
        >>> latents, logabsdet = PatchFlow(flow)(torch.rand(5, 36))
        >>> latents.shape, logabsdet.shape
        (torch.Size([5, 36]), torch.Size([5]))
    """

    def __init__(self, flow: rnn.ConditionalFlow, shape: Sequence[int] | None = None) -> None:
        super().__init__()
        if any(getattr(level, "needs_context", False) for level in flow.levels):
            raise ValueError("flow takes a context, which patches have not: build it without one.")
        if not all(isinstance(base, StandardNormal) for base in flow.bases):
            raise ValueError(
                "PatchNR takes the latents as standard normal: build flow without a base."
            )
        self.flow = flow
        self.shape = None if shape is None else tuple(shape)

    def forward(self, patches: Tensor, rev: bool = False) -> tuple[Tensor, Tensor]:
        """(N, D) -> (N, D), logabsdet (N,).

        Args:
            patches: or latents, with ``rev``.
            rev: invert.
        """
        if rev:
            size = () if self.shape is None else self.shape[1:]
            sizes = [torch.Size(each) for each in self.flow.latent_shapes(size)]
            parts = patches.split([each.numel() for each in sizes], dim=1)
            latents = [part.unflatten(1, each) for part, each in zip(parts, sizes, strict=True)]
            x, logabsdet = self.flow.inverse(latents)
            return x.flatten(1), logabsdet
        x = patches if self.shape is None else patches.unflatten(1, self.shape)
        latents, logabsdet = self.flow(x)
        return torch.cat([latent.flatten(1) for latent in latents], dim=1), logabsdet
