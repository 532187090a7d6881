"""Couplings and autoregressive layers as nflows has them, and the libraries that grew from it."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from torch import Tensor, nn

from robustflow.compat.convert._affine import ADDITIVE, AffineLayer, Found, Splines
from robustflow.compat.convert._spline import RescaledModifiedRQSpline
from robustflow.compat.convert.methods import COUPLING, ELEMENTWISE, FORWARD, INVERSE, overrides


class CouplingMethods:
    """What a coupling transform of nflows asks of its subclass."""

    rescaled: RescaledModifiedRQSpline

    def _transform_dim_multiplier(self) -> int:
        return RescaledModifiedRQSpline.num_params

    def _coupling_transform_forward(
        self, inputs: Tensor, transform_params: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self.rescaled(inputs, transform_params)

    def _coupling_transform_inverse(
        self, inputs: Tensor, transform_params: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self.rescaled(inputs, transform_params, inverse=True)


class AutoregressiveMethods:
    """What an autoregressive transform of nflows and normflows asks of its subclass."""

    rescaled: RescaledModifiedRQSpline

    def _output_dim_multiplier(self) -> int:
        return RescaledModifiedRQSpline.num_params

    def _elementwise_forward(
        self, inputs: Tensor, autoregressive_params: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self.rescaled(inputs, autoregressive_params)

    def _elementwise_inverse(
        self, inputs: Tensor, autoregressive_params: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self.rescaled(inputs, autoregressive_params, inverse=True)


class ParameterLayer(AffineLayer):
    """A layer with a method a direction that is called with (inputs, packed parameters)."""

    methods: ClassVar[tuple[str, str]]
    # The inverse is called once for each dimension; only the last call has the final parameters.
    sequential: ClassVar[bool] = False

    def watch(self) -> None:
        for name, inverse in zip(self.methods, (False, True), strict=True):
            self.shadow(name, self._watched(getattr(self.module, name), inverse))

    def _watched(self, original: Any, inverse: bool) -> Any:
        calls = 0

        def call(*args: Tensor, **kwargs: Tensor) -> Any:
            nonlocal calls
            inputs, params = (*args, *kwargs.values())  # couplings pass them by name
            calls += 1
            needed = math.prod(inputs.shape[1:]) if inverse and self.sequential else 1
            if calls % max(1, needed) == 0:
                self.observe("", inputs, (params,), inverse, lambda x, p: original(x, p)[0])
            return original(inputs, params)

        return call

    def convert(self, splines: Splines) -> None:
        self.module.__class__ = self.target
        self.module.__dict__.pop("scale_activation", None)  # of newer versions
        self.module.rescaled = splines[""]


class CouplingLayer(ParameterLayer):
    methods = COUPLING


class AutoregressiveLayer(ParameterLayer):
    methods = ELEMENTWISE
    sequential = True


Family = tuple[type[nn.Module], type[nn.Module], type[nn.Module]]  # affine, its base, the target


def find_in(module: nn.Module, coupling: Family, autoregressive: Family) -> Found:
    """A layer of nflows, or of a package that carries a copy of it."""
    affine, base, target = coupling
    layer: Any = module
    if isinstance(module, affine):
        if layer._transform_dim_multiplier() != 2:
            return ADDITIVE
        return overrides(module, base, FORWARD, INVERSE) or CouplingLayer(module, target)
    affine, base, target = autoregressive
    if isinstance(module, affine):
        return overrides(module, base, FORWARD, INVERSE) or AutoregressiveLayer(module, target)
    return None
