"""Whole flows, patched and not: the same results, gradients and state, and the kernels serve."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from robustflow import compat
from tests.compat import flows
from tests.compat.flows import in_float64


def results(flow: Any, x: Tensor) -> tuple[Tensor, ...]:
    """log_prob with its gradients to the inputs and parameters, and samples."""
    x = x.clone().requires_grad_()
    parameters = [p for p in flow.parameters() if p.requires_grad]
    log_prob = flow.log_prob(x)
    gradients = torch.autograd.grad(log_prob.sum(), [x, *parameters], allow_unused=True)
    torch.manual_seed(3)
    with torch.no_grad():
        samples = flow.sample(6)
    samples = samples[0] if isinstance(samples, tuple) else samples
    return log_prob.detach(), samples, *(g for g in gradients if g is not None)


@pytest.mark.parametrize("name", flows.FLOWS)
def test_the_same_results_with_the_patch_on(name: str) -> None:
    with in_float64():
        compare(name)


def compare(name: str) -> None:
    library, flow = flows.make(name)
    x = 1.5 * torch.randn(6, flows.FEATURES)
    expected = results(flow, x)
    state = {key: value.clone() for key, value in flow.state_dict().items()}
    with compat.patch(library):
        found = results(flow, x)
        counts = compat.patched()[library]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(results(flow, x), expected, rtol=0, atol=0)
    assert counts["kernel"] >= 4 if "unconditional" not in name else counts["kernel"] >= 2
    # Its tails are a list, one a feature: both layers' networks run once for each feature.
    assert counts["fallback"] == (2 if name == "normflows circular autoregressive" else 0)
    torch.testing.assert_close(dict(flow.state_dict()), state, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["nflows coupling", "normflows coupling", "zuko"])
def test_a_flow_made_while_patched_has_the_usual_state(name: str) -> None:
    _, before = flows.make(name)
    with compat.patch(flows.FLOWS[name][0]):
        _, made = flows.make(name)
    assert type(made) is type(before)
    torch.testing.assert_close(dict(made.state_dict()), dict(before.state_dict()), rtol=0, atol=0)
    x = torch.randn(5, flows.FEATURES, dtype=torch.float64)
    torch.testing.assert_close(made.log_prob(x), before.log_prob(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["nflows coupling", "normflows coupling", "zuko"])
def test_autocast(name: str) -> None:
    """The conditioner in bfloat16, the spline in float32: nflows itself raises here."""
    library, flow = flows.make(name)
    flow = flow.float()
    x = torch.randn(16, flows.FEATURES)
    expected = flow.log_prob(x)
    with compat.patch(library), torch.autocast("cpu", dtype=torch.bfloat16):
        found = flow.log_prob(x)
        assert compat.patched()[library]["fallback"] == 0
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.3)
