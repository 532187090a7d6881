"""What to change in zuko."""

from __future__ import annotations

from functools import partial
from types import ModuleType

from torch import Tensor

from robustflow.compat._patch.code import Change, CodeChange, original_of
from robustflow.compat._patch.errors import PatchError
from robustflow.compat._patch.recognise import (
    COUNT,
    compare,
    import_library,
    normal,
    require_function,
    require_parameters,
    uniform,
)
from robustflow.compat._patch.zuko.direct import DirectLayers
from robustflow.compat._patch.zuko.fused_layers import FusedLayers, Modules
from robustflow.compat._patch.zuko.inverse import inverse_change
from robustflow.compat._patch.zuko.kernels import spline
from robustflow.compat._patch.zuko.knots import Knots, knots_changes
from robustflow.compat._patch.zuko.packed import invert_packed, layer_change, unpack_change
from robustflow.compat._patch.zuko.transform import new_bins, new_init, new_method

_LIBRARY = "zuko"
_METHODS = {
    "__init__": ("self", "widths", "heights", "derivatives", "bound", "slope", "kwargs"),
    "bins": ("self",),
    "_call": ("self", "x"),
    "_inverse": ("self", "y"),
    "call_and_ladj": ("self", "x"),
}


def modules() -> list[ModuleType]:
    """Import those that define what is changed."""
    return import_library(
        _LIBRARY,
        "zuko.utils",
        "zuko.transforms",
        "zuko.nn",
        "zuko.flows.autoregressive",
        "zuko.flows.coupling",
        "zuko.flows.gaussianization",
    )


def changes() -> list[Change]:
    """What to change in zuko."""
    utils, transforms, networks, autoregressive, coupling, gaussianization = modules()
    owner = getattr(transforms, "MonotonicRQSTransform", None)
    if not isinstance(owner, type):
        raise PatchError("zuko cannot be patched: it has no transforms.MonotonicRQSTransform.")
    transform_changes = _transform_changes(owner)
    _probe(owner)
    direct = DirectLayers(owner)
    fused = FusedLayers(_LIBRARY, Modules(transforms, autoregressive, coupling, networks), direct)
    masked = autoregressive.MaskedAutoregressiveTransform
    return [
        *transform_changes,
        unpack_change(_LIBRARY, utils),
        layer_change(_LIBRARY, masked, "meta", ("self", "c", "x"), direct),
        layer_change(
            _LIBRARY, coupling.GeneralCouplingTransform, "meta", ("self", "c", "x"), direct
        ),
        layer_change(
            _LIBRARY, gaussianization.ElementWiseTransform, "forward", ("self", "c"), direct
        ),
        inverse_change(
            _LIBRARY, transforms, autoregressive, networks, direct, invert_packed, fused.invert
        ),
        *fused.changes(),
    ]


def _transform_changes(owner: type) -> list[Change]:
    """Those of the transform itself: its methods, and when its knots are computed."""
    functions = {name: require_function(_LIBRARY, owner, name) for name in _METHODS}
    for name, parameters in _METHODS.items():
        require_parameters(_LIBRARY, functions[name], parameters)
    own = {name: original_of(function) for name, function in functions.items()}
    knots = Knots(owner, own["__init__"])
    method = partial(new_method, _LIBRARY, knots=knots)
    replacements = {
        "__init__": new_init(own["__init__"], knots),
        "bins": new_bins(own["bins"], knots),
        "_call": method(own["_call"], inverse=False, with_ladj=False),
        "_inverse": method(own["_inverse"], inverse=True, with_ladj=False),
        "call_and_ladj": method(own["call_and_ladj"], inverse=False, with_ladj=True),
    }
    return [
        *knots_changes(knots),
        *(CodeChange(functions[name], new) for name, new in replacements.items()),
    ]


def _probe(owner: type) -> None:
    groups = [normal(COUNT, 2, size, seed=i) for i, size in enumerate((5, 5, 4))]
    x = uniform(COUNT, 2, low=-4.0, high=4.0)

    def forward(x: Tensor, *groups: Tensor) -> tuple[Tensor, Tensor]:
        return owner(*groups, bound=2.5, slope=1e-2).call_and_ladj(x)

    def inverse(y: Tensor, *groups: Tensor) -> tuple[Tensor, ...]:
        return (owner(*groups, bound=2.5, slope=1e-2)._inverse(y),)

    def ours(inverse: bool, x: Tensor, *groups: Tensor) -> tuple[Tensor, ...]:
        return spline(groups, 5, 2.5, 1e-2, x, inverse)[: 1 if inverse else 2]

    for inverted, theirs in ((False, forward), (True, inverse)):
        what = f"{owner.__name__}, {theirs.__name__}"
        compare(_LIBRARY, what, theirs, partial(ours, inverted), x, *groups)
