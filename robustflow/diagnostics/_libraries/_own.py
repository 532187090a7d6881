"""The elementwise transforms of :mod:`robustflow.nn`, wherever they are used."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from robustflow.diagnostics._layers import AffineParams, Watcher
from robustflow.nn.elementwise import Affine


def affine_params(transform: object) -> AffineParams | None:
    """Of an :class:`Affine`, with parameters packed channel by channel."""
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
    """Show a transform's calls to the watcher, of whichever layer they are; many may share one."""
    reduces = _reduces(transform.__class__)

    def around(
        proceed: Callable[..., Any],
        x: Tensor,
        params: Tensor,
        *,
        inverse: bool = False,
        **options: Any,
    ) -> Any:
        layer = watcher.current()
        if layer is None or options:
            return proceed(x, params, inverse=inverse, **options)
        if layer.affine is not None:
            return proceed(x, watcher.params(layer, params), inverse=inverse)
        if not (watcher.derivatives and reduces):
            return proceed(x, params, inverse=inverse)
        y, each = proceed(x, params, inverse=inverse, reduce="none")
        # A call for one feature of several, in an autoregressive inverse, adds to those before;
        # one for all, of several passes, replaces what came of features that were not known yet.
        watcher.note(each, last=layer.kind == "autoregressive" and x.shape[1] > 1)
        return y, each.flatten(1).sum(dim=1, dtype=torch.float64).to(each.dtype)

    method = "forward" if isinstance(transform, nn.Module) else "__call__"
    watcher.intercept(transform, method, around, once=True)


@lru_cache
def _reduces(kind: Any) -> bool:
    """Whether a transform's class can give log-determinants element by element."""
    method = vars(kind).get("forward") or kind.__call__
    return "reduce" in inspect.signature(method).parameters
