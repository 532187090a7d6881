"""torch.func on whole flows whose weights are arguments: ensembles and per-sample gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, stack_module_state, vmap

from robustflow.nn import (
    Affine,
    ConditionalFlow,
    InvertibleConv1x1,
    RQSpline,
    RQSplineAutoregressive,
    RQSplineCoupling,
    Split,
    flow_step,
)
from tests.nn.checks import normal, perturbed
from tests.nn.two_level_flow import two_level_flow

D, CONTEXT, MODELS = 5, 3, 3

Named = dict[str, Tensor]


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(CONTEXT, CONTEXT)

    def forward(self, context: Tensor) -> list[Tensor]:
        return [self.layer(context)] * 2


def new_flow(trained: bool = True) -> ConditionalFlow:
    """Two levels, with layers that are projected together and layers that are not."""
    step = flow_step(D, CONTEXT, RQSpline(), spatial_dims=0, hidden_channels=8)
    levels: list[list[nn.Module]] = [
        [*step, Split(D, CONTEXT, spatial_dims=0)],
        [
            RQSplineCoupling(2, CONTEXT, spatial_dims=0, hidden_channels=8),
            RQSplineAutoregressive(2, CONTEXT, hidden_features=8),
            InvertibleConv1x1(2, lu=False),
        ],
    ]
    flow = ConditionalFlow(levels, Encoder()).double()
    if trained:
        flow(normal(16, D), normal(16, CONTEXT))  # ActNorm's first batch
    return perturbed(flow, 0.2)


def log_prob(flow: nn.Module, weights: Any, x: Tensor, context: Tensor) -> Tensor:
    latents, logabsdet = functional_call(flow, weights, (x, context))
    return logabsdet - 0.5 * sum(latent.square().sum(1) for latent in latents)


@pytest.mark.parametrize("skeleton", ["a copy", "on meta"])
def test_an_ensemble(skeleton: str) -> None:
    flows = [new_flow() for _ in range(MODELS)]
    x, context = normal(4, D), normal(4, CONTEXT)
    base = copy.deepcopy(flows[0])
    if skeleton == "on meta":
        base = base.to("meta")
    state = stack_module_state(flows)
    got = vmap(lambda weights: log_prob(base, weights, x, context))(state)
    expected = torch.stack([log_prob(flow, {}, x, context) for flow in flows])
    torch.testing.assert_close(got, expected, atol=1e-9, rtol=1e-9)
    assert not torch.allclose(expected[0], expected[1])


def test_per_sample_gradients() -> None:
    flow, x, context = new_flow(), normal(4, D), normal(4, CONTEXT)
    weights: Named = dict(flow.named_parameters())

    def loss(weights: Named, x: Tensor, context: Tensor) -> Tensor:
        return log_prob(flow, weights, x[None], context[None]).sum()

    got = vmap(grad(loss), (None, 0, 0))(weights, x, context)
    for i in range(len(x)):
        one = log_prob(flow, {}, x[i : i + 1], context[i : i + 1]).sum()
        expected = torch.autograd.grad(one, list(weights.values()))
        for name, value in zip(weights, expected, strict=True):
            torch.testing.assert_close(got[name][i], value, atol=1e-9, rtol=1e-9)


def test_a_tangent_of_the_weights() -> None:
    flow, x, context = new_flow(), normal(4, D), normal(4, CONTEXT)
    weights = {name: value.detach() for name, value in flow.named_parameters()}
    along = {name: torch.randn_like(value) for name, value in weights.items()}

    def total(weights: Named) -> Tensor:
        return log_prob(flow, weights, x, context).sum()

    _, tangent, *_ = jvp(total, (weights,), (along,))
    step = 1e-6
    moved = [
        total({name: value + sign * step * along[name] for name, value in weights.items()})
        for sign in (1, -1)
    ]
    torch.testing.assert_close(tangent, (moved[0] - moved[1]) / (2 * step), atol=1e-4, rtol=1e-5)


def test_a_new_actnorm_says_what_to_do() -> None:
    flow = new_flow(trained=False)
    x, context = normal(4, D), normal(4, CONTEXT)

    def one(x: Tensor, context: Tensor) -> Tensor:
        return flow.log_prob(x[None], context[None])[0]

    with pytest.raises(RuntimeError, match="call the flow on a batch before"):
        vmap(one)(x, context)
    flow.log_prob(x, context)
    torch.testing.assert_close(vmap(one)(x, context), flow.log_prob(x, context))


def test_torch_func_of_a_flow_compiles_without_graph_breaks() -> None:
    """A directional derivative and a gradient of the log-density."""
    flow = two_level_flow(Affine())
    x, low = normal(2, 3, 8, 4), normal(2, 3, 4, 2)

    def apply(x: Tensor) -> tuple[Tensor, ...]:
        def log_prob(x: Tensor) -> Tensor:
            return flow.log_prob(x, low).sum()

        return (*torch.func.jvp(log_prob, (x,), (x.cos(),)), torch.func.grad(log_prob)(x))

    torch._dynamo.reset()
    compiled = torch.compile(apply, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), apply(x))
