"""A few rows that represent many: a random sample of a stream, or its most spread-out rows."""

from __future__ import annotations

import torch
from torch import Tensor


class Reservoir:
    """A uniform random choice without replacement of the rows of a stream.

    Every row gets a random number, and the rows with the smallest are kept: the choice depends on
    the seed and on the order of the rows, never on how they were cut into batches.

    Args:
        size: how many rows are kept at most.
        seed: of the random numbers.

    Example:
        >>> rows = torch.arange(100.0).view(100, 1)
        >>> whole, parts = Reservoir(10, seed=0), Reservoir(10, seed=0)
        >>> whole.add(rows)
        >>> for part in rows.split(7):
        ...     parts.add(part)
        >>> torch.equal(whole.rows, parts.rows)
        True
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.seen = 0
        self._generator = torch.Generator().manual_seed(seed)
        self._keys = torch.empty(0, dtype=torch.float64)
        self._rows: Tensor | None = None

    @property
    def rows(self) -> Tensor:
        """Those kept, in the order of the stream, (at most size, C)."""
        assert self._rows is not None
        return self._rows

    def add(self, rows: Tensor) -> None:
        """Add rows (M, C)."""
        self.seen += len(rows)
        keys = torch.rand(len(rows), dtype=torch.float64, generator=self._generator)
        limit = self._keys.amax() if len(self._keys) >= self.size else torch.inf
        few = keys < limit  # the rest cannot be among the smallest
        keys, rows = keys[few], rows[few.to(rows.device)]
        if self._rows is not None:
            keys, rows = torch.cat([self._keys, keys]), torch.cat([self._rows, rows])
        if len(keys) > self.size:
            kept = keys.topk(self.size, largest=False).indices.sort().values
            keys, rows = keys[kept], rows[kept.to(rows.device)]
        self._keys, self._rows = keys, rows.clone()


def greedy_k_center(rows: Tensor, size: int, first: int = 0) -> Tensor:
    """Indices of rows such that each row is near one of them.

    Each step chooses the row farthest from those chosen so far. The largest distance of a row to
    its nearest choice is at most twice the smallest possible (Gonzalez, 1985).

    Args:
        rows: (M, C).
        size: how many to choose, at most M.
        first: the index of the first.

    Example:
        >>> greedy_k_center(torch.tensor([[0.0], [1.0], [9.0], [10.0]]), 2).tolist()
        [0, 3]
    """
    chosen = [first]
    squares = rows.square().sum(dim=1)
    distance = torch.full_like(squares, torch.inf)
    for _ in range(min(size, len(rows)) - 1):
        latest = chosen[-1]
        distance = torch.minimum(distance, squares + squares[latest] - 2 * (rows @ rows[latest]))
        distance[latest] = -torch.inf  # never twice, whatever the rounding
        chosen.append(int(distance.argmax()))
    return torch.tensor(chosen, device=rows.device)
