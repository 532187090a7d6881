"""Small stock flows of each library, as its users make them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

FEATURES = 4

LIBRARIES = ("nflows", "normflows", "glasflow", "zuko")


def nflows_modules(package: str) -> tuple[Any, Any]:
    """nflows' transforms and residual network, from it or from a package that carries it."""
    pytest.importorskip(package.split(".")[0])
    transforms = pytest.importorskip(f"{package}.transforms")
    return transforms, pytest.importorskip(f"{package}.nn.nets").ResidualNet


def nflows_coupling(package: str = "nflows", **options: Any) -> Any:
    transforms, residual_net = nflows_modules(package)
    flows = pytest.importorskip(f"{package}.flows")
    normal = pytest.importorskip(f"{package}.distributions").StandardNormal
    settings = {"num_bins": 5, "tails": "linear", "tail_bound": 3.0, **options}
    layers: list[Any] = []
    for i in range(2):
        layers.append(transforms.RandomPermutation(FEATURES))
        layers.append(
            transforms.PiecewiseRationalQuadraticCouplingTransform(
                (torch.arange(FEATURES) + i) % 2,
                lambda inputs, outputs: residual_net(
                    inputs, outputs, hidden_features=8, num_blocks=1
                ),
                **settings,
            )
        )
    return flows.Flow(transforms.CompositeTransform(layers), normal([FEATURES]))


def nflows_autoregressive() -> Any:
    transforms, _ = nflows_modules("nflows")
    from nflows import distributions, flows

    layer = transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform
    layers = [
        layer(FEATURES, 8, num_bins=5, tails="linear", tail_bound=3.0, num_blocks=1)
        for _ in range(2)
    ]
    return flows.Flow(
        transforms.CompositeTransform(layers), distributions.StandardNormal([FEATURES])
    )


def normflows_flow(kind: str, **options: Any) -> Any:
    """kind: CoupledRationalQuadraticSpline, CircularAutoregressiveRationalQuadraticSpline, …"""
    nf = pytest.importorskip("normflows")
    if kind.startswith("Circular"):
        # Outside its box a list of tails gives 0 in normflows and the identity in ours.
        options = {"ind_circ": [0, 2], "tail_bound": 9.0, **options}
    layers = [getattr(nf.flows, kind)(FEATURES, 1, 8, num_bins=5, **options) for _ in range(2)]
    return nf.NormalizingFlow(nf.distributions.DiagGaussian(FEATURES, trainable=False), layers)


class ZukoFlow(nn.Module):
    """A zuko flow with the others' methods."""

    def __init__(self, flow: Any) -> None:
        super().__init__()
        self.flow = flow

    def log_prob(self, x: Tensor) -> Tensor:
        result: Tensor = self.flow().log_prob(x)
        return result

    def sample(self, count: int) -> Tensor:
        result: Tensor = self.flow().sample((count,))
        return result


def zuko_flow(kind: str = "NSF", **options: Any) -> ZukoFlow:
    zuko = pytest.importorskip("zuko")
    settings = {"transforms": 2, "bins": 5, "hidden_features": (8,), **options}
    return ZukoFlow(getattr(zuko.flows, kind)(FEATURES, **settings))


FLOWS: dict[str, tuple[str, Callable[[], Any]]] = {
    "nflows coupling": ("nflows", nflows_coupling),
    "nflows coupling, unconditional too": (
        "nflows",
        lambda: nflows_coupling(apply_unconditional_transform=True),
    ),
    "nflows autoregressive": ("nflows", nflows_autoregressive),
    "glasflow": ("glasflow", lambda: nflows_coupling("glasflow.nflows")),
    "normflows coupling": (
        "normflows",
        lambda: normflows_flow("CoupledRationalQuadraticSpline"),
    ),
    "normflows circular coupling": (
        "normflows",
        lambda: normflows_flow("CircularCoupledRationalQuadraticSpline"),
    ),
    "normflows autoregressive": (
        "normflows",
        lambda: normflows_flow("AutoregressiveRationalQuadraticSpline"),
    ),
    "normflows circular autoregressive": (
        "normflows",
        lambda: normflows_flow("CircularAutoregressiveRationalQuadraticSpline"),
    ),
    "zuko": ("zuko", zuko_flow),
    "zuko coupling": ("zuko", lambda: zuko_flow(passes=2)),
    "zuko circular": ("zuko", lambda: zuko_flow("NCSF")),
    "zuko NICE": ("zuko", lambda: zuko_nice()),
    "zuko unconditional": ("zuko", lambda: zuko_elementwise()),
}


def zuko_univariate() -> dict[str, Any]:
    transforms = pytest.importorskip("zuko.transforms")
    return {"univariate": transforms.MonotonicRQSTransform, "shapes": [(5,), (5,), (4,)]}


def zuko_nice() -> ZukoFlow:
    flows = pytest.importorskip("zuko.flows")
    return ZukoFlow(flows.NICE(FEATURES, transforms=2, hidden_features=(8,), **zuko_univariate()))


def zuko_elementwise() -> ZukoFlow:
    flows = pytest.importorskip("zuko.flows")
    zuko = pytest.importorskip("zuko")
    base = zuko.flows.UnconditionalDistribution(
        zuko.distributions.DiagNormal,
        torch.zeros(FEATURES),
        torch.ones(FEATURES),
        buffer=True,
    )
    from zuko.flows.gaussianization import ElementWiseTransform

    return ZukoFlow(flows.Flow([ElementWiseTransform(FEATURES, **zuko_univariate())], base))


@contextmanager
def in_float64() -> Iterator[None]:
    """Make new tensors float64, as base distributions sample in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def make(name: str, seed: int = 0) -> tuple[str, Any]:
    """A library's name and a flow of it, in float64 (float32 rounds differently in each)."""
    library, builder = FLOWS[name]
    torch.manual_seed(seed)
    flow = builder().double()
    # Stock layers begin near the identity, where little can be told from little.
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return library, flow
