"""robustflow.compat.srflow: the affine couplings of SRFlow, LLFlow and robustNF."""

from __future__ import annotations

from torch import nn

from robustflow.compat.convert._affine import AffineLayer, Found, Splines
from robustflow.compat.convert._spline import RescaledModifiedRQSpline
from robustflow.compat.convert.layers import WatchedTransform
from robustflow.compat.convert.methods import FORWARD, overrides
from robustflow.compat.srflow import (
    CondAffineSeparatedAndCond,
    CondRQsplineSeparatedAndCond,
    ScaledConv2d,
)
from robustflow.nn.elementwise import ElementwiseTransform, ModifiedRQSpline

HEAD_KINDS = (ScaledConv2d,)

_PARAMS = RescaledModifiedRQSpline.num_params


class RescaledCondRQsplineSeparatedAndCond(CondRQsplineSeparatedAndCond):
    """What an affine coupling becomes: the spline's, with a constant scale and shift a transform.

    The state_dict has the spline's keys, and ``rescaled.<net>.{log_scale, shift, centre,
    half_width}`` for each of its nets.
    """

    rescaled: nn.ModuleDict

    def _transform_of(self, net: str) -> ElementwiseTransform:
        return self.rescaled[net]  # type: ignore[return-value]


class _Layer(AffineLayer):
    """The parts are the nets, by their name."""

    def watch(self) -> None:
        transform = self.module.transform
        self.shadow("_transform_of", lambda net: WatchedTransform(self, transform, net))

    def complete(self) -> None:
        if self._unreached is not None:
            _, _, head = self.module._modules[self._unreached]._layers()
            self.plan_head(head, self.statistics[self.module._net_name].channels, _PARAMS)

    def splines(self) -> Splines:
        splines = dict(super().splines())
        if self._unreached is not None:
            values = self.statistics[self.module._net_name]
            splines[self._unreached] = values.spline(self.weight, rescaled=False)
        return splines

    @property
    def _unreached(self) -> str | None:
        """The std-conditional net, where the batch had no noise map.

        Its spline starts with scale 1 and the self-conditional step's box: their values differ
        by that step alone.
        """
        net = f"{self.module._net_name}_std"
        reached = self.module._net_name in self.statistics and net not in self.statistics
        return net if reached and self.module.std_channels else None

    def convert(self, splines: Splines) -> None:
        module = self.module
        old, new = module._net_name, RescaledCondRQsplineSeparatedAndCond._net_name

        def renamed(net: str) -> str:
            return net.replace(old, new)

        modules = {renamed(name): child for name, child in module._modules.items()}
        rescaled = {renamed(net): spline for net, spline in splines.items()}
        module._modules.clear()
        module._modules.update(modules)
        module.transform = ModifiedRQSpline(interval=RescaledModifiedRQSpline.interval)
        module.rescaled = nn.ModuleDict(rescaled)
        module.__class__ = self.target


def find(module: nn.Module) -> Found:
    if isinstance(module, CondAffineSeparatedAndCond):
        return overrides(module, CondAffineSeparatedAndCond, FORWARD) or _Layer(
            module, RescaledCondRQsplineSeparatedAndCond
        )
    return None
