"""The combinations that the suite runs, and how it runs one.

Every configuration in every dtype on the layouts that conditioners make, and one configuration of
each kernel on every layout in every dtype. Both directions and both reductions always.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conformance import layouts, operations
from tests.conformance.compare import (
    ARITHMETIC,
    CONDITIONING,
    Results,
    assert_within,
    movement,
    run_oracle,
    storage,
    units,
)
from tests.conformance.layouts import Layout
from tests.conformance.operations import Operation
from tests.conformance.poison import poisoned
from tests.conformance.targets import Target, target_params

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
# (dtype of x, dtype of the parameters); float32 with half parameters is what autocast gives.
DTYPES = ((F32, F32), (F64, F64), (BF16, BF16), (F16, F16), (F32, BF16), (F32, F16), (F64, F32))


@dataclass(frozen=True)
class Case:
    operation: Operation
    layout: Layout
    dtypes: tuple[torch.dtype, torch.dtype]

    def __str__(self) -> str:
        x, params = (str(dtype).removeprefix("torch.") for dtype in self.dtypes)
        return f"{self.operation.name}-{self.layout}-{x if x == params else x + '+' + params}"


def _layouts(operation: Operation, usual: bool) -> tuple[Layout, ...]:
    if len(operation.parts) > 1:
        return layouts.USUAL_SEPARATE if usual else layouts.SEPARATE
    return layouts.USUAL_PACKED if usual else layouts.PACKED


def all_cases(grid: str) -> list[Case]:
    """The combinations of a grid.

    "full"; or "thin": float32 on one usual layout, and two of the kernels on every layout; or
    "compiled": that, and the kernels in every dtype and on large tensors.
    """
    representatives = operations.REPRESENTATIVES
    large = [
        Case(operation, layout, DTYPES[0])
        for operation in representatives
        for layout in (
            layouts.LARGE_PACKED if len(operation.parts) == 1 else layouts.LARGE_SEPARATE
        )
    ]
    if grid in ("thin", "compiled"):
        thin = [
            Case(operation, layout, DTYPES[0])
            for operation in operations.ALL
            for layout in _layouts(operation, usual=True)[:1]
        ] + [
            Case(operation, layout, DTYPES[0])
            for operation in representatives[1:4:2]
            for layout in _layouts(operation, usual=False)
        ]
        every_dtype = [
            Case(operation, layout, dtypes)
            for operation in representatives
            for layout in _layouts(operation, usual=True)
            for dtypes in DTYPES
        ]
        return thin if grid == "thin" else list(dict.fromkeys(thin + every_dtype + large))
    every_configuration = [
        Case(operation, layout, dtypes)
        for operation in operations.ALL
        for layout in _layouts(operation, usual=True)
        for dtypes in DTYPES
    ]
    every_layout = [
        Case(operation, layout, dtypes)
        for operation in representatives
        for layout in _layouts(operation, usual=False)
        for dtypes in DTYPES
    ]
    return list(dict.fromkeys(every_configuration + every_layout + large))


def case_params() -> list[Any]:
    """(target, case) for pytest; a target that is missing is one skipped line.

    A case's targets stand together: they share its oracle (:func:`expected`).
    """
    params = []
    by_case: dict[Case, list[Any]] = {}
    for entry in target_params():
        target = entry.values[0]
        skipped = any(mark.name == "skip" for mark in entry.marks)
        cases = all_cases(target.grid)
        for case in cases[:1] if skipped else cases:
            by_case.setdefault(case, []).append(entry)
    for case, entries in by_case.items():
        for entry in entries:
            target = entry.values[0]
            params.append(pytest.param(target, case, id=f"{target}-{case}", marks=entry.marks))
    return params


@dataclass(frozen=True)
class Data:
    """Canonical float64 data of a case, already rounded to its dtypes."""

    x: Tensor  # S
    params: Tensor  # (*S, P), 1 along the layout's shared dimensions
    grad_y: Tensor  # S
    grad_logabsdet: Tensor  # S, or S[:1] where logabsdet is summed


def make_data(case: Case, inverse: bool, reduce: str) -> Data:
    """Random data, the same for every target: seeded by the case's name."""
    operation, shape = case.operation, case.layout.shape
    generator = torch.Generator().manual_seed(operation.seed(str(case), inverse, reduce))
    params = operation.sample_params(shape, generator)
    x = operation.sample_x(params, generator, inverse)
    x, params = case.layout.data(x, params)
    x_dtype, params_dtype = case.dtypes
    summed = shape[: min(1, len(shape))] if reduce == "sum" else shape
    grad_y = torch.randn(shape, generator=generator, dtype=F64)
    grad_logabsdet = torch.randn(summed, generator=generator, dtype=F64)
    if case.layout.one_cotangent:
        grad_y = grad_y.flatten()[0].expand(shape)
        grad_logabsdet = grad_logabsdet.flatten()[0].expand(summed)
    return Data(
        x.to(x_dtype).double(),
        params.to(params_dtype).double(),
        grad_y.to(x_dtype).double(),
        grad_logabsdet.to(F32).double(),
    )


def run_target(target: Target, case: Case, data: Data, inverse: bool, reduce: str) -> Results:
    """The public function and its gradients on a target, outputs poisoned, results on the CPU."""
    x_dtype, params_dtype = case.dtypes
    compute = F64 if F64 in case.dtypes else F32
    operation, layout = case.operation, case.layout

    def ready(tensor: Tensor, dtype: torch.dtype) -> Tensor:
        return tensor.to(target.device, dtype)

    x = layout.lay_x(ready(data.x, x_dtype)).detach().requires_grad_()
    groups = layout.lay_params(ready(data.params, params_dtype), operation.parts)
    groups = tuple(group.detach().requires_grad_() for group in groups)
    grad_y, grad_logabsdet = ready(data.grad_y, x_dtype), ready(data.grad_logabsdet, compute)
    options = {} if layout.param_order == "channel" else {"param_order": layout.param_order}
    with target.chosen(), poisoned(target.device):
        y, logabsdet = operation.call(x, groups, inverse, reduce, **options)
        grad_x, *grad_groups = torch.autograd.grad(
            (y, logabsdet), (x, *groups), (grad_y, grad_logabsdet)
        )
    assert (y.dtype, logabsdet.dtype, grad_x.dtype) == (x_dtype, compute, x_dtype)
    assert all(grad.dtype == params_dtype for grad in grad_groups)
    assert all(grad.shape == group.shape for grad, group in zip(grad_groups, groups, strict=True))
    grad_params = layout.canonical(tuple(grad_groups), operation.parts)
    return Results(*(t.detach().cpu() for t in (y, logabsdet, grad_x, grad_params)))


@dataclass(frozen=True)
class Expected:
    """The oracle's results for a case, and the allowed distance from each."""

    value: Results
    bound: Results


@functools.lru_cache(maxsize=4)  # the directions and reductions of the case that is running
def expected(case: Case, inverse: bool, reduce: str) -> tuple[Data, Expected]:
    """The data of a case, and the expected results."""
    data = make_data(case, inverse, reduce)
    operation, shape = case.operation, case.layout.shape
    params = data.params.expand(*shape, operation.num_params)
    per_element = data.grad_logabsdet
    if reduce == "sum" and len(shape) > 1:
        per_element = per_element.reshape(-1, *(1 for _ in shape[1:])).expand(shape)
    cotangents = (data.grad_y, per_element)
    compute = F64 if F64 in case.dtypes else F32
    eps = torch.finfo(compute).eps
    exact = run_oracle(operation, data.x, params, inverse, cotangents)
    moved = movement(operation, data.x, params, inverse, cotangents, exact, eps)
    size = units(operation, exact, cotangents)

    shared = () if case.layout.expanded else case.layout.shared
    stored = {"y": case.dtypes[0], "grad_x": case.dtypes[0], "grad_params": case.dtypes[1]}
    values, bounds = [], []
    for name, value in exact.items():
        bound = ARITHMETIC[name] * eps * getattr(size, name) + CONDITIONING * getattr(moved, name)
        if name == "logabsdet" and reduce == "sum" and len(shape) > 1:
            dims = tuple(range(1, len(shape)))
            value, bound = value.sum(dim=dims), bound.sum(dim=dims)
        if name == "grad_params" and shared:
            value, bound = (t.sum(dim=shared, keepdim=True) for t in (value, bound))
        values.append(value)
        bounds.append(bound + storage(value, stored.get(name, compute)))
    return data, Expected(Results(*values), Results(*bounds))


def check(target: Target, case: Case, inverse: bool, reduce: str) -> Results:
    """Run a case on a target, compare every result with the oracle, and return them."""
    data, oracle = expected(case, inverse, reduce)
    actual = run_target(target, case, data, inverse, reduce)
    context = f"{target}, {case}, inverse={inverse}, reduce={reduce!r}"
    for name, value in oracle.value.items():
        assert_within(name, getattr(actual, name), value, getattr(oracle.bound, name), context)
    return actual
