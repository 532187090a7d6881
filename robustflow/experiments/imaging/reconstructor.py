"""A trained imaging flow as a reconstruction model of deepinv."""

from __future__ import annotations

from typing import Any

import torch
from deepinv.models import Reconstructor
from deepinv.physics import Physics
from torch import Tensor

from robustflow.experiments.imaging.model import ImagingFlow
from robustflow.experiments.tasks.physics import PhysicsTask


class FlowReconstructor(Reconstructor):
    """Posterior samples, and their mean, of measurements.

    For a flow of a :class:`PhysicsTask` measurements are those of its operator. For any other they
    are observations of its task: low-resolution pictures for super-resolution.

    Args:
        flow: trained; put into evaluation mode.
        num_samples: whose mean :meth:`forward` returns.
        temperature: standard deviation of the latents, at least 0.

    Example:
        >>> import deepinv
        >>> from robustflow.experiments.imaging.config import override, preset
        >>> flow = ImagingFlow(override(preset("sr", "tiny"), "model.steps", 1))
        >>> physics = deepinv.physics.DownsamplingMatlab(factor=4)
        >>> y = physics(torch.rand(1, 3, 32, 32))
        >>> FlowReconstructor(flow).sample(y, physics, 10).shape
        torch.Size([1, 10, 3, 32, 32])
    """

    def __init__(
        self, flow: ImagingFlow, *, num_samples: int = 8, temperature: float = 1.0
    ) -> None:
        super().__init__()
        self.flow = flow.eval()
        self.num_samples = num_samples
        self.temperature = temperature

    def sample(
        self,
        y: Tensor,
        physics: Physics | None = None,
        n: int = 1,
        *,
        temperature: float | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Samples of p(x | y), (N, n, C, H, W), not clamped.

        Args:
            y: measurements of N pictures.
            physics: the operator; the task's own by default.
            n: samples of each.
            temperature: in place of the model's.
            generator: of the latents, on the CPU.
        """
        task = self.flow.task
        if isinstance(task, PhysicsTask):
            y = task.condition(y, physics)
        chosen = self.temperature if temperature is None else temperature
        return self.flow.sample(y, n, temperature=chosen, generator=generator)

    def forward(self, y: Tensor, physics: Physics | None = None, **kwargs: Any) -> Tensor:
        """The mean of ``num_samples`` samples, (N, C, H, W); ``kwargs`` as for :meth:`sample`."""
        return self.sample(y, physics, self.num_samples, **kwargs).mean(dim=1)
