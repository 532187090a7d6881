"""`robustflow doctor`: what is installed, what is in use, and what is wrong with it."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
from pathlib import Path
from typing import Any

_NOT_FACTS = ("loaded", "reason", "broken")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")

HELP = "say what is installed, built and in use, and what is wrong with it"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `doctor` to the command line."""
    parser = subparsers.add_parser(
        "doctor", help=HELP, description=f"{HELP}. Exit code 0: nothing is broken."
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object instead")


def run(args: argparse.Namespace) -> int:
    """Print the diagnosis; 0 where nothing is broken, else 1."""
    diagnosis = diagnose()
    print(json.dumps(diagnosis, indent=2) if args.json else render(diagnosis))
    return 0 if diagnosis["healthy"] else 1


def diagnose() -> dict[str, Any]:
    """The data of `robustflow doctor`.

    Returns:
        A JSON-ready dictionary: ``versions``, ``native`` (:func:`robustflow.build_info`),
        ``backends`` (:func:`robustflow.backends`), ``gpu`` (:func:`describe_gpu`), ``threads``,
        ``memory``, ``notes`` (sentences on what works and could be faster), ``problems``
        (sentences on what is broken) and ``healthy`` (there are none of these).
    """
    import torch

    import robustflow

    native, backends = robustflow.build_info(), robustflow.backends()
    problems = _problems(native, backends)
    return {
        "versions": {
            "robustflow": robustflow.__version__,
            "torch": torch.__version__,
            "CUDA of torch": torch.version.cuda or "none",
            "Python": platform.python_version(),
            "system": platform.platform(),
        },
        "native": native,
        "backends": backends,
        "gpu": describe_gpu(),
        "threads": {
            "torch": torch.get_num_threads(),
            "cores": os.cpu_count(),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "not set"),
        },
        "memory": _memory_report(),
        "notes": _notes(native),
        "problems": problems,
        "healthy": not problems,
    }


def _problems(native: dict[str, Any], backends: dict[str, Any]) -> list[str]:
    """What is broken: a library that was built and fails, but not one that was not built."""
    from robustflow import _patch_on_import
    from robustflow._backend import setting_errors

    return [
        *setting_errors(),
        *_patch_on_import.errors(),
        *(library["reason"] for library in _not_loaded(native) if _is_broken(library)),
        *(
            problem
            for name, device in (("cpu", "cpu"), ("cuda", "cuda"), ("triton", "cuda"))
            if backends[name] is True and _has(device)
            for problem in _self_test(name, device)
        ),
    ]


def _notes(native: dict[str, Any]) -> list[str]:
    """What works and could be faster, and what one may not know of it."""
    from robustflow import _native

    left_out = [library for library in _not_loaded(native) if not _is_broken(library)]
    notes = [library["reason"] for library in left_out if library is not native.get("cuda")]
    if shadowed := _native.shadowed_folder():
        notes.append(
            f"robustflow is imported from a source tree, {Path(_native.__file__).parent}; the "
            f"native libraries are those of the installation that it shadows, {shadowed}."
        )
    if _native.is_outdated():
        notes.append(
            "The native library was built from other sources than those that lie beside it in "
            "csrc/: build it again."
        )
    return notes


def _not_loaded(native: dict[str, Any]) -> list[dict[str, Any]]:
    """Of the native libraries; without the first the others have nothing to do."""
    libraries = [native, native["cuda"], native["autograd"]] if native["loaded"] else [native]
    return [library for library in libraries if not library["loaded"]]


def _is_broken(library: dict[str, Any]) -> bool:
    return bool(library.get("broken", True))


def _has(device: str) -> bool:
    """Whether there is such a device here."""
    import torch

    return device == "cpu" or torch.cuda.is_available()


def describe_gpu() -> dict[str, str]:
    """The cards that torch sees, their driver, and what "auto" takes for their tensors."""
    import torch

    from robustflow._backend import backend_on_gpu

    if not torch.cuda.is_available():
        return {"cards": "none that torch sees"}
    count = torch.cuda.device_count()
    return {
        "cards": ", ".join(torch.cuda.get_device_name(index) for index in range(count)),
        "driver": driver_version(),
        "auto": backend_on_gpu(),
    }


def driver_version(file: Path = Path("/proc/driver/nvidia/version")) -> str:
    """The version of NVIDIA's driver, or "unknown" where the system does not tell."""
    try:
        match = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", file.read_text(encoding="utf-8"))
    except OSError:
        return "unknown"
    return match[1] if match else "unknown"


def _self_test(backend: str, device: str) -> list[str]:
    """Whether the kernels of a backend agree with the reference."""
    import torch

    import robustflow
    from robustflow import functional

    x = torch.linspace(-0.6, 0.6, 193).reshape(1, 1, -1)
    params = torch.stack([torch.cos(k * x[0, 0]) for k in (3, 5, 7, 11)]).unsqueeze(0)
    x, params = x.to(device), params.to(device)
    results = []
    try:
        for name in (backend, "reference"):
            with robustflow.use_backend(name):
                results.append(torch.cat(functional.modified_rq_spline(x, params, reduce="none")))
    except Exception as error:  # the report shows any error
        what = f"raise {type(error).__name__} ({str(error).splitlines()[0]})"
    else:
        native, reference = results
        if torch.allclose(native, reference, rtol=1e-4, atol=1e-5):
            return []
        what = "disagree with the reference"
    return [
        f"The {backend} kernels {what} on this machine: please report `robustflow doctor --json`; "
        "until then robustflow.use_backend('reference') gives right results."
    ]


def _memory_report(huge_pages_file: Path = HUGE_PAGES) -> dict[str, str]:
    from robustflow.memory import allocator

    name, huge_pages = allocator(), huge_pages_mode(huge_pages_file)
    advice = []
    if name == "glibc":
        advice.append(
            "glibc maps large tensors afresh each time, which can cost more than the transform: "
            "call robustflow.retain_memory() at the start of a program, or run it under tcmalloc "
            "or jemalloc"
        )
    if huge_pages == "madvise" and os.environ.get("THP_MEM_ALLOC_ENABLE") != "1":
        advice.append(
            "the system gives huge pages to who asks: set THP_MEM_ALLOC_ENABLE=1 before Python "
            "starts, and PyTorch asks for its tensors of 2 MB and more, whose fresh memory then "
            "costs less"
        )
    return {
        "allocator": name,
        "huge pages": huge_pages,
        "advice": "; ".join(advice) or "none",
    }


def huge_pages_mode(file: Path = HUGE_PAGES) -> str:
    """When Linux backs memory with transparent huge pages: always, madvise or never."""
    try:
        return file.read_text().partition("[")[2].partition("]")[0] or "unknown"
    except OSError:
        return "unknown"


def render(diagnosis: dict[str, Any]) -> str:
    """The diagnosis as lines for people."""
    lines = []
    for title, section in diagnosis.items():
        if not isinstance(section, dict):
            continue
        lines.append(title)
        for name, value in section.items():
            if name not in ("reason", "broken"):  # printed below, or beside its backend
                lines.append(f"  {name:<18} {_text(value)}")
    lines += [f"note: {note}" for note in diagnosis["notes"]]
    lines += [f"problem: {problem}" for problem in diagnosis["problems"]]
    return "\n".join([*lines, "healthy" if diagnosis["healthy"] else "not healthy"])


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        if "loaded" not in value:
            return ", ".join(value)
        facts = [f"{name} {fact}" for name, fact in value.items() if name not in _NOT_FACTS]
        return ", ".join(["loaded" if value["loaded"] else "not loaded", *facts])
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)
