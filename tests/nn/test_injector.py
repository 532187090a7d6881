"""Injector: its inverse and its log-determinant."""

from __future__ import annotations

import pytest
import torch

from robustflow.nn import Injector
from tests.nn.conditional_layers import ConditionalLayerTests


class TestInjector(ConditionalLayerTests):
    layer_class = Injector


def test_needs_a_context() -> None:
    with pytest.raises(ValueError, match="context"):
        Injector(4, 2)(torch.randn(2, 4))
