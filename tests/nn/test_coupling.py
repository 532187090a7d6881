"""Coupling: its inverse, its log-determinant, and what it leaves alone."""

from __future__ import annotations

import pytest
import torch

from robustflow.nn import Coupling
from tests.nn.checks import normal, perturbed
from tests.nn.conditional_layers import CHANNELS, CONTEXT_CHANNELS, ConditionalLayerTests


class TestCoupling(ConditionalLayerTests):
    layer_class = Coupling


def test_coupling_keeps_the_first_half_and_reads_no_other() -> None:
    coupling = perturbed(Coupling(CHANNELS, CONTEXT_CHANNELS))
    z, context = normal(2, CHANNELS, 4, 4), normal(2, CONTEXT_CHANNELS, 4, 4)
    y, _ = coupling(z, context)
    assert torch.equal(y[:, :2], z[:, :2])
    changed = z.clone()
    changed[:, 3] += 1
    assert torch.equal(coupling(changed, context)[0][:, 2], y[:, 2])


def test_needs_two_channels() -> None:
    with pytest.raises(ValueError, match="channels must be at least 2"):
        Coupling(1, 2)
