"""`grid`: patterns with the period of the flow's squeezes."""

from __future__ import annotations

import torch
from torch import Tensor

from robustflow.diagnostics.artifacts.samples import Detection, Sample, displayed

_PERIODS = 8  # in a line
_LINES = 15  # of a signal in a block, each half a line after the one before
_OVERLAP = 4  # blocks that begin within a block's side
_LOBE = 2  # bins to each side that a peak takes under a Hann window
_NEAR = 3  # bins beyond those, to each side, whose power is the expected one
_ELEMENTS = 2**22  # values of the lines that are transformed at a time
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
    line, block = _PERIODS * 2**levels, block_side(len(size), levels)
    if min(size) < block:
        return sample.new_zeros(size)
    stride = block // _OVERLAP
    if len(size) == 2:
        rows, columns = (
            _excess(_line_powers(x, line, stride).unfold(0, block, stride), levels)
            for x in (sample, sample.mT)
        )
        score = torch.minimum(rows, columns.T)
    else:
        hop = line // 2
        score = _excess(_line_powers(sample, line, hop).unfold(0, _LINES, stride // hop), levels)
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


def _line_powers(x: Tensor, line: int, hop: int) -> Tensor:
    """Spectra of lines along the last dimension, the mean over channels.

    Args:
        x: (C, rows, length) or (C, length).
        line: length of a line.
        hop: from one line's beginning to the next's.

    Returns:
        (rows, lines, line/2 + 1) or (lines, line/2 + 1).
    """
    window = torch.hann_window(line, dtype=x.dtype, device=x.device)
    lines = x.unfold(-1, line, hop)
    together = max(1, _ELEMENTS // lines[:, 0].numel())
    powers = []
    for part in lines.split(together, dim=1):  # lines overlap: not all copies at a time
        weighted = (part - part.mean(dim=-1, keepdim=True)) * (window / window.norm())
        powers.append(torch.fft.rfft(weighted).abs().square().mean(dim=0))
    return torch.cat(powers)


def _excess(powers: Tensor, levels: int) -> Tensor:
    """Of spectra (\\*blocks, bins, lines) -> (\\*blocks)."""
    bels = (powers.mean(dim=-1) + _FLOOR).log10()
    bins = bels.shape[-1]
    peaks = range(_PERIODS, bins, _PERIODS)
    excess = []
    for peak in peaks:
        near = [
            number
            for number in range(1, bins)
            if _LOBE < abs(number - peak) <= _LOBE + _NEAR
            and all(abs(number - other) > _LOBE for other in peaks)
        ]
        excess.append(bels[..., peak] - bels[..., near].mean(dim=-1))
    return torch.stack(excess).amax(dim=0)
