"""nflows 0.14 and its main branch: the spline functions, three layers, and LULinear."""

from __future__ import annotations

from types import ModuleType

from robustflow.compat._patch.code import Change
from robustflow.compat._patch.nflows_like.functions import changes_of_module
from robustflow.compat._patch.nflows_like.fused_layers import fused_changes
from robustflow.compat._patch.nflows_like.layers import layer_changes
from robustflow.compat._patch.nflows_like.lu import lu_changes
from robustflow.compat._patch.recognise import import_library

_NAMES = (
    "transforms.splines.rational_quadratic",
    "transforms.coupling",
    "transforms.autoregressive",
    "transforms.nonlinearities",
    "transforms.made",
    "transforms.lu",
    "nn.nets",
)


def modules(library: str = "nflows", package: str = "nflows") -> list[ModuleType]:
    """Import those that define what is changed."""
    return import_library(library, *(f"{package}.{name}" for name in _NAMES))


def changes(library: str = "nflows", package: str = "nflows") -> list[Change]:
    """What to change in nflows, or in the copy of it that ``library`` carries as ``package``."""
    splines, coupling, autoregressive, nonlinearities, made, lu, networks = modules(
        library, package
    )
    return [
        *changes_of_module(splines, library),
        *layer_changes(
            library,
            coupling.PiecewiseRationalQuadraticCouplingTransform,
            autoregressive.MaskedPiecewiseRationalQuadraticAutoregressiveTransform,
            nonlinearities.PiecewiseRationalQuadraticCDF,
            made.MADE,
        ),
        *fused_changes(
            library,
            coupling.PiecewiseRationalQuadraticCouplingTransform,
            nonlinearities.PiecewiseRationalQuadraticCDF,
            networks,
        ),
        *lu_changes(library, lu),
    ]
