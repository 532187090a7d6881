"""Who served a library's calls, and with which tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from torch import Tensor

from robustflow import ops
from robustflow._transforms import RQ
from robustflow.ops.registry import Transform


def counts(kernel: int = 0, reference: int = 0, fallback: int = 0) -> dict[str, int]:
    """What ``patched()`` gives for a library."""
    return {"kernel": kernel, "reference": reference, "fallback": fallback}


@contextmanager
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Any, ...]]]:
    """The tensors that reach the operator."""
    found: list[tuple[Any, ...]] = []
    own = Transform.apply

    def call(transform: Transform, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        if transform is ops.of(RQ):
            found.append(args)
        return own(transform, *args, **options)

    with monkeypatch.context() as context:
        context.setattr(Transform, "apply", call)
        yield found
