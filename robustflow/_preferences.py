"""Measured preferences: which of the CUDA and the Triton kernels serves a call on a GPU.

They are data, `preferences.json` beside this file, which `python -m benchmarks.gpu` can write. Each
rule names a kind of call, the backend that was faster there, and the measurement that says so::

    {
      "transform": "modified_rq",        modified_rq, rq or affine
      "direction": "forward",            forward or inverse
      "training": false,                 whether a gradient is wanted
      "dtype": "float32",                of the parameters, which are most of the bytes
      "layout": "planar",                rows: the parameters of an element are adjacent in memory
      "min_elements": 0,                 sizes of x, both included; null: without an end
      "max_elements": null,
      "backend": "triton",
      "measured": {"card": "...", "elements": 67108864, "cuda_us": 2.0, "triton_us": 1.0}
    }

with ``training`` the times are those of forward and backward together, by one backend.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustflow import _transforms
from robustflow._files import write_atomically

FILE = Path(__file__).with_name("preferences.json")
SCHEMA = 1
_IMPLEMENTATIONS = {"cuda": "native", "triton": "triton"}  # as the transforms name them
_CHOICES: dict[str, tuple[Any, ...]] = {
    "transform": tuple(spec.name for spec in _transforms.ALL),
    "direction": ("forward", "inverse"),
    "training": (False, True),
    "dtype": ("float64", "float32", "bfloat16", "float16"),
    "layout": ("planar", "rows"),
    "backend": tuple(_IMPLEMENTATIONS),
}
_MEASURED: dict[str, tuple[type, ...]] = {
    "card": (str,),
    "elements": (int,),
    "cuda_us": (int, float),
    "triton_us": (int, float),
}
_LARGEST = 2**63 - 1

# (transform, inverse, training, dtype, rows)
Key = tuple[str, bool, bool, torch.dtype, bool]
# (fewest elements, most elements, implementation)
Range = tuple[int, int, str]


def preferred(transform: str, x: Tensor, params: Tensor, inverse: bool) -> str | None:
    """The implementation that was measured to be the faster for such a call; None: not measured.

    A compiled function takes what is faster for large tensors: a question about the size would
    tie it to the sizes that it was traced with.
    """
    training = torch.is_grad_enabled() and (x.requires_grad or params.requires_grad)
    key = (transform, inverse, training, params.dtype, params.stride(-1) == 1)
    size = _LARGEST if torch.compiler.is_compiling() else x.numel()
    for fewest, most, implementation in _table.get(key, ()):
        if fewest <= size <= most:
            return implementation
    return None


def read_rules(file: Path = FILE) -> list[dict[str, Any]]:
    """The rules of a file, checked.

    Raises:
        ValueError: the file does not hold rules as they stand above; the message says where.
    """
    content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise ValueError(
            f"{file.name} must be an object with schema {SCHEMA}: write it again with "
            "`python -m benchmarks.gpu`."
        )
    rules: list[dict[str, Any]] = content["rules"]
    check_rules(rules)
    return rules


def write_rules(rules: list[dict[str, Any]], file: Path = FILE) -> None:
    """Write rules to a file that :func:`read_rules` reads; ValueError where they are not valid."""
    check_rules(rules)
    content = {"schema": SCHEMA, "rules": rules}
    write_atomically(file, json.dumps(content, indent=2) + "\n")


def check_rules(rules: Iterable[dict[str, Any]]) -> None:
    """Raise ValueError for a rule with a wrong field, or two for the same call."""
    for number, rule in enumerate(rules):
        for name, problem in _problems(rule):
            raise ValueError(f"rule {number} of the preferences: {name} {problem}.")
    for key, ranges in make_table(rules).items():
        for (_, most, _), (fewest, _, _) in itertools.pairwise(ranges):
            if fewest <= most:
                raise ValueError(
                    f"two rules of the preferences hold for {fewest} elements of {key}: "
                    "each call must have at most one."
                )


def make_table(rules: Iterable[dict[str, Any]]) -> dict[Key, tuple[Range, ...]]:
    """Rules by the call that they are about, for a lookup; the smallest sizes first."""
    table: dict[Key, list[Range]] = {}
    for rule in rules:
        key = (
            rule["transform"],
            rule["direction"] == "inverse",
            rule["training"],
            getattr(torch, rule["dtype"]),
            rule["layout"] == "rows",
        )
        most = rule["max_elements"]
        implementation = _IMPLEMENTATIONS[rule["backend"]]
        table.setdefault(key, []).append(
            (rule["min_elements"], _LARGEST if most is None else most, implementation)
        )
    return {key: tuple(sorted(ranges)) for key, ranges in table.items()}


def _problems(rule: dict[str, Any]) -> Iterable[tuple[str, str]]:
    """(field, what is wrong with it) for each field that is wrong."""
    for name in {*_CHOICES, "min_elements", "max_elements", "measured"} ^ set(rule):
        yield name, "is missing" if name not in rule else "is unknown"
        return
    for name, choices in _CHOICES.items():
        if rule[name] not in choices:
            yield name, f"must be one of {choices}, got {rule[name]!r}"
    fewest, most = rule["min_elements"], rule["max_elements"]
    if not isinstance(fewest, int) or fewest < 0:
        yield "min_elements", f"must be a whole number from 0, got {fewest!r}"
    elif most is not None and not (isinstance(most, int) and most >= fewest):
        yield "max_elements", f"must be null or a whole number from min_elements, got {most!r}"
    measured = rule["measured"]
    if set(measured) != set(_MEASURED) or not all(
        isinstance(measured[name], kind) for name, kind in _MEASURED.items()
    ):
        yield "measured", f"must hold {', '.join(_MEASURED)}, got {measured!r}"
        return
    slower = "cuda" if rule["backend"] == "triton" else "triton"
    if measured[f"{rule['backend']}_us"] > measured[f"{slower}_us"]:
        yield "backend", f"is {rule['backend']!r}, but {slower} was measured faster"


_table = make_table(read_rules())
