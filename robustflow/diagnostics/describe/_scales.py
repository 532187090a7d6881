"""Recognises the scale function of a library's layer by its values.

Versions of the libraries, and their users, choose among a few functions of one logit. A function
that equals one of these at widely spread points, in float64, is taken to be that function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import softplus

from robustflow.diagnostics.bounds import INFINITY, Range, exponential

Function = Callable[[Tensor], Tensor]

# Far enough out that saturating functions have saturated, and exp is still finite.
_FAR = 600.0
POINTS = torch.tensor(
    [-_FAR, -60.0, -9.0, -4.0, -2.3, -1.0, -0.4, 0.0, 0.3, 1.0, 1.7, 3.0, 7.0, 50.0, _FAR],
    dtype=torch.float64,
)


def scale_of(function: Function) -> tuple[Range, str] | None:
    """The range and the formula of a scale s(a); None where it is none of the known ones.

    Example:
        >>> scale_of(lambda a: torch.sigmoid(a + 2) + 1e-3)
        (Range(low=0.001, high=1.001), 'sigmoid(a + 2) + 0.001')
    """
    with torch.no_grad():
        values = function(POINTS.clone())
    for scale, formula, candidate in _candidates(values):
        if torch.allclose(candidate, values, rtol=1e-5, atol=0.0):
            return scale, formula
    return None


def clamp_of(function: Function) -> tuple[float, str] | None:
    """The bound and the formula of a soft clamp g(a), |g| at most about 1."""
    with torch.no_grad():
        values = function(POINTS.clone())
    known = {
        "0.636 * atan(a)": (0.636 * math.pi / 2, 0.636 * torch.atan(POINTS)),
        "tanh(a)": (1.0, torch.tanh(POINTS)),
        "(2 sigmoid(a) - 1)": (1.0, 2 * torch.sigmoid(POINTS) - 1),
    }
    for formula, (bound, candidate) in known.items():
        if torch.allclose(candidate, values, rtol=1e-5, atol=1e-12):
            return bound, formula
    return None


def _candidates(values: Tensor) -> Iterator[tuple[Range, str, Tensor]]:
    """Range, formula and values of each known function, its constants taken from ``values``."""
    a = POINTS
    least, most = float(values[0]), float(values[-1])
    for moved, name in ((2.0, "sigmoid(a + 2)"), (0.0, "sigmoid(a)")):
        s = torch.sigmoid(a + moved)
        # At -_FAR the sigmoid is 1e-260, so the value is the constant that is added.
        eps = least if least > 1e-200 else 0.0
        yield Range(eps, 1 + eps), _plus(name, eps), s + eps
        yield Range(eps, 1 + eps).reciprocal, f"1 / ({_plus(name, eps)})", 1 / (s + eps)
    yield Range(0.0, INFINITY), "exp(a)", torch.exp(a)
    eps = least if least > 1e-200 else 0.0
    unclamped = softplus(a, threshold=50.0) + eps
    yield Range(eps, INFINITY), _plus("softplus(a)", eps), unclamped
    yield (
        Range(eps, most),
        f"min({_plus('softplus(a)', eps)}, {most:g})",
        unclamped.clamp(max=most),
    )
    if not 0 < most < INFINITY:
        return
    log_most = math.log(most)
    far = {
        "atan(a)": torch.atan(a),
        "tanh(a)": torch.tanh(a),
        "(2 sigmoid(a) - 1)": 2 * torch.sigmoid(a) - 1,
    }
    limits = {"atan(a)": math.pi / 2}
    for name, g in far.items():
        factor = log_most / float(g[-1])
        yield (
            exponential(abs(factor) * limits.get(name, 1.0)),
            f"exp({factor:.5g} {name})",
            (torch.exp(factor * g)),
        )
    if 0 < log_most < _FAR:
        bound = 1 / (1 / log_most - 1 / _FAR)
        yield (
            exponential(bound),
            f"exp(a / (1 + |a| / {bound:.5g}))",
            (torch.exp(a / (1 + a.abs() / bound))),
        )


def _plus(name: str, eps: float) -> str:
    return f"{name} + {eps:.5g}" if eps else name
