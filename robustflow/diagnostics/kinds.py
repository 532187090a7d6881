"""The kinds of a flow's layers, by the name that every report gives them."""

from __future__ import annotations

from typing import Literal, get_args

Kind = Literal[
    "injector",  # transforms every channel, by the context alone
    "self-conditional",  # a coupling: one half of z, with the context, transforms the other
    "std-conditional",  # a transform by the noise level's features (SoftFlow)
    "autoregressive",
    "elementwise",  # parameters of its own, whatever the context
    "actnorm",  # a scale and a shift a channel
    "1x1",  # an invertible linear map of the channels
    "split",  # standardises half of the channels, which leave the flow
    "reshape",  # squeezes, permutations: they change no value
    "other",
]
KINDS: tuple[str, ...] = get_args(Kind)
