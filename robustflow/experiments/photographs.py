"""Photographs that come inside the scikit-image and scikit-learn packages: no download, ever.

The files are opened by their path. ``skimage.data``'s own functions would fetch what a release
does not ship.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_DISTRIBUTIONS = {"skimage": "scikit-image", "sklearn": "scikit-learn"}


@dataclass(frozen=True)
class Picture:
    """A picture that a package ships, and the square of it that is sampled.

    Attributes:
        title: what it shows.
        path: package and file, such as ``"skimage/data/coffee.png"``.
        corner: top and left pixel of the square.
    """

    title: str
    path: str
    corner: tuple[int, int] = (0, 0)


TRAINING = (
    Picture("astronaut", "skimage/data/astronaut.png", (0, 140)),
    Picture("coffee", "skimage/data/coffee.png"),
    Picture("rocket", "skimage/data/rocket.jpg"),
    Picture("motorcycle", "skimage/data/motorcycle_left.png"),
    Picture("temple", "sklearn/datasets/images/china.jpg"),
    Picture("flower", "sklearn/datasets/images/flower.jpg"),
)
CONTROL = TRAINING[0]
HELD_OUT = Picture("cat", "skimage/data/chelsea.png", (60, 110))
OUT_OF_DISTRIBUTION = (
    Picture("microscopy", "skimage/data/ihc.png", (180, 180)),
    Picture("colour wheel", "skimage/data/color.png", (105, 105)),
    Picture("text page", "skimage/data/page.png", (10, 20)),
    Picture("star field", "skimage/data/hubble_deep_field.jpg", (300, 400)),
)


def load(picture: Picture) -> Tensor:
    """The whole picture: (3, H, W), uint8; a greyscale file is repeated over three channels.

    Raises:
        FileNotFoundError: the package that should ship it is missing, or does not.
    """
    package, _, inside = picture.path.partition("/")
    spec = find_spec(package)  # finds the package's folder without importing the package
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    for folder in folders:
        if (file := Path(folder) / inside).is_file():
            pixels = np.array(Image.open(file).convert("RGB"))
            return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
    raise FileNotFoundError(
        f"The picture {picture.path} comes with {_DISTRIBUTIONS[package]}, which is not installed "
        f"or does not ship it: run `pip install --upgrade {_DISTRIBUTIONS[package]}`."
    )


def crop(image: Tensor, corner: tuple[int, int], size: int) -> Tensor:
    """The square of ``size`` pixels of (3, H, W) at ``corner``, moved inwards where it must be."""
    height, width = image.shape[-2:]
    if size > min(height, width):
        raise ValueError(f"A crop of {size} pixels does not fit a picture of {height}x{width}.")
    top, left = min(corner[0], height - size), min(corner[1], width - size)
    return image[..., top : top + size, left : left + size]
