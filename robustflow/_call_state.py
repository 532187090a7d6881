"""What a call runs within, and whether it is plain eager: the home of PyTorch's private interfaces.

A call is *plain eager* where its tensors are what they seem: numbers in memory, neither traced by
torch.compile or torch.jit, nor batched by vmap, nor with a derivative in forward mode, and no mode
stands between the call and PyTorch. :func:`is_plain_eager` says so, and nobody else.

PyTorch has no public way to ask for most of this. Each private interface is named once, here, with
what it is for. One that a later PyTorch has no more takes the answer on the safe side: the call
counts as not plain. It is slower, since the reference serves it, and as right as before.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import reduce
from types import SimpleNamespace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

PLAIN_TYPES = (Tensor, torch.nn.Parameter)
"""Subclasses may mean something else by an operation."""


def _find(path: str, otherwise: Any) -> Any:
    """Something of torch by its path, or what stands for it where there is no such thing."""
    try:
        return reduce(getattr, path.split("."), torch)
    except AttributeError:
        return otherwise


Kind = Literal["plain", "compiled", "batched", "differentiated"]


def _unknown() -> object:
    """In place of a question about transforms of torch.func: one may be under way."""
    return "unknown"


# The innermost transform of torch.func (vmap, grad, jvp, functionalize ...) that is under way, or
# None; and all of them, each with a key() that says which kind it is. Without the first, every call
# counts as inside one, and the reference serves it. Without the second, vmap is served by the
# reference, too, and not by the operators' own rule.
innermost_transform: Callable[[], Any] = _find(
    "_C._functorch.peek_interpreter_stack", otherwise=_unknown
)
_transforms: Callable[[], Any] = _find(
    "_C._functorch.get_interpreter_stack", otherwise=lambda: None
)
_VMAP: Any = _find("_C._functorch.TransformType.Vmap", otherwise=object())

# How many modes (fake tensors, proxies, a user's TorchDispatchMode) watch every operation. Without
# it, one may: calls take the dispatcher's way, which all modes see.
num_dispatch_modes: Callable[[], int] = _find("_C._len_torch_dispatch_stack", otherwise=lambda: 1)

# Whether a tensor is of the batched kind that torch.autograd.grad(is_grads_batched=True) makes.
# Without it, any may be: calls take the dispatcher's way.
_is_batched: Callable[[Tensor], bool] = _find(
    "_C._functorch.is_legacy_batchedtensor", otherwise=lambda tensor: True
)

# The module whose _current_level says how deep in forward mode (torch.autograd.forward_ad) a call
# is: -1 where it is not. Without that number, every call counts as in forward mode.
_forward_mode: Any = (
    forward_ad if hasattr(forward_ad, "_current_level") else SimpleNamespace(_current_level=0)
)

# A guard within which an operator is called without its autograd, so that a Function around it can
# have a formula of its own. torch.library's documentation names it for that. There is no safe side:
# without it an operator's autograd would call itself without end, and so no kernel is called.
_guard: Callable[[], AbstractContextManager[Any]] | None = _find(
    "_C._AutoDispatchBelowAutograd", otherwise=None
)
KERNELS_CAN_BE_CALLED = _guard is not None


def below_autograd() -> AbstractContextManager[Any]:
    """Within it, operators are called without their autograd."""
    assert _guard is not None
    return _guard()


# Whether torch.jit.trace records the call: the public function asks for more, at more cost.
_public_is_tracing: Any = torch.jit.is_tracing  # type: ignore[attr-defined]
is_tracing: Callable[[], bool] = _find("_C._is_tracing", otherwise=_public_is_tracing)


def has_tangent(*tensors: Tensor | None) -> bool:
    """Whether any of the tensors is a dual number of forward mode.

    A graph may have entered forward mode where ``_current_level`` knows nothing of it.
    """
    return any(
        tensor is not None and forward_ad.unpack_dual(tensor, level=0).tangent is not None
        for tensor in tensors
    )


Function = TypeVar("Function", bound=Callable[..., Any])


def asked_while_tracing(function: Function) -> Function:
    """torch.compile calls the function as it traces, and takes its result for a constant.

    This is torch.compiler.assume_constant_result, which imports torch._dynamo for some seconds. A
    PyTorch that does not know the mark traces into the function, which ends full graphs.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@asked_while_tracing
def in_torch_func() -> bool:
    """Whether a transform of torch.func is under way."""
    return innermost_transform() is not None


def kind_of_call() -> Kind:
    """What an operator must know of a call beside its tensors.

    "compiled": torch.compile traces it. "differentiated": in forward mode, or in a transform of
    torch.func that differentiates. "batched": in transforms of torch.func that are all vmap.
    "plain": none of these; a mode may still watch it.
    """
    if torch.compiler.is_compiling():
        return "compiled"
    if _forward_mode._current_level >= 0:
        return "differentiated"
    if innermost_transform() is None:
        return "plain"
    transforms = _transforms()
    if transforms and all(each.key() == _VMAP for each in transforms):
        return "batched"
    return "differentiated"


def is_plain_eager() -> bool:
    """Whether a call's tensors are what they seem: see the module."""
    return kind_of_call() == "plain" and num_dispatch_modes() == 0 and not is_tracing()


def is_plain_tensor(tensor: Tensor) -> bool:
    """Neither of a subclass nor batched; where :func:`is_plain_eager`, a tensor of numbers."""
    return type(tensor) in PLAIN_TYPES and not _is_batched(tensor)
