"""Injector: transforms all channels, by the context alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from robustflow.nn._checks import (
    check_context_fits,
    check_counts,
    check_options_are_used,
    check_shape,
    check_transform,
)
from robustflow.nn.conditioner import ConditionerOptions, own_or_default
from robustflow.nn.elementwise import ElementwiseTransform, ModifiedRQSpline, circles_of
from robustflow.nn.layer import ConditionalLayer

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Injector(ConditionalLayer):
    """Feature-conditional transform of every channel; parameters from the context alone.

    Args:
        channels: channels of z.
        context_channels: channels of the context, at least 1.
        transform: the elementwise transform; default :class:`ModifiedRQSpline`.
        conditioner: any module from the context to the parameters,
            (N or 1, channels * num_params, \\*S) with index ``c * num_params + p``. Its
            method ``project(context)`` is called instead, if it has one. Default a
            :class:`Conditioner`, with which the injector starts at the transform's
            ``identity_params``.
        options: ``hidden_channels``, ``spatial_dims``, ``kernel_size`` and ``head_kernel_size`` of
            the default conditioner; ``spatial_dims=0`` for z of shape (N, D).

    Raises:
        ValueError: no channels or context channels.
        TypeError: an argument of the wrong kind, or options together with a conditioner.

    Source: the affine injector of SRFlow (arXiv:2006.14200).

    Example:
        >>> import torch
        >>> injector = Injector(12, context_channels=16)
        >>> z, logabsdet = injector(torch.randn(5, 12, 8, 8), torch.randn(1, 16, 8, 8))
        >>> logabsdet.shape
        torch.Size([5])
    """

    def __init__(
        self,
        channels: int,
        context_channels: int,
        transform: ElementwiseTransform | None = None,
        conditioner: nn.Module | None = None,
        **options: Unpack[ConditionerOptions],
    ) -> None:
        check_counts(channels=channels)
        check_counts(0, context_channels=context_channels)
        if context_channels < 1:
            raise ValueError(
                "An injector's parameters come from a context: context_channels must be at "
                f"least 1, got {context_channels}."
            )
        transform = ModifiedRQSpline() if transform is None else transform
        check_transform(transform)
        circles_of(transform, channels)  # checks that it is for so many
        check_options_are_used(conditioner, options)
        options.pop("circles", None)  # of z, which an injector does not read
        options.pop("num_frequencies", None)
        conditioner = own_or_default(
            conditioner, 0, context_channels, channels, transform, **options
        )
        super().__init__(channels, context_channels, transform, conditioner)

    def project(self, context: Tensor | None) -> Any:
        """The parameters: all of them depend on the context alone."""
        projected = super().project(context)
        return projected if hasattr(self.conditioner, "project") else self.conditioner(projected)

    def transform_with(
        self, z: Tensor, state: Tensor, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Transform z by parameters of its batch size, or of size 1: read, never copied."""
        check_shape("z", z, self.channels)
        check_context_fits(state, z)
        return self.transform(z, state, inverse=inverse)
