"""Features projected at their own size are those of the enlarged features, to rounding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from robustflow.experiments.imaging.config import override, preset
from robustflow.experiments.imaging.model import ImagingFlow
from robustflow.nn import (
    ConditionalFlow,
    Conditioner,
    Injector,
    ModifiedRQSpline,
    Squeeze,
    Upsampled,
    flow_step,
)
from robustflow.nn.conditioner import project_together
from robustflow.nn.upsampled import can_stay_small
from tests.nn.checks import normal, perturbed

SIZES = (((4, 4), (8, 8)), ((3, 5), (8, 6)), ((1, 1), (4, 3)), ((2, 3), (7, 11)))


def conditioners(kernel_size: int, context_channels: int = 4) -> list[Conditioner]:
    options: Any = {"hidden_channels": 6, "kernel_size": kernel_size}
    return [
        perturbed(Conditioner(z_channels, context_channels, 4, **options)) for z_channels in (0, 3)
    ]


def context(
    small: Sequence[int], large: tuple[int, int], beside: int = 1, dtype: Any = torch.float64
) -> Upsampled:
    features = torch.randn(2, 4 - beside, *small, dtype=dtype, requires_grad=True)
    more = torch.randn(2, beside, *large, dtype=dtype, requires_grad=True) if beside else None
    return Upsampled(features, large, more)


def picture_flow(activations: Any = "store") -> ConditionalFlow:
    step = flow_step(12, 4, ModifiedRQSpline(), hidden_channels=6)
    flow = ConditionalFlow([[Squeeze(2), *step]], activations=activations)
    return perturbed(flow, 0.1).eval()


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("beside", [0, 1])
@pytest.mark.parametrize(("small", "large"), SIZES)
def test_projections_and_their_gradients_are_those_of_the_enlarged_features(
    small: tuple[int, int], large: tuple[int, int], beside: int, kernel_size: int
) -> None:
    both, given = conditioners(kernel_size), context(small, large, beside)
    assert all(can_stay_small(each.get_submodule("context_layer"), given) for each in both)
    leaves = [given.features, *([] if given.beside is None else [given.beside])]
    leaves += [
        parameter for each in both for parameter in each.get_submodule("context_layer").parameters()
    ]
    actual = project_together(both, given)
    expected = [each.project(given.tensor()) for each in both]
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    gradients, expected_gradients = (
        torch.autograd.grad(sum(part.square().sum() for part in parts), leaves)  # type: ignore[arg-type]
        for parts in (actual, expected)
    )
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-10, atol=1e-10)


def test_the_enlarged_tensor_is_bilinear_with_channels_beside() -> None:
    given = context((3, 2), (6, 5))
    assert given.beside is not None
    enlarged = functional.interpolate(given.features, (6, 5), mode="bilinear")
    assert torch.equal(given.tensor(), torch.cat([enlarged, given.beside], dim=1))
    assert given.shape == given.tensor().shape


def test_float32_is_as_accurate_as_the_convolution() -> None:
    torch.manual_seed(0)
    conditioner = Conditioner(3, 128, 4, hidden_channels=64)
    layer = conditioner.get_submodule("context_layer")
    given = Upsampled(torch.randn(1, 128, 8, 8), (16, 16))
    assert can_stay_small(layer, given)
    with torch.no_grad():
        (actual,) = project_together([conditioner], given)
        plain = layer(given.tensor())
        oracle = layer.double()(Upsampled(given.features.double(), (16, 16)).tensor())
    assert (actual - oracle).abs().max() <= 1.5 * (plain - oracle).abs().max()


@pytest.mark.parametrize("activations", ["store", "recompute", "reversible"])
def test_a_flow_reads_them_in_every_way_to_train(activations: str) -> None:
    flow, given = picture_flow(activations), context((3, 2), (6, 8))
    assert given.beside is not None
    x = normal(2, 3, 12, 16)
    leaves = [given.features, given.beside, *flow.parameters()]
    actual, expected = flow.log_prob(x, given), flow.log_prob(x, given.tensor())
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    gradients, expected_gradients = (
        torch.autograd.grad(log_prob.sum(), leaves) for log_prob in (actual, expected)
    )
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-7, atol=1e-7)


def test_a_flow_samples_from_them() -> None:
    flow, given = picture_flow().float(), context((3, 2), (6, 8), dtype=torch.float32)
    actual, expected = (
        flow.sample(3, each, generator=torch.Generator().manual_seed(0))
        for each in (given, given.tensor())
    )
    assert actual.shape == (2, 3, 3, 12, 16)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_in_one_graph_and_under_torch_func() -> None:
    torch.compiler.reset()
    flow, x = picture_flow(), normal(2, 3, 12, 16)
    given = context((3, 2), (6, 8))

    def density(features: Tensor) -> Tensor:
        return flow.log_prob(x, Upsampled(features, (6, 8), given.beside)).sum()

    (expected,) = torch.autograd.grad(density(given.features), [given.features])
    compiled = torch.compile(density, fullgraph=True, backend="aot_eager")
    (actual,) = torch.autograd.grad(compiled(given.features), [given.features])
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(torch.func.grad(density)(given.features.detach()), expected)


class Own(nn.Module):
    """A user's conditioner, which takes a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(4, 3 * 4, 1)

    def forward(self, features: Tensor) -> Tensor:
        assert isinstance(features, Tensor)
        return self.layer(features)


def test_other_conditioners_get_the_enlarged_tensor() -> None:
    flow = ConditionalFlow([[Injector(3, 4, conditioner=Own())]]).double()
    given, x = context((3, 2), (6, 8)), normal(2, 3, 6, 8)
    assert torch.equal(flow.log_prob(x, given), flow.log_prob(x, given.tensor()))


def test_where_the_enlarged_tensor_is_read_all_the_same() -> None:
    """Where products would be rounded, where the sum is another one, and where little is gained."""
    layer = nn.Conv2d(4, 6, 3, padding=1).double()
    given = context((4, 4), (8, 8))
    assert can_stay_small(layer, given)
    assert not can_stay_small(layer, context((5, 5), (6, 6)))
    for options in ({"stride": 2}, {"padding": 0}, {"groups": 2}, {"padding_mode": "reflect"}):
        settings: Any = {"padding": 1, **options}
        assert not can_stay_small(nn.Conv2d(4, 6, 3, **settings).double(), given)
    assert not can_stay_small(layer.bfloat16(), given)
    assert not can_stay_small(layer, context((4, 4), (8, 8), dtype=torch.bfloat16))
    assert not can_stay_small(nn.Conv2d(3, 6, 3, padding=1).double(), given)
    with torch.autocast("cpu", torch.bfloat16):
        assert not can_stay_small(layer.double(), given)
    both, half = conditioners(3), context((4, 4), (8, 8), dtype=torch.bfloat16)
    both = [each.bfloat16() for each in both]
    expected = project_together(both, half.tensor())
    torch.testing.assert_close(project_together(both, half), expected, rtol=0, atol=0)


def test_what_does_not_fit_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"at least \(h, w\)"):
        Upsampled(torch.zeros(1, 3, 4, 4), (8, 3))
    with pytest.raises(ValueError, match=r"\(N, C, h, w\)"):
        Upsampled(torch.zeros(1, 3, 4), (8, 8))
    with pytest.raises(ValueError, match="beside must have shape"):
        Upsampled(torch.zeros(1, 3, 4, 4), (8, 8), torch.zeros(1, 2, 4, 4))
    with pytest.raises(TypeError, match=r"write \(16, 16\), not 16; got 16\."):
        Upsampled(torch.zeros(1, 3, 4, 4), 16)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"two numbers \(H, W\).* got \(8, 8, 8\)"):
        Upsampled(torch.zeros(1, 3, 4, 4), (8, 8, 8))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"two whole numbers \(H, W\), got \(16, 16\.5\)"):
        Upsampled(torch.zeros(1, 3, 4, 4), (16, 16.5))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="features must be a torch"):
        Upsampled([1.0], (8, 8))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must have 4 channels"):
        picture_flow().log_prob(normal(2, 3, 12, 16), Upsampled(normal(2, 3, 3, 4), (6, 8)))
    with pytest.raises(TypeError, match=r"float32 and the weights are torch\.float64"):
        picture_flow().log_prob(normal(2, 3, 12, 16), Upsampled(torch.zeros(2, 4, 3, 4), (6, 8)))


def test_the_imaging_flow_computes_what_it_did(monkeypatch: pytest.MonkeyPatch) -> None:
    """4x super-resolution: the first level is twice the picture's size."""
    torch.manual_seed(0)
    config = override(override(preset("sr", "tiny"), "model.steps", 1), "model.noise", 0.05)
    flow = perturbed(ImagingFlow(config), 0.05).eval()
    x, y = torch.rand(2, 3, 32, 32).double(), torch.rand(2, 3, 8, 8).double()
    noise = 0.05 * torch.randn_like(x)
    actual = flow.log_prob(x, y, noise=noise)
    asked: list[bool] = []

    def never(*_: object) -> bool:
        asked.append(False)
        return False

    monkeypatch.setattr("robustflow.nn.conditioner.can_stay_small", never)
    torch.testing.assert_close(actual, flow.log_prob(x, y, noise=noise), rtol=1e-10, atol=1e-8)
    assert asked
