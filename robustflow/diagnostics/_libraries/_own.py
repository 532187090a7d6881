"""The elementwise transforms of :mod:`robustflow.nn`, wherever they are used."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from robustflow.compat.convert import RescaledModifiedRQSpline
from robustflow.diagnostics._layers import AffineParams, Layer, Watcher
from robustflow.nn.elementwise import Affine


def affine_params(transform: object) -> AffineParams | None:
    """The scales of an :class:`Affine` with parameters packed channel by channel."""
    if type(transform) is not Affine:
        return None

    def log_gain(raw: Tensor) -> Tensor:
        params = torch.stack([torch.zeros_like(raw), raw], dim=1)
        zeros = torch.zeros_like(raw)[:, None]
        return transform(zeros, params, inverse=True, reduce="none")[1][:, 0]

    return AffineParams(_logits, log_gain)


def _logits(params: Tensor) -> Tensor:
    """(N, C * 2, \\*S) -> (N, C, \\*S)."""
    return params.unflatten(1, (-1, Affine.num_params))[:, :, 1]


def watch_transform(watcher: Watcher, transform: Any) -> None:
    """Report a transform's calls to the watcher; several layers may share one transform."""
    reduces = _reduces(transform.__class__)

    def wrapper(
        proceed: Callable[..., Any],
        x: Tensor,
        params: Tensor,
        *,
        inverse: bool = False,
        **options: Any,
    ) -> Any:
        layer = watcher.current()
        if layer is not None:
            if layer.affine is not None:
                params = watcher.params(layer, params)
            watcher.transformed(layer, transform, x, params)
        if layer is None or layer.affine is not None or not (watcher.derivatives and reduces):
            return proceed(x, params, inverse=inverse, **options)
        y, each = proceed(x, params, inverse=inverse, **{**options, "reduce": "none"})
        # In an autoregressive inverse, a call for some of the features adds to the calls before. A
        # call for all features replaces them, because earlier passes used features that were not
        # known yet.
        last = layer.kind == "autoregressive" and x.shape[1] > 1
        watcher.record_derivatives(_changed(layer, each), last=last)
        if options.get("reduce") == "none":
            return y, each
        return y, each.flatten(1).sum(dim=1)

    method = "forward" if isinstance(transform, nn.Module) else "__call__"
    watcher.intercept(transform, method, wrapper, once=True)


def _changed(layer: Layer, each: Tensor) -> Tensor:
    """The used channels of a layer that computes all channels and uses some."""
    if isinstance(layer.changed, Tensor) and each.shape[1] > len(layer.changed):
        return each[:, layer.changed]
    return each


def watch_converted(watcher: Watcher, module: nn.Module) -> None:
    """The splines of a layer that robustflow.convert_affine made, whatever its library."""
    for spline in _converted(module):
        watch_transform(watcher, spline)


def is_converted(module: nn.Module) -> bool:
    """Whether robustflow.convert_affine made this layer."""
    return bool(_converted(module))


def _converted(module: nn.Module) -> list[RescaledModifiedRQSpline]:
    return [each for each in module.modules() if isinstance(each, RescaledModifiedRQSpline)]


@lru_cache
def _reduces(kind: Any) -> bool:
    """Whether a transform's class can give log-determinants element by element."""
    method = vars(kind).get("forward") or kind.__call__
    return "reduce" in inspect.signature(method).parameters
