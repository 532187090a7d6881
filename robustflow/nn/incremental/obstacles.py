"""Why an inverse cannot be computed incrementally, as clauses for a message."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _every

from robustflow._call_state import PLAIN_TYPES, is_plain_eager
from robustflow.nn.incremental.operations import ELEMENTWISE


def module_obstacle(modules: Iterable[nn.Module], *kinds: type[nn.Module]) -> str | None:
    """Why modules may compute something else: another class, not elementwise either, or hooks.

    Args:
        modules: those of a network.
        kinds: the classes that are expected; subclasses are others.
    """
    if _every._global_forward_hooks or _every._global_forward_pre_hooks:
        return "hooks watch all modules"
    for module in modules:
        if type(module) not in kinds and type(module) not in ELEMENTWISE:
            return f"its network has a {type(module).__name__}"
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            return f"hooks watch a {type(module).__name__} of its network"
    return None


def call_obstacle(*tensors: Tensor) -> str | None:
    """Why a call is not plain eager, without gradients and in one dtype on one device."""
    first = tensors[0]
    if torch.is_grad_enabled():
        return "gradients are enabled"
    if not is_plain_eager():
        return (
            "the call is compiled or traced, or in a transform of torch.func, in forward mode, or "
            "watched by a mode"
        )
    if first.is_meta or any(type(tensor) not in PLAIN_TYPES for tensor in tensors):
        return "its tensors are not plain ones with data"
    if torch.is_autocast_enabled(first.device.type):
        return "autocast is on"
    if any(tensor.dtype != first.dtype or tensor.device != first.device for tensor in tensors):
        return "its network, input and context differ in dtype or device"
    return None


def context_obstacle(context: Tensor | None, samples: int) -> str | None:
    """Why a context is not one row for each sample, or one for all."""
    if context is None or (context.dim() == 2 and len(context) in (1, samples)):
        return None
    return "its context is not one row for each sample, or one for all"
