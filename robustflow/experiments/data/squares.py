"""Squares of pictures to sample: of the built-in ones, of a folder's, or of one file."""

from __future__ import annotations

from pathlib import Path
from typing import cast, get_args

from torch import Tensor

from robustflow.experiments.data.builtin import Split, split_of
from robustflow.experiments.data.reading import (
    Skipped,
    picture_files,
    read_picture,
    read_pictures,
)
from robustflow.experiments.photographs import crop


def squares_of(source: Split | Path, size: int) -> tuple[dict[str, Tensor], list[Skipped]]:
    """By title, squares (3, size, size), uint8, and the files that are left out.

    Args:
        source: a split of the built-in set, at its places (of a smaller picture, its largest
            square); or a folder, or a file, whose pictures' middle is taken.
        size: of the squares; 0 for pictures as they are.

    Raises:
        OSError: the folder or a built-in file is missing.
        ValueError: no picture can be used.
    """
    squares: dict[str, Tensor] = {}
    if isinstance(source, str):
        for picture in split_of(source):
            pixels = read_picture(picture.file)
            side = min(size, *pixels.shape[-2:])
            squares[picture.title] = crop(pixels, picture.corner, side) if size else pixels
        return squares, []
    files = [source] if source.is_file() else picture_files(source)
    pictures, skipped = read_pictures(files, smallest=max(1, size))
    for file, pixels in pictures:
        title = file.name if source.is_file() else str(file.relative_to(source))
        height, width = pixels.shape[-2:]
        corner = ((height - size) // 2, (width - size) // 2)
        squares[title] = crop(pixels, corner, size) if size else pixels
    if not squares:
        reasons = "; ".join(str(each) for each in skipped[:3])
        condition = f"of at least {size} x {size} pixels" if size else "that can be read"
        raise ValueError(f"{source} has no picture {condition} ({reasons}).")
    return squares, skipped


def split_or_path(text: str) -> Split | Path:
    """Interpret a word of the command line: "train", "held_out" or "ood", or a path."""
    return cast(Split, text) if text in get_args(Split) else Path(text)
