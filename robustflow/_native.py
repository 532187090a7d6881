"""The native libraries, loaded with the package, and if one will not load, why.

`robustflow._C` has the CPU kernels and is a Python module; `_cuda.so` beside it has the CUDA
kernels, nothing but operators, and needs no GPU to load. `robustflow._eager` has no kernels: it
shortens the way to them, and fits only the very torch that it was built for.
"""

from __future__ import annotations

import importlib
import json
import os
import sysconfig
import warnings
from pathlib import Path
from typing import Any

import torch  # its libraries must be in the process before ours

# csrc/build_facts.h.in, csrc/cuda/build_facts.h.in and csrc/eager_facts.h.in. Each stands before a
# JSON object in the bytes of a library.
_MARK = b"robustflow-build-facts:"
_CUDA_MARK = b"robustflow-cuda-facts:"
_EAGER_MARK = b"robustflow-eager-facts:"
_REBUILD = (
    "run `pip install --no-build-isolation --force-reinstall --no-deps .` in robustflow's source"
)

_library: Any = None
_error: str | None = None
_cuda_error: str | None = None
_eager: Any = None
_eager_error: str | None = None


def load() -> bool:
    """Whether the native library is loaded; :func:`load_error` says why not.

    That was tried when this module was imported, since torch.compile cannot trace an import.
    """
    return _library is not None


def load_error() -> str | None:
    """Why the native library did not load, as a sentence; None where it did."""
    return _error


def cuda_loaded() -> bool:
    """Whether the CUDA library is loaded; :func:`cuda_load_error` says why not."""
    return _cuda_error is None


def cuda_load_error() -> str | None:
    """Why the CUDA library did not load, as a sentence; None where it did."""
    return _cuda_error


def eager() -> Any:
    """The module `robustflow._eager`, or None where it is not loaded."""
    return _eager


def build_info() -> dict[str, Any]:
    """How the native libraries were built, and what of them is in use.

    Returns:
        ``loaded`` and, where there is a library, its ``compiler``, ``flags``, ``build_type``,
        ``processor``, ``instruction_sets`` (name to flags) and ``torch`` (the version built
        against; it serves later ones too). A loaded library adds ``isa`` (in use) and
        ``isa_supported`` (by this processor, the best first); one that is not adds ``reason``.
        ``cuda`` tells the same of the CUDA library: ``loaded``, where there is one its
        ``compiler``, ``architectures`` and ``torch``, and ``reason`` where it is not loaded.
        ``eager`` tells it of the library that shortens the way from Python to the kernels.

    Example:
        >>> import robustflow
        >>> robustflow.build_info()["loaded"]
        True
    """
    cuda = {"loaded": cuda_loaded(), **_facts_on_disk(_cuda_files(), _CUDA_MARK)}
    if not cuda_loaded():
        cuda["reason"] = _cuda_error
    eager = {"loaded": _eager is not None, **_facts_on_disk(_eager_files(), _EAGER_MARK)}
    if _eager is None:
        eager["reason"] = _eager_error
    others = {"cuda": cuda, "eager": eager}
    if not load():
        facts = _facts_on_disk(_files(), _MARK)
        return {"loaded": False, **facts, "reason": _error, **others}
    return {
        "loaded": True,
        **_library.build_facts(),
        "isa": _library.isa_name(),
        "isa_supported": _library.isa_supported(),
        **others,
    }


def set_isa(name: str) -> None:
    """Use the kernels of one instruction set from now on; ``ROBUSTFLOW_ISA`` does so at load.

    Args:
        name: one of ``build_info()["isa_supported"]``.

    Raises:
        ValueError: it was not built, or this processor does not support it.
        RuntimeError: there is no native library; the message says why.
    """
    if not load():
        raise RuntimeError(_error)
    _library.set_isa(name)


def _load() -> None:
    global _library, _error
    try:
        library = importlib.import_module("robustflow._C")
    except ImportError as error:
        _error = _explain(error)
        warnings.warn(f"{_error} Until then the slower reference is used.", stacklevel=2)
        return
    if name := os.environ.get("ROBUSTFLOW_ISA"):
        try:
            library.set_isa(name)
        except ValueError as error:
            raise ValueError(f"ROBUSTFLOW_ISA={name}: {error}") from None
    _library = library


def _load_cuda() -> None:
    global _cuda_error
    files = _cuda_files()
    if torch.version.cuda is None:
        _cuda_error = (
            f"This torch, {torch.__version__}, was built without CUDA: install one with it "
            f"(https://pytorch.org/get-started), then {_REBUILD}."
        )
    elif not files:
        _cuda_error = (
            "robustflow was installed without its CUDA library (the build found no nvcc, or "
            f"ROBUSTFLOW_CUDA=0): put the nvcc of CUDA {torch.version.cuda} on PATH, set "
            f"ROBUSTFLOW_CUDA=1, and {_REBUILD}."
        )
    else:
        try:
            torch.ops.load_library(str(files[0]))
        except OSError as error:
            facts = _facts_on_disk(files, _CUDA_MARK)
            compiler, built = (facts.get(name, "unknown") for name in ("compiler", "torch"))
            _cuda_error = (
                f"robustflow's CUDA library did not load: {error.__cause__ or error}. It was built "
                f"for torch {built} (compiler: {compiler}), you have {torch.__version__} with CUDA "
                f"{torch.version.cuda}: {_REBUILD}."
            )


def _load_eager() -> None:
    """Load `robustflow._eager` where it was built for this very torch: others would crash."""
    global _eager, _eager_error
    files = _eager_files()
    name = "robustflow._eager, the short way from Python to the kernels,"
    advice = f"{_REBUILD}. Until then a call takes some microseconds more."
    built = _facts_on_disk(files, _EAGER_MARK).get("torch", "an unknown version")
    if not files:
        _eager_error = f"{name} was not built: {advice}"
    elif built != torch.__version__:
        _eager_error = f"{name} was built for torch {built}, you have {torch.__version__}: {advice}"
    else:
        try:
            _eager = importlib.import_module("robustflow._eager")
        except ImportError as error:
            _eager_error = f"{name} did not load: {error}. {advice[0].upper()}{advice[1:]}"


def _files() -> list[Path]:
    return sorted(Path(__file__).parent.glob("_C.*"))


def _cuda_files() -> list[Path]:
    return sorted(Path(__file__).parent.glob("_cuda*.so"))


def _eager_files() -> list[Path]:
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    return sorted(Path(__file__).parent.glob(f"_eager{suffix}"))


def _facts_on_disk(files: list[Path], mark: bytes) -> dict[str, Any]:
    """The build facts in a library's bytes, whether or not it loads here."""
    for file in files:
        content = file.read_bytes()
        if (start := content.find(mark + b"{")) >= 0:
            text = content[start + len(mark) :].partition(b"\0")[0].decode()
            facts: dict[str, Any] = json.loads(text)
            return facts
    return {}


def _explain(error: ImportError) -> str:
    if not _files():
        return (
            "robustflow was installed without its native library (there was no C++ compiler, or no "
            f"Python.h, or ROBUSTFLOW_NATIVE=0): see to that, then {_REBUILD}."
        )
    if isinstance(error, ModuleNotFoundError):
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        return (
            f"robustflow's native library {_files()[0].name} is for another Python, this one "
            f"loads {suffix}: {_REBUILD}."
        )
    built = _facts_on_disk(_files(), _MARK).get("torch", "an unknown version")
    return (
        f"robustflow's native library did not load: {error}. It was built for torch {built}, "
        f"you have {torch.__version__}: {_REBUILD}."
    )


_load()
_load_cuda()
_load_eager()
