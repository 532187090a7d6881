"""What tests run in a process of its own."""

from __future__ import annotations

import importlib
from typing import Any

import torch


def call(_: object = None) -> dict[str, dict[str, int]]:
    """Call nflows' spline; who served it."""
    from robustflow import compat

    module = importlib.import_module("nflows.transforms.splines.rational_quadratic")
    sizes = ((), (5,), (5,), (4,))
    module.unconstrained_rational_quadratic_spline(*(torch.randn(7, *size) for size in sizes))
    return compat.patched()


class Calls(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict[str, dict[str, int]]:
        return call()
