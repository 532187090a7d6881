"""What Coupling and Injector must both do; their tests inherit this."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch

from robustflow.nn import Coupling, ElementwiseTransform, Injector
from tests.nn.checks import SPLINES, TRANSFORMS, assert_is_a_flow_layer, normal, perturbed

CHANNELS, CONTEXT_CHANNELS = 5, 3


class ConditionalLayerTests:
    layer_class: ClassVar[type[Coupling] | type[Injector]]

    @pytest.mark.parametrize("transform", TRANSFORMS, ids=repr)
    @pytest.mark.parametrize("spatial", [(), (4,), (4, 3), (2, 3, 2)], ids=str)
    def test_inverts_and_knows_its_log_determinant(
        self, transform: ElementwiseTransform, spatial: tuple[int, ...]
    ) -> None:
        layer = self.layer_class(
            CHANNELS, CONTEXT_CHANNELS, transform, hidden_channels=8, spatial_dims=len(spatial)
        )
        z, context = normal(2, CHANNELS, *spatial), normal(2, CONTEXT_CHANNELS, *spatial)
        assert_is_a_flow_layer(perturbed(layer), z, context)

    @pytest.mark.parametrize("transform", SPLINES, ids=repr)
    def test_is_the_identity_when_new(self, transform: ElementwiseTransform) -> None:
        layer = self.layer_class(CHANNELS, CONTEXT_CHANNELS, transform)
        z = torch.randn(2, CHANNELS, 4, 4)
        y, logabsdet = layer(z, torch.randn(2, CONTEXT_CHANNELS, 4, 4))
        torch.testing.assert_close(y, z, atol=1e-6, rtol=0)
        torch.testing.assert_close(logabsdet, torch.zeros(len(z)), atol=1e-4, rtol=0)

    def test_one_context_serves_a_batch_as_copies_of_it_would(self) -> None:
        layer = perturbed(self.layer_class(CHANNELS, CONTEXT_CHANNELS))
        z, context = normal(4, CHANNELS, 4, 4), normal(1, CONTEXT_CHANNELS, 4, 4)
        one = layer(z, context, inverse=True)
        copies = layer(z, context.expand(4, -1, -1, -1).contiguous(), inverse=True)
        torch.testing.assert_close(one, copies, atol=1e-12, rtol=1e-12)
