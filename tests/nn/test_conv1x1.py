"""InvertibleConv1x1, with and without its LU decomposition."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from robustflow.nn import InvertibleConv1x1
from tests.nn.checks import assert_is_a_flow_layer, normal, perturbed

CHANNELS = 5


def plain_mixing(channels: int) -> InvertibleConv1x1:
    return InvertibleConv1x1(channels, lu=False)


each_kind = pytest.mark.parametrize("kind", [InvertibleConv1x1, plain_mixing])


@each_kind
@pytest.mark.parametrize("spatial", [(), (3,), (4, 2)], ids=str)
def test_inverts_and_knows_its_log_determinant(
    kind: Callable[[int], InvertibleConv1x1], spatial: tuple[int, ...]
) -> None:
    layer = perturbed(kind(CHANNELS), 0.1)
    assert_is_a_flow_layer(layer, normal(2, CHANNELS, *spatial), None)


@each_kind
def test_a_new_mixing_is_a_rotation_and_knows_its_determinant(
    kind: Callable[[int], InvertibleConv1x1],
) -> None:
    mix = kind(12).double()
    torch.testing.assert_close(
        mix.weight() @ mix.weight().T, torch.eye(12, dtype=torch.float64), atol=1e-6, rtol=0
    )
    perturbed(mix, 0.1)
    _, logabsdet = mix(normal(2, 12, 4, 5))
    expected = 20 * torch.linalg.slogdet(mix.weight()).logabsdet
    torch.testing.assert_close(logabsdet, expected.expand(2), atol=1e-9, rtol=1e-9)
