"""Squeeze: where blocks of a picture go."""

from __future__ import annotations

import torch

from robustflow.nn import Squeeze


def test_squeeze_moves_blocks_into_channels() -> None:
    z = torch.arange(16.0).view(1, 1, 4, 4)
    y, logabsdet = Squeeze(2)(z)
    assert y.shape == (1, 4, 2, 2) and y[0, :, 0, 0].tolist() == [0, 1, 4, 5]
    assert torch.equal(Squeeze(2)(y, inverse=True)[0], z) and logabsdet.tolist() == [0]


def test_an_empty_batch_is_squeezed_too() -> None:
    squeeze = Squeeze(2)
    z, logabsdet = squeeze(torch.zeros(0, 3, 8, 6))
    assert z.shape == (0, 12, 4, 3) and logabsdet.shape == (0,)
    assert squeeze(z, inverse=True)[0].shape == (0, 3, 8, 6)
