"""robustflow.nn: the layers with an ``Affine`` transform."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from robustflow import nn as rnn
from robustflow.compat.convert._affine import AffineLayer, Found, Splines
from robustflow.compat.convert._spline import RescaledModifiedRQSpline
from robustflow.nn.masked import MaskedLinear

HEAD_KINDS = (MaskedLinear,)

# Layers that are named after their transform, and what they are without it.
_PLAIN: dict[type[nn.Module], type[nn.Module]] = {
    rnn.ConditionalAffineCoupling: rnn.Coupling,
    rnn.ConditionalAffineInjector: rnn.Injector,
}


class WatchedTransform:
    """Wraps an elementwise transform and reports its arguments to a layer."""

    def __init__(
        self, layer: AffineLayer, transform: Any, part: str = "", *, passes: int = 1
    ) -> None:
        self.layer = layer
        self.transform = transform
        self.part = part
        self.passes = passes  # of an inverse; the last has the right parameters
        self.inverses = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transform, name)

    def __call__(
        self, x: Tensor, params: Tensor, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        def elementwise(x: Tensor, params: Tensor) -> Tensor:
            return self.transform(x, params, inverse=inverse)[0]

        self.inverses += inverse
        if not inverse or self.inverses % self.passes == 0:
            self.layer.observe(self.part, x, (params,), inverse, elementwise)
        return self.transform(x, params, inverse=inverse)


class _Layer(AffineLayer):
    @property
    def names(self) -> tuple[str, str]:
        return f"{self.kind} with Affine", RescaledModifiedRQSpline.__name__

    def watch(self) -> None:
        passes = self.module.channels if isinstance(self.module, rnn.Autoregressive) else 1
        self.shadow("transform", WatchedTransform(self, self.module.transform, passes=passes))

    def convert(self, splines: Splines) -> None:
        self.module.__class__ = _PLAIN.get(type(self.module), type(self.module))
        self.module.transform = splines[""]


def find(module: nn.Module) -> Found:
    if not isinstance(module, rnn.ConditionalLayer):
        return None
    if not isinstance(module.transform, rnn.Affine):
        return None
    if isinstance(module, rnn.Split):
        return "a split's log-scale is bounded, and its latents are to be standardised"
    return _Layer(module)
