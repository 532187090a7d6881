"""The backends and devices under test: one line each.

A suite in a process of its own, with a backend of its own, says so before tests/conftest.py is
imported: :func:`replace_targets`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import robustflow
from robustflow import _backend, _native, ops
from robustflow.ops.registry import Implementation


@dataclass(frozen=True)
class Target:
    """A backend on a device.

    ``grid`` is "full", or "thin" for one that is slow, or that is the oracle itself, or whose
    formulas another entry tests already, or "compiled" for kernels that are compiled as they are
    called. ``isa`` forces the instruction set of the CPU kernels.
    """

    backend: str
    device: str = "cpu"
    grid: str = "full"
    isa: str = ""
    marks: tuple[Any, ...] = ()

    def __str__(self) -> str:
        return f"{self.backend}@{self.device}{':' if self.isa else ''}{self.isa}"

    @property
    def compiled(self) -> bool:
        """Whether each new configuration costs a compilation, which takes a second or so."""
        return self.grid == "compiled"

    @property
    def missing(self) -> str:
        """Why this target cannot run here; empty when it can."""
        if self.device == "cuda" and not torch.cuda.is_available():
            return "torch sees no GPU"
        available = robustflow.backends().get(self.backend, "unknown to robustflow.backends()")
        return "" if available is True else str(available)

    def implementation(self, transform: str) -> Implementation:
        """The operators of a transform, by its name, that serve here."""
        name = _backend._BACKENDS[self.backend].implementation
        return ops.TRANSFORMS[transform].implementations[name]

    @contextmanager
    def chosen(self) -> Iterator[None]:
        """Within it, calls go to this target."""
        with robustflow.use_backend(self.backend):
            if not self.isa:
                yield
                return
            before = robustflow.build_info()["isa"]
            _native.set_isa(self.isa)
            try:
                yield
            finally:
                _native.set_isa(before)


def _other_instruction_sets() -> tuple[Target, ...]:
    """The CPU kernels once more for each instruction set that is not the default here."""
    info = robustflow.build_info()
    others = [isa for isa in info.get("isa_supported", ()) if isa != info["isa"]]
    return tuple(Target("cpu", grid="thin", isa=isa) for isa in others)


GPU = (
    Target("cuda", "cuda", marks=(pytest.mark.gpu,)),
    Target("triton", "cuda", grid="compiled", marks=(pytest.mark.gpu,)),
)
TARGETS = [
    Target("reference", grid="thin"),
    Target("cpu"),
    *_other_instruction_sets(),
    *GPU,
]


def replace_targets(*targets: Target) -> None:
    """Test only these targets in this process; call it before tests/conftest.py is imported."""
    TARGETS[:] = targets


def target_params(
    *, native: bool = False, each_isa: bool = True, host: bool = False, compiled: bool = True
) -> list[Any]:
    """TARGETS as pytest parameters, those that are missing skipped with the reason.

    native leaves the reference out: for properties that only a kernel can have or lack.
    each_isa False takes one a backend and device: where the instruction set makes no difference.
    host takes those on CPU tensors alone: for what only a CPU has, such as threads.
    compiled False leaves those out for which many configurations are many compilations.
    """
    return as_params(
        target
        for target in TARGETS
        if not (native and target.backend == "reference")
        and not (target.isa and not each_isa)
        and not (host and target.device != "cpu")
        and not (target.compiled and not compiled)
    )


def as_params(targets: Iterable[Target]) -> list[Any]:
    """Targets as pytest parameters, those that are missing skipped with the reason."""
    params = []
    for target in targets:
        marks = list(target.marks)
        if target.missing:
            marks.append(pytest.mark.skip(reason=f"backend {target}: {target.missing}"))
        params.append(pytest.param(target, id=str(target), marks=marks))
    return params
