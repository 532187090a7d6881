"""The photographs that scikit-image and scikit-learn ship, by the manifest ``builtin.toml``.

The files are opened by their path. ``skimage.data``'s own functions would fetch what a release
does not ship.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, cast

import tomlkit

Split = Literal["train", "held_out", "ood"]

_DISTRIBUTIONS = {"skimage": "scikit-image", "sklearn": "scikit-learn"}


@dataclass(frozen=True)
class Picture:
    """A picture that a package ships.

    Attributes:
        title: what it shows.
        path: package and file, such as ``"skimage/data/coffee.png"``.
        corner: top and left pixel of the square that demonstrations sample.
        split: ``"train"``, ``"held_out"`` or ``"ood"``.
        licence: as the package's documentation states it.
        sha256: of the file that the results in docs/ were made with.
    """

    title: str
    path: str
    corner: tuple[int, int] = (0, 0)
    split: Split = "train"
    licence: str = ""
    sha256: str = ""

    @property
    def file(self) -> Path:
        """Where the file is on this machine.

        Raises:
            FileNotFoundError: the package that should ship it is missing, or does not.
        """
        package, _, inside = self.path.partition("/")
        spec = find_spec(package)  # finds the package's folder without importing the package
        for folder in [] if spec is None else list(spec.submodule_search_locations or []):
            if (file := Path(folder) / inside).is_file():
                return file
        raise FileNotFoundError(
            f"The picture {self.path} comes with {_DISTRIBUTIONS[package]}, which is not installed "
            f"or does not ship it: run `pip install --upgrade {_DISTRIBUTIONS[package]}`."
        )

    @property
    def unchanged(self) -> bool:
        """Whether the installed file is the one of the manifest, to the bit."""
        return hashlib.sha256(self.file.read_bytes()).hexdigest() == self.sha256


@lru_cache(maxsize=1)
def manifest() -> tuple[Picture, ...]:
    """All pictures of the built-in set, in the manifest's order."""
    text = files(__package__).joinpath("builtin.toml").read_text(encoding="utf-8")
    return tuple(
        Picture(
            title=entry["title"],
            path=entry["file"],
            corner=cast("tuple[int, int]", tuple(entry.get("corner", (0, 0)))),
            split=entry["split"],
            licence=entry["licence"],
            sha256=entry["sha256"],
        )
        for entry in tomlkit.parse(text).unwrap()["picture"]
    )


def split_of(split: Split) -> tuple[Picture, ...]:
    """The pictures of one split.

    Example:
        >>> [picture.title for picture in split_of("held_out")]
        ['cat', 'cameraman', 'grass']
    """
    return tuple(picture for picture in manifest() if picture.split == split)
