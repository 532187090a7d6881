"""torch.compile: whole graphs with the patch on, and nothing stale when it goes on or off."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from robustflow import compat
from tests.compat import flows
from tests.compat.served import counts

COMPILED = [name for name, (library, _) in flows.FLOWS.items() if library != "zuko"]


def compiled(function: Any) -> Any:
    # Dynamo and AOTAutograd see all that can break a graph; Inductor adds only time.
    return torch.compile(function, fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize("name", COMPILED)
def test_log_prob_and_sample_are_one_graph(name: str) -> None:
    library, flow = flows.make(name)
    flow = flow.float().eval()
    x = torch.randn(6, flows.FEATURES)
    with compat.patch(library):
        expected = flow.log_prob(x)
        gradients = torch.autograd.grad(expected.sum(), list(flow.parameters()), allow_unused=True)
        log_prob = compiled(flow.log_prob)
        found = log_prob(x)
        made = torch.autograd.grad(found.sum(), list(flow.parameters()), allow_unused=True)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        for mine, other in zip(made, gradients, strict=True):
            if other is not None:
                torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)

        def sample() -> Tensor:
            with torch.no_grad():
                drawn = flow.sample(6)
            return drawn[0] if isinstance(drawn, tuple) else drawn

        assert compiled(sample)().shape == (6, flows.FEATURES)
        assert compat.patched()[library]["fallback"] == 0


def directions(library: str, flow: Any) -> dict[str, Any]:
    """Both directions of a flow, z -> (z, logabsdet), as each library spells them.

    Of zuko one layer: the assertion of its ComposedTransform breaks a graph, patched or not.
    """
    if library == "nflows":
        return {"forward": flow._transform.forward, "inverse": flow._transform.inverse}
    if library == "normflows":
        return {"forward": flow.inverse_and_log_det, "inverse": flow.forward_and_log_det}
    layer = flow.flow.transform.transforms[0]
    return {
        "forward": lambda z: layer().call_and_ladj(z),
        "inverse": lambda z: layer().inv.call_and_ladj(z),
    }


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("name", ["nflows coupling", "normflows coupling", "zuko"])
def test_both_directions_are_one_graph_with_eager_gradients(name: str, direction: str) -> None:
    library, flow = flows.make(name)
    flow = flow.eval()
    z = torch.randn(6, flows.FEATURES, dtype=torch.float64, requires_grad=True)
    leaves = [z, *flow.parameters()]
    torch._dynamo.reset()
    with compat.patch(library):
        function = directions(library, flow)[direction]
        results = []
        for call in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
            y, logabsdet = call(z)
            loss = y.square().sum() + logabsdet.sum()
            results.append((y, logabsdet, torch.autograd.grad(loss, leaves, allow_unused=True)))
        explained = torch._dynamo.explain(function)(z)
        # With gradients zuko's own loop inverts a layer; its splines are kernels all the same.
        assert compat.patched()[library]["kernel"] > 0
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-9)
    assert explained.graph_count == 1 and explained.graph_break_count == 0


@pytest.mark.parametrize("name", [COMPILED[0], "zuko"])
def test_torch_func_within_torch_compile(name: str) -> None:
    """A density's directional derivative and gradient, as without the patch and the compiler."""
    library, flow = flows.make(name)
    flow = flow.eval()
    x = torch.randn(6, flows.FEATURES, dtype=torch.float64)

    def log_prob(x: Tensor) -> Any:
        if library == "zuko":
            y, ladj = flow.flow.transform.transforms[0]().call_and_ladj(x)
            return y.sin().sum() + ladj.sum()
        return flow.log_prob(x).sum()

    def tangent(x: Tensor) -> Any:
        return torch.func.jvp(log_prob, (x,), (x.cos(),))

    def gradient(x: Tensor) -> Any:
        return torch.func.grad(log_prob)(x)

    expected = tangent(x), gradient(x)
    torch._dynamo.reset()
    with compat.patch(library):
        found = tuple(
            torch.compile(function, backend="aot_eager")(x) for function in (tangent, gradient)
        )
        assert compat.patched()[library]["kernel"] > 0
        assert compat.patched()[library]["fallback"] == 0
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", ["zuko", "zuko coupling"])
def test_zuko_compiles(name: str) -> None:
    _, flow = flows.make(name)
    flow = flow.float()
    transform = flow.flow.transform.transforms[0]
    x = torch.randn(6, flows.FEATURES)

    def call(x: Tensor) -> Any:
        return transform().call_and_ladj(x)

    expected = call(x)
    torch._dynamo.reset()
    graph = torch.compile(call, backend="aot_eager", fullgraph=name == "zuko")
    with compat.patch("zuko"):
        torch.testing.assert_close(graph(x), expected, rtol=1e-4, atol=1e-5)
        assert compat.patched()["zuko"]["kernel"] >= 1
        before = compat.patched()
        graph(x)
        assert compat.patched() == before  # counted where it is traced


def test_what_was_compiled_before_a_patch_is_forgotten() -> None:
    """torch.compile guards on functions and methods, not on their code."""
    nonlinearities = pytest.importorskip("nflows.transforms.nonlinearities")
    layer = nonlinearities.PiecewiseRationalQuadraticCDF((3,), tails="linear", num_bins=4)
    x = torch.randn(6, 3)
    graph = torch.compile(layer._spline, backend="eager")
    expected = graph(x)
    for _ in range(2):
        with compat.patch("nflows"):
            torch.testing.assert_close(graph(x), expected, rtol=1e-4, atol=1e-5)
            assert compat.patched()["nflows"] == counts(kernel=1)
        torch.testing.assert_close(graph(x), expected, rtol=0, atol=0)
        assert compat.patched() == {}
