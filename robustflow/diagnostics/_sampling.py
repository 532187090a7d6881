"""Calling a user's model: sampling at the latents' mean, and contexts of any kind."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from robustflow import nn as rnn

Contexts = Tensor | Sequence[Tensor]
Run = Callable[[Any, Any], Any]


def check_contexts(name: str, contexts: Any) -> tuple[Tensor, ...]:
    """The tensors of a batch of contexts, which have one batch size.

    Raises:
        TypeError, ValueError: something else, no context, or values that are not finite.
    """
    tensors = (contexts,) if isinstance(contexts, Tensor) else contexts
    is_sequence = isinstance(tensors, (tuple, list)) and len(tensors) > 0
    if not is_sequence or not all(isinstance(each, Tensor) for each in tensors):
        raise TypeError(
            f"{name} must be a tensor with a context a row, or a sequence of such tensors, got "
            f"{type(contexts).__name__}."
        )
    shapes = [tuple(each.shape) for each in tensors]
    if any(not shape for shape in shapes) or len({shape[0] for shape in shapes}) != 1:
        raise ValueError(f"{name} must have one batch size, their dimension 0, got {shapes}.")
    if shapes[0][0] == 0:
        raise ValueError(f"{name} must hold at least one context, got shape {shapes[0]}.")
    for each in tensors:
        if not each.is_floating_point():
            raise TypeError(f"{name} must be floating-point tensors, got {each.dtype}.")
        if not bool(each.isfinite().all()):
            raise ValueError(f"{name} must be finite: there is a NaN or an infinity among them.")
    return tuple(tensors)


def sample_mean(model: nn.Module, contexts: Any) -> Any:
    """Invert the mean of the latents once for each context.

    Raises:
        ValueError: it is not known how to sample from this model.
    """
    tensors = check_contexts("contexts", contexts)
    if isinstance(model, rnn.ConditionalFlow):
        return model.rsample(1, contexts, temperature=0.0)
    if isinstance(model, rnn.ConditionalLayer):
        size = tensors[0].shape[2:]
        z = tensors[0].new_zeros(len(tensors[0]), model.channels, *size)
        return model(z, tensors[0], inverse=True)
    for library, sample in _LIBRARIES.items():
        if library in sys.modules and (mean := sample(model, tensors)) is not None:
            return mean
    raise ValueError(
        f"How a {type(model).__name__} samples is not known here: pass run=lambda model, contexts: "
        "..., which samples once for each context, with the latents at their mean."
    )


def _nflows(model: Any, tensors: tuple[Tensor, ...]) -> Any:
    from nflows.flows import Flow

    return _with_embedding(model, tensors) if isinstance(model, Flow) else None


def _glasflow(model: Any, tensors: tuple[Tensor, ...]) -> Any:
    from glasflow import nflows
    from glasflow.flows.base import Flow

    if isinstance(model, nflows.flows.Flow):
        return _with_embedding(model, tensors)
    if not isinstance(model, Flow):
        return None
    (context,) = tensors
    z = context.new_zeros(len(context), *model._distribution._shape)
    return model.inverse(z, conditional=context)


def _with_embedding(model: Any, tensors: tuple[Tensor, ...]) -> Any:
    """A flow of nflows, or of a copy of it."""
    (context,) = tensors
    context = model._embedding_net(context)
    return model._transform.inverse(model._distribution.mean(context), context=context)


def _normflows(model: Any, tensors: tuple[Tensor, ...]) -> Any:
    import normflows

    mean = getattr(getattr(model, "q0", None), "loc", None)
    if not isinstance(model, normflows.ConditionalNormalizingFlow) or mean is None:
        return None
    (context,) = tensors
    return model.forward(mean.expand(len(context), *mean.shape[1:]), context)


def _zuko(model: Any, tensors: tuple[Tensor, ...]) -> Any:
    from zuko.lazy import Flow

    if not isinstance(model, Flow):
        return None
    (context,) = tensors
    distribution = model(context)
    return distribution.transform.inv(distribution.base.mean)


def _freia(model: Any, tensors: tuple[Tensor, ...]) -> Any:
    from FrEIA.framework import SequenceINN

    if not isinstance(model, SequenceINN):
        return None
    z = tensors[0].new_zeros(len(tensors[0]), *model.shapes[-1])
    return model(z, c=list(tensors), rev=True, jac=False)


_LIBRARIES: dict[str, Callable[[Any, tuple[Tensor, ...]], Any]] = {
    "nflows": _nflows,
    "glasflow": _glasflow,
    "normflows": _normflows,
    "zuko": _zuko,
    "FrEIA": _freia,
}
