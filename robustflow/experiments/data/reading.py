"""Picture files as tensors; files that cannot be read are reported, never fatal."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")


class UnreadablePicture(Exception):
    """A file that cannot be read as a picture; its text says why."""


@dataclass(frozen=True)
class Skipped:
    """A file that is left out.

    Attributes:
        path: of the file.
        reason: why, as a sentence's end.
    """

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def read_picture(path: Path) -> Tensor:
    """The picture in a file, (3, H, W), uint8.

    A rotation that a camera noted (EXIF) is carried out. Greyscale becomes three equal channels,
    palettes and CMYK are converted, transparency is laid on white, 16 bits become 8, and of an
    animation the first picture is taken.

    Raises:
        UnreadablePicture: no picture, a damaged or empty one, or one too large to be believed.

    Example:
        >>> read_picture(Path("no such file"))
        Traceback (most recent call last):
        ...
        robustflow.experiments.data.reading.UnreadablePicture: there is no such file
    """
    try:
        if path.stat().st_size == 0:
            raise UnreadablePicture("the file is empty")
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore")  # of odd metadata; what matters raises
            image.load()
            return _to_tensor(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise UnreadablePicture("there is no such file") from None
    except UnidentifiedImageError:
        raise UnreadablePicture("it is not a picture that Pillow knows") from None
    except Image.DecompressionBombError:
        raise UnreadablePicture(
            "it has more than twice PIL.Image.MAX_IMAGE_PIXELS, which Pillow does not open"
        ) from None
    # What Pillow's decoders raise for damaged files. A broken file must not end a training.
    except (
        *(OSError, SyntaxError, ValueError, TypeError, OverflowError, EOFError, MemoryError),
        *(IndexError, KeyError, AttributeError, ZeroDivisionError),
    ) as error:
        raise UnreadablePicture(f"it is damaged ({type(error).__name__}: {error})") from None


def _to_tensor(image: Image.Image) -> Tensor:
    if image.mode.startswith(("I", "F")):  # 16 or 32 bits a value, one channel
        values = np.asarray(image, dtype=np.float64)
        if image.mode == "F":
            values = values * (255 if values.max(initial=0) <= 1 else 1)
        else:
            values = values / 257  # 65535 -> 255
        grey = np.clip(np.round(values), 0, 255).astype(np.uint8)
        return torch.from_numpy(grey).expand(3, -1, -1).contiguous()
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        image = Image.alpha_composite(white, rgba)
    pixels = np.array(image.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def picture_files(folder: Path) -> list[Path]:
    """The files below a folder whose names end like a picture's, sorted.

    Raises:
        FileNotFoundError, NotADirectoryError: no such folder.
        ValueError: no such file in it.
    """
    if not folder.exists():
        raise FileNotFoundError(f"There is no folder {folder}.")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file: name the folder of pictures.")
    files = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()
    )
    if not files:
        raise ValueError(f"There is no picture in {folder}: wanted {', '.join(SUFFIXES)}.")
    return files


def read_pictures(
    files: Sequence[Path], smallest: int = 1
) -> tuple[list[tuple[Path, Tensor]], list[Skipped]]:
    """Every picture that can be read, and the files that are left out.

    Args:
        files: in the order of the result.
        smallest: a picture with a shorter side is left out.
    """
    pictures, skipped = [], []
    for path in files:
        try:
            picture = read_picture(path)
        except UnreadablePicture as error:
            skipped.append(Skipped(path, str(error)))
            continue
        if min(picture.shape[-2:]) < smallest:
            height, width = picture.shape[-2:]
            skipped.append(Skipped(path, f"{height} x {width} is smaller than a crop, {smallest}"))
        else:
            pictures.append((path, picture))
    return pictures, skipped
