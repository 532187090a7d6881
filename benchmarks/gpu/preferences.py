"""From rows to rules: which of the CUDA and Triton kernels ``auto`` takes for a call.

A rule holds for a range of sizes in which one backend was the faster at every measured size, by
more than the spread of both. Between two measured sizes with different outcomes the border is their
geometric mean. Where neither was clearly faster there is no rule, and ``auto`` takes CUDA.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from robustflow import _preferences

from .cases import FAMILIES
from .row import GpuRow

BACKENDS = ("cuda", "triton")
_Pair = dict[str, GpuRow]  # one row a backend, of one case
_TRANSFORMS = {family.operation: family.transform for family in FAMILIES}
# (direction, training) of the directions that a user meets; a backward pass comes with its call.
_CALLS = {
    "forward": ("forward", False),
    "inverse": ("inverse", False),
    "forward+backward": ("forward", True),
    "inverse+backward": ("inverse", True),
}


def make_rules(rows: Iterable[GpuRow]) -> list[dict[str, Any]]:
    """The rules that rows of both backends support, as :mod:`robustflow._preferences` has them."""
    by_call: dict[tuple[Any, ...], dict[int, list[_Pair]]] = {}
    for pair in _pairs(rows):
        row = pair["cuda"]
        elements = math.prod(row.shape)
        by_call.setdefault(_call_of(row), {}).setdefault(elements, []).append(pair)
    rules = []
    for call, sizes in by_call.items():
        ordered = sorted(sizes)
        winners = [_winner(sizes[elements]) for elements in ordered]
        for begin, end in _stretches(winners):
            winner = winners[begin]
            if winner is None:
                continue
            last = ordered[end - 1]
            pair = sizes[last][0]
            transform, direction, training, dtype, layout = call
            rules.append(
                {
                    "transform": transform,
                    "direction": direction,
                    "training": training,
                    "dtype": dtype,
                    "layout": layout,
                    "min_elements": _border(ordered, begin) + 1 if begin else 0,
                    "max_elements": _border(ordered, end) if end < len(ordered) else None,
                    "backend": winner,
                    "measured": {
                        "card": pair["cuda"].device,
                        "elements": last,
                        **{f"{name}_us": round(1e6 * pair[name].median_s, 3) for name in BACKENDS},
                    },
                }
            )
    return rules


def write(rules: Sequence[dict[str, Any]], file: Path = _preferences.FILE) -> None:
    """Put rules into the package's file; rules about other calls that stand there are kept."""
    fresh = {_call(rule) for rule in rules}
    kept = [rule for rule in _preferences.read_rules(file) if _call(rule) not in fresh]
    _preferences.write_rules([*kept, *rules], file)


def _call(rule: dict[str, Any]) -> tuple[Any, ...]:
    names = ("transform", "direction", "training", "dtype", "layout")
    return tuple(rule[name] for name in names)


def _call_of(row: GpuRow) -> tuple[Any, ...]:
    direction, training = _CALLS[row.direction]
    return (_TRANSFORMS[row.operation], direction, training, row.parameter_dtype, row.layout)


def _pairs(rows: Iterable[GpuRow]) -> list[_Pair]:
    """Cases that both backends were measured on."""
    found: dict[str, _Pair] = {}
    for row in rows:
        if row.direction in _CALLS and row.backend in BACKENDS:
            found.setdefault(row.name, {})[row.backend] = row
    return [pair for pair in found.values() if len(pair) == len(BACKENDS)]


def _winner(pairs: Sequence[_Pair]) -> str | None:
    """Who was clearly faster in every case of one size; None where that is nobody."""
    winners = set()
    for pair in pairs:
        fast, slow = sorted(pair.values(), key=lambda row: row.median_s)
        clear = slow.median_s / fast.median_s - 1 > max(fast.spread, slow.spread)
        winners.add(fast.backend if clear else None)
    return winners.pop() if len(winners) == 1 else None


def _stretches(winners: Sequence[str | None]) -> list[tuple[int, int]]:
    """(begin, end) of each run of equal winners."""
    runs, begin = [], 0
    for _, group in itertools.groupby(winners):
        length = len(list(group))
        runs.append((begin, begin + length))
        begin += length
    return runs


def _border(sizes: Sequence[int], i: int) -> int:
    """The last size that is nearer to ``sizes[i - 1]`` than to ``sizes[i]``, on a logarithm."""
    return math.isqrt(sizes[i - 1] * sizes[i])
