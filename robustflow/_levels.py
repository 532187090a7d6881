"""What a call runs within: transforms of torch.func."""

from __future__ import annotations

import torch


def in_torch_func() -> bool:
    """Whether a transform of torch.func is under way; torch.compile asks while it traces."""
    return torch._C._functorch.peek_interpreter_stack() is not None


# What torch.compiler.assume_constant_result sets, which would import torch._dynamo now.
in_torch_func._dynamo_marked_constant = True  # type: ignore[attr-defined]
