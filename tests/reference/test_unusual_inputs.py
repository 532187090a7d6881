"""What the reference does with what is not ordinary: non-finite data, huge parameters, dtypes."""

from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import torch
from torch import Tensor

from robustflow._transforms import SCALES, count_derivatives
from tests.reference.calls import Call, affine, calls, modified_rq, rq

INF, NAN = math.inf, math.nan


def gradients(
    outputs: tuple[Tensor, Tensor], leaves: list[Tensor], size: float = 1.0
) -> list[Tensor]:
    return list(torch.autograd.grad(outputs, leaves, [torch.full_like(o, size) for o in outputs]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("inverse", [False, True])
def test_tails_are_the_identity_and_depend_on_no_parameter(
    dtype: torch.dtype, inverse: bool
) -> None:
    for junk, tails in itertools.product((0.3, 1e38, INF, NAN), ("linear", "circular")):
        outside = [-INF, INF, -1e30, 1e30, -1.5, 7.0]
        if tails == "linear":  # of the circle the edges are a part
            outside += [-1.0, 1.0]
        x = torch.tensor(outside, dtype=dtype, requires_grad=True)
        params = torch.full((len(outside), 6 + count_derivatives(3, tails)), junk, dtype=dtype)
        params.requires_grad_()
        for parametrization in ("softmax", "softclip", "knots"):
            outputs = rq(
                x,
                params,
                num_bins=3,
                tails=tails,
                parametrization=parametrization,
                inverse=inverse,
            )
            assert torch.equal(outputs[0], x) and not outputs[1].any()
            grad_x, grad_params = gradients(outputs, [x, params])
            assert torch.equal(grad_x, torch.ones_like(x)) and not grad_params.any()

        params = torch.full((len(outside), 4), junk, dtype=dtype)
        params[:, 3] = 0.25
        params.requires_grad_()
        outputs = modified_rq(x, params, inverse=inverse, interval=(-0.75, 0.75))
        assert torch.equal(outputs[0], x - 0.25 if inverse else x + 0.25)
        assert not outputs[1].any()
        grad_x, grad_params = gradients(outputs, [x, params])
        assert torch.equal(grad_x, torch.ones_like(x))
        assert not grad_params[:, :3].any()
        assert torch.equal(grad_params[:, 3], torch.full_like(x, -1.0 if inverse else 1.0))


@pytest.mark.parametrize("inverse", [False, True])
def test_without_tails_the_closed_box_is_inside_and_the_rest_is_nan(inverse: bool) -> None:
    above, below = math.nextafter(1.0, 2.0), math.nextafter(-1.0, -2.0)
    x = torch.tensor([-1.0, 1.0, above, -1.1, INF, -INF, NAN, below], dtype=torch.float64)
    x.requires_grad_()
    params = torch.randn(8, 10, dtype=torch.float64, requires_grad=True)
    y, logabsdet = outputs = rq(x, params, num_bins=3, tails=None, inverse=inverse)
    assert torch.equal(y[:2], x[:2])
    assert logabsdet[:2].isfinite().all()
    assert y[2:].isnan().all() and logabsdet[2:].isnan().all()
    outside = torch.tensor([False, False, True, True, True, True, False, True])
    for gradient in gradients(outputs, [x, params]):
        assert not gradient[outside].any()
        assert gradient[:2].isfinite().all()


@pytest.mark.parametrize(("call", "count"), calls())
def test_nan_stays_in_its_element(call: Call, count: int) -> None:
    x = torch.linspace(-0.45, 0.45, 12, dtype=torch.float64)
    params = 0.05 * torch.randn(12, count, dtype=torch.float64)
    spoilt_x, spoilt_params = x.clone(), params.clone()
    spoilt_x[3] = NAN
    spoilt_params[7, 1] = NAN
    spoilt = [spoilt_x.requires_grad_(), spoilt_params.requires_grad_()]
    clean = [x.requires_grad_(), params.requires_grad_()]
    outputs, expected = call(*spoilt), call(*clean)
    for output in outputs:
        assert torch.equal(output.isnan().nonzero().flatten(), torch.tensor([3, 7]))
    good = torch.tensor([i not in (3, 7) for i in range(12)])
    pairs = [
        *zip(outputs, expected, strict=True),
        *zip(gradients(outputs, spoilt), gradients(expected, clean), strict=True),
    ]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours[good], theirs[good], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("magnitude", [40.0, 1e4, 1e38, 3.4e38])
def test_huge_parameters_give_finite_results_and_gradients(
    dtype: torch.dtype, inverse: bool, magnitude: float
) -> None:
    def parameters(*shape: int) -> Tensor:
        """Every mix of +-magnitude, zero, and numbers in between."""
        signs = torch.randint(-1, 2, shape).to(dtype)
        between = torch.rand(shape, dtype=dtype)
        return (magnitude * signs * torch.where(torch.rand(shape) < 0.5, 1.0, between)).clamp(
            -3.4e38, 3.4e38
        )

    def check(call: Call, x: Tensor, params: Tensor) -> None:
        leaves = [x.clone().requires_grad_(), params.clone().requires_grad_()]
        outputs = call(*leaves, inverse=inverse)
        for tensor in (*outputs, *gradients(outputs, leaves, 1e6)):
            assert tensor.isfinite().all()

    for derivative, edge in itertools.product(("exp", "softclip"), (1e-3, 0.5, 3.0, 1e6)):
        x = torch.rand(3000, dtype=dtype) * 2.4 * edge - 1.2 * edge
        params = parameters(3000, 4)
        params[:, 3] = torch.randn(3000) * 0.1 * edge
        params[:100, 3] = 1e30
        x[50:150] = -1e30
        check(partial(modified_rq, interval=(-edge, edge), derivative=derivative), x, params)
    for num_bins, edge in ((1, 1.0), (2, 1e-3), (8, 1e6), (32, 3.0)):
        for tails, parametrization in itertools.product(
            ("linear", "circular", None), ("softmax", "softclip")
        ):
            reach = 1.2 if tails else 1.0
            x = (torch.rand(500, dtype=dtype) * 2 - 1) * reach * edge
            check(
                partial(
                    rq,
                    num_bins=num_bins,
                    tails=tails,
                    parametrization=parametrization,
                    box=(-edge, edge, -edge, edge),
                    logit_scale=2.0 if num_bins == 8 else 0.25,
                ),
                x,
                parameters(500, 2 * num_bins + count_derivatives(num_bins, tails)),
            )
    for scale, reciprocal in itertools.product(SCALES, (False, True)):
        params = parameters(500, 2)
        params[:, 0] = torch.randn(500)
        x = torch.randn(500, dtype=dtype)
        check(partial(affine, scale=scale, reciprocal=reciprocal, clamp=50.0), x, params)


def test_saturated_logits_have_no_gradient() -> None:
    params = torch.tensor([[41.0, -41.0, 41.0, 0.0], [40.0, -40.0, 40.0, 0.0]], dtype=torch.float64)
    params = params[:, :3].repeat_interleave(3, 0).requires_grad_()
    padded = torch.nn.functional.pad(params, (0, 1))
    x = torch.tensor([-0.49, 0.1, 0.4995], dtype=torch.float64).repeat(2)
    (gradient,) = gradients(modified_rq(x, padded), [params])
    assert not gradient[:3].any()
    assert (gradient[3:].abs().amax(0) > 0).all()

    logits = torch.tensor([40.5, 40.0], dtype=torch.float64, requires_grad=True)
    shift = torch.zeros(2, 1, dtype=torch.float64)
    _, logabsdet = affine(torch.ones(2).double(), shift, logits.unsqueeze(-1), scale="exp")
    assert torch.equal(logabsdet, torch.tensor([40.0, 40.0], dtype=torch.float64))
    (gradient,) = torch.autograd.grad(logabsdet.sum(), logits)
    assert torch.equal(gradient, torch.tensor([0.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize(("call", "count"), calls())
def test_dtypes(call: Call, count: int) -> None:
    x = torch.linspace(-0.9, 0.9, 40)
    params = torch.randn(40, count)
    for x_dtype, params_dtype in itertools.product(
        (torch.float64, torch.float32, torch.bfloat16, torch.float16), repeat=2
    ):
        wide = torch.float64 if torch.float64 in (x_dtype, params_dtype) else torch.float32
        leaves = [x.to(x_dtype).requires_grad_(), params.to(params_dtype).requires_grad_()]
        y, logabsdet = outputs = call(*leaves)
        assert y.dtype == x_dtype and logabsdet.dtype == wide
        y_wide, logabsdet_wide = call(*(leaf.to(wide) for leaf in leaves))
        assert torch.equal(y, y_wide.to(x_dtype)) and torch.equal(logabsdet, logabsdet_wide)
        for gradient, leaf in zip(gradients(outputs, leaves), leaves, strict=True):
            assert gradient.dtype == leaf.dtype


@pytest.mark.parametrize(("call", "count"), calls())
@pytest.mark.parametrize("lowered", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(call: Call, count: int, lowered: torch.dtype) -> None:
    for params_dtype in (torch.float32, torch.float64, lowered):
        leaves = [torch.linspace(-0.9, 0.9, 40), torch.randn(40, count).to(params_dtype)]
        leaves = [leaf.requires_grad_() for leaf in leaves]
        expected = call(*leaves)
        with torch.autocast("cpu", lowered):
            found = call(*leaves)
        pairs = [
            *zip(found, expected, strict=True),
            *zip(gradients(found, leaves), gradients(expected, leaves), strict=True),
        ]
        for ours, theirs in pairs:
            assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


@pytest.mark.parametrize(("call", "count"), calls())
def test_layouts_and_empty_and_zero_dimensional_tensors(call: Call, count: int) -> None:
    x = torch.rand(3, 4, 5, 6, dtype=torch.float64) - 0.5
    params = torch.randn(3, 4 * count, 5, 6, dtype=torch.float64)
    canonical = params.unflatten(1, (4, count)).movedim(2, -1)
    expected = call(x, canonical.contiguous())
    last = call(
        x.to(memory_format=torch.channels_last),
        params.to(memory_format=torch.channels_last).unflatten(1, (4, count)).movedim(2, -1),
    )
    one = call(x[1, 2, 3, 4], canonical[1, 2, 3, 4])
    assert one[0].shape == one[1].shape == ()
    torch.testing.assert_close(last, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one, tuple(v[1, 2, 3, 4] for v in expected), rtol=1e-12, atol=1e-12)

    for shape in ((0,), (2, 0, 3)):
        leaves = [torch.zeros(shape), torch.zeros(*shape, count)]
        leaves = [leaf.requires_grad_() for leaf in leaves]
        outputs = call(*leaves, batch_dims=1)
        assert outputs[0].shape == shape and outputs[1].shape == shape[:1]
        assert not outputs[1].any()
        for gradient, leaf in zip(gradients(outputs, leaves), leaves, strict=True):
            assert gradient.shape == leaf.shape
