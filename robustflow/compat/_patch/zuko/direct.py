"""Which layers pass all that their network computes to the spline."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

from robustflow._by_identity import ByIdentity


class _Answer(NamedTuple):
    univariate: Any
    shapes: Any
    is_direct: bool


class DirectLayers:
    """Whether a layer's univariate transform is the spline itself, or a partial of it.

    The answer is kept for each layer, and holds while its two attributes are the same objects.

    Args:
        spline: the class of the spline transform.
    """

    def __init__(self, spline: type) -> None:
        self._spline = spline
        self._answers = ByIdentity[_Answer]()

    def __contains__(self, layer: Any) -> bool:
        univariate, shapes = layer.univariate, layer.shapes
        answer = self._answers.get(layer)
        if answer is None or answer.univariate is not univariate or answer.shapes is not shapes:
            answer = _Answer(univariate, shapes, self._is_direct(univariate, shapes))
            self._answers.set(layer, answer)
        return answer.is_direct

    def _is_direct(self, univariate: Any, shapes: Any) -> bool:
        while type(univariate) is partial and not univariate.args:
            univariate = univariate.func
        if univariate is not self._spline or len(shapes) != 3:
            return False
        sizes = [math.prod(shape) for shape in shapes]
        return all(len(shape) == 1 for shape in shapes) and sizes[0] == sizes[1] == sizes[2] + 1
