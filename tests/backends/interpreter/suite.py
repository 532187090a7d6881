"""What the interpreting process runs: the kernels against the oracle, float32, small tensors.

Formulas do not depend on the layout, and the plan does not depend on the formula. So every
configuration runs on one layout, in planes or in rows, and every layout with the operations that
have few parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch

from robustflow import reference
from robustflow._transforms import MODIFIED_RQ, SCALES
from robustflow.kernels import functions, launchers, plan
from tests.backends.interpreter.backend import TARGET
from tests.conformance import cases, layouts, operations
from tests.conformance.cases import DTYPES, F32, F64, Case
from tests.conformance.layouts import Layout
from tests.conformance.operations import RQ, Affine, CubicBspline, ModifiedRQ, Operation

modified_rq, modified_rq_backward = functions(MODIFIED_RQ)

# One program each, some of whose lanes are idle.
_PLANES = Layout("small_planes", (2, 2, 3, 5))
_ROWS = Layout("small_rows", (11, 3))
# float64 where a number that is no float32 would show.
_WIDE = (
    ModifiedRQ("softclip", (-3.0, 3.0)),
    CubicBspline(),
    RQ(5),
    RQ(3, "circular", "softclip"),
    Affine("sigmoid"),
)


def _configurations() -> Iterator[Case]:
    for number, operation in enumerate(operations.ALL):
        packed = len(operation.parts) == 1
        yield Case(operation, _PLANES if packed and number % 2 == 0 else _ROWS, DTYPES[0])
    for wide in _WIDE:
        yield Case(wide, _PLANES, (F64, F64))
    yield Case(RQ(5), _ROWS, (F64, F32))


@pytest.mark.parametrize("case", list(_configurations()), ids=str)
def test_configuration(case: Case) -> None:
    """Forward with sums and inverse without, so that each half has both reductions somewhere."""
    cases.check(TARGET, case, False, "sum")
    cases.check(TARGET, case, True, "none")


def _layouts() -> Iterator[tuple[Case, bool, str]]:
    """Each layout with a direction and a reduction; two operations make it both of each."""
    for layout in layouts.PACKED:
        yield Case(ModifiedRQ(), layout, DTYPES[0]), False, "none"
        yield Case(Affine("exp"), layout, DTYPES[0]), True, "sum"
    for layout in layouts.SEPARATE:
        yield Case(RQ(2, separate=True), layout, DTYPES[0]), False, "sum"
    for name in ("rows", "params_last", "shared_by_space"):
        layout = next(layout for layout in layouts.PACKED if layout.name == name)
        yield Case(RQ(3), layout, DTYPES[0]), True, "sum"


@pytest.mark.parametrize(("case", "inverse", "reduce"), list(_layouts()), ids=str)
def test_layout(case: Case, inverse: bool, reduce: str) -> None:
    cases.check(TARGET, case, inverse, reduce)


@pytest.mark.parametrize("name", ["planar", "rows", "shared_by_row"])
def test_layout_of_many_tiles(name: str) -> None:
    """Small tiles, many to a program, and several programs to a sum."""
    layout = next(layout for layout in layouts.PACKED if layout.name == name)
    with (
        mock.patch.dict(launchers.LAUNCHES, affine=replace(launchers.LAUNCHES["affine"], block=64)),
        mock.patch.multiple(plan, CHUNKS=3, MAX_TILES=4, PROGRAMS=20),
    ):
        cases.check(TARGET, Case(Affine("exp"), layout, DTYPES[0]), False, "sum")


@pytest.mark.parametrize("shared", [(0,), (2, 3), (0, 2, 3)], ids=str)
@pytest.mark.parametrize("operation", [ModifiedRQ(), RQ(3)], ids=lambda op: op.name)
def test_sum_of_many_tiles(operation: Operation, shared: tuple[int, ...]) -> None:
    """Gradients of shared parameters."""
    layout = Layout(f"shared{shared}", (4, 2, 5, 9), shared=shared)
    with mock.patch.multiple(plan, CHUNKS=1, PROGRAMS=3):
        cases.check(TARGET, Case(operation, layout, DTYPES[0]), False, "sum")


def test_sum_again_has_the_same_bits() -> None:
    x, params = torch.randn(3, 700), torch.randn(3, 700, 4)
    config: Any = (False, -3.0, 3.0, 1e-3, 1e-3, False, 1)
    _, once = modified_rq(x, params, *config)
    _, again = modified_rq(x, params, *config)
    assert torch.equal(once, again)
    # Nor does a sample's sum depend on the samples beside it.
    _, alone = modified_rq(x[1:2], params[1:2], *config)
    assert torch.equal(alone, once[1:2])


def _every_other(tensor: torch.Tensor) -> torch.Tensor:
    """The same values where no two dimensions merge."""
    larger = torch.full([2 * size + 1 for size in tensor.shape], float("nan"))
    return larger[tuple(slice(0, 2 * size, 2) for size in tensor.shape)].copy_(tensor)


@pytest.mark.parametrize("batch_dims", [0, 1, 6])
@pytest.mark.parametrize("shared", [(), (0, 3)], ids=str)
def test_more_dimensions_than_arguments(shared: tuple[int, ...], batch_dims: int) -> None:
    shape = (2, 3, 2, 2, 3, 2)
    sizes = [1 if d in shared else size for d, size in enumerate(shape)]
    x = _every_other(torch.rand(shape) - 0.5)
    params = _every_other(torch.randn(*sizes, 4))
    config: Any = (False, -0.5, 0.5, 1e-3, 1e-3, False, batch_dims)
    y, logabsdet = modified_rq(x, params, *config)
    wide = x.double().requires_grad_(), params.double().requires_grad_()
    expected = reference.modified_rq(*wide, *MODIFIED_RQ.with_choice_names(config))
    torch.testing.assert_close(y.double(), expected[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(logabsdet.double(), expected[1], rtol=1e-5, atol=1e-5)
    backward: Any = (None, torch.ones_like(logabsdet), x, params, *config, 3)
    grads = modified_rq_backward(*backward)
    for grad, exact in zip(grads, torch.autograd.grad(expected[1].sum(), wide), strict=True):
        torch.testing.assert_close(grad.double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dims", [1, 16])
def test_dimensions_of_size_one(dims: int) -> None:
    x, params = torch.tensor([0.25]), torch.randn(1, 4)
    config = (False, -0.5, 0.5, 1e-3, 1e-3, False)
    shape = (1,) * dims
    plain: Any = (x, params, *config, 1)
    wrapped: Any = (x.reshape(shape), params.reshape(*shape, 4), *config, dims)
    y, logabsdet = modified_rq(*plain)
    actual = modified_rq(*wrapped)
    assert torch.equal(actual[0].flatten(), y) and torch.equal(actual[1].flatten(), logabsdet)


@pytest.mark.parametrize("tails", [None, "linear", "circular"])
def test_bins_beyond_registers(tails: str | None) -> None:
    """Logits from memory and from registers: the same spline, the same gradients, also shared."""
    operation = RQ(4, tails, "softmax", separate=True)
    with mock.patch("robustflow.kernels.launchers.MAX_BINS_IN_REGISTERS", 3):
        for layout in (_ROWS, replace(_ROWS, name="shared", shared=(0,))):
            cases.check(TARGET, Case(operation, layout, DTYPES[0]), False, "sum")
            cases.check(TARGET, Case(operation, layout, DTYPES[0]), True, "none")


_SPECIAL = (float("nan"), float("inf"), -float("inf"), 3e38, -3e38, 1e30, -1e30, 0.5, -0.5)


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize(
    "operation",
    [ModifiedRQ(), CubicBspline(), RQ(3), RQ(3, "circular", "softclip"), Affine("tanh_exp")],
    ids=lambda op: op.name,
)
def test_nonfinite_x_stays_in_its_element(operation: Operation, inverse: bool) -> None:
    """Forward and backward; an infinite x passes through the tails, with their gradients."""
    generator = torch.Generator().manual_seed(0)
    params = operation.sample_params((40,), generator).float()
    x = operation.sample_x(params.double(), generator, inverse).float()
    special = x.clone()
    special[: len(_SPECIAL)] = torch.tensor(_SPECIAL)
    results = []
    for values in (x, special):
        inputs = values.clone().requires_grad_(), params.clone().requires_grad_()
        with TARGET.chosen():
            y, logabsdet = _call(operation, *inputs, inverse)
            grads = torch.autograd.grad(y[9:].sum() + logabsdet.sum() + y[:3].sum(), inputs)
        results.append((y.detach(), logabsdet.detach(), *grads))
    for clean, other in zip(*results, strict=True):
        assert torch.equal(clean[len(_SPECIAL) :], other[len(_SPECIAL) :])
    y, logabsdet, grad_x, grad_params = results[1]
    assert bool(y[0].isnan()) and bool(logabsdet[0].isnan())
    assert bool(logabsdet[1:].isfinite().all())
    assert bool(grad_x[1:].isfinite().all())
    if not isinstance(operation, Affine):
        assert torch.equal(y[1:3], special[1:3])
        assert bool((logabsdet[1:3] == 0).all()) and bool((grad_x[1:3] == 1).all())
        assert bool(grad_params[1:].isfinite().all())


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize(
    "operation",
    [
        *(ModifiedRQ(), ModifiedRQ("softclip", (-3.0, 3.0)), CubicBspline()),
        *(RQ(3, None), RQ(3, "circular", "softclip")),
        *(Affine(scale) for scale in SCALES),
        *(Affine(scale, reciprocal=True) for scale in SCALES),
    ],
    ids=lambda op: op.name,
)  # fmt: skip
def test_huge_parameters_give_finite_results(operation: Operation, inverse: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    shape = (100, operation.num_params)
    sizes = torch.tensor([0.0, 1.0, 30.0, 1e3, 1e20, 3e38])
    params = sizes[torch.randint(0, 6, shape, generator=generator)]
    params *= torch.randn(shape, generator=generator).sign()
    if isinstance(operation, (CubicBspline, ModifiedRQ)):  # shifts are added to x
        params[:, -1].clamp_(-1e30, 1e30)
    if isinstance(operation, Affine):  # or multiplied by e^40
        params[:, 0].clamp_(-1e20, 1e20)
    x = (torch.rand(100, generator=generator) - 0.5) * 2 * min(abs(e) for e in operation.box)
    inputs = x.requires_grad_(), params.requires_grad_()
    with TARGET.chosen():
        y, logabsdet = _call(operation, *inputs, inverse)
        grads = torch.autograd.grad(y.sum() + logabsdet.sum(), inputs)
    for tensor in (y, logabsdet, *grads):
        assert bool(tensor.isfinite().all())


def _call(
    operation: Operation, x: torch.Tensor, params: torch.Tensor, inverse: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """x (N,) and canonical params (N, P), as one channel of N samples."""
    y, logabsdet = operation.call(x[:, None], (params,), inverse, "none")
    return y[:, 0], logabsdet[:, 0]
