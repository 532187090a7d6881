"""The elementwise transforms that an imaging flow's couplings and injectors may have, by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from robustflow import nn as rnn

COUPLINGS: dict[str, Callable[..., rnn.ElementwiseTransform]] = {
    "affine": rnn.Affine,
    "reparametrised_affine": partial(rnn.Affine, reciprocal=True),
    "modified_rq": rnn.ModifiedRQSpline,
    "cubic_bspline": rnn.CubicBSpline,
    "rq": partial(rnn.RQSpline, tail_bound=3.0),
}
