"""Coupling: half of the channels decide, with the context, how the other half is transformed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from robustflow.nn._checks import (
    check_counts,
    check_flags,
    check_options_are_used,
    check_shape,
    check_transform,
)
from robustflow.nn.circle import circles_from
from robustflow.nn.conditioner import Conditioner, ConditionerOptions, own_or_default
from robustflow.nn.elementwise import ElementwiseTransform, ModifiedRQSpline, circles_of, select
from robustflow.nn.fused_layers import FusedRequest, transform_fused
from robustflow.nn.layer import ConditionalLayer

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Coupling(ConditionalLayer):
    """Self-conditional coupling: one half given the other half and the context.

    Args:
        channels: channels of z, at least 2; ``channels // 2`` of them stay as they are.
        context_channels: channels of the context; 0 for a coupling without one.
        transform: the elementwise transform; default :class:`ModifiedRQSpline`. If its settings
            differ by channel, give those of all channels of z; the half that is transformed uses
            its own.
        conditioner: any module called as ``conditioner(z1, context)``, or ``conditioner(z1)`` with
            ``context_channels=0``, that returns the parameters,
            (N, (channels - channels // 2) * num_params, \\*S) with index ``c * num_params + p``.
            If it has a method ``project(context)``, that is called once a condition and its
            result takes the context's place. Default a :class:`Conditioner`, with which the
            coupling starts at the transform's ``identity_params``.
        reverse: the last channels stay, and not the first. Couplings that alternate need no
            mixing between them to reach every channel.
        options: ``hidden_channels``, ``spatial_dims``, ``kernel_size`` and ``head_kernel_size`` of
            the default conditioner; ``spatial_dims=0`` for z of shape (N, D). And ``circles`` and
            ``num_frequencies``: which channels it reads as :class:`PeriodicFeatures`, by half the
            length of the circle of each channel of z, None where it is on none. By default those
            that the transform has on circles.

    Raises:
        ValueError: fewer than 2 channels: for one, see :class:`Injector` and
            :class:`Autoregressive`.
        TypeError: an argument of the wrong kind, or options together with a conditioner.

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
        context_channels: int = 0,
        transform: ElementwiseTransform | None = None,
        conditioner: nn.Module | None = None,
        *,
        reverse: bool = False,
        **options: Unpack[ConditionerOptions],
    ) -> None:
        check_counts(channels=channels)
        check_counts(0, context_channels=context_channels)
        check_flags(reverse=reverse)
        if channels < 2:
            raise ValueError(
                f"channels must be at least 2 for a {type(self).__name__}, which transforms one "
                f"half given the other, got {channels}. Transform a single channel by an Injector, "
                "given a context, or over (N, 1) by an Autoregressive layer, with or without one."
            )
        transform = ModifiedRQSpline() if transform is None else transform
        check_transform(transform)
        kept, every = channels // 2, range(channels)
        changed = every[: channels - kept] if reverse else every[kept:]
        check_options_are_used(conditioner, options)
        circles = circles_from(options.pop("circles", circles_of(transform, channels)), channels)
        options["circles"] = circles[channels - kept :] if reverse else circles[:kept]
        if any(circles) and not any(options["circles"]):  # the other half is on circles
            options.pop("num_frequencies", None)
        transform = select(transform, changed)
        conditioner = own_or_default(
            conditioner, kept, context_channels, len(changed), transform, **options
        )
        super().__init__(channels, context_channels, transform, conditioner)
        self.kept_channels = kept
        self.reverse = reverse

    def transform_with(
        self, z: Tensor, state: Any, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Transform one half of z, given the projected context."""
        check_shape("z", z, self.channels)
        changed = self.channels - self.kept_channels
        if z.dim() == 2 and type(self).params_of is ConditionalLayer.params_of:
            every = range(self.channels)
            read = every[changed:] if self.reverse else every[: self.kept_channels]
            rest = every[:changed] if self.reverse else every[self.kept_channels :]
            request = FusedRequest(self, read, rest, Conditioner, nn.Linear)
            result = transform_fused(request, z, state, inverse)
            if result is not None:
                return result
        if self.reverse:
            z2, z1 = z.split((changed, self.kept_channels), dim=1)
        else:
            z1, z2 = z.split((self.kept_channels, changed), dim=1)
        y2, logabsdet = self.transform(z2, self.params_of(z1, state), inverse=inverse)
        return torch.cat([y2, z1] if self.reverse else [z1, y2], dim=1), logabsdet

    def extra_repr(self) -> str:
        return super().extra_repr() + (", reverse=True" if self.reverse else "")
