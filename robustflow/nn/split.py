"""Split: half of the channels leave the flow as standard normal latents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from robustflow._checks import check_positive
from robustflow.nn.conditioner import ConditionerOptions
from robustflow.nn.coupling import Coupling
from robustflow.nn.elementwise import Affine

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Split(Coupling):
    """Standardises the second half given the first and the context, and lets it leave the flow.

    A coupling whose second half is modelled as a Gaussian: it becomes
    ``latent = (z2 + shift) * s`` with ``log s`` soft-clipped to +-log_scale_bound. The published
    networks' log-scale has no bound, which is one more way for their inverse to explode.

    Args:
        channels: channels of z, at least 2; ``channels // 2`` stay.
        context_channels: channels of the context; 0 for a split without one.
        log_scale_bound: bound on the absolute log-scale; positive.
        conditioner: as for :class:`Coupling`, with 2 parameters an element.
        options: of the default conditioner, as for :class:`Coupling`.

    Source: multi-scale splitting as in Glow (arXiv:1807.03039); the bound is ours.

    Example:
        >>> import torch
        >>> split = Split(12, context_channels=16)
        >>> z, context = torch.randn(5, 12, 8, 8), torch.randn(5, 16, 8, 8)
        >>> z, logabsdet = split(z, context)
        >>> kept, latent = split.divide(z)
        >>> kept.shape, latent.shape
        (torch.Size([5, 6, 8, 8]), torch.Size([5, 6, 8, 8]))
    """

    def __init__(
        self,
        channels: int,
        context_channels: int = 0,
        *,
        log_scale_bound: float = 3.0,
        conditioner: nn.Module | None = None,
        **options: Unpack[ConditionerOptions],
    ) -> None:
        check_positive("log_scale_bound", log_scale_bound)
        transform = Affine(scale="softclip_exp", clamp=log_scale_bound)
        super().__init__(channels, context_channels, transform, conditioner, **options)

    def divide(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z (N, channels, \\*S), as :meth:`forward` returned it -> what stays, the latent."""
        kept, latent = z.split((self.kept_channels, self.channels - self.kept_channels), dim=1)
        return kept, latent
