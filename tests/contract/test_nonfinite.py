"""Contract: non-finite data never raises nor spreads; huge raw parameters give finite results."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from robustflow._transforms import SCALES
from tests.conformance import operations
from tests.conformance.layouts import Layout
from tests.conformance.operations import RQ, Affine, CubicBspline, ModifiedRQ, Operation
from tests.conformance.samples import Sample, sample
from tests.conformance.targets import Target

NAN, INF = math.nan, math.inf
SPLINES: tuple[Operation, ...] = (
    ModifiedRQ("exp"),
    ModifiedRQ("softclip", interval=(-3.0, 3.0)),
    CubicBspline(),
    CubicBspline((-3.0, 3.0), min_bin=1e-3),
    *(RQ(8, tails, kind) for tails in ("linear", "circular") for kind in ("softmax", "softclip")),
    RQ(5, "linear", "softmax"),
    RQ(8, "linear", "softmax", separate=True),
    RQ(8, None, "softmax"),
)
WITH_SHIFT = (ModifiedRQ, CubicBspline)  # their last parameter
AFFINES = tuple(
    Affine(scale, shift_first, reciprocal)
    for scale in SCALES
    for shift_first in (True, False)
    for reciprocal in (True, False)
)
TAILED = tuple(op for op in SPLINES if not (isinstance(op, RQ) and op.tails is None))
both_directions = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])


def _same(actual: Tensor, expected: Tensor) -> Tensor:
    return (actual == expected) | (actual.isnan() & expected.isnan())


def _with(base: Sample, x: Tensor | None = None, params: Tensor | None = None) -> Sample:
    """``base`` with other values; params canonical."""
    groups = base.groups
    if params is not None:
        laid = base.layout.lay_params(params, base.operation.parts)
        groups = tuple(group.detach() for group in laid)
    return Sample(base.operation, base.layout, base.x if x is None else x, groups)


def _flat_inside(base: Sample) -> list[int]:
    """A few flat indices of elements well inside the box of a forward call, spread out."""
    low, high = base.operation.box
    inside = ((base.x > low + 0.1) & (base.x < high - 0.1)).flatten().nonzero().flatten()
    return inside[:: max(1, inside.numel() // 7)][:7].tolist()


@both_directions
@pytest.mark.parametrize("operation", (*SPLINES, Affine("sigmoid")), ids=lambda op: op.name)
def test_nan_in_x_stays_in_its_element(target: Target, operation: Operation, inverse: bool) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        base = sample(operation, target, dtype=dtype, inverse=inverse)
        expected = base.gradients(inverse)
        hit = torch.zeros(base.x.shape, dtype=torch.bool, device=base.x.device)
        hit.view(-1)[_flat_inside(base)] = True
        poisoned = _with(base, x=base.x.detach().masked_fill(hit, NAN))
        actual = poisoned.gradients(inverse)
        assert bool(actual[0][hit].isnan().all()) and bool(actual[1][hit].isnan().all())
        for one, other in zip(actual[:3], expected[:3], strict=True):
            assert bool(_same(one, other)[~hit].all())
        layout, parts = base.layout, operation.parts
        grads = (layout.canonical(tuple(g[3:]), parts) for g in (actual, expected))
        assert bool(_same(*grads)[~hit].all())


@both_directions
@pytest.mark.parametrize("operation", (*SPLINES, Affine("sigmoid")), ids=lambda op: op.name)
def test_nan_in_a_parameter_stays_in_its_element(
    target: Target, operation: Operation, inverse: bool
) -> None:
    """Whichever parameter it is in, other elements keep their bits."""
    base = sample(operation, target, inverse=inverse)
    expected = base.gradients(inverse)
    places = _flat_inside(base)
    hit = torch.zeros(base.x.shape, dtype=torch.bool, device=base.x.device)
    hit.view(-1)[places] = True
    canonical = base.canonical().clone()
    flat = canonical.reshape(-1, operation.num_params)
    for number, place in enumerate(places):
        flat[place, number % operation.num_params] = NAN
    poisoned = _with(base, params=flat.reshape(canonical.shape))
    actual = poisoned.gradients(inverse)
    for one, other in zip(actual[:3], expected[:3], strict=True):
        assert bool(_same(one, other)[~hit].all())
    layout, parts = base.layout, operation.parts
    grads = [layout.canonical(tuple(g[3:]), parts) for g in (actual, expected)]
    assert bool(_same(*grads)[~hit].all())


@pytest.mark.parametrize("operation", SPLINES, ids=lambda op: op.name)
def test_nan_in_size_logits_shows(target: Target, operation: Operation) -> None:
    """Every bin's place depends on every size logit, so an inside element has a NaN result."""
    base = sample(operation, target)
    places = _flat_inside(base)
    canonical = base.canonical().clone()
    flat = canonical.reshape(-1, operation.num_params)
    flat[places, 0] = NAN
    y, logabsdet = _with(base, params=flat.reshape(canonical.shape)).call()
    assert bool(y.flatten()[places].isnan().all())
    assert bool(logabsdet.flatten()[places].isnan().all())


@pytest.mark.parametrize("reduce", ["none", "sum"])
@pytest.mark.parametrize("operation", TAILED, ids=lambda op: op.name)
def test_infinite_x_passes_through_the_tails(
    target: Target, operation: Operation, reduce: str
) -> None:
    for inverse in (False, True):
        base = sample(operation, target, inverse=inverse)
        x = base.x.clone()
        x.view(-1)[::2] = INF
        x.view(-1)[1::2] = -INF
        y, logabsdet, grad_x, *_ = _with(base, x=x).gradients(inverse, reduce)
        assert torch.equal(y, x)
        assert bool((logabsdet == 0.0).all())
        assert bool(grad_x.isfinite().all())


@pytest.mark.parametrize("reduce", ["none", "sum"])
@pytest.mark.parametrize("operation", operations.REPRESENTATIVES, ids=lambda op: op.name)
def test_sums_carry_nan_of_their_own_sample_only(
    target: Target, operation: Operation, reduce: str
) -> None:
    base = sample(operation, target)
    place = _flat_inside(base)[0]
    x = base.x.clone()
    x.view(-1)[place] = NAN
    _, logabsdet = _with(base, x=x).call(False, reduce)
    row = torch.zeros(base.x.shape, dtype=torch.bool)
    row.view(-1)[place] = True
    if reduce == "sum":
        row = row.flatten(1).any(dim=1)
    assert torch.equal(logabsdet.isnan().cpu(), row)


def _extremes(count: int, num_params: int, size: float, dtype: torch.dtype) -> Tensor:
    """Rows of raw parameters of +-size, 0 and ordinary numbers, in every mixture."""
    generator = torch.Generator().manual_seed(count)
    signs = torch.randint(0, 4, (count, num_params), generator=generator)
    ordinary = torch.randn(count, num_params, generator=generator, dtype=torch.float64)
    values = torch.where(signs == 0, -size, torch.where(signs == 1, size, ordinary))
    values[0], values[1], values[2] = size, -size, 0.0
    return values.to(dtype)


def _largest(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).max


def _assert_finite(results: tuple[Tensor, ...], what: str) -> None:
    names = ["y", "logabsdet", "grad_x", *(f"gradient of group {i}" for i in range(len(results)))]
    for name, value in zip(names, results, strict=False):
        bad = int((~value.isfinite()).sum())
        assert bad == 0, f"{name}: {bad} of {value.numel()} are not finite, {what}"


@both_directions
@pytest.mark.parametrize("size", [1e4, 1e38, "largest"], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("operation", SPLINES, ids=lambda op: op.name)
def test_huge_raw_parameters_of_splines(
    target: Target, operation: Operation, dtype: torch.dtype, size: float | str, inverse: bool
) -> None:
    """Finite y, logabsdet and gradients, for inputs up to 1e30 and cotangents up to 1e6."""
    magnitude = _largest(dtype) if isinstance(size, str) else size
    count = 4096
    params = _extremes(count, operation.num_params, magnitude, dtype)
    if isinstance(operation, WITH_SHIFT):  # the shift is added to y: 1e30 is promised, not 1e38
        params[:, -1] = params[:, -1].clamp(-1e30, 1e30)
    layout = Layout("line", (count,), params_last=True)
    low, high = operation.box
    generator = torch.Generator().manual_seed(7)
    x = low + (high - low) * torch.rand(count, generator=generator, dtype=torch.float64)
    if isinstance(operation, WITH_SHIFT) and inverse:
        x = x + params[:, -1].double()
    if not (isinstance(operation, RQ) and operation.tails is None):
        x[::16] = 1e30
        x[1::16] = -1e30
        x[2::16] = low
        x[3::16] = high
    x = x.to(target.device, dtype)
    groups = layout.lay_params(params.to(target.device), operation.parts)
    call = Sample(operation, layout, x, tuple(g.detach() for g in groups)).requires_grad_()
    y, logabsdet = call.call(inverse)
    for scale in (1.0, 1e6):
        signs = torch.randint(0, 2, (2, count), generator=generator).to(y.device) * 2 - 1
        cotangents = (signs[0] * scale).to(y.dtype), (signs[1] * scale).to(logabsdet.dtype)
        grads = torch.autograd.grad((y, logabsdet), call.tensors, cotangents, retain_graph=True)
        results = (y.detach(), logabsdet.detach(), *grads)
        _assert_finite(results, f"cotangents of {scale:g}")


@both_directions
@pytest.mark.parametrize("size", [1e4, 1e38, "largest"], ids=str)
@pytest.mark.parametrize("operation", AFFINES, ids=lambda op: op.name)
def test_huge_scale_logits_of_affine(
    target: Target, operation: Operation, size: float | str, inverse: bool
) -> None:
    """Scales reach 2.4e17 (and 1.2e18): inputs and shifts to 1e3 keep every product in float32."""
    magnitude = _largest(torch.float32) if isinstance(size, str) else size
    count = 512
    params = _extremes(count, 2, magnitude, torch.float32)
    params[:, 0] = params[:, 0].clamp(-1e3, 1e3)
    layout = Layout("line", (count,), params_last=True)
    x = torch.linspace(-1e3, 1e3, count, device=target.device)
    call = Sample(operation, layout, x, (params.to(target.device),))
    _assert_finite(call.gradients(inverse), operation.name)


@pytest.mark.parametrize("scale", sorted(SCALES))
def test_affine_carries_large_inputs(target: Target, scale: str) -> None:
    """At ordinary scales |x| and |shift| may be 1e30."""
    operation = Affine(scale)
    x = torch.tensor([1e30, -1e30, 1e30, 0.0], device=target.device)
    params = torch.tensor([[1e30, 0.5], [1e30, -0.5], [-1e30, 2.0], [1e30, -2.0]])
    layout = Layout("line", (4,), params_last=True)
    call = Sample(operation, layout, x, (params.to(target.device),))
    for inverse in (False, True):
        _assert_finite(call.gradients(inverse), f"{scale}, inverse={inverse}")


@pytest.mark.parametrize("operation", TAILED, ids=lambda op: op.name)
def test_nothing_inside_the_box_leaves_it(target: Target, operation: Operation) -> None:
    """With huge parameters too, an inside element's y stays within the box (plus the shift)."""
    count = 4096
    params = _extremes(count, operation.num_params, 1e38, torch.float32)
    if isinstance(operation, WITH_SHIFT):
        params[:, -1] = 0.0
    layout = Layout("line", (count,), params_last=True)
    low, high = operation.box
    x = torch.linspace(low, high, count, device=target.device)
    groups = layout.lay_params(params.to(target.device), operation.parts)
    call = Sample(operation, layout, x, tuple(g.detach() for g in groups))
    for inverse in (False, True):
        y, _ = call.call(inverse)
        assert low <= float(y.min()) and float(y.max()) <= high


@pytest.mark.parametrize("operation", TAILED, ids=lambda op: op.name)
def test_nan_bits_of_every_kind(target: Target, operation: Operation) -> None:
    """Signalling, negative and payload-carrying NaNs are NaN too."""
    patterns = torch.tensor([0x7FC00000, 0x7F800001, 0x7FFFFFFF, -1, -0x7FFFFF], dtype=torch.int32)
    layout = Layout("line", (patterns.numel(),), params_last=True)
    groups = layout.lay_params(torch.zeros(patterns.numel(), operation.num_params), operation.parts)
    x = patterns.view(torch.float32).to(target.device)
    assert bool(x.isnan().all())
    call = Sample(operation, layout, x, tuple(group.to(target.device) for group in groups))
    for inverse in (False, True):
        y, logabsdet = call.call(inverse)
        assert bool(y.isnan().all()) and bool(logabsdet.isnan().all())
