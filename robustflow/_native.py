"""Loads the native libraries with the package, and says why one did not load.

`robustflow._C` has the CPU kernels and is a Python module; `_cuda.so` beside it has the CUDA
kernels, nothing but operators, and needs no GPU to load. `robustflow._autograd` has no kernels: it
calls the operators, with gradients, from C++. It works only with the exact PyTorch version that it
was built against. How each was built stands in a file beside it, `_C.build.json` for one.

Python started in a source tree imports the tree and not the installed package. The tree may have no
library of its own; it then uses the installed one, if that was built from the same native sources.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import logging
import os
import sys
import sysconfig
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any, Literal

import torch  # its libraries must be in the process before ours

from robustflow import _sources

_REBUILD = (
    "run `pip install --no-build-isolation --force-reinstall --no-deps .` in robustflow's source"
)
_LOG = logging.getLogger("robustflow")
_PACKAGE = Path(__file__).resolve().parent
_SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")


@dataclass(frozen=True)
class Failure:
    """Why a library is not loaded.

    Attributes:
        reason: a sentence, with what to do about it.
        kind: "left out" of the installation, or built for another torch, so that others do its
            work; "not built" in a source tree that was never installed; or "broken": it should
            load.
    """

    reason: str
    kind: Literal["left out", "not built", "broken"]


_library: Any = None
_failure: Failure | None = None
_cuda_failure: Failure | None = None
_autograd: Any = None
_autograd_failure: Failure | None = None
_isa_error: str | None = None


def load() -> bool:
    """Whether the native library is loaded; :func:`load_error` says why not.

    It was loaded when this module was imported, since torch.compile cannot trace an import.
    """
    return _library is not None


def load_error() -> str | None:
    """Why the native library did not load, as a sentence; None where it did."""
    return _failure.reason if _failure else None


def isa_error() -> str | None:
    """What is wrong with the environment variable ``ROBUSTFLOW_ISA``; None where nothing is."""
    return _isa_error


def cuda_loaded() -> bool:
    """Whether the CUDA library is loaded; :func:`cuda_load_error` says why not."""
    return _cuda_failure is None


def cuda_load_error() -> str | None:
    """Why the CUDA library did not load, as a sentence; None where it did."""
    return _cuda_failure.reason if _cuda_failure else None


def autograd() -> Any:
    """The module `robustflow._autograd`, or None where it is not loaded."""
    return _autograd


def loops() -> Any:
    """The library, for its functions ``summarise`` and ``find_crossings`` on addresses of memory.

    None where it is not loaded, or was built before it had them. Their arguments are addresses of
    contiguous memory and its shape, (N, C, S): csrc/cpu/magnitudes.h says of what.
    """
    return _library if hasattr(_library, "find_crossings") else None


def build_info() -> dict[str, Any]:
    """How the native libraries were built, and what of them is in use.

    Returns:
        ``loaded`` and, where there is a library, its ``compiler``, ``flags``, ``build_type``,
        ``processor``, ``instruction_sets`` (name to flags), ``torch`` (the version built against;
        it serves later ones too) and ``sources`` (a hash of those it was built from). A loaded
        library adds ``isa`` (in use) and ``isa_supported`` (by this processor, the best first);
        one that is not adds ``reason`` and ``broken`` (whether it should have loaded).
        ``cuda`` tells the same of the CUDA library: ``loaded``, where there is one its
        ``compiler``, ``architectures`` and ``torch``, and ``reason`` and ``broken`` where it is
        not loaded. ``autograd`` tells it of the library that calls the operators, with gradients,
        from C++.

    Example:
        >>> import robustflow
        >>> robustflow.build_info()["loaded"]
        True
    """
    others = {
        "cuda": _facts_or_failure("_cuda", _cuda_failure),
        "autograd": _facts_or_failure("_autograd", _autograd_failure),
    }
    facts = _facts_or_failure("_C", _failure)
    if not load():
        return {**facts, **others}
    return {
        **facts,
        "isa": _library.isa_name(),
        "isa_supported": _library.isa_supported(),
        **others,
    }


def shadowed_folder() -> Path | None:
    """The installation that the libraries come from, if this is a source tree."""
    return None if _folder == _PACKAGE else _folder


def is_outdated() -> bool:
    """Whether the library was built from sources other than those beside this package."""
    if not (load() and _is_source_tree()):
        return False
    built_from = _facts(_folder, "_C").get("sources", "unknown")
    return built_from not in ("unknown", _sources.fingerprint(_PACKAGE.parent))


def set_isa(name: str) -> None:
    """Use the kernels of one instruction set from now on; ``ROBUSTFLOW_ISA`` does so at load.

    Args:
        name: one of ``build_info()["isa_supported"]``.

    Raises:
        ValueError: it was not built, or this processor does not support it.
        RuntimeError: there is no native library; the message says why.
    """
    if not load():
        raise RuntimeError(load_error())
    _library.set_isa(name)
    _share_isa()


def _share_isa() -> None:
    """Let the loops of `robustflow._autograd` use the instruction set of the kernels."""
    if hasattr(_autograd, "set_isa"):
        _autograd.set_isa(_library.isa_name())


def _facts_or_failure(name: str, failure: Failure | None) -> dict[str, Any]:
    facts = _facts(_folder, name) if _files(name) else {}
    if failure is None:
        return {"loaded": True, **facts}
    return {"loaded": False, **facts, "reason": failure.reason, "broken": failure.kind == "broken"}


def _load() -> None:
    global _library, _failure, _isa_error
    try:
        _library = _import_library("_C")
    except ImportError as error:
        _failure = _explain(error)
        if _failure.kind != "left out":  # the build said that, and doctor says it again
            _LOG.warning("%s Until then the slower reference is used.", _failure.reason)
        return
    if name := os.environ.get("ROBUSTFLOW_ISA"):
        try:
            _library.set_isa(name)
        except ValueError as error:
            _isa_error = f"ROBUSTFLOW_ISA={name}: {error}"


def _load_cuda() -> None:
    global _cuda_failure
    files = _files("_cuda")
    if torch.version.cuda is None:
        _cuda_failure = Failure(
            f"This torch, {torch.__version__}, was built without CUDA: install one with it "
            f"(https://pytorch.org/get-started), then {_REBUILD}.",
            kind="left out",
        )
    elif not files:
        _cuda_failure = Failure(
            "robustflow was installed without its CUDA library (the build found no nvcc, or it "
            f"failed, or ROBUSTFLOW_CUDA=0): put the nvcc of CUDA {torch.version.cuda} on PATH, "
            f"set ROBUSTFLOW_CUDA=1, and {_REBUILD}.",
            kind="left out",
        )
    else:
        try:
            _check_length(files[0])
            torch.ops.load_library(str(files[0]))
        except (ImportError, OSError) as error:
            facts = _facts(_folder, "_cuda")
            compiler, built = (facts.get(name, "unknown") for name in ("compiler", "torch"))
            _cuda_failure = Failure(
                f"robustflow's CUDA library did not load: {error.__cause__ or error}. It was built "
                f"for torch {built} (compiler: {compiler}), you have {torch.__version__} with CUDA "
                f"{torch.version.cuda}: {_REBUILD}.",
                kind="broken",
            )


def _load_autograd() -> None:
    """Load `robustflow._autograd` if it was built for this exact torch: another would crash."""
    global _autograd, _autograd_failure
    built = _facts(_folder, "_autograd").get("torch")
    if _extension(_folder, "_autograd") is None:
        _autograd_failure = _without_autograd("was not built", kind="left out")
    elif built is None:
        what = f"has no {_facts_file(_folder, '_autograd')} that says for which torch it was built"
        _autograd_failure = _without_autograd(what, kind="broken")
    elif built != torch.__version__:
        what = f"was built for torch {built}, you have {torch.__version__}"
        _autograd_failure = _without_autograd(what, kind="left out")
    else:
        try:
            _autograd = _import_library("_autograd")
        except ImportError as error:
            _autograd_failure = _without_autograd(f"did not load ({error})", kind="broken")


def _without_autograd(what: str, kind: Literal["left out", "broken"]) -> Failure:
    reason = (
        f"robustflow._autograd, which calls the kernels from C++, {what}: {_REBUILD}. "
        "Until then calls work the same, and on small batches they are slower."
    )
    return Failure(reason, kind)


def _import_library(name: str) -> Any:
    """The extension module robustflow.<name>, from that folder and, unlike `import`, no other."""
    full_name, file = f"robustflow.{name}", _extension(_folder, name)
    if file is None:
        raise ModuleNotFoundError(f"{name}{_SUFFIX} is not in {_folder}")
    _check_length(file)
    spec = importlib.util.spec_from_file_location(full_name, file)
    assert spec is not None and spec.loader is not None  # a suffix that Python knows
    library = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(library)
    sys.modules[full_name] = library
    return library


def _extension(folder: Path, name: str) -> Path | None:
    """The file of an extension module that this Python would load, where there is one."""
    files = (folder / f"{name}{suffix}" for suffix in EXTENSION_SUFFIXES)
    return next(filter(Path.exists, files), None)


def _check_length(file: Path) -> None:
    """ImportError for a library that was cut short: loading it could kill the process."""
    with file.open("rb") as opened:
        header = opened.read(64)
    if header[:5] != b"\x7fELF\2":  # of 64 bits; the loader judges others
        return
    sections, size, count = (header[at:end] for at, end in ((40, 48), (58, 60), (60, 62)))
    # The section headers come last.
    end = int.from_bytes(sections, "little")
    end += int.from_bytes(size, "little") * int.from_bytes(count, "little")
    if file.stat().st_size < max(end, 64):
        raise ImportError(f"{file} is cut short")


def _find_folder() -> Path:
    """Where the libraries are: beside this file, or in an installation of the same sources."""
    if _extension(_PACKAGE, "_C") is None:
        for library in _installed_libraries():
            facts = _facts(library.parent, "_C")
            if facts.get("sources") == _sources.fingerprint(_PACKAGE.parent):
                return library.parent
    return _PACKAGE


def _installed_libraries() -> list[Path]:
    """The `_C` of installations that this package shadows, where it is a source tree's."""
    if not _is_source_tree():
        return []
    folders = [Path(str(each.locate_file("robustflow"))).resolve() for each in _distributions()]
    libraries = [_extension(folder, "_C") for folder in folders if folder != _PACKAGE]
    return [library for library in libraries if library is not None]


def _is_source_tree() -> bool:
    return _sources.fingerprint(_PACKAGE.parent) is not None


def _distributions() -> list[importlib.metadata.Distribution]:
    """The installed robustflows."""
    return list(importlib.metadata.distributions(name="robustflow"))


def _files(name: str) -> list[Path]:
    """Of the library of this name, for whichever Python."""
    return sorted({*_folder.glob(f"{name}.*")} - {_facts_file(_folder, name)})


def _facts_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.build.json"


def _facts(folder: Path, name: str) -> dict[str, Any]:
    """How a folder's library of this name was built, whether or not it loads; {} if unknown."""
    try:
        facts: dict[str, Any] = json.loads(_facts_file(folder, name).read_text("utf-8"))
    except (FileNotFoundError, ValueError):  # ValueError: cut short
        return {}
    return facts


def _explain(error: ImportError) -> Failure:
    files = _files("_C")
    if not files:
        return _explain_absence()
    if isinstance(error, ModuleNotFoundError):
        return Failure(
            f"robustflow's native library {files[0].name} is for another Python, this one "
            f"loads {_SUFFIX}: {_REBUILD}.",
            kind="broken",
        )
    built = _facts(_folder, "_C").get("torch", "an unknown version")
    return Failure(
        f"robustflow's native library did not load: {error}. It was built for torch {built}, "
        f"you have {torch.__version__}: {_REBUILD}.",
        kind="broken",
    )


def _explain_absence() -> Failure:
    root = _PACKAGE.parent
    if libraries := _installed_libraries():
        return Failure(
            f"robustflow is imported from its source tree {root}, which has no native library, and "
            f"the one installed in {libraries[0].parent} was built from other sources: work in "
            f"another folder, or {_REBUILD}.",
            kind="broken",
        )
    # An editable installation is one of its source tree.
    urls = [each.read_text("direct_url.json") or "" for each in _distributions()]
    if _is_source_tree() and not any(root.as_uri() in url for url in urls):
        return Failure(
            f"robustflow is imported from its source tree {root}, where its native library was not "
            "built: run `pip install --no-build-isolation -e .` there.",
            kind="not built",
        )
    return Failure(
        "robustflow was installed without its native library (there was no C++ compiler, or no "
        f"Python.h, or ROBUSTFLOW_NATIVE=0): see to that, then {_REBUILD}.",
        kind="left out",
    )


_folder = _find_folder()
_load()
_load_cuda()
_load_autograd()
if load():
    _share_isa()
