"""The backend "emulated", in a process with AddressSanitizer (tests.backends.emulated.process).

A plugin of that process' pytest: it is the only target there, for the contract's tests too.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from robustflow._backend import add_backend
from robustflow.ops import TRANSFORMS
from tests.backends.emulated.process import KERNELS_VARIABLE, LIBRARY_VARIABLE
from tests.conformance.targets import Target, replace_targets

NAMESPACE = "robustflow_emulated"
_DEFINITIONS = torch.library.Library(NAMESPACE, "DEF")

# (order of blocks and threads, seed): a missing barrier shows in one of them.
FORWARD = (0, 0)
OTHER_ORDERS = {"reverse": (1, 0), "shuffled": (2, 1)}


def _load() -> ctypes.CDLL:
    path = os.environ[LIBRARY_VARIABLE]
    for transform in TRANSFORMS.values():
        operators = transform.define(_DEFINITIONS, transform.name)
        transform.add_implementation("emulated", *operators)
    add_backend("emulated", "emulated", ("cpu",))
    torch.ops.load_library(path)
    library = ctypes.CDLL(path)
    library.robustflow_emulated_order.argtypes = [ctypes.c_int, ctypes.c_uint64]
    library.robustflow_emulated_order.restype = None
    library.robustflow_emulated_largest_launch.argtypes = [ctypes.c_int64]
    library.robustflow_emulated_largest_launch.restype = ctypes.c_int64
    library.robustflow_emulated_launches.restype = ctypes.c_int64
    library.robustflow_emulated_kernels.restype = ctypes.c_char_p
    return library


_library = _load()
TARGET = Target("emulated")
replace_targets(TARGET)


@contextmanager
def order(kind: int, seed: int) -> Iterator[None]:
    """Within it, blocks and threads are taken in another order than forward."""
    _library.robustflow_emulated_order(kind, seed)
    try:
        yield
    finally:
        _library.robustflow_emulated_order(*FORWARD)


@contextmanager
def largest_launch(elements: int) -> Iterator[None]:
    """Within it, tensors with more elements take several launches, as beyond 2^31 on a GPU."""
    before = _library.robustflow_emulated_largest_launch(elements)
    try:
        yield
    finally:
        _library.robustflow_emulated_largest_launch(before)


def launches() -> int:
    """How many kernels have been launched so far."""
    return int(_library.robustflow_emulated_launches())


def pytest_sessionfinish() -> None:
    """Leave the symbols of the kernels that have been launched, where they are wanted."""
    if path := os.environ.get(KERNELS_VARIABLE):
        Path(path).write_bytes(_library.robustflow_emulated_kernels())
