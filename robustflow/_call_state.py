"""Whether a call is plain eager, and which of PyTorch's transforms and modes surround it.

A call is *plain eager* if its tensors are numbers in memory: not traced by torch.compile or
torch.jit, not batched by vmap, without a forward-mode derivative, and with no dispatch mode active.
:func:`is_plain_eager` is the only place that decides it.

PyTorch has no public way to ask for most of this. All private interfaces that are used for it stand
in this module. If a later PyTorch lacks one, the safe answer is taken: the call counts as not
plain. The reference then serves it, which is slower and equally correct.
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


def _find(path: str, default: Any) -> Any:
    """An attribute of torch by its path, or a substitute if torch has no such attribute."""
    try:
        return reduce(getattr, path.split("."), torch)
    except AttributeError:
        return default


Kind = Literal["plain", "compiled", "batched", "differentiated"]


def _unknown() -> object:
    """Substitute for a question about torch.func: assume that a transform is active."""
    return "unknown"


# The innermost active transform of torch.func (vmap, grad, jvp, functionalize ...), or None; and
# all active ones, each with a key() for its kind. Without the first, every call counts as inside
# one, and the reference serves it. Without the second, the reference serves vmap too, in place of
# the operators' own rule.
innermost_transform: Callable[[], Any] = _find(
    "_C._functorch.peek_interpreter_stack", default=_unknown
)
_transforms: Callable[[], Any] = _find("_C._functorch.get_interpreter_stack", default=lambda: None)
_VMAP: Any = _find("_C._functorch.TransformType.Vmap", default=object())

# How many modes (fake tensors, proxies, a user's TorchDispatchMode) see every operation. Without
# it, assume that there is one: calls go through the dispatcher, where modes see them.
num_dispatch_modes: Callable[[], int] = _find("_C._len_torch_dispatch_stack", default=lambda: 1)

# Whether a tensor is of the batched kind that torch.autograd.grad(is_grads_batched=True) makes.
# Without it, assume so: calls go through the dispatcher.
_is_batched: Callable[[Tensor], bool] = _find(
    "_C._functorch.is_legacy_batchedtensor", default=lambda tensor: True
)

# The module whose _current_level says how deep in forward mode (torch.autograd.forward_ad) a call
# is: -1 where it is not. Without that number, every call counts as in forward mode.
_forward_mode: Any = (
    forward_ad if hasattr(forward_ad, "_current_level") else SimpleNamespace(_current_level=0)
)

# A guard within which an operator is called without its autograd, so that a Function around it can
# have a formula of its own. torch.library's documentation names it for that. Without it an
# operator's autograd would call itself without end, so then no kernel is called.
_guard: Callable[[], AbstractContextManager[Any]] | None = _find(
    "_C._AutoDispatchBelowAutograd", default=None
)
KERNELS_CAN_BE_CALLED = _guard is not None


def below_autograd() -> AbstractContextManager[Any]:
    """Within it, operators are called without their autograd."""
    assert _guard is not None
    return _guard()


# Whether torch.jit.trace records the call. The public function checks more and costs more.
_public_is_tracing: Any = torch.jit.is_tracing  # type: ignore[attr-defined]
is_tracing: Callable[[], bool] = _find("_C._is_tracing", default=_public_is_tracing)


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
    PyTorch without it traces into the function, and fullgraph=True then fails.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@asked_while_tracing
def in_torch_func() -> bool:
    """Whether a transform of torch.func is active."""
    return innermost_transform() is not None


def kind_of_call() -> Kind:
    """What surrounds a call, as far as an operator has to know.

    "compiled": torch.compile traces it. "differentiated": in forward mode, or in a transform of
    torch.func that differentiates. "batched": in transforms of torch.func that are all vmap.
    "plain": none of these; a dispatch mode may still be active.
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
    """Whether a call is plain eager: see the module."""
    return kind_of_call() == "plain" and num_dispatch_modes() == 0 and not is_tracing()


def is_plain_tensor(tensor: Tensor) -> bool:
    """Neither of a subclass nor batched; where :func:`is_plain_eager`, a tensor of numbers."""
    return type(tensor) in PLAIN_TYPES and not _is_batched(tensor)
