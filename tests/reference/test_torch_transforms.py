"""The reference under torch.func, torch.compile and torch.export."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from tests.reference.calls import Call, Pair, calls, inputs, modified_rq, rq


@pytest.mark.parametrize(("call", "count"), calls())
def test_functional_transforms_agree_with_autograd(call: Call, count: int) -> None:
    x, params = inputs(count, 3)

    def loss(x: Tensor, params: Tensor) -> Tensor:
        y, logabsdet = call(x, params)
        return (y.sin() + logabsdet.square()).sum()

    expected = torch.autograd.grad(loss(x, params), (x, params))
    x, params = x.detach(), params.detach()
    gradients = torch.func.grad(loss, argnums=(0, 1))
    for found in (
        gradients(x, params),
        torch.func.vmap(gradients)(x, params),
        torch.func.jacfwd(loss, argnums=(0, 1))(x, params),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)

    tangents = (torch.randn_like(x), torch.randn_like(params))
    along = torch.func.jvp(loss, (x, params), tangents)[1]
    dot = sum((e * t).sum() for e, t in zip(expected, tangents, strict=True))
    torch.testing.assert_close(along, dot, rtol=1e-10, atol=1e-12)

    mapped = torch.func.vmap(call)(x, params)
    torch.testing.assert_close(mapped, call(x, params), rtol=1e-12, atol=1e-12)
    mapped = torch.func.vmap(call, in_dims=(0, None))(x, params[0])
    torch.testing.assert_close(mapped, call(x, params[:1]), rtol=1e-12, atol=1e-12)

    hessian = torch.func.hessian(lambda p: loss(x[0], p))(params[0])
    by_autograd = torch.autograd.functional.hessian(lambda p: loss(x[0], p), params[0])
    torch.testing.assert_close(hessian, by_autograd, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("call", "count"),
    [p for p in calls() if "linear" in p.id or "exp-" in p.id or "sigmoid" in p.id],
)
def test_compiles_in_one_graph(call: Call, count: int) -> None:
    torch._dynamo.reset()
    x, params = inputs(count)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    found, expected = compiled(x, params), call(x, params)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    ours, theirs = (
        torch.autograd.grad(pair[0].sum() + pair[1].sum(), (x, params))
        for pair in (found, expected)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("call", "count"), [(modified_rq, 4), (partial(rq, num_bins=3), 8)])
def test_exports_with_a_dynamic_batch(call: Call, count: int) -> None:
    class Module(torch.nn.Module):
        def forward(self, x: Tensor, params: Tensor) -> Pair:
            return call(x, params, batch_dims=1)

    x, params = (v.detach() for v in inputs(count, 4))
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(Module(), (x, params), dynamic_shapes=({0: batch}, {0: batch}))
    more, more_params = x.repeat(3, 1), params.repeat(3, 1, 1)
    for ours, theirs in zip(
        program.module()(more, more_params), call(more, more_params, batch_dims=1), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
