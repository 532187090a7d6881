"""Any operator of deepinv as a task: MRI, tomography, compressed sensing, phase retrieval, ..."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robustflow.experiments.tasks.base import Task

try:
    from deepinv.physics import LinearPhysics, Physics
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        f"Tasks from deepinv need it whole ({missing}): pip install 'robustflow[deepinv]'.",
        name=missing.name,
    ) from missing


class PhysicsTask(Task):
    """The inverse problem of a ``deepinv.physics.Physics``, seen through its pseudo-inverse.

    Measurements m = physics(x) have any shape. What conditions the flow is a picture of x's size,
    ``y = condition(m)``: the pseudo-inverse of m, such as the zero-filled picture of MRI or the
    filtered back-projection of tomography. It is the first guess, too.

    The operator is applied to each crop by itself, so ``data.crop`` is the size that it is made
    for. Its noise follows the generator of :meth:`observe`, whatever ``rng`` its noise model has.

    A class of your own makes it a task of the command line: `robustflow train module:Tomography` ::

        class Tomography(PhysicsTask):
            name = "tomography"
            def __init__(self):
                super().__init__(deepinv.physics.Tomography(180, 128), channels=1)

    Any other goes to ``Trainer(..., task=...)`` and ``load_flow(path, task=...)``.

    Args:
        physics: the operator, with its noise model.
        channels: of x. Pictures from files have 3, or 1 as greyscale.
        condition: from measurements to pictures (N, C', H, W); ``physics.A_dagger`` by default.
        condition_channels: C'; ``channels`` by default.
        size_multiple: the sides of x must be multiples of this.

    Raises:
        TypeError: no ``deepinv.physics.Physics``.

    Source: conditioning on a reconstruction: Denker et al., 2021, Conditional invertible neural
    networks for medical imaging (doi:10.3390/jimaging7110243).

    Example:
        >>> import deepinv
        >>> physics = deepinv.physics.CompressedSensing(m=30, img_size=(1, 8, 8))
        >>> task = PhysicsTask(physics, channels=1)
        >>> task.measure(torch.rand(2, 1, 8, 8)).shape, task.observe(torch.rand(2, 1, 8, 8)).shape
        (torch.Size([2, 30]), torch.Size([2, 1, 8, 8]))
    """

    name = "physics"
    random = True

    def __init__(
        self,
        physics: Physics,
        *,
        channels: int = 3,
        condition: Callable[[Tensor], Tensor] | None = None,
        condition_channels: int | None = None,
        size_multiple: int = 1,
    ) -> None:
        if not isinstance(physics, Physics):
            raise TypeError(
                f"physics must be a deepinv.physics.Physics, got {type(physics).__name__}."
            )
        self.physics = physics
        self.channels = channels
        self.observation_channels = condition_channels or channels
        self.size_multiple = size_multiple
        self.linear = isinstance(physics, LinearPhysics) and condition is None
        self._condition = condition

    def condition(self, measurements: Tensor, physics: Physics | None = None) -> Tensor:
        """The flow's view of measurements, (N, C', H, W).

        Args:
            measurements: of the operator.
            physics: in place of the task's, one with other parameters (such as another mask).
        """
        if self._condition is not None:
            return self._condition(measurements)
        picture: Tensor = (physics or self.physics).A_dagger(measurements)
        return picture

    def forward(self, x: Tensor) -> Tensor:
        """What conditions the flow, of measurements without noise, (N, C', H, W)."""
        return self._checked(self.condition(self.physics.A(x)), x)

    def observe(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """What conditions the flow, of measurements with the operator's noise, (N, C', H, W)."""
        return self._checked(self.condition(self.measure(x, generator)), x)

    def measure(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Measurements of x with noise; the same for a generator of the same state."""
        seed = int(torch.randint(2**62, (), generator=generator))
        devices = [x.device] if x.is_cuda else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            for module in self.physics.modules():
                if isinstance(rng := getattr(module, "rng", None), torch.Generator):
                    rng.manual_seed(seed)
            measured: Tensor = self.physics(x)
        return measured

    def pseudo_inverse(self, y: Tensor) -> Tensor | None:
        """y itself, which is one already; None where a condition of another kind was given."""
        return y if self._condition is None else None

    def _checked(self, y: Tensor, x: Tensor) -> Tensor:
        expected = (x.shape[0], self.observation_channels, *x.shape[-2:])
        if tuple(y.shape) != expected:
            raise ValueError(
                f"The condition of measurements must be pictures {expected}, got {tuple(y.shape)}: "
                "give a condition= that makes them, condition_channels, or crops of another size."
            )
        return y
