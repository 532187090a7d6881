"""zuko: ``MonotonicAffineTransform`` in autoregressive, coupling and elementwise transforms."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints
from zuko.flows.autoregressive import MaskedAutoregressiveTransform
from zuko.flows.coupling import GeneralCouplingTransform
from zuko.flows.gaussianization import ElementWiseTransform
from zuko.lazy import LazyDistribution
from zuko.nn import Linear, MaskedLinear
from zuko.transforms import MonotonicAffineTransform

from robustflow.compat.convert._affine import AffineLayer, Found, Splines
from robustflow.compat.convert._spline import RescaledModifiedRQSpline
from robustflow.compat.convert.methods import FORWARD, overrides

HEAD_KINDS = (Linear, MaskedLinear)


class RescaledModifiedRQTransform(Transform):
    """:class:`RescaledModifiedRQSpline` with its parameters, as zuko's layers make transforms.

    Args:
        rescaled: the spline, of ``channel_dim=-1``.
        params: (\\*, C, 4); the leading dimensions broadcast against x's.
    """

    domain = constraints.real
    codomain = constraints.real
    bijective = True
    sign = +1

    def __init__(self, rescaled: RescaledModifiedRQSpline, params: Tensor) -> None:
        super().__init__()
        self.rescaled = rescaled
        self.params = params

    def _apply(self, x: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        shape = torch.broadcast_shapes(x.shape, self.params.shape[:-1])
        params = self.params[(None,) * (len(shape) + 1 - self.params.dim())]
        y, ladj = self.rescaled(x.expand(shape), params, inverse=inverse, reduce="none")
        return y, ladj.to(x.dtype)

    def _call(self, x: Tensor) -> Tensor:
        return self._apply(x)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self._apply(y, inverse=True)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self._apply(x)[1]

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._apply(x)


class _RescaledUnivariate:
    """The univariate transform of a converted layer: what its network makes are the parameters."""

    rescaled: RescaledModifiedRQSpline

    @property
    def univariate(self) -> Callable[[Tensor], Transform]:
        return partial(RescaledModifiedRQTransform, self.rescaled)


class ModifiedRQAutoregressiveTransform(_RescaledUnivariate, MaskedAutoregressiveTransform):
    """What a ``MaskedAutoregressiveTransform`` becomes."""


class ModifiedRQCouplingTransform(_RescaledUnivariate, GeneralCouplingTransform):
    """What a ``GeneralCouplingTransform`` becomes."""


class ModifiedRQElementWiseTransform(_RescaledUnivariate, ElementWiseTransform):
    """What an ``ElementWiseTransform`` becomes."""


_TARGETS: dict[type[nn.Module], tuple[type[nn.Module], tuple[str, ...]]] = {
    MaskedAutoregressiveTransform: (ModifiedRQAutoregressiveTransform, (FORWARD, "meta")),
    GeneralCouplingTransform: (ModifiedRQCouplingTransform, (FORWARD, "meta")),
    ElementWiseTransform: (ModifiedRQElementWiseTransform, (FORWARD,)),
}


class _WatchedTransform(Transform):
    """An affine transform that reports what it is called with."""

    domain = constraints.real
    codomain = constraints.real
    bijective = True

    def __init__(self, transform: Transform, report: Callable[[Tensor, bool], None]) -> None:
        super().__init__()
        self.transform = transform
        self.report = report  # called with the argument, and whether it is the inverse's

    def _call(self, x: Tensor) -> Tensor:
        self.report(x, False)
        return self.transform(x)

    def _inverse(self, y: Tensor) -> Tensor:
        self.report(y, True)
        return self.transform.inv(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.transform.log_abs_det_jacobian(x, y)


class _Watch:
    """Stands for a layer's network and its ``univariate``, and reports the transform's calls."""

    def __init__(self, layer: AffineLayer) -> None:
        self._layer = layer
        self._make: Callable[..., Transform] = layer.module.univariate
        self._network = layer.module.hyper
        self._passes = getattr(layer.module, "passes", 1)
        self._inverses = 0
        self._params: Tensor | None = None  # the network's latest output

    def network(self, x: Tensor) -> Tensor:
        params: Tensor = self._network(x)
        self._params = params
        return params

    def univariate(self, *phi: Tensor) -> Transform:
        assert self._params is not None
        return _WatchedTransform(self._make(*phi), partial(self._report, self._params))

    def _report(self, params: Tensor, x: Tensor, inverse: bool) -> None:
        self._inverses += inverse
        # Only the last pass of an autoregressive inverse has the final parameters.
        if inverse and self._inverses % self._passes:
            return
        shape = torch.broadcast_shapes(x.shape[:-1], params.shape[:-1])
        elementwise = partial(self._elementwise, inverse)
        self._layer.observe("", x.expand(*shape, -1), (params,), inverse, elementwise)

    def _elementwise(self, inverse: bool, x: Tensor, params: Tensor) -> Tensor:
        transform = self._make(*params.unflatten(-1, (-1, 2)).unbind(-1))
        return transform.inv(x) if inverse else transform(x)


class _Layer(AffineLayer):
    """A layer with a ``univariate`` that it calls with what its network ``hyper`` makes."""

    channel_dim: ClassVar[int] = -1

    def watch(self) -> None:
        watch = _Watch(self)
        self.shadow("hyper", watch.network)
        self.shadow("univariate", watch.univariate)

    def convert(self, splines: Splines) -> None:
        module, size = self.module, RescaledModifiedRQSpline.num_params
        module.__class__ = self.target
        del module.__dict__["univariate"]  # the class has one
        module.shapes, module.total = [(size,)], size
        module.rescaled = splines[""]
        (head,) = self.heads
        module.hyper.out_features = head.out_features


def find(module: nn.Module) -> Found:
    for kind, (target, methods) in _TARGETS.items():
        if not isinstance(module, kind):
            continue
        univariate: Any = module.univariate
        transform_class = getattr(univariate, "func", univariate)  # of a functools.partial
        if not (
            isinstance(transform_class, type)
            and issubclass(transform_class, MonotonicAffineTransform)
        ):
            return None
        if not hasattr(module, "hyper"):
            return "its scale and shift are the same for every condition already"
        return overrides(module, kind, *methods) or _Layer(module, target)
    return None


def run(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Call a flow as its users do: ``flow(c).log_prob(x)``, the arguments being x and c."""
    named = dict(zip(("x", "c"), args, strict=False), **kwargs)
    if len(args) > 2 or "x" not in named or set(named) - {"x", "c"}:
        raise ValueError(
            "The calibration batch of a zuko flow must be x, (x, c), or a dictionary with 'x' and, "
            "for a conditional flow, 'c'."
        )
    return model(named.get("c")).log_prob(named["x"])


def runs(model: nn.Module) -> bool:
    """Whether :func:`run` is the way to call it."""
    return isinstance(model, LazyDistribution)
