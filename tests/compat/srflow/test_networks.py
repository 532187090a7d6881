"""Checkpoints of whole published networks go to ours and back, strictly and unchanged.

The networks below have the published structure (names, shapes, nesting, options) and no module of
the package: the 4x network of robustNF, whose couplings have the std-conditional net at every
level, used or not, and SRFlow's, which have none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustflow.compat import srflow
from robustflow.diagnostics import certify

HIDDEN, STEPS, WITHOUT_COUPLING = 8, 2, 2
# The attribute of FlowStep, the option's name, the self-conditional net, parameters an element.
KINDS = {
    "affine": ("CondAffineSeparatedAndCond", "fAffine", 2),
    "affinereparam": ("CondAffineReparamSeparatedAndCond", "fAffine", 2),
    "rqspline": ("CondRQsplineSeparatedAndCond", "fRQspline", 4),
    "bspline": ("CondBsplineSeparatedAndCond", "fBspline", 11),
}
Coupling = Callable[..., nn.Module]
each_kind = pytest.mark.parametrize("kind", KINDS)


class NoneDict(dict):
    """The published options: whatever is missing is None."""

    def __missing__(self, key: str) -> None:
        return None


def options(kind: str, std: bool) -> NoneDict:
    """As in confs/4X.yml, but smaller; SRFlow's have no ``S`` and no ``std_channels``."""
    flow = NoneDict(
        K=STEPS,
        L=3,
        coupling=KINDS[kind][0],
        additionalFlowNoAffine=WITHOUT_COUPLING,
        split=NoneDict(enable=True),
        CondAffineSeparatedAndCond=NoneDict(hidden_channels=HIDDEN, eps=1e-4),
    )
    if std:
        flow.update(S=[0, STEPS, STEPS], std_channels=3)
    return NoneDict(scale=4, network_G=NoneDict(flow=flow))


class Norm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(1, channels, 1, 1))
        self.logs = nn.Parameter(0.1 * torch.randn(1, channels, 1, 1))


class NormedConv(nn.Conv2d):
    def __init__(self, read: int, out: int, side: int) -> None:
        super().__init__(read, out, side, padding=side // 2, bias=False)
        self.actnorm = Norm(out)


class ZeroConv(nn.Conv2d):
    def __init__(self, read: int, out: int) -> None:
        super().__init__(read, out, 3, padding=1)
        self.logs = nn.Parameter(0.1 * torch.randn(out, 1, 1))


def published_net(read: int, out: int) -> nn.Sequential:
    first, second = NormedConv(read, HIDDEN, 3), NormedConv(HIDDEN, HIDDEN, 1)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), ZeroConv(HIDDEN, out))


class PublishedCoupling(nn.Module):
    """The nets of robustNF's couplings, whatever ``std_mode``, or of SRFlow's."""

    def __init__(self, kind: str, in_channels: int, opt: NoneDict, std_mode: bool = True) -> None:
        super().__init__()
        _, net, params = KINDS[kind]
        kept = in_channels // 2
        changed = (in_channels - kept) * params
        self.add_module(net, published_net(kept + 320, changed))
        self.fFeatures = published_net(320, in_channels * params)
        channels = opt["network_G"]["flow"]["std_channels"]
        if channels is not None:
            self.add_module(f"{net}_std", published_net(kept + channels, changed))


class Invconv(nn.Module):
    """Frozen where the configuration does not train it."""

    def __init__(self, channels: int, train: bool) -> None:
        super().__init__()
        weight = torch.linalg.qr(torch.randn(channels, channels)).Q.contiguous()
        if not train:
            weight = weight[..., None, None]
            transpose = weight.transpose(0, 1).contiguous()
            self.weight_transpose = nn.Parameter(transpose, requires_grad=False)
        self.weight = nn.Parameter(weight, requires_grad=train)


class FlowStep(nn.Module):
    def __init__(self, channels: int, train: bool, **coupling: nn.Module) -> None:
        super().__init__()
        self.actnorm = Norm(channels)
        self.invconv = Invconv(channels, train)
        for name, module in coupling.items():
            self.add_module(name, module)


class Split(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = ZeroConv(channels - channels // 2, channels // 2 * 2)


class Network(nn.Module):
    """Of the flow: every part that has weights. The encoder is no concern of the couplings'."""

    def __init__(self, kind: str, coupling: Coupling, opt: NoneDict) -> None:
        super().__init__()
        flow = opt["network_G"]["flow"]
        train = kind != "rqspline"  # the paper's run of the spline froze the permutations
        layers: list[nn.Module] = []
        channels = 3
        for level in range(1, flow["L"] + 1):
            channels *= 4
            layers.append(nn.Identity())  # the squeeze
            for _ in range(flow["additionalFlowNoAffine"]):
                layers.append(FlowStep(channels, train))
            for _ in range(flow["K"]):
                mode = [] if flow["S"] is None else [flow["S"][level - 1] > 0]
                layers.append(FlowStep(channels, train, **{kind: coupling(channels, opt, *mode)}))
            if level < flow["L"] - 1:
                layers.append(Split(channels))
                channels -= channels // 2
        self.flowUpsamplerNet = nn.Module()
        self.flowUpsamplerNet.layers = nn.ModuleList(layers)
        self.flowUpsamplerNet.f = nn.Sequential(nn.Conv2d(320, 96, 3, padding=1))

    def couplings(self, kind: str) -> list[Any]:
        layers: Any = self.flowUpsamplerNet.layers
        return [getattr(layer, kind) for layer in layers if hasattr(layer, kind)]


def theirs(kind: str, *, std: bool) -> Network:
    return Network(kind, lambda *args: PublishedCoupling(kind, *args), options(kind, std))


def ours(kind: str, *, std: bool) -> Network:
    return Network(kind, getattr(srflow, KINDS[kind][0]), options(kind, std))


def loads_and_saves(network: nn.Module, state: dict[str, Tensor]) -> None:
    network.load_state_dict(state, strict=True)
    saved = network.state_dict()
    assert list(saved) == list(state)
    assert all(torch.equal(saved[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("std", [True, False], ids=["robustNF", "SRFlow"])
@each_kind
def test_both_ways(kind: str, std: bool) -> None:
    """Theirs to ours, unchanged when saved again; new ones of ours to theirs."""
    loads_and_saves(ours(kind, std=std), theirs(kind, std=std).state_dict())
    loads_and_saves(theirs(kind, std=std), ours(kind, std=std).state_dict())


@each_kind
def test_a_checkpoint_decides_over_the_std_conditional_nets(kind: str) -> None:
    """Whatever the options, and one after the other."""
    states = {std: theirs(kind, std=std).state_dict() for std in (True, False)}
    assert set(states[False]) < set(states[True])
    for built in (True, False):
        network = ours(kind, std=built)
        for std in (not built, built, not built, False, True):
            loads_and_saves(network, states[std])


@each_kind
def test_the_first_level_is_not_told_the_noise(kind: str) -> None:
    """Its couplings have weights for it, which nothing reads."""
    network = ours(kind, std=True)
    network.load_state_dict(theirs(kind, std=True).state_dict())
    levels = network.eval().couplings(kind)
    assert [layer.uses_std for layer in levels] == [False] * STEPS + [True] * 2 * STEPS
    for layer in levels:
        z, ft = torch.randn(2, layer.in_channels, 4, 4), torch.randn(2, 320, 4, 4)
        std = torch.rand(2, 3, 8, 8)
        with torch.no_grad():
            plain, noisy = layer(z, ft=ft)[0], layer(z, ft=ft, std=std)[0]
        assert torch.equal(plain, noisy) is not layer.uses_std


def test_a_certificate_has_no_row_for_what_is_not_used() -> None:
    network = ours("rqspline", std=True)
    rows = [{row.kind for row in certify(each).rows} for each in network.couplings("rqspline")]
    assert rows[0] == {"injector", "self-conditional", "model"}
    assert rows[-1] == rows[0] | {"std-conditional"}


@each_kind
def test_what_is_not_used_gets_no_gradient(kind: str) -> None:
    network = ours(kind, std=True)
    network.load_state_dict(theirs(kind, std=True).state_dict())
    layer = network.couplings(kind)[0]
    z, ft = torch.randn(2, layer.in_channels, 4, 4), torch.randn(2, 320, 4, 4)
    y, logdet = layer(z, ft=ft, std=torch.rand(2, 3, 8, 8))
    (y.square().sum() - logdet.sum()).backward()
    for name, parameter in layer.named_parameters():
        assert (parameter.grad is None) == ("_std." in name), name
