"""Injector: transforms all channels, by the context alone."""

from __future__ import annotations

from torch import Tensor, nn

from robustflow.nn.conditioner import Conditioner
from robustflow.nn.elementwise import ElementwiseTransform, ModifiedRQSpline
from robustflow.nn.layer import ConditionalLayer


class Injector(ConditionalLayer):
    """Feature-conditional transform of every channel; parameters from the context alone.

    Args:
        channels: channels of z.
        context_channels: channels of the context.
        transform: the elementwise transform; default :class:`ModifiedRQSpline`.
        conditioner: any module from the context to (N or 1, channels * num_params, \\*S)
            parameters; default a :class:`Conditioner`.
        hidden_channels, spatial_dims, kernel_size, head_kernel_size: for the default conditioner.

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
        *,
        hidden_channels: int = 64,
        spatial_dims: int = 2,
        kernel_size: int = 3,
        head_kernel_size: int | None = None,
    ) -> None:
        transform = transform or ModifiedRQSpline()
        conditioner = conditioner or Conditioner(
            0,
            context_channels,
            channels * transform.num_params,
            hidden_channels=hidden_channels,
            spatial_dims=spatial_dims,
            kernel_size=kernel_size,
            head_kernel_size=head_kernel_size,
        )
        super().__init__(channels, transform, conditioner)

    def project(self, context: Tensor | None) -> Tensor:
        """The parameters: all of them depend on the context alone."""
        if context is None:
            raise ValueError("An injector's parameters come from a context: pass one.")
        if isinstance(self.conditioner, Conditioner):
            return self.conditioner.project(context)
        return self.conditioner(context)

    def transform_with(
        self, z: Tensor, state: Tensor, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Transform z by parameters of its batch size, or of size 1: read, never copied."""
        return self.transform(z, state, inverse=inverse)
