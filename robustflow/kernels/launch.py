"""How kernels are launched: at once, or into the graph that torch.compile is tracing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from robustflow._call_state import PLAIN_TYPES


def launch(
    kernel: Any, programs: int, arguments: Sequence[Any], constants: dict[str, Any], num_warps: int
) -> None:
    """Launch a Triton kernel on a grid of ``programs``.

    Args:
        arguments: positional; the first is a tensor.
        constants: compile-time arguments, by name.

    Traced tensors are launched by ``wrap_triton``, which torch.compile can trace. Plain ones are
    launched directly, which costs less. Contraction of products and sums is off: the kernels use
    fma where it is wanted, so that layouts, and the presence of outputs, cannot change an element's
    bits.
    """
    if type(arguments[0]) in PLAIN_TYPES:
        kernel[(programs,)](*arguments, **constants, num_warps=num_warps, enable_fp_fusion=False)
    else:
        traced = torch.library.wrap_triton(kernel)
        traced[(programs,)](*arguments, **constants, num_warps=num_warps)
