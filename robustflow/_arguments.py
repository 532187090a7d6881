"""Types of command-line arguments, for ``argparse``: a wrong one is named in a sentence."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from robustflow._files import UnwritablePath, check_writable


def whole_number(minimum: int) -> Callable[[str], int]:
    """A type: whole numbers from ``minimum`` on."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if value < minimum:
            raise argparse.ArgumentTypeError(
                f"must be a whole number of at least {minimum}, got {text!r}"
            )
        return value

    return convert


def numbers(text: str) -> list[float]:
    """A type: numbers joined by commas."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be numbers joined by commas, got {text!r}"
        ) from None


def words_of(choices: Sequence[str]) -> Callable[[str], list[str]]:
    """A type: some of these words, joined by commas, in the order of ``choices``."""

    def convert(text: str) -> list[str]:
        words = text.split(",")
        for word in words:
            if word not in choices:
                raise argparse.ArgumentTypeError(
                    f"must be of {', '.join(choices)}, joined by commas, got {word!r}"
                )
        return [choice for choice in choices if choice in words]

    return convert


def output_file(text: str) -> Path:
    """A type: a file to write; its folder is created and checked before any work."""
    path = Path(text)
    try:
        check_writable(path)
    except UnwritablePath as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return path
