"""zuko: modules return transforms from data to latents; sampling is a transform's ``inv``."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Transform
from zuko import transforms
from zuko.flows.autoregressive import MaskedAutoregressiveTransform
from zuko.flows.coupling import GeneralCouplingTransform
from zuko.flows.gaussianization import ElementWiseTransform
from zuko.lazy import LazyComposedTransform, LazyInverse, LazyTransform

from robustflow.diagnostics._layers import AffineParams, Layer, Watched, Watcher


class _Layer(Layer):
    library = "zuko"
    channels_last = True

    def watch(self, watcher: Watcher) -> None:
        # Composed transforms call the second forward method, which mostly calls the first.
        names = {"_inverse": True, "_call": False, "call_and_ladj": False}

        def wrapper(transform: Transform, inverse: bool) -> Callable[..., Any]:
            reference = weakref.ref(transform)  # its wrapper must not keep it alive

            def call(proceed: Callable[..., Any], z: Tensor) -> Any:
                def run() -> Any:
                    result = proceed(z)
                    transform = reference()
                    if watcher.derivatives and self.affine is None and transform is not None:
                        (out,) = self.outputs(result)
                        pair = (out, z) if inverse else (z, out)
                        with torch.set_grad_enabled(watcher.gradients and torch.is_grad_enabled()):
                            each = _log_derivatives(transform, *pair)
                        if each is not None:
                            watcher.record_derivatives(-each if inverse else each, last=True)
                    return result

                def replay(marked: Sequence[Tensor]) -> Sequence[Tensor]:
                    return self.outputs(proceed(*marked))

                return watcher.call(self, inverse == self.flipped, (z,), run, replay=replay)

            return call

        def layer(proceed: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            result = proceed(*args, **kwargs)
            for each in _parts(result):
                for name, inverse in names.items():
                    watcher.intercept(each, name, wrapper(each, inverse), weak=True)
            return result

        watcher.intercept(self.module, "forward", layer)
        if self.affine is not None:

            def params(proceed: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
                phi = proceed(*args, **kwargs)
                return watcher.params(self, phi) if watcher.current() is self else phi

            watcher.intercept(self.module.hyper, "forward", params, makes_params=True)

    def outputs(self, result: Any) -> Sequence[Tensor]:
        return (result if isinstance(result, Tensor) else result[0],)

    def with_outputs(self, result: Any, outputs: Sequence[Tensor]) -> Any:
        return outputs[0] if isinstance(result, Tensor) else (outputs[0], *result[1:])


def _parts(transform: Transform) -> Iterator[Transform]:
    """The transforms whose own methods compute: some make others for their inverses."""
    if isinstance(transform, transforms.DependentTransform):
        yield from _parts(transform.base)
    elif isinstance(transform, transforms.ComposedTransform):
        for each in transform.transforms:
            yield from _parts(each)
    else:
        yield transform


def _log_derivatives(transform: Transform, x: Tensor, y: Tensor) -> Tensor | None:
    """log |dy/dx|, element by element; autoregressive ones run their network once more."""
    if isinstance(transform, transforms.AutoregressiveTransform):
        univariate = transform.meta(x)
    elif isinstance(transform, transforms.CouplingTransform):
        (kept, x), (_, y) = transform.split(x), transform.split(y)
        univariate = transform.meta(kept)
    else:
        univariate = transform
    if isinstance(univariate, transforms.DependentTransform):
        univariate = univariate.base
    each = univariate.log_abs_det_jacobian(x, y)
    return each if each.shape == x.shape else None


def find(module: nn.Module) -> Watched | None:
    if not isinstance(module, LazyTransform) or isinstance(
        module, LazyComposedTransform | LazyInverse
    ):
        return None
    layer = _Layer(module)
    if isinstance(module, MaskedAutoregressiveTransform):
        several = module.order is None or len(module.order) > 2
        coupled = several and module.passes == 2
        layer.kind = "self-conditional" if coupled else "autoregressive"
        layer.spread = "channels"
    elif isinstance(module, GeneralCouplingTransform):
        layer.kind, layer.spread = "self-conditional", "coupling"
        layer.kept, layer.changed = (each.nonzero()[:, 0] for each in (module.mask, ~module.mask))
    elif isinstance(module, ElementWiseTransform):
        layer.conditional = hasattr(module, "hyper")
        layer.kind = "injector" if layer.conditional else "elementwise"
        layer.spread = "elementwise"
        return layer
    else:
        _describe_constant(layer, getattr(module, "f", None))
    layer.affine = _affine(module)
    return layer


def _describe_constant(layer: _Layer, kind: Any) -> None:
    """A module that returns the same transform for every context."""
    if kind is transforms.PermutationTransform:
        layer.kind, layer.spread, layer.conditional = "reshape", "replay", False
    elif kind in (transforms.RotationTransform, transforms.LULinearTransform):
        layer.kind, layer.spread, layer.conditional = "1x1", "channels", False


def _affine(module: Any) -> AffineParams | None:
    if not isinstance(module, MaskedAutoregressiveTransform | GeneralCouplingTransform):
        return None
    univariate: Any = module.univariate
    kind = univariate.func if isinstance(univariate, partial) else univariate
    if kind is not transforms.MonotonicAffineTransform:
        return None

    def log_gain(raw: Tensor) -> Tensor:
        transform = univariate(torch.zeros_like(raw), raw)
        return -transform.log_abs_det_jacobian(torch.zeros_like(raw), torch.zeros_like(raw))

    return AffineParams(lambda phi: phi.unflatten(-1, (-1, 2))[..., 1], log_gain)


def flips(module: nn.Module) -> bool:
    return isinstance(module, LazyInverse)


def members(module: nn.Module) -> Iterable[nn.Module]:
    return ()
