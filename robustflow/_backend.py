"""Which implementation serves a call: the choice, what is available, and why not."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor

from robustflow import _native, _triton
from robustflow._call_state import Kind, asked_while_tracing, is_tracing


@dataclass(frozen=True)
class _Backend:
    """A backend of :func:`backends`."""

    implementation: str  # of the transforms: robustflow/ops/registry.py
    devices: tuple[str, ...]  # whose tensors it serves; empty: any
    available: Callable[[], bool | str]  # or a sentence that says why not


def _cpu() -> bool | str:
    return _native.load() or (_native.load_error() or "The native library is missing.")


def _cuda() -> bool | str:
    if reason := _native.cuda_load_error():
        return reason
    return _gpu()


def _triton_available() -> bool | str:
    if reason := _triton.load_error():
        return reason
    return True if _triton.INTERPRETED else _gpu()


def _gpu() -> bool | str:
    return torch.cuda.is_available() or (
        "torch sees no GPU: check that nvidia-smi lists one and that CUDA_VISIBLE_DEVICES does not "
        "hide it."
    )


_BACKENDS = {
    "cpu": _Backend("native", ("cpu",), _cpu),
    "cuda": _Backend("native", ("cuda",), _cuda),
    "triton": _Backend(
        "triton", ("cuda", "cpu") if _triton.INTERPRETED else ("cuda",), _triton_available
    ),
    "reference": _Backend("reference", (), lambda: True),
}

# What "auto" takes for CUDA tensors: the first that is available. No GPU has measured yet which is
# faster (`python -m benchmarks.gpu` does). CUDA kernels are compiled when the package is built, a
# Triton kernel when it is first called.
GPU_BACKENDS = ("cuda", "triton")

# A plain global: torch.compile guards on it, where a ContextVar would break fullgraph.
_choice = "auto"
# The choice if the environment names a backend that is missing: calls raise, the import does not.
_REFUSED = "refused"


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
    return {name: backend.available() for name, backend in _BACKENDS.items()}


def add_backend(name: str, implementation: str, devices: tuple[str, ...]) -> None:
    """Let :class:`use_backend` choose an implementation that was added to the transforms.

    Args:
        name: a new name.
        implementation: as given to ``Transform.add_implementation``.
        devices: types of the devices whose tensors it serves, such as ``("cpu",)``.

    Raises:
        ValueError: the name is taken.
    """
    if name == "auto" or name in _BACKENDS:
        raise ValueError(f"There is a backend {name!r} already.")
    _BACKENDS[name] = _Backend(implementation, devices, lambda: True)


class use_backend:
    """Choose the backend of every following call; as a context manager, of the calls inside it.

    Args:
        name: ``"auto"`` (on CPU tensors the fused CPU kernels; on CUDA tensors the CUDA kernels
            where they are built, else Triton's; the reference where there are no kernels), or one
            backend, which then serves every call or raises: ``"cpu"``, ``"cuda"``, ``"triton"``
            (under ``TRITON_INTERPRET=1`` on CPU tensors too) or ``"reference"`` (plain PyTorch on
            any device). The environment variable ``ROBUSTFLOW_BACKEND`` sets the choice at import;
            if it names one that is not available, every call raises a RuntimeError that says so,
            until this class chooses another.

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
        if name != "auto":
            if name not in _BACKENDS:
                names = ", ".join(("auto", *_BACKENDS))
                raise ValueError(f"backend must be one of {names}, got {name!r}.")
            if (reason := _BACKENDS[name].available()) is not True:
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
    """The backend last chosen with :class:`use_backend` (or ``ROBUSTFLOW_BACKEND``).

    ``"refused"`` if the environment names one that is not available: :func:`setting_errors`.
    """
    return _choice


def setting_errors() -> list[str]:
    """What is wrong with ``ROBUSTFLOW_BACKEND`` and ``ROBUSTFLOW_ISA``, in sentences."""
    return list(_setting_errors)


def implementation(x: Tensor, kind: Kind) -> str:
    """Which implementation of a transform serves a call, or "reference".

    Args:
        x: of the call.
        kind: what :func:`robustflow._call_state.kind_of_call` says of it.

    Raises:
        RuntimeError: a backend was forced that cannot serve the device of ``x``, or the
            environment names one that is not available.
    """
    if _compiled_for_onnx() if kind == "compiled" else is_tracing():
        return "reference"
    if _choice == "auto":
        if x.is_cpu:
            return "native" if _native.load() else "reference"
        if x.is_cuda:
            return _BACKENDS[backend_on_gpu()].implementation
        return "reference"
    if _choice == _REFUSED:
        raise RuntimeError(" ".join(_setting_errors))
    backend = _BACKENDS[_choice]
    if backend.devices and x.device.type not in backend.devices:
        devices = " and ".join(device.upper() for device in backend.devices)
        raise RuntimeError(
            f"The backend {_choice!r} serves {devices} tensors, got one on {x.device}: "
            "move the tensors, or choose use_backend('auto')."
        )
    return backend.implementation


def is_recorded() -> bool:
    """Whether the call is being written into a program that must run without robustflow.

    Inside ``torch.onnx.export`` and ``torch.jit.trace``: then the reference serves, whatever the
    choice. ``torch.compile`` and ``torch.export`` keep the operators.
    """
    return _compiled_for_onnx() if torch.compiler.is_compiling() else is_tracing()


def is_onnx_export() -> bool:
    """Whether that program becomes an ONNX file, which has fewer operations."""
    return is_recorded() and _in_onnx_export()


def _compiled_for_onnx() -> bool:
    return torch.compiler.is_exporting() and _in_onnx_export()


@asked_while_tracing  # Dynamo takes torch's function to be False without asking it
def _in_onnx_export() -> bool:
    return torch.onnx.is_in_onnx_export()


def backend_on_gpu() -> str:
    """The backend that "auto" takes for a CUDA tensor."""
    for name in GPU_BACKENDS:
        if _native.cuda_loaded() if name == "cuda" else _triton.load():
            return name
    return "reference"


def _read_environment() -> list[str]:
    """Choose as the environment says; the first call, or `doctor`, reports what is wrong."""
    global _choice
    name = os.environ.get("ROBUSTFLOW_BACKEND") or "auto"
    errors = []
    try:
        use_backend(name)
    except (ValueError, RuntimeError) as error:
        errors.append(f"ROBUSTFLOW_BACKEND={name}: {error}")
    if (isa_error := _native.isa_error()) and name in ("auto", "cpu"):
        errors.append(isa_error)
    if errors:
        _choice = _REFUSED
    return errors


_setting_errors = _read_environment()
