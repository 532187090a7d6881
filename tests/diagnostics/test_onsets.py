"""Masks, receptive fields and groups, each against a plain version of it."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

import robustflow
from robustflow import _native
from robustflow import nn as rnn
from robustflow.compat.srflow import CondAffineSeparatedAndCond
from robustflow.diagnostics import _moments as moments
from robustflow.diagnostics.onsets import (
    Crossings,
    any_channel,
    components,
    dilate,
    grouped,
    reach_of,
)


def random_mask(*shape: int, share: float = 0.1, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share


@pytest.mark.parametrize("reach", [(0, 0), (1, 1), (2, 5), (0, 3), (40, 40)])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_dilation_is_that_of_scipy(reach: tuple[int, int], dims: int) -> None:
    mask = random_mask(2, 1, *[9, 11, 6][:dims])
    before, after = reach
    structure = torch.zeros([2 * max(reach) + 1] * dims, dtype=torch.bool)
    middle = max(reach)
    structure[(slice(middle - before, middle + after + 1),) * dims] = True
    expected = torch.stack(
        [torch.from_numpy(ndimage.binary_dilation(each[0], structure))[None] for each in mask]
    )
    assert torch.equal(dilate(mask, (reach,) * dims), expected)


def test_dilation_without_bounds_covers_the_sample() -> None:
    mask = torch.zeros(2, 1, 4, 5, dtype=torch.bool)
    mask[1, 0, 2, 2] = True
    assert dilate(mask, None).flatten(1).all(1).tolist() == [False, True]
    assert not bool(dilate(mask, ((-4, -4), (-5, -5))).any())


def test_any_channel() -> None:
    mask = random_mask(3, 5, 4, 4)
    assert torch.equal(any_channel(mask), mask.any(dim=1, keepdim=True))


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("shape", [(13,), (11, 9), (5, 6, 4)])
def test_components_are_those_of_scipy(share: float, shape: tuple[int, ...]) -> None:
    marks = random_mask(3, *shape, share=share)
    labels = components(marks)
    assert torch.equal(labels > 0, marks)
    for found, mark in zip(labels, marks, strict=True):
        expected, count = ndimage.label(mark, torch.ones([3] * len(shape)))
        pairs = {(int(a), int(b)) for a, b in zip(found[mark], expected[mark], strict=True)}
        assert len(pairs) == count == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def test_a_long_snake_is_one_component() -> None:
    marks = torch.zeros(1, 41, 41, dtype=torch.bool)
    marks[0, ::2] = True
    marks[0, 1::4, -1] = marks[0, 3::4, 0] = True
    assert len(components(marks).unique()) == 2  # and the rest


def test_groups_give_the_strongest_of_each() -> None:
    index = torch.tensor([[0, 0, 3], [0, 1, 4], [0, 0, 7], [2, 1, 3]])
    growth = torch.tensor([12.0, math.inf, 11.0, 20.0])
    crossings = Crossings(index, growth, growth, torch.zeros(4, dtype=torch.long))
    assert grouped(crossings, (9,)) == [(1, 2), (3, 1), (2, 1)]
    vectors = Crossings(index[:, :2], growth, growth, torch.zeros(4, dtype=torch.long))
    assert grouped(vectors, ()) == [(1, 3), (3, 1)]


class Pooled(nn.Module):
    """A net that sees the whole picture."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        return self.conv(z) + z.mean(dim=(2, 3), keepdim=True).sum(1, keepdim=True)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, (1, 3), padding=(0, 1))
        self.head = nn.Conv2d(2, 4, (3, 5), padding=(2, 2), dilation=(2, 1))

    def forward(self, z: Tensor) -> Tensor:
        return self.head(z + self.conv(z).relu())


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (nn.Conv2d(2, 4, 5, padding=2), ((2, 2), (2, 2))),
        (nn.Sequential(nn.Conv2d(2, 3, 3, padding="same"), nn.ReLU(), nn.Conv2d(3, 4, 1)), None),
        (
            nn.Sequential(nn.Conv2d(2, 3, 3, padding=2, dilation=2), nn.Conv2d(3, 4, 3, padding=1)),
            ((3, 3),) * 2,
        ),
        (rnn.Conditioner(2, 0, 8, kernel_size=5, head_kernel_size=3), ((3, 3), (3, 3))),
        (
            CondAffineSeparatedAndCond(
                4, {"network_G": {"flow": {"conditionInFeaDim": 1}}}
            ).fAffine,
            ((2, 2), (2, 2)),
        ),
    ],
    ids=["conv", "same", "dilated", "default", "srflow"],
)
def test_the_reach_of_plain_convolutions_is_read_off(net: nn.Module, expected: object) -> None:
    if expected is None:
        expected = ((1, 1), (1, 1))
    assert reach_of(net, None, torch.zeros(1, 2, 20, 20)) == expected


def test_the_reach_of_others_is_measured() -> None:
    kept = torch.zeros(3, 2, 20, 20)
    net = Residual().eval()
    assert reach_of(net, net, kept) == ((2, 2), (3, 3))
    pooled = Pooled().eval()
    assert reach_of(pooled, pooled, kept) == ((20, 20), (20, 20))
    # Small pictures do not show where it ends.
    assert reach_of(net, net, kept[..., :3, :3]) == ((3, 3), (3, 3))
    net.train()
    assert reach_of(net, net, kept) is None  # NaN must not get into running statistics
    assert reach_of(net, None, kept) is None and reach_of(None, None, kept) is None


def test_a_measured_reach_bounds_what_changes() -> None:
    net = Residual().eval()
    kept = torch.randn(1, 2, 20, 20)
    other = kept.clone()
    other[0, 1, 9, 11] += 1.0
    with torch.no_grad():
        changed = (net(kept) != net(other)).any(dim=1)[0]
    mark = torch.zeros(1, 1, 20, 20, dtype=torch.bool)
    mark[..., 9, 11] = True
    inside = dilate(mark, reach_of(net, net, kept))[0, 0]
    assert bool(changed.any()) and not bool((changed & ~inside).any())


def test_a_measurement_leaves_the_net_as_it_is() -> None:
    net = nn.Sequential(nn.BatchNorm2d(2), Residual()).eval()
    before = {name: each.clone() for name, each in net.state_dict().items()}
    state = torch.get_rng_state()
    assert reach_of(net, net, torch.zeros(1, 2, 20, 20)) == ((2, 2), (3, 3))
    assert all(torch.equal(each, before[name]) for name, each in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


SHAPES = [(3, 7, 41, 13), (2, 48, 40, 40), (1, 1, 16), (2, 5, 2100), (2, 3, 5)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_native_loops_compute_what_pytorch_does(shape: tuple[int, ...]) -> None:
    """Where they are built; elsewhere both are PyTorch's."""
    z = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    at_end = tuple(side - 1 for side in shape)
    for value in (None, 3e38, math.inf, math.nan):
        if value is not None:
            z[(0,) * len(shape)], z[at_end] = value, -value
        found, expected = moments.summarise(z), moments._summarise(z)
        torch.testing.assert_close(found.peaks, expected.peaks, rtol=0, atol=0, equal_nan=True)
        assert found.peak == pytest.approx(expected.peak, rel=0, abs=0, nan_ok=True)
        assert (found.elements, found.nonfinite) == (expected.elements, expected.nonfinite)
        wide = z.double()[z.isfinite()]
        rounding = 1e-6 * float(wide.abs().sum())
        assert found.total == pytest.approx(float(wide.sum()), abs=rounding)
        assert found.squares == pytest.approx(float(wide.square().sum()), rel=1e-5)


@pytest.mark.parametrize("shape", [(3, 7, 41, 13), (1, 1, 16), (2, 3, 5)])
@pytest.mark.parametrize("isa", ["in use", "baseline"])
def test_the_native_crossings_are_the_definition(shape: tuple[int, ...], isa: str) -> None:
    before = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 2
    after = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 8
    after.view(-1)[::7] = math.nan
    before.view(-1)[3], after.view(-1)[3] = 2.0, 20.0  # at the threshold
    before.view(-1)[5], after.view(-1)[5] = 29.0, 31.0  # reaches the magnitude
    before.view(-1)[11] = math.inf
    growth = after.abs() / before.abs().clamp(min=1)
    reached = (after.abs() >= 30) & (before.abs() < 30)
    crossed = before.isfinite() & ((growth >= 10) | reached | ~after.isfinite())
    expected = crossed.any(dim=1)
    in_use = robustflow.build_info().get("isa")
    if isa == "baseline" and in_use is not None:
        _native.set_isa("baseline")
    try:
        found = moments.crossing_positions(before, after, 10.0, 30.0, None)
        assert torch.equal(found, expected)
        dense = random_mask(*shape, share=0.3)
        for mask in (
            dense,
            dense[:, :1].expand(shape),
            dense.transpose(0, -1).contiguous().transpose(0, -1),
        ):
            found = moments.crossing_positions(before, after, 10.0, 30.0, mask)
            assert torch.equal(found, (crossed & ~mask).any(dim=1))
        assert moments.summarise(before).peak == float(before.abs().max())
    finally:
        if in_use is not None:
            _native.set_isa(in_use)
