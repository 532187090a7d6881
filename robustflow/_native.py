"""The native library `robustflow._C`: loaded with the package, and if it will not load, why."""

from __future__ import annotations

import importlib
import json
import os
import re
import sysconfig
import warnings
from pathlib import Path
from typing import Any

import torch  # its libraries must be in the process before ours

_MARK = b"robustflow-build-facts:"  # csrc/build_facts.h.in
_REBUILD = (
    "run `pip install --no-build-isolation --force-reinstall --no-deps .` in robustflow's source"
)

_library: Any = None
_error: str | None = None


def load() -> bool:
    """Whether the native library is loaded; :func:`load_error` says why not.

    That was tried when this module was imported, since torch.compile cannot trace an import.
    """
    return _library is not None


def load_error() -> str | None:
    """Why the native library did not load, as a sentence; None where it did."""
    return _error


def build_info() -> dict[str, Any]:
    """How the native library was built, and what of it is in use.

    Returns:
        ``loaded`` and, where there is a library, its ``compiler``, ``flags``, ``build_type``,
        ``processor``, ``instruction_sets`` (name to flags) and ``torch`` (the version built
        against; it serves later ones too). A loaded library adds ``isa`` (in use) and
        ``isa_supported`` (by this processor, the best first); one that is not adds ``reason``.

    Example:
        >>> import robustflow
        >>> robustflow.build_info()["loaded"]
        True
    """
    if not load():
        return {"loaded": False, **_facts_on_disk(), "reason": _error}
    return {
        "loaded": True,
        **_library.build_facts(),
        "isa": _library.isa_name(),
        "isa_supported": _library.isa_supported(),
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


def _files() -> list[Path]:
    return sorted(Path(__file__).parent.glob("_C.*"))


def _facts_on_disk() -> dict[str, Any]:
    """The build facts in a library's bytes, whether or not it loads here."""
    for file in _files():
        if found := re.search(re.escape(_MARK) + rb"(\{.*?\n\})", file.read_bytes(), re.DOTALL):
            facts: dict[str, Any] = json.loads(found[1])
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
    built = _facts_on_disk().get("torch", "an unknown version")
    return (
        f"robustflow's native library did not load: {error}. It was built for torch {built}, "
        f"you have {torch.__version__}: {_REBUILD}."
    )


_load()
