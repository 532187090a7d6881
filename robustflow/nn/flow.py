"""Conditional flow: levels under one encoder, with log_prob and sample."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustflow.nn.condition import Condition
from robustflow.nn.level import FlowLevel

Context = Tensor | Sequence[Tensor]
Latents = tuple[Tensor, ...]


class ConditionalFlow(nn.Module):
    """A density over x given a context, and samples of it.

    x passes through the levels in order. A level that ends with a
    :class:`~robustflow.nn.Split` sends half of its channels out as a latent; what the last level
    returns is the last latent. All latents are standard normal.

    Args:
        levels: for each level its layers: modules called as
            ``layer(z, context, inverse=...) -> (z, logabsdet (N,))``.
        encoder: from the context to one feature tensor per level (a single tensor will do for one
            level), of the spatial size that z has in that level's conditional layers.
            None: the context already is that.

    Example:
        >>> from robustflow.nn import ModifiedRQSpline, Squeeze, flow_step
        >>> flow = ConditionalFlow([[Squeeze(2), *flow_step(12, 16, ModifiedRQSpline())]])
        >>> x, context = torch.randn(4, 3, 16, 16), torch.randn(4, 16, 8, 8)
        >>> flow.log_prob(x, context).shape
        torch.Size([4])
        >>> flow.sample(5, context, temperature=0.9).shape
        torch.Size([4, 5, 3, 16, 16])
    """

    def __init__(
        self, levels: Sequence[Sequence[nn.Module]], encoder: nn.Module | None = None
    ) -> None:
        super().__init__()
        if not levels:
            raise ValueError("A flow needs at least one level.")
        self.levels = nn.ModuleList(FlowLevel(layers) for layers in levels)
        if self._levels()[-1].split is not None:
            raise ValueError("The last level must not end with a Split: nothing follows it.")
        self.encoder = encoder

    def condition(self, context: Context) -> Condition:
        """Encode and project a context once, for any number of calls with ``condition=``."""
        features = context if self.encoder is None else self.encoder(context)
        per_level = [features] if isinstance(features, Tensor) else list(features)
        if len(per_level) != len(self.levels):
            raise ValueError(
                f"The flow has {len(self.levels)} level(s) and needs one feature tensor for each, "
                f"got {len(per_level)}."
            )
        return Condition(
            tuple(
                level.project(feature)
                for level, feature in zip(self._levels(), per_level, strict=True)
            ),
            tuple(feature.shape[2:] for feature in per_level),
            per_level[0].shape[0],
        )

    def forward(
        self, x: Tensor, context: Context | None = None, *, condition: Condition | None = None
    ) -> tuple[Latents, Tensor]:
        """x (N, C, \\*S) and N contexts, or 1 -> latents, logabsdet (N,)."""
        condition = self._resolve(context, condition)
        latents = []
        total = x.new_zeros(x.shape[0])
        z = x
        for level, states in zip(self._levels(), condition.states, strict=True):
            z, latent, logabsdet = level(z, states)
            total = total + logabsdet
            latents.append(z if latent is None else latent)
        return tuple(latents), total

    def inverse(
        self,
        latents: Sequence[Tensor],
        context: Context | None = None,
        *,
        condition: Condition | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Latents as :meth:`forward` returns them -> x, logabsdet (N,) of this direction."""
        condition = self._resolve(context, condition)
        z = latents[-1]
        total = z.new_zeros(z.shape[0])
        for level, states, latent in zip(
            reversed(self._levels()),
            reversed(condition.states),
            reversed((*latents[:-1], None)),
            strict=True,
        ):
            z, logabsdet = level.inverse(z, latent, states)
            total = total + logabsdet
        return z, total

    def log_prob(
        self, x: Tensor, context: Context | None = None, *, condition: Condition | None = None
    ) -> Tensor:
        """log p(x | context) in nats, (N,)."""
        latents, logabsdet = self(x, context, condition=condition)
        square = torch.stack([latent.square().flatten(1).sum(dim=1) for latent in latents]).sum(0)
        size = math.prod(x.shape[1:])
        return logabsdet - 0.5 * (square + size * math.log(2 * math.pi))

    def sample(
        self,
        num_samples: int,
        context: Context | None = None,
        *,
        condition: Condition | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Samples of each context, (N, num_samples, C, \\*S).

        Each context is projected once; its samples read the projection through a batch size of 1.

        Args:
            num_samples: samples per context.
            context: N contexts; or None, with ``condition``.
            condition: what :meth:`condition` returned for them.
            temperature: standard deviation of the latents.
            generator: source of the latents, on the parameters' device.
        """
        condition = self._resolve(context, condition)
        if num_samples == 1:
            latents = self._draw(len(condition), condition, temperature, generator)
            return self.inverse(latents, condition=condition)[0].unsqueeze(1)
        per_context = []
        for index in range(len(condition)):
            latents = self._draw(num_samples, condition, temperature, generator)
            per_context.append(self.inverse(latents, condition=condition[index])[0])
        return torch.stack(per_context)

    def _draw(
        self,
        number: int,
        condition: Condition,
        temperature: float,
        generator: torch.Generator | None,
    ) -> Latents:
        like = next(self.parameters())
        latents = []
        for level, size in zip(self._levels(), condition.sizes, strict=True):
            shape = (number, level.latent_channels, *size)
            noise = torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)
            latents.append(temperature * noise)
        return tuple(latents)

    def _levels(self) -> list[FlowLevel]:
        return [level for level in self.levels if isinstance(level, FlowLevel)]

    def _resolve(self, context: Context | None, condition: Condition | None) -> Condition:
        if condition is not None and context is None:
            return condition
        if context is not None and condition is None:
            return self.condition(context)
        raise ValueError("A conditional flow needs a context, or a condition made from one.")
