"""Carrying packed parameters from a layer's network to the transform that the layer makes.

zuko's layers cut what their network computes into widths, heights and derivatives
(``zuko.utils.unpack``) and give these pieces to the transform. Here the layer that is running notes
the uncut tensor; a transform that is given all the pieces takes that tensor instead. If nothing but
the spline would see the pieces, the tensor is not cut at all, and placeholders stand for them.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from robustflow.compat._patch.code import Change, CodeChange, original_of
from robustflow.compat._patch.recognise import require_function, require_parameters
from robustflow.compat._patch.zuko.direct import DirectLayers


class Placeholder:
    """Stands for widths, heights or derivatives that were not cut out of the packed parameters."""


_PLACEHOLDERS = (Placeholder(), Placeholder(), Placeholder())


class _RunningLayer:
    """A layer that is running, with the latest parameters that it cut.

    Attributes:
        is_direct: the pieces reach nothing but the spline.
        packed: the parameters.
        pieces: what they were cut into.
    """

    __slots__ = ("is_direct", "packed", "pieces")

    def __init__(self, is_direct: bool) -> None:
        self.is_direct = is_direct
        self.packed: Any = None
        self.pieces: Sequence[Any] = ()


class _Thread(threading.local):
    layer: _RunningLayer | None = None  # the innermost that is running in this thread


_thread = _Thread()


def unpack_change(library: str, utils: ModuleType) -> Change:
    """The change of ``zuko.utils.unpack``: it notes what it cuts for the layer that is running."""
    function = require_function(library, utils, "unpack")
    require_parameters(library, function, ("x", "shapes"))
    original = original_of(function)

    def unpack(x: Tensor, shapes: Any) -> Any:
        layer = None if torch.compiler.is_compiling() else _thread.layer
        if layer is None:
            return original(x, shapes)
        layer.packed = x
        layer.pieces = _PLACEHOLDERS if layer.is_direct else original(x, shapes)
        return layer.pieces

    return CodeChange(function, unpack)


def layer_change(
    library: str, owner: type, name: str, parameters: Sequence[str], direct: DirectLayers
) -> Change:
    """The change of a layer's method that calls ``unpack``, during which the layer is running."""
    method = require_function(library, owner, name)
    require_parameters(library, method, parameters)
    original = original_of(method)

    def layer(self: Any, *args: Any) -> Any:
        if torch.compiler.is_compiling():
            return original(self, *args)
        before = _thread.layer
        _thread.layer = _RunningLayer(self in direct)
        try:
            return original(self, *args)
        finally:
            _thread.layer = before

    return CodeChange(method, layer)


def packed_of(*pieces: Any) -> Tensor | None:
    """The packed parameters, if these are all the pieces that they have just been cut into."""
    layer = None if torch.compiler.is_compiling() else _thread.layer
    if layer is None or len(layer.pieces) != len(pieces):
        return None
    for noted, piece in zip(layer.pieces, pieces, strict=True):
        if noted is not piece:
            return None
    packed: Tensor = layer.packed
    return packed


def invert_packed(univariate: Any, y: Tensor, packed: Tensor) -> Tensor:
    """The inverse of a direct layer's univariate transform, with these parameters."""
    before = _thread.layer
    layer = _thread.layer = _RunningLayer(True)
    layer.packed, layer.pieces = packed, _PLACEHOLDERS
    try:
        x: Tensor = univariate(*_PLACEHOLDERS)._inverse(y)
    finally:
        _thread.layer = before
    return x
