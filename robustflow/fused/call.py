"""The one call of a layer that was described, or why there is none."""

from __future__ import annotations

import operator
from collections.abc import Sequence

from torch import Tensor

from robustflow._versions import versions
from robustflow.fused.layer import FusedLayer
from robustflow.fused.watch import Parameters, Watch
from robustflow.ops import TRANSFORMS


class FusedCall:
    """``call(inverse, x, context)`` returns (y, logabsdet), or a clause that says why it does not.

    Args:
        described: the layer; or why it cannot be one call, as a clause.
        num_bins: of its spline; 0 for a transform without bins.
        watch: what the description took for granted.
        parameters: of the layer's network.
    """

    def __init__(
        self, described: FusedLayer | str, num_bins: int, watch: Watch, parameters: Parameters
    ) -> None:
        self._obstacle = described if isinstance(described, str) else None
        self._masks: list[Tensor] = []  # those that the order of an inverse was read from
        if isinstance(described, FusedLayer):
            self._run = described.in_cpp()
            self._transform = TRANSFORMS[described.transform]
            if described.is_autoregressive:
                self._masks = parameters.all_masks()
        self._versions = versions(self._masks)
        self._num_bins = num_bins
        self._watch = watch
        self._parameters = parameters

    def is_outdated(self) -> bool:
        """Whether the layer has to be described again.

        So it is where its modules changed and it may be one call now, and where the masks of an
        autoregressive layer changed.
        """
        if self._obstacle is not None:
            return self._watch.change() is not None
        if not self._masks:
            return False
        now = self._parameters.all_masks()
        return versions(now) != self._versions or not all(map(operator.is_, now, self._masks))

    def __call__(
        self,
        inverse: bool,
        x: Tensor,
        context: Tensor | None,
        unconditional: Sequence[Tensor | None] = (),
    ) -> tuple[Tensor, Tensor] | str:
        if obstacle := self._obstacle or self._watch.change():
            return obstacle
        transform = self._transform
        if transform.route(x, self._num_bins) is not transform.implementations["native"].eager:
            return "another backend than the CPU kernels was chosen"
        parameters = self._parameters
        result: tuple[Tensor, Tensor] | str = self._run(
            inverse, [x, context, *parameters.now(), *unconditional, *parameters.masks()]
        )
        return result
