"""FrEIA's main branch: rational-quadratic splines with predicted boxes and affine tails.

FrEIA predicts the position (left, bottom) and the size (W, H) of each element's box; outside, the
function is affine with slope H/W, which is the derivative at the box's edges too. On the unit box,

    y = bottom + H S((x - left) / W),        log |dy/dx| = log S' + log(H / W),

S is therefore a spline with identity tails, whose sizes are the predicted ones over W and H and
whose derivatives are the predicted ones times W/H. The kernels compute S, and autograd the rest.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from robustflow import functional as F
from robustflow._checks import static
from robustflow.compat._patch.code import Change, CodeChange, Function, original_of
from robustflow.compat._patch.counts import fell_back, served_rq
from robustflow.compat._patch.errors import PatchError
from robustflow.compat._patch.obstacles import tensor_obstacle
from robustflow.compat._patch.recognise import (
    compare,
    import_library,
    normal,
    require_function,
    require_parameters,
)
from robustflow.nn.precision import sum_per_sample, upcast_half

_LIBRARY = "FrEIA"
_PARAMETERS = ("left", "bottom", "widths", "heights", "deltas")


def modules() -> list[ModuleType]:
    """Import those that define what is changed."""
    (package,) = import_library(_LIBRARY, "FrEIA.modules")
    if not hasattr(package, "RationalQuadraticSpline"):
        raise PatchError(
            "FrEIA cannot be patched: this version (0.2 of PyPI) has no rational-quadratic "
            "spline; the main branch has: pip install git+https://github.com/vislearn/FrEIA."
        )
    return [package, *import_library(_LIBRARY, "FrEIA.modules.splines.binned")]


def changes() -> list[Change]:
    """What to change in FrEIA."""
    package, binned = modules()
    function = require_function(_LIBRARY, binned.BinnedSplineBase, "binned_spline")
    require_parameters(_LIBRARY, function, ("self", "x", "parameters", "spline", "rev"))
    original = original_of(function)
    splines = (package.RationalQuadraticSpline, package.ElementwiseRationalQuadraticSpline)
    replacement = _binned_spline(original, *splines)
    _probe(splines[0], original, replacement)
    return [CodeChange(function, replacement)]


def _binned_spline(original: Function, coupling: type, elementwise: type) -> Function:
    # The functions of a bin, with the class whose constraints they go with.
    known = {
        vars(coupling)["_spline1"]: coupling,
        vars(coupling)["_spline2"]: coupling,
        vars(elementwise)["spline"]: elementwise,
    }

    def call(
        self: Any, x: Tensor, parameters: dict[str, Tensor], spline: Any, rev: bool
    ) -> tuple[Tensor, Tensor]:
        reason = _obstacle(x, parameters, spline, known)
        if reason is not None:
            fell_back(_LIBRARY, "binned_spline", reason)
            return original(self, x, parameters, spline, rev)
        widths = parameters["widths"]
        served_rq(_LIBRARY, x, static(widths.shape[-1]))
        z, log_jac_det = _unit_spline(
            x.movedim(1, -1), *(parameters[name] for name in _PARAMETERS), inverse=bool(rev)
        )
        return z.to(x.dtype).movedim(-1, 1), log_jac_det.to(x.dtype)

    return call


def _obstacle(
    x: Tensor, parameters: dict[str, Tensor], spline: Any, known: dict[Any, type]
) -> str | None:
    owner = known.get(getattr(spline, "__func__", None))
    if owner is None:
        return "the spline is not the rational-quadratic one"
    constrain = "constrain_parameters"
    if getattr(type(spline.__self__), constrain) is not getattr(owner, constrain):
        return "a subclass constrains the parameters otherwise"
    if any(name not in parameters for name in _PARAMETERS):
        return "a parameter is missing"
    reason = tensor_obstacle(x, *(parameters[name] for name in _PARAMETERS))
    if reason is not None:
        return reason
    num_bins = static(parameters["widths"].shape[-1])
    shape = x.movedim(1, -1).shape
    sizes = (1, 1, num_bins, num_bins, num_bins + 1)
    for name, size in zip(_PARAMETERS, sizes, strict=True):
        if parameters[name].shape != (*shape, size):
            return f"{name} has another shape than the inputs and the number of bins ask for"
    return None


def _unit_spline(
    x: Tensor,
    left: Tensor,
    bottom: Tensor,
    widths: Tensor,
    heights: Tensor,
    deltas: Tensor,
    *,
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    """x (N, *S); left and bottom (N, *S, 1); sizes (N, *S, K); derivatives (N, *S, K+1).

    Returns y (N, *S), and the log-determinant (N,).
    """
    left, bottom = left.squeeze(-1), bottom.squeeze(-1)
    width, height = widths.sum(-1, keepdim=True), heights.sum(-1, keepdim=True)
    sizes = (widths / width, heights / height)
    derivatives = deltas[..., 1:-1] * (width / height)
    width, height = width.squeeze(-1), height.squeeze(-1)
    z = (x - bottom) / height if inverse else (x - left) / width
    z, logabsdet = F.rq_spline(
        z,
        *sizes,
        derivatives,
        inverse,
        tails="linear",
        left=0.0,
        right=1.0,
        bottom=0.0,
        top=1.0,
        parametrization="knots",
    )
    log_scale = torch.log(upcast_half(height)) - torch.log(upcast_half(width))
    y = left + width * z if inverse else bottom + height * z
    total = logabsdet - log_scale if inverse else logabsdet + log_scale
    return y, sum_per_sample(total)


def _probe(coupling: type, original: Function, replacement: Function) -> None:
    """Compare on a small layer of FrEIA's own, the network of which is two random numbers."""
    layer: Any = coupling([(4,)], subnet_constructor=lambda _, size: nn.Identity(), bins=5)
    num_parameters = sum(layer.spline_base.parameter_counts.values())
    x = 3 * normal(64, 2, seed=2)

    def parameters() -> dict[str, Tensor]:
        raw = layer.spline_base.split_parameters(normal(64, 2 * num_parameters), 2)
        made: dict[str, Tensor] = layer.constrain_parameters(raw)
        return made

    def run(function: Function, x: Tensor, rev: bool) -> tuple[Tensor, Tensor]:
        result: tuple[Tensor, Tensor] = function(
            layer.spline_base, x, parameters(), layer._spline1, rev
        )
        return result

    for rev in (False, True):
        what = "BinnedSplineBase.binned_spline"
        compare(
            _LIBRARY,
            what,
            lambda x, rev: run(original, x, rev),
            lambda x, rev: run(replacement, x, rev),
            x,
            rev,
        )
