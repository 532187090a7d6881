"""The photographs of the demonstration: some of those that scikit-image and scikit-learn ship."""

from __future__ import annotations

from torch import Tensor

from robustflow.experiments.data.builtin import Picture, manifest
from robustflow.experiments.data.reading import read_picture


def _titled(*titles: str) -> tuple[Picture, ...]:
    by_title = {picture.title: picture for picture in manifest()}
    return tuple(by_title[title] for title in titles)


TRAINING = _titled("astronaut", "coffee", "rocket", "motorcycle", "temple", "flower")
CONTROL = TRAINING[0]
(HELD_OUT,) = _titled("cat")
OUT_OF_DISTRIBUTION = _titled("microscopy", "colour wheel", "text page", "star field")


def load(picture: Picture) -> Tensor:
    """The whole picture: (3, H, W), uint8; a greyscale file is repeated over three channels.

    Raises:
        FileNotFoundError: the package that should ship it is missing, or does not.
    """
    return read_picture(picture.file)


def crop(image: Tensor, corner: tuple[int, int], size: int) -> Tensor:
    """The square of ``size`` pixels of (3, H, W) at ``corner``, moved inwards where it must be."""
    height, width = image.shape[-2:]
    if size > min(height, width):
        raise ValueError(f"A crop of {size} pixels does not fit a picture of {height}x{width}.")
    top, left = min(corner[0], height - size), min(corner[1], width - size)
    return image[..., top : top + size, left : left + size]
