"""The backends and devices under test: one line each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import robustflow
from robustflow import _native


@dataclass(frozen=True)
class Target:
    """A backend on a device.

    ``grid`` is "full", or "thin" for one that is slow, or that is the oracle itself, or whose
    formulas another entry tests already. ``isa`` forces the instruction set of the CPU kernels.
    """

    backend: str
    device: str = "cpu"
    grid: str = "full"
    isa: str = ""
    marks: tuple[Any, ...] = ()

    def __str__(self) -> str:
        return f"{self.backend}@{self.device}{':' if self.isa else ''}{self.isa}"

    @property
    def missing(self) -> str:
        """Why this target cannot run here; empty when it can."""
        if self.device == "cuda" and not torch.cuda.is_available():
            return "torch sees no GPU"
        available = robustflow.backends().get(self.backend, "unknown to robustflow.backends()")
        return "" if available is True else str(available)

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


TARGETS = (
    Target("reference", grid="thin"),
    Target("cpu"),
    *_other_instruction_sets(),
)


def target_params(*, native: bool = False, each_isa: bool = True) -> list[Any]:
    """TARGETS as pytest parameters, those that are missing skipped with the reason.

    native leaves the reference out: for properties that only a kernel can have or lack.
    each_isa False takes one a backend and device: where the instruction set makes no difference.
    """
    params = []
    for target in TARGETS:
        if (native and target.backend == "reference") or (target.isa and not each_isa):
            continue
        marks = list(target.marks)
        if target.missing:
            marks.append(pytest.mark.skip(reason=f"backend {target}: {target.missing}"))
        params.append(pytest.param(target, id=str(target), marks=marks))
    return params
