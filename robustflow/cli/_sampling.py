"""Arguments of the commands that sample flows: each is defined here, once."""

from __future__ import annotations

import argparse
from pathlib import Path

from robustflow._arguments import numbers, whole_number


def add_number(parser: argparse.ArgumentParser, default: int) -> None:
    """``--number``: samples of each picture."""
    parser.add_argument(
        "-n",
        "--number",
        type=whole_number(1),
        default=default,
        metavar="N",
        help="samples of each picture (default: %(default)s)",
    )


def add_temperatures(parser: argparse.ArgumentParser, default: str) -> None:
    """``--temperatures``: of the latents."""
    parser.add_argument(
        "--temperatures",
        type=numbers,
        default=default,
        metavar="LIST",
        help="joined by commas (default: %(default)s)",
    )


def add_size(
    parser: argparse.ArgumentParser, default: int, *, minimum: int = 1, more: str = ""
) -> None:
    """``--size``: the side of the squares; ``more`` is added to its help."""
    parser.add_argument(
        "--size",
        type=whole_number(minimum),
        default=default,
        metavar="N",
        help=f"side of the squares (default: %(default)s{more})",
    )


def add_seed(parser: argparse.ArgumentParser) -> None:
    """``--seed``: of the latents."""
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the latents")


def add_out(parser: argparse.ArgumentParser, default: str) -> None:
    """``--out``: the folder of all files."""
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(default),
        metavar="DIR",
        help="where the files go (default: %(default)s)",
    )
