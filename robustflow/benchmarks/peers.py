"""The transforms of other flow libraries (peers), called as their users call them.

All are optional: ``pip install nflows==0.14 normflows==1.7.3 zuko==1.6.0``. A benchmark leaves out
a peer that is not installed, and says so.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

VERSIONS = {"nflows": "0.14", "normflows": "1.7.3", "zuko": "1.6.0"}
# Modules of nflows' spline and of normflows' copy of it, which have the same signature.
MASKED = {"nflows": "nflows.transforms.splines", "normflows": "normflows.utils.splines"}

Transform = Callable[..., Any]


class PeerMissing(RuntimeError):
    """A peer cannot be imported; the message says what to install."""


def check(peer: str) -> None:
    """Raise :class:`PeerMissing` unless ``peer`` can be imported."""
    _load(peer, peer)


def version(peer: str) -> str | None:
    """The installed version of ``peer``, or None."""
    try:
        return importlib.metadata.version(peer)
    except importlib.metadata.PackageNotFoundError:
        return None


def masked_rq_spline(
    peer: str,
    inputs: Tensor,
    widths: Tensor,
    heights: Tensor,
    derivatives: Tensor,
    *,
    inverse: bool,
    tail_bound: float,
    tails: str = "linear",
) -> tuple[Tensor, Tensor]:
    """The spline of nflows or normflows.

    It is not compiled: its boolean masks give shapes that depend on the data.

    Args:
        peer: ``nflows`` or ``normflows``.
        inputs: (*,).
        widths, heights: (*, K).
        derivatives: (*, K-1); (*, K) for circular tails, which only normflows has.

    Returns:
        ``(y, logabsdet)``, both for each element.
    """
    splines = _load(peer, MASKED[peer])
    result: tuple[Tensor, Tensor] = splines.unconstrained_rational_quadratic_spline(
        inputs,
        widths,
        heights,
        derivatives,
        inverse=inverse,
        tails=tails,
        tail_bound=tail_bound,
    )
    return result


def zuko_rq_spline(*, inverse: bool, tail_bound: float, trains: bool) -> Transform:
    """zuko's MonotonicRQSTransform, compiled, as a function of inputs and three parameter tensors.

    It returns ``(y, logabsdet)``, both for each element.
    """
    transforms = _load("zuko", "zuko.transforms")

    def call(
        inputs: Tensor, widths: Tensor, heights: Tensor, derivatives: Tensor
    ) -> tuple[Tensor, Tensor]:
        transform = transforms.MonotonicRQSTransform(widths, heights, derivatives, bound=tail_bound)
        if inverse:
            transform = transform.inv
        result: tuple[Tensor, Tensor] = transform.call_and_ladj(inputs)
        return result

    return compiled(call, accumulates=trains)


def zuko_affine(*, inverse: bool) -> Transform:
    """zuko's MonotonicAffineTransform, compiled, as a function of inputs (N, D) and parameters.

    The parameters are packed, (N, D*2) with index d*2+p, p = shift, scale logit. It returns
    ``(y, logabsdet)``, the latter summed over D.
    """
    transforms = _load("zuko", "zuko.transforms")

    def call(inputs: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        transform = transforms.MonotonicAffineTransform(*params.unflatten(1, (-1, 2)).unbind(2))
        if inverse:
            transform = transform.inv
        y, ladj = transform.call_and_ladj(inputs)
        return y, ladj.sum(1)

    return compiled(call)


def compiled(function: Transform, *, accumulates: bool = False) -> Transform:
    """The function under ``torch.compile``, as one graph with fixed shapes, which is fastest.

    ``accumulates``: the function has a softmax and a cumulative sum, and is differentiated. For
    that backward pass, Inductor of torch 2.13 generates C++ that computes three quarters of the
    gradients with respect to bin sizes wrongly. With every intermediate stored they are right, and
    the call took 9 % longer in the one comparison made.
    """
    options: dict[str, str | int | bool | Callable[..., Any]] | None = None
    if accumulates:
        options = {"realize_opcount_threshold": 1}
    return torch.compile(function, fullgraph=True, dynamic=False, options=options)


def forget_compiled() -> None:
    """Drop what ``torch.compile`` compiled in this process.

    It stops compiling a function after a number of different shapes.
    """
    torch.compiler.reset()


def _load(peer: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise PeerMissing(
            f"{peer} cannot be imported ({error}): install it with "
            f"'pip install {peer}=={VERSIONS[peer]}' to compare against it."
        ) from error
