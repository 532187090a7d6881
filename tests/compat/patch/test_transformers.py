"""VITS of transformers: its duration predictor's spline."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from robustflow import compat
from tests.compat.served import counts

pytest.importorskip("transformers")
vits = pytest.importorskip("transformers.models.vits.modeling_vits")


def layer() -> Any:
    config = vits.VitsConfig(
        hidden_size=8,
        depth_separable_channels=4,
        depth_separable_num_layers=1,
        duration_predictor_kernel_size=3,
    )
    flow = vits.VitsConvFlow(config).double()
    torch.nn.init.normal_(flow.conv_proj.weight)
    return flow.eval()


@pytest.mark.parametrize("reverse", [False, True])
def test_the_same_results(reverse: bool) -> None:
    flow = layer()
    x, mask = 3 * torch.randn(2, 4, 9).double(), torch.ones(2, 1, 9).double()
    expected, log_det = flow(x, mask, reverse=reverse)
    gradients = torch.autograd.grad(expected.sin().sum(), list(flow.parameters()))
    with compat.patch("transformers"):
        found, ours = flow(x, mask, reverse=reverse)
        assert compat.patched() == {"transformers": counts(kernel=1)}
    made = torch.autograd.grad(found.sin().sum(), list(flow.parameters()))
    torch.testing.assert_close((found, *made), (expected, *gradients), rtol=1e-6, atol=1e-8)
    if not reverse:
        torch.testing.assert_close(ours, log_det, rtol=1e-6, atol=1e-8)


def test_one_graph() -> None:
    flow = layer().float()
    x, mask = torch.randn(2, 4, 9), torch.ones(2, 1, 9)
    with compat.patch("transformers"), torch.no_grad():
        expected, _ = flow(x, mask)
        graph = torch.compile(flow, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(graph(x, mask)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_traced_model_runs_without_robustflow() -> None:
    flow = layer().float()
    with compat.patch("transformers"), torch.no_grad():
        traced = torch.jit.trace(flow, (torch.randn(2, 4, 9), torch.ones(2, 1, 9)))
    assert "robustflow::" not in str(traced.inlined_graph)
    x, mask = torch.randn(3, 4, 12), torch.ones(3, 1, 12)
    torch.testing.assert_close(traced(x, mask), flow(x, mask), rtol=1e-4, atol=1e-5)
