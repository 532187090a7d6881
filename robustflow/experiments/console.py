"""Sentences on the terminal."""

from __future__ import annotations

from rich.console import Console


def say(console: Console, sentence: str, style: str | None = None) -> None:
    """Print a sentence unchanged: paths are not wrapped, and brackets are no markup."""
    console.print(sentence, style=style, markup=False, highlight=False, soft_wrap=True)
