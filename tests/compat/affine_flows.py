"""Small affine flows of each library over two numbers, as its users make them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustflow import convert_affine
from robustflow import nn as rnn
from robustflow.compat.convert import ConversionReport
from robustflow.compat.srflow import CondAffineSeparatedAndCond

HIDDEN = 32


@dataclass(frozen=True)
class Kind:
    """One way to make a flow.

    Attributes:
        make: ``make(layers, context)``, context being its number of channels, 0 for none.
        log_prob: ``log_prob(model, x, context)`` -> (N,).
        inverse: ``inverse(model, z, context)`` -> x, as sampling does it.
        batch: what the model is converted with, from x and context; None: it needs ``run``.
        conditional: whether there is one with a context.
    """

    make: Callable[[int, int], nn.Module]
    log_prob: Callable[[Any, Tensor, Tensor | None], Tensor]
    inverse: Callable[[Any, Tensor, Tensor | None], Tensor]
    batch: Callable[[Tensor, Tensor | None], Any] | None
    conditional: bool = True

    def convert(self, model: nn.Module, x: Tensor, context: Tensor | None) -> ConversionReport:
        if self.batch is None:
            return convert_affine(
                model, (x, context), run=lambda flow, batch: self.log_prob(flow, *batch)
            )
        return convert_affine(model, self.batch(x, context))


def arguments(x: Tensor, context: Tensor | None) -> Any:
    return x if context is None else (x, context)


def standard_normal(z: Tensor) -> Tensor:
    return torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(dim=1)


def nflows_flow(layers: int, context: int, package: str = "nflows", masked: bool = False) -> Any:
    transforms = pytest.importorskip(f"{package}.transforms")
    flows = pytest.importorskip(f"{package}.flows")
    normal = pytest.importorskip(f"{package}.distributions").StandardNormal
    residual_net = pytest.importorskip(f"{package}.nn.nets").ResidualNet
    chain: list[Any] = []
    for i in range(layers):
        if masked:
            chain.append(transforms.ReversePermutation(2))
            chain.append(
                transforms.MaskedAffineAutoregressiveTransform(
                    2, HIDDEN, context_features=context or None, num_blocks=1
                )
            )
        else:
            chain.append(
                transforms.AffineCouplingTransform(
                    (torch.arange(2) + i) % 2,
                    lambda inputs, outputs: residual_net(
                        inputs, outputs, HIDDEN, context_features=context or None, num_blocks=1
                    ),
                )
            )
    return flows.Flow(transforms.CompositeTransform(chain), normal([2]))


NFLOWS: dict[str, Any] = {
    "log_prob": lambda model, x, c: model.log_prob(x, c),
    "inverse": lambda model, z, c: model._transform.inverse(z, c)[0],
    "batch": arguments,
}


def normflows_flow(kind: str) -> Callable[[int, int], nn.Module]:
    def make(layers: int, context: int) -> nn.Module:
        nf = pytest.importorskip("normflows")
        chain: list[Any] = []
        for i in range(layers):
            if kind == "coupling":
                net = nf.nets.MLP([1, HIDDEN, HIDDEN, 2], init_zeros=True)
                chain += [nf.flows.AffineCouplingBlock(net), nf.flows.Permute(2, mode="swap")]
            elif kind == "masked":
                mask = torch.tensor([i % 2, 1 - i % 2]).float()
                nets = [nf.nets.MLP([2, HIDDEN, HIDDEN, 2], init_zeros=True) for _ in range(2)]
                chain.append(nf.flows.MaskedAffineFlow(mask, *nets))
            else:
                layer = nf.flows.MaskedAffineAutoregressive
                chain += [
                    layer(2, HIDDEN, context_features=context or None, num_blocks=1),
                    nf.flows.Permute(2, mode="swap"),
                ]
        base = nf.distributions.DiagGaussian(2, trainable=False)
        return nf.NormalizingFlow(base, chain)

    return make


def normflows_log_prob(model: Any, x: Tensor, context: Tensor | None) -> Tensor:
    log_prob = torch.zeros(len(x))
    for flow in reversed(model.flows):
        takes = context is not None and hasattr(flow, "autoregressive_net")
        x, logabsdet = flow.inverse(x, context=context) if takes else flow.inverse(x)
        log_prob = log_prob + logabsdet
    return log_prob + model.q0.log_prob(x)


def normflows_inverse(model: Any, z: Tensor, context: Tensor | None) -> Tensor:
    for flow in model.flows:
        takes = context is not None and hasattr(flow, "autoregressive_net")
        z = (flow(z, context=context) if takes else flow(z))[0]
    return z


UNCONDITIONAL: dict[str, Any] = {"batch": arguments, "conditional": False}
NORMFLOWS: dict[str, Any] = {"log_prob": normflows_log_prob, "inverse": normflows_inverse}


def subnet(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inputs, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, outputs),
    )


def freia_flow(block: str) -> Callable[[int, int], nn.Module]:
    def make(layers: int, context: int) -> nn.Module:
        framework = pytest.importorskip("FrEIA.framework")
        modules = pytest.importorskip("FrEIA.modules")
        model: Any = framework.SequenceINN(2)
        condition = {"cond": 0, "cond_shape": (context,)} if context else {}
        for _ in range(layers):
            model.append(getattr(modules, block), subnet_constructor=subnet, **condition)
            if block == "AffineCouplingOneSided":
                model.append(modules.PermuteRandom, seed=0)
        return model

    return make


def freia_log_prob(model: Any, x: Tensor, context: Tensor | None) -> Tensor:
    z, logabsdet = model(x, c=None if context is None else [context])
    return standard_normal(z) + logabsdet


FREIA: dict[str, Any] = {
    "log_prob": freia_log_prob,
    "inverse": lambda model, z, c: model(z, c=None if c is None else [c], rev=True)[0],
    "batch": lambda x, c: {"x_or_z": x, "c": None if c is None else [c]},
}


def zuko_flow(kind: str, **options: Any) -> Callable[[int, int], nn.Module]:
    def make(layers: int, context: int) -> nn.Module:
        flows = pytest.importorskip("zuko.flows")
        settings = {"transforms": layers, "hidden_features": (HIDDEN, HIDDEN), **options}
        return getattr(flows, kind)(2, context, **settings)

    return make


ZUKO: dict[str, Any] = {
    "log_prob": lambda model, x, c: model(c).log_prob(x),
    "inverse": lambda model, z, c: model(c).transform.inv(z),
    "batch": arguments,
}


def robustflow_flow(layer: Callable[[int], nn.Module]) -> Callable[[int, int], nn.Module]:
    def make(layers: int, context: int) -> nn.Module:
        chain: list[nn.Module] = []
        for _ in range(layers):
            chain += [rnn.ActNorm(2), rnn.InvertibleConv1x1(2), layer(context)]
        return rnn.ConditionalFlow([chain])

    return make


def published_coupling(context: int) -> nn.Module:
    return rnn.Coupling(2, context, rnn.Affine(), hidden_channels=HIDDEN, spatial_dims=0)


def named_coupling(context: int) -> nn.Module:
    return rnn.ConditionalAffineCoupling(2, context, hidden_channels=HIDDEN, spatial_dims=0)


def autoregressive(context: int) -> nn.Module:
    return rnn.Autoregressive(2, context, rnn.Affine(scale="exp"), hidden_features=HIDDEN)


def robustflow_inverse(model: Any, z: Tensor, context: Tensor | None) -> Tensor:
    return model.inverse((z,), context)[0]


ROBUSTFLOW: dict[str, Any] = {
    "log_prob": lambda model, x, c: model.log_prob(x, c),
    "inverse": robustflow_inverse,
    "batch": arguments,
}


class SRFlow(nn.Module):
    """Steps of SRFlow's kind, z being (N, 2, 1, 1), as a user's own network has them.

    Args:
        std_mode: have the std-conditional step; ``log_prob`` takes the noise map.
    """

    def __init__(self, layers: int, context: int, *, std_mode: bool = False) -> None:
        super().__init__()
        sizes = {"hidden_channels": HIDDEN}
        flow = {"conditionInFeaDim": max(1, context), "CondAffineSeparatedAndCond": sizes}
        opt = {"network_G": {"flow": flow}}
        self.steps = nn.ModuleList()
        for _ in range(layers):
            coupling = CondAffineSeparatedAndCond(2, opt, std_mode=std_mode)
            self.steps.extend([rnn.InvertibleConv1x1(2), rnn.ActNorm(2), coupling])

    def run(
        self, z: Tensor, ft: Tensor | None, reverse: bool, std: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        z, logdet = z[:, :, None, None], z.new_zeros(len(z))
        ft = z.new_ones(1, 1, 1, 1) if ft is None else ft[:, :, None, None]
        for step in reversed(self.steps) if reverse else self.steps:
            if isinstance(step, (rnn.InvertibleConv1x1, rnn.ActNorm)):
                z, change = step(z, inverse=reverse)
                logdet = logdet + change
            else:
                z, logdet = step(z, logdet, reverse=reverse, ft=ft, std=std)
        return z[:, :, 0, 0], logdet

    def log_prob(
        self, x: Tensor, context: Tensor | None = None, std: Tensor | None = None
    ) -> Tensor:
        z, logdet = self.run(x, context, False, std)
        return standard_normal(z) + logdet


KINDS: dict[str, Kind] = {
    "SRFlow": Kind(
        SRFlow,
        lambda model, x, c: model.log_prob(x, c),
        lambda model, z, c: model.run(z, c, True)[0],
        arguments,
    ),
    "robustflow": Kind(robustflow_flow(published_coupling), **ROBUSTFLOW),
    "robustflow named": Kind(robustflow_flow(named_coupling), **ROBUSTFLOW),
    "robustflow autoregressive": Kind(robustflow_flow(autoregressive), **ROBUSTFLOW),
    "nflows coupling": Kind(nflows_flow, **NFLOWS),
    "nflows autoregressive": Kind(lambda n, c: nflows_flow(n, c, masked=True), **NFLOWS),
    "glasflow": Kind(lambda n, c: nflows_flow(n, c, "glasflow.nflows"), **NFLOWS),
    "normflows coupling": Kind(
        normflows_flow("coupling"), **NORMFLOWS, batch=arguments, conditional=False
    ),
    "normflows masked": Kind(
        normflows_flow("masked"), **NORMFLOWS, batch=arguments, conditional=False
    ),
    "normflows autoregressive": Kind(normflows_flow("autoregressive"), **NORMFLOWS, batch=None),
    "FrEIA GLOW": Kind(freia_flow("GLOWCouplingBlock"), **FREIA),
    "FrEIA RNVP": Kind(freia_flow("RNVPCouplingBlock"), **FREIA),
    "FrEIA one-sided": Kind(freia_flow("AffineCouplingOneSided"), **FREIA),
    "FrEIA all in one": Kind(freia_flow("AllInOneBlock"), **FREIA),
    "zuko autoregressive": Kind(zuko_flow("MAF"), **ZUKO),
    "zuko coupling": Kind(zuko_flow("NICE"), **ZUKO),
    "zuko masked coupling": Kind(zuko_flow("MAF", passes=2), **ZUKO),
}
