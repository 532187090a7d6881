"""nflows' layers, and those of the packages that carry a copy of it."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from robustflow.diagnostics._layers import AffineParams, Layer, Watched, Watcher
from robustflow.diagnostics._libraries._own import watch_converted
from robustflow.diagnostics.kinds import Kind

INVERSE, FORWARD = "inverse", "forward"


class NflowsLayer(Layer):
    """A transform: sampling is ``inverse(inputs, context)``."""

    utils: ModuleType  # has sum_except_batch, which gets elementwise log-derivatives
    sampling: str = INVERSE
    # The methods that get affine parameters, with the inputs.
    methods: tuple[str, ...] = ()
    sums: bool = False  # it has its log-derivatives summed as they are, in both directions

    def watch(self, watcher: Watcher) -> None:
        sampling, density = self.sampling, INVERSE if self.sampling == FORWARD else FORWARD
        if self.flipped:
            sampling, density = density, sampling
        watcher.intercept(self.module, sampling, self._wrapper(watcher, False))
        watcher.intercept(self.module, density, self._wrapper(watcher, True))
        for name in self.methods if self.affine is not None else ():
            watcher.intercept(self.module, name, _params(watcher))
        if watcher.derivatives and self.sums:
            watcher.intercept(self.utils, "sum_except_batch", _sums(watcher), once=True)
        watch_converted(watcher, self.module)

    def _wrapper(self, watcher: Watcher, density: bool) -> Callable[..., Any]:
        def layer(proceed: Callable[..., Any], inputs: Tensor, context: Any = None) -> Any:
            def probe(kept: Tensor) -> Tensor:
                return self.module.transform_net(kept, context)

            return watcher.call(
                self,
                density,
                (inputs,),
                lambda: proceed(inputs, context),
                probe=probe,
                replay=lambda marked: proceed(*marked, context)[:1],
            )

        return layer


def _params(watcher: Watcher) -> Callable[..., Any]:
    """Wraps a method called with inputs and packed parameters, by name or by position."""

    def wrapper(proceed: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        inputs, params = (*args, *kwargs.values())
        layer = watcher.current()
        if layer is not None:
            params = watcher.params(layer, params)
        return proceed(inputs, params)

    return wrapper


def _sums(watcher: Watcher) -> Callable[..., Any]:
    """Wraps the function that sums elementwise log-derivatives."""

    def wrapper(proceed: Callable[..., Any], x: Tensor, *args: Any, **kwargs: Any) -> Any:
        layer = watcher.current()
        if isinstance(layer, NflowsLayer) and layer.sums:
            watcher.record_derivatives(x, last=layer.kind == "autoregressive")
        return proceed(x, *args, **kwargs)

    return wrapper


def coupling(layer: NflowsLayer, affine: type[nn.Module] | None) -> NflowsLayer:
    """Describe a coupling; ``affine`` is the class whose parameters are shift and scale."""
    module: Any = layer.module
    layer.kind, layer.spread = "self-conditional", "coupling"
    layer.kept, layer.changed = module.identity_features, module.transform_features
    layer.conditioner = module.transform_net
    layer.sums = affine is None or not isinstance(module, affine)
    if not layer.sums and module._transform_dim_multiplier() == 2:
        count = len(module.transform_features)
        layer.methods = ("_coupling_transform_forward", "_coupling_transform_inverse")

        def log_gain(raw: Tensor) -> Tensor:
            params = torch.cat([torch.zeros(len(raw), count), raw[:, None].expand(-1, count)], 1)
            x = torch.zeros(len(raw), count)
            return module._coupling_transform_inverse(x, params.to(raw))[1] / count

        layer.affine = AffineParams(lambda params: params[:, count:], log_gain)
    return layer


def autoregressive(layer: NflowsLayer, affine: type[nn.Module]) -> NflowsLayer:
    """Describe an autoregressive layer; ``affine`` is the class of scale and shift."""
    module: Any = layer.module
    layer.kind, layer.spread = "autoregressive", "channels"
    layer.sums = not isinstance(module, affine)
    if not layer.sums:
        layer.methods = ("_elementwise_forward", "_elementwise_inverse")
        count: int = module.features

        def logits(params: Tensor) -> Tensor:
            return params.view(len(params), count, 2)[..., 0]

        def log_gain(raw: Tensor) -> Tensor:
            params = torch.stack([raw, torch.zeros_like(raw)], 1).repeat(1, count)
            x = torch.zeros(len(raw), count)
            return module._elementwise_inverse(x, params)[1] / count

        layer.affine = AffineParams(logits, log_gain)
    return layer


def find_in(module: nn.Module, package: Any, library: str, utils: ModuleType) -> Watched | None:
    """A layer of nflows, or of a copy of it.

    Args:
        module: any.
        package: its ``transforms``.
        library: its name.
        utils: its module of functions.
    """
    if not isinstance(module, package.base.Transform) or isinstance(module, _containers(package)):
        return None
    layer = NflowsLayer(module)
    layer.library, layer.utils = library, utils
    if isinstance(module, package.coupling.CouplingTransform):
        return coupling(layer, package.coupling.AffineCouplingTransform)
    if isinstance(module, package.autoregressive.AutoregressiveTransform):
        return autoregressive(layer, package.autoregressive.MaskedAffineAutoregressiveTransform)
    layer.kind, layer.spread, layer.conditional = _plain(module, package)
    layer.sums = type(module).__name__.startswith("Piecewise")
    return layer


def _containers(package: Any) -> tuple[type, ...]:
    base, nonlinearities = package.base, package.nonlinearities
    return (
        base.CompositeTransform,
        base.MultiscaleCompositeTransform,
        base.InverseTransform,
        nonlinearities.CompositeCDFTransform,
    )


def flips_in(module: nn.Module, package: Any) -> bool:
    return isinstance(module, package.base.InverseTransform)


def _plain(module: nn.Module, package: Any) -> tuple[Kind, Any, bool]:
    """Kind, spread, and whether it is conditional."""
    if isinstance(module, (package.normalization.ActNorm, package.normalization.BatchNorm)):
        return "actnorm", "elementwise", False
    if isinstance(module, (package.permutations.Permutation, package.reshape.SqueezeTransform)):
        return "reshape", "replay", False
    if isinstance(module, (package.linear.Linear, package.orthogonal.HouseholderSequence)):
        return "1x1", "channels", False
    if isinstance(module, package.standard.IdentityTransform):
        return "reshape", "elementwise", False
    elementwise = (package.standard.PointwiseAffineTransform, package.nonlinearities)
    if isinstance(module, elementwise[0]) or type(module).__module__ == elementwise[1].__name__:
        return "elementwise", "elementwise", False
    return "other", "sample", True
