"""`grid`: patterns with the period of the flow's squeezes."""

from __future__ import annotations

import torch
from torch import Tensor

from robustflow.diagnostics.artifacts.samples import Detection, Sample, displayed

_PERIODS = 8  # in a line
_LINES = 15  # of a signal in a block, each half a line after the one before
_OVERLAP = 4  # blocks that begin within a block's side
_LOBE = 2  # bins to each side that a peak takes under a Hann window
_NEAR = 3  # bins beyond those, to each side, that say what power to expect
_FLOOR = (0.5 / 255) ** 2  # a power that rounding to 8 bits may have


def block_side(dims: int, levels: int) -> int:
    """The side of a block of pictures (2) or signals (1), in pixels: 8 and 64 periods."""
    line = _PERIODS * 2**levels
    return line if dims == 2 else (_LINES + 1) * line // 2


def grid_scores(sample: Tensor, levels: int) -> Tensor:
    """Excess power at multiples of 2^-levels cycles a pixel, block by block.

    The power spectrum of every line of a block, under a Hann window, is averaged over lines and
    channels, rows and columns apart. A grid of squares of side 2^levels has peaks at f_k =
    k / 2^levels cycles a pixel, k = 1 ... 2^(levels - 1), in both directions. The score, in bels,

        min over directions of max over k of log10 power(f_k) - mean log10 power(bins near f_k)

    is of the weaker direction: roofs and cloth have stripes of any period in one.

    A line has 8 periods. A block of a picture is a square of that side; one of a signal has 15
    lines, each beginning half a line after the one before. The next block begins a quarter of a
    block on.

    Args:
        sample: (C, \\*S), values in [0, 1].
        levels: how often the flow squeezes by 2, at least 1.

    Returns:
        (\\*S): the score of the block whose centre is nearest; zeros where the sample is smaller
        than a block.
    """
    size = sample.shape[1:]
    dims, block = len(size), block_side(len(size), levels)
    if min(size) < block:
        return sample.new_zeros(size)
    stride = block // _OVERLAP
    if dims == 2:
        blocks = sample.unfold(1, block, stride).unfold(2, block, stride)
        directions = [blocks, blocks.mT]
    else:
        line = _PERIODS * 2**levels
        directions = [sample.unfold(1, block, stride).unfold(2, line, line // 2)]
    score = torch.stack([_excess(lines, levels) for lines in directions]).amin(dim=0)
    for dim, length in enumerate(size):
        centres = torch.arange(score.shape[dim]) * stride + block / 2 - 0.5
        pixels = torch.arange(length, dtype=centres.dtype)
        nearest = (pixels[:, None] - centres).abs().argmin(dim=1)
        score = score.index_select(dim, nearest.to(score.device))
    return score


def grid(sample: Sample) -> Detection:
    """Where :func:`grid_scores` of the sample as displayed is above ``thresholds.grid``."""
    score = grid_scores(displayed(sample.x), sample.grid_levels)
    return Detection(score, score > sample.thresholds.grid)


def _excess(lines: Tensor, levels: int) -> Tensor:
    """Of lines (C, \\*blocks, lines, length) -> (\\*blocks)."""
    length = lines.shape[-1]
    window = torch.hann_window(length, dtype=lines.dtype, device=lines.device)
    weighted = (lines - lines.mean(dim=-1, keepdim=True)) * (window / window.norm())
    power = torch.fft.rfft(weighted).abs().square().mean(dim=(0, -2))
    bels = (power + _FLOOR).log10()
    peaks = range(_PERIODS, length // 2 + 1, _PERIODS)
    excess = []
    for peak in peaks:
        near = [
            number
            for number in range(1, length // 2 + 1)
            if _LOBE < abs(number - peak) <= _LOBE + _NEAR
            and all(abs(number - other) > _LOBE for other in peaks)
        ]
        excess.append(bels[..., peak] - bels[..., near].mean(dim=-1))
    return torch.stack(excess).amax(dim=0)
