"""Which implementation serves a call: the choice, what is available, and why not."""

from __future__ import annotations

import os
from types import TracebackType

import torch

from robustflow import _native

BACKENDS = ("auto", "cpu", "cuda", "triton", "reference")

# A plain global: torch.compile guards on it, where a ContextVar would break fullgraph.
_choice = "auto"


def backends() -> dict[str, bool | str]:
    """What can serve a call on this machine.

    Returns:
        ``{name: True}`` where the backend is available, else ``{name: reason}`` with a sentence
        that says why not. ``"reference"`` (plain PyTorch) is always available.

    Example:
        >>> import robustflow
        >>> robustflow.backends()["reference"]
        True
    """
    cpu: bool | str = _native.load() or (_native.load_error() or "The native library is missing.")
    no_gpu_kernels = "This version of robustflow has kernels for CPU tensors only."
    return {"cpu": cpu, "cuda": no_gpu_kernels, "triton": no_gpu_kernels, "reference": True}


class use_backend:
    """Choose the backend of every following call; as a context manager, of the calls inside it.

    Args:
        name: ``"auto"`` (the kernels where there are some for the tensor's device, else the
            reference), ``"cpu"`` (the fused CPU kernels, an error where they cannot run), or
            ``"reference"`` (plain PyTorch). The environment variable ``ROBUSTFLOW_BACKEND`` sets
            the choice at import.

    Raises:
        ValueError: an unknown name.
        RuntimeError: the backend is not available here; the message says why.

    Example:
        >>> import torch, robustflow
        >>> with robustflow.use_backend("reference"):
        ...     y, logabsdet = robustflow.functional.modified_rq_spline(
        ...         torch.zeros(2, 3), torch.zeros(2, 12))
    """

    def __init__(self, name: str) -> None:
        global _choice
        if name not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {name!r}.")
        if name != "auto" and (reason := backends()[name]) is not True:
            raise RuntimeError(f"The backend {name!r} is not available. {reason}")
        self.name = name
        self._previous = _choice
        _choice = name

    def __enter__(self) -> use_backend:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        global _choice
        _choice = self._previous

    def __repr__(self) -> str:
        return f"use_backend({self.name!r})"


def current_backend() -> str:
    """The backend last chosen with :class:`use_backend` (or ``ROBUSTFLOW_BACKEND``)."""
    return _choice


def uses_kernels(x: torch.Tensor) -> bool:
    """Whether a call on ``x`` goes to a registered operator rather than to the reference.

    Raises:
        RuntimeError: a backend was forced that cannot serve the device of ``x``.
    """
    if _choice == "reference":
        return False
    if x.is_cpu:
        return _native.load()
    if _choice == "cpu":
        raise RuntimeError(
            f"The backend 'cpu' serves CPU tensors, got one on {x.device}: "
            "move the tensors, or choose use_backend('auto')."
        )
    return False


if "ROBUSTFLOW_BACKEND" in os.environ:
    use_backend(os.environ["ROBUSTFLOW_BACKEND"])
