"""`robustflow doctor`: what is installed, what is in use, and what is wrong with it."""

from __future__ import annotations

import argparse
import json
import os
import platform
import warnings
from importlib.metadata import version
from typing import Any

HELP = "say what is installed, built and in use, and what is wrong with it"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `doctor` to the command line."""
    parser = subparsers.add_parser(
        "doctor", help=HELP, description=f"{HELP}. Exit code 0: nothing is wrong."
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object instead")


def run(args: argparse.Namespace) -> int:
    """Print the diagnosis; 0 where nothing is wrong, else 1."""
    diagnosis = diagnose()
    print(json.dumps(diagnosis, indent=2) if args.json else render(diagnosis))
    return 0 if diagnosis["healthy"] else 1


def diagnose() -> dict[str, Any]:
    """Everything `robustflow doctor` tells.

    Returns:
        A JSON-ready dictionary: ``versions``, ``native`` (:func:`robustflow.build_info`),
        ``backends`` (:func:`robustflow.backends`), ``threads``, ``memory``, ``problems``
        (sentences) and ``healthy`` (there are none).
    """
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it would warn of stands in the report
        native, backends, problems = _native_report()
    return {
        "versions": {
            "robustflow": version("robustflow"),
            "torch": torch.__version__,
            "CUDA of torch": torch.version.cuda or "none",
            "Python": platform.python_version(),
            "system": platform.platform(),
        },
        "native": native,
        "backends": backends,
        "threads": {
            "torch": torch.get_num_threads(),
            "cores": os.cpu_count(),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "not set"),
        },
        "memory": _memory_report(),
        "problems": problems,
        "healthy": not problems,
    }


def _native_report() -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """The build facts, the backends, and what is wrong with them."""
    try:
        import robustflow

        native, backends = robustflow.build_info(), robustflow.backends()
    except (ImportError, RuntimeError, ValueError) as error:  # a variable ROBUSTFLOW_... is wrong
        return {"loaded": False}, {}, [str(error)]
    return native, backends, _self_test() if native["loaded"] else [native["reason"]]


def _self_test() -> list[str]:
    """Do the kernels that were built give what the reference gives?"""
    import torch

    import robustflow
    from robustflow import functional

    x = torch.linspace(-0.6, 0.6, 193).reshape(1, 1, -1)
    params = torch.stack([torch.cos(k * x[0, 0]) for k in (3, 5, 7, 11)]).unsqueeze(0)
    results = []
    try:
        for backend in ("cpu", "reference"):
            with robustflow.use_backend(backend):
                results.append(torch.cat(functional.modified_rq_spline(x, params, reduce="none")))
    except Exception as error:  # whatever it is belongs into the report
        what = f"raise {type(error).__name__} ({str(error).splitlines()[0]})"
    else:
        native, reference = results
        if torch.allclose(native, reference, rtol=1e-4, atol=1e-5):
            return []
        what = "disagree with the reference"
    return [
        f"The native kernels {what} on this machine: please report `robustflow doctor --json`; "
        "until then robustflow.use_backend('reference') gives right results."
    ]


def _memory_report() -> dict[str, str]:
    from robustflow.memory import allocator

    name = allocator()
    if name != "glibc":
        return {"allocator": name, "advice": "none"}
    return {
        "allocator": name,
        "advice": (
            "glibc maps large tensors afresh each time, which can cost more than the transform: "
            "call robustflow.retain_memory() at the start of a program, or run it under tcmalloc "
            "or jemalloc"
        ),
    }


def render(diagnosis: dict[str, Any]) -> str:
    """The diagnosis as lines for people."""
    lines = []
    for title, section in diagnosis.items():
        if not isinstance(section, dict):
            continue
        lines.append(title)
        for name, value in section.items():
            if name != "reason":  # it is a problem, below
                lines.append(f"  {name:<18} {_text(value)}")
    lines += [f"problem: {problem}" for problem in diagnosis["problems"]]
    return "\n".join([*lines, "healthy" if diagnosis["healthy"] else "not healthy"])


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(value)
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)
