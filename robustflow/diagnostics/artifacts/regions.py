"""Connected regions of a mask, and which of them count."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType

import torch
from torch import Tensor

from robustflow._extras import require


def least_area(size: Sequence[int], share: float, least: int = 4) -> int:
    """The number of pixels from which a region counts, in a picture of that size.

    A share of the picture, so that an enlarged picture is judged alike, but at least ``least``
    pixels, so that chance does not produce one.

    Example:
        >>> least_area((160, 160), 1 / 4096), least_area((512, 512), 1 / 4096)
        (6, 64)
    """
    return max(least, math.floor(share * math.prod(size)))


def regions(mask: Tensor, area: int) -> Iterator[tuple[tuple[slice, ...], Tensor]]:
    """The connected regions of a mask (\\*S) that have at least so many pixels.

    Pixels that touch, at a corner too, are connected.

    Yields:
        For each a box around it, one pixel larger where the picture is, and the region in the box.
    """
    ndimage = _ndimage()
    structure = ndimage.generate_binary_structure(mask.dim(), mask.dim())
    labels, number = ndimage.label(mask.cpu().numpy(), structure)
    if number == 0:
        return
    labelled = torch.from_numpy(labels)
    areas = torch.bincount(labelled.flatten(), minlength=number + 1)
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        if areas[label] >= area:
            wider = tuple(
                slice(max(0, side.start - 1), min(length, side.stop + 1))
                for side, length in zip(box, mask.shape, strict=True)
            )
            yield wider, (labelled[wider] == label).to(mask.device)


def keep_regions(
    mask: Tensor, area: int, counts: Callable[[tuple[slice, ...], Tensor], bool] | None = None
) -> Tensor:
    """The regions of a mask (\\*S) that are large enough and for which ``counts`` is true."""
    kept = torch.zeros_like(mask)
    for box, region in regions(mask, area):
        if counts is None or counts(box, region):
            kept[box] |= region
    return kept


def ring(region: Tensor) -> Tensor:
    """The pixels around a region, in the box that :func:`regions` gives."""
    structure = _ndimage().generate_binary_structure(region.dim(), region.dim())
    wider = _ndimage().binary_dilation(region.cpu().numpy(), structure)
    return torch.from_numpy(wider).to(region.device) & ~region


def opened(mask: Tensor, radius: int) -> Tensor:
    """Morphological opening of a mask (\\*S) by a square of side 2 radius + 1."""
    ndimage = _ndimage()
    square = torch.ones([2 * radius + 1] * mask.dim(), dtype=torch.bool).numpy()
    # Pixels beyond the edge do not stop a square from fitting.
    eroded = ndimage.binary_erosion(mask.cpu().numpy(), square, border_value=1)
    return torch.from_numpy(ndimage.binary_dilation(eroded, square)).to(mask.device)


def _ndimage() -> ModuleType:
    return require("scipy.ndimage", "Finding connected regions", "diagnostics")
