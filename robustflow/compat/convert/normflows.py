"""normflows: ``AffineCoupling``, ``MaskedAffineFlow`` and ``MaskedAffineAutoregressive``."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from normflows.flows import Flow
from normflows.flows.affine.autoregressive import Autoregressive, MaskedAffineAutoregressive
from normflows.flows.affine.coupling import AffineCoupling, MaskedAffineFlow
from normflows.nets.made import MaskedLinear
from torch import Tensor, nn

from robustflow.compat.convert._affine import ADDITIVE, APART, TOGETHER, AffineLayer, Found, Splines
from robustflow.compat.convert._nflows_like import AutoregressiveLayer, AutoregressiveMethods
from robustflow.compat.convert._spline import RescaledModifiedRQSpline, joined
from robustflow.compat.convert.methods import FORWARD, INVERSE, overrides
from robustflow.nn.precision import sum_per_sample

HEAD_KINDS = (MaskedLinear,)


class ModifiedRQAutoregressive(AutoregressiveMethods, Autoregressive):
    """What a ``MaskedAffineAutoregressive`` becomes."""


class ModifiedRQCoupling(Flow):
    """What an ``AffineCoupling`` becomes: z is ``[z1, z2]``, and z1 decides over z2."""

    param_map: nn.Module
    rescaled: RescaledModifiedRQSpline

    def forward(self, z: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        return self._transform(z, inverse=False)

    def inverse(self, z: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        return self._transform(z, inverse=True)

    def _transform(self, z: list[Tensor], inverse: bool) -> tuple[list[Tensor], Tensor]:
        z1, z2 = z
        z2, logabsdet = self.rescaled(z2, self.param_map(z1), inverse=inverse)
        return [z1, z2], logabsdet


class ModifiedRQMaskedFlow(Flow):
    """What a ``MaskedAffineFlow`` becomes; s makes width, height and derivative, t the shift."""

    b: Tensor
    s: nn.Module
    t: Any
    rescaled: RescaledModifiedRQSpline

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self._transform(z, inverse=False)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self._transform(z, inverse=True)

    def _transform(self, z: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        kept, masked = self.b > 0, self.b * z
        params = self.s(masked)
        if isinstance(self.t, nn.Module):
            params = joined(params, self.t(masked), z)
        y, logabsdet = self.rescaled(z, params, inverse=inverse, reduce="none")
        logabsdet = sum_per_sample(torch.where(kept, 0.0, logabsdet))
        return torch.where(kept, z, y), logabsdet


class _Coupling(AffineLayer):
    def watch(self) -> None:
        for name, inverse in ((FORWARD, False), (INVERSE, True)):
            self.shadow(name, partial(self._watched, getattr(self.module, name), inverse))

    def _watched(self, original: Any, inverse: bool, z: list[Tensor]) -> Any:
        z1, z2 = z
        elementwise = partial(self._elementwise, inverse, z1)
        self.observe("", z2, (self.module.param_map(z1),), inverse, elementwise)
        return original(z)

    def _elementwise(self, inverse: bool, z1: Tensor, x: Tensor, params: Tensor) -> Tensor:
        own: Any = getattr(AffineCoupling, INVERSE if inverse else FORWARD)
        layer = SimpleNamespace(
            param_map=lambda _: params, scale=True, scale_map=self.module.scale_map
        )
        y: Tensor = own(layer, [z1, x])[0][1]
        return y

    def convert(self, splines: Splines) -> None:
        for name in ("scale", "scale_map"):
            del self.module.__dict__[name]
        self.module.__class__ = self.target
        self.module.rescaled = splines[""]


class _Masked(AffineLayer):
    def watch(self) -> None:
        for name, inverse in ((FORWARD, False), (INVERSE, True)):
            self.shadow(name, partial(self._watched, getattr(self.module, name), inverse))

    def _watched(self, original: Any, inverse: bool, z: Tensor) -> Any:
        mask = self.module.b
        masked = mask * z
        shifted = isinstance(self.module.t, nn.Module)
        params = (self.module.s(masked), *([self.module.t(masked)] if shifted else []))
        self.observe(
            "",
            z,
            params,
            inverse,
            partial(self._elementwise, inverse, mask),
            spline_params=APART if shifted else TOGETHER,
            counted=mask == 0,
        )
        return original(z)

    def _elementwise(
        self, inverse: bool, mask: Tensor, x: Tensor, scale: Tensor, shift: Tensor | None = None
    ) -> Tensor:
        own: Any = getattr(MaskedAffineFlow, INVERSE if inverse else FORWARD)
        shift = torch.zeros_like(scale) if shift is None else shift
        layer = SimpleNamespace(b=mask.double(), s=lambda _: scale, t=lambda _: shift)
        y: Tensor = own(layer, x)[0]
        return y

    def convert(self, splines: Splines) -> None:
        self.module.__class__ = self.target
        self.module.rescaled = splines[""]


def find(module: nn.Module) -> Found:
    if isinstance(module, AffineCoupling):
        if not module.scale:
            return ADDITIVE
        obstacle = overrides(module, AffineCoupling, FORWARD, INVERSE)
        return obstacle or _Coupling(module, ModifiedRQCoupling)
    if isinstance(module, MaskedAffineFlow):
        if not isinstance(module.s, nn.Module):
            return ADDITIVE
        obstacle = overrides(module, MaskedAffineFlow, FORWARD, INVERSE)
        return obstacle or _Masked(module, ModifiedRQMaskedFlow)
    if isinstance(module, MaskedAffineAutoregressive):
        obstacle = overrides(module, Autoregressive, FORWARD, INVERSE)
        return obstacle or AutoregressiveLayer(module, ModifiedRQAutoregressive)
    return None
