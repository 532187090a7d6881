"""Log-densities are summed in float32 at least, and in one order."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustflow.nn import ActNorm, Autoregressive, ConditionalFlow, RQSplineCoupling, Squeeze
from robustflow.nn.precision import sum_per_sample

HALF = [torch.float16, torch.bfloat16]


def identity(channels: int, dtype: torch.dtype) -> ConditionalFlow:
    return ConditionalFlow([[ActNorm(channels)]]).eval().to(dtype)


def standard_normal(x: Tensor) -> Tensor:
    x = x.double().flatten(1)
    return -0.5 * (x.square().sum(1) + x.shape[1] * math.log(2 * math.pi))


@pytest.mark.parametrize("dtype", HALF)
def test_the_density_of_a_picture_in_half_precision(dtype: torch.dtype) -> None:
    x = torch.randn(3, 3, 160, 160).to(dtype)
    flow = identity(3, dtype)
    for density in (flow.log_prob(x), flow.latent_log_prob((x,))):
        assert density.dtype == torch.float32
        torch.testing.assert_close(density.double(), standard_normal(x), atol=0, rtol=1e-6)


@pytest.mark.parametrize("dtype", HALF)
def test_squares_beyond_the_range_of_half_precision(dtype: torch.dtype) -> None:
    x = torch.full((1, 4), 1000.0, dtype=dtype)
    expected = standard_normal(x)
    torch.testing.assert_close(identity(4, dtype).log_prob(x).double(), expected)


class Doubling(nn.Module):
    """A user's layer, whose log-determinant has z's dtype."""

    channels = 3
    context_channels = 0

    def forward(self, z: Tensor, context: Any, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
        change = math.log(2) * z[0].numel()
        sign = -1 if inverse else 1
        return z * 2.0**sign, torch.full_like(z[:, 0, 0, 0], sign * change)


@pytest.mark.parametrize("dtype", HALF)
def test_levels_add_up_in_float32(dtype: torch.dtype) -> None:
    levels: list[list[nn.Module]] = [[Doubling(), Doubling(), Squeeze(2)], [Squeeze(2)]]
    flow = ConditionalFlow(levels).to(dtype)
    x = torch.randn(2, 3, 40, 40).to(dtype)
    latents, logabsdet = flow(x)
    assert logabsdet.dtype == torch.float32
    one = float(torch.tensor(math.log(2) * x[0].numel(), dtype=dtype))  # as each layer rounds it
    torch.testing.assert_close(logabsdet, torch.full((2,), 2 * one))
    torch.testing.assert_close(flow.inverse(latents)[1], torch.full((2,), -2 * one))


def test_float64_stays() -> None:
    x = torch.randn(4, 6, dtype=torch.float64)
    flow = ConditionalFlow([[Autoregressive(6), RQSplineCoupling(6, spatial_dims=0)]]).double()
    assert flow.log_prob(x).dtype == torch.float64
    torch.testing.assert_close(flow.log_prob(x), standard_normal(x), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [1, 7, 1023, 1024, 1025, 3 * 160 * 160, 1_050_000])
def test_a_sum_is_right(size: int) -> None:
    x = torch.randn(2, size)
    torch.testing.assert_close(
        sum_per_sample(x).double(), x.double().sum(1), atol=1e-5 * math.sqrt(size), rtol=0
    )


def test_sums_of_nothing_and_of_vectors() -> None:
    assert sum_per_sample(torch.ones(3, 0)).tolist() == [0, 0, 0]
    assert sum_per_sample(torch.ones(0, 5)).shape == (0,)
    assert sum_per_sample(torch.ones(3)).tolist() == [1, 1, 1]


@pytest.mark.parametrize("shape", [(17, 5), (9, 3, 40, 37), (5, 3, 160, 160)])
def test_batch_size_layout_and_threads_do_not_change_a_bit(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    expected = sum_per_sample(x)
    one_by_one = torch.cat([sum_per_sample(one) for one in x.split(1)])
    assert torch.equal(one_by_one, expected)
    strided = torch.randn(2 * shape[0], *shape[1:])[::2].copy_(x)
    turned = x.transpose(0, -1).contiguous().transpose(0, -1)
    for same in (strided, turned, x.clone(memory_format=torch.contiguous_format)):
        assert torch.equal(sum_per_sample(same), expected)
    torch.set_num_threads(2)
    assert torch.equal(sum_per_sample(x), expected)
    assert torch.equal(torch.cat([sum_per_sample(one) for one in x.split(1)]), expected)
