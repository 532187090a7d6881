"""Loads the Triton kernels, `robustflow.kernels`, and says why they did not load."""

from __future__ import annotations

import importlib
import os
from typing import Any

import torch

# Triton reads this variable where a kernel is defined; its interpreter runs on CPU tensors.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

kernels: Any = None
_error: str | None = None


def load() -> bool:
    """Whether the Triton kernels are loaded; :func:`load_error` says why not.

    They were loaded when this module was imported, since torch.compile cannot trace an import.
    """
    return kernels is not None


def load_error() -> str | None:
    """Why the Triton kernels did not load, as a sentence; None where they did."""
    return _error


def _load() -> None:
    global kernels, _error
    if not (torch.version.cuda or torch.version.hip or INTERPRETED):
        _error = (
            f"This torch, {torch.__version__}, was built without CUDA: install one with it "
            "(https://pytorch.org/get-started); TRITON_INTERPRET=1 runs the kernels slowly on CPU "
            "tensors, for tests."
        )
        return
    try:
        kernels = importlib.import_module("robustflow.kernels")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "triton":
            raise
        _error = "Triton is not installed: `pip install triton` (Linux and Windows on x86-64, Arm)."
    except (ImportError, AttributeError, RuntimeError) as error:  # one that does not fit this torch
        _error = f"Triton did not load: {error}. Install the version that torch asks for."


_load()
