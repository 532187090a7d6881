"""Who served the calls of each patched library: a kernel, the reference, or the library itself."""

from __future__ import annotations

import logging
from typing import Any

from torch import Tensor

from robustflow import ops
from robustflow._call_state import asked_while_tracing
from robustflow._transforms import RQ
from robustflow.compat._patch import locking

logger = logging.getLogger("robustflow.compat")

# A kernel, robustflow's PyTorch reference, or the library's own code.
KERNEL, REFERENCE, FALLBACK = SERVERS = ("kernel", "reference", "fallback")

# Layers that were one call, or ran the library's method.
FUSED, UNFUSED = WAYS = ("fused", "unfused")

_counts: dict[str, dict[str, int]] = {}
_layers: dict[str, dict[str, int]] = {}
_logged: set[tuple[str, str, str]] = set()


def start(library: str) -> None:
    """Count a library's calls, from zero."""
    with locking.lock:
        _counts[library] = dict.fromkeys(SERVERS, 0)
        _layers[library] = dict.fromkeys(WAYS, 0)


def keep(library: str) -> None:
    """Go on counting a library's calls, from zero if they are not counted yet."""
    with locking.lock:
        _counts.setdefault(library, dict.fromkeys(SERVERS, 0))
        _layers.setdefault(library, dict.fromkeys(WAYS, 0))


def stop(library: str) -> None:
    """Forget a library's counts."""
    with locking.lock:
        _counts.pop(library, None)
        _layers.pop(library, None)


def current() -> dict[str, dict[str, int]]:
    """A copy of the counts of each library."""
    with locking.lock:
        return {name: dict(counts) for name, counts in _counts.items()}


def current_layers() -> dict[str, dict[str, int]]:
    """A copy of the counts of each library's layers."""
    with locking.lock:
        return {name: dict(counts) for name, counts in _layers.items()}


def served_fused(library: str, spline_calls: int) -> None:
    """Count a layer that was one call, and the splines in it."""
    with locking.lock:
        if library in _counts:  # a call may end after the patch does
            _layers[library][FUSED] += 1
            _counts[library][KERNEL] += spline_calls


def served_unfused(library: str, layer: str, reason: str) -> None:
    """Count a layer whose library's method runs, and log why the first time."""
    with locking.lock:
        if library in _layers:
            _layers[library][UNFUSED] += 1
    _log_once(library, layer, reason, "%s: %s is not fused, since %s.")


@asked_while_tracing
def served(library: str, by: str) -> None:
    """Count a call; torch.compile calls this when it traces, and leaves it out of the graph."""
    with locking.lock:
        counts = _counts.get(library)
        if counts is not None:  # a call may end after the patch does
            counts[by] += 1


def served_rq(library: str, x: Tensor, num_bins: int) -> Any:
    """Count a call of the K-bin spline before it is made; returns what serves it, for ``by``."""
    spline = ops.of(RQ)
    by = spline.route(x, num_bins)
    served(library, REFERENCE if by is spline.reference else KERNEL)
    return by


@asked_while_tracing
def fell_back(library: str, function: str, reason: str) -> None:
    """Count a call that the library's own code serves, and log why the first time."""
    served(library, FALLBACK)
    _log_once(library, function, reason, "%s: the library's own %s runs, since %s.")


def _log_once(library: str, function: str, reason: str, message: str) -> None:
    key = (library, function, reason)
    if key not in _logged:
        _logged.add(key)
        logger.debug(message, library, function, reason)
