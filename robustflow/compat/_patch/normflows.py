"""normflows: the spline functions, with lists of tails too, three layers, and LULinearPermute."""

from __future__ import annotations

from types import ModuleType

from robustflow.compat._patch.code import Change
from robustflow.compat._patch.nflows_like.functions import changes_of_module
from robustflow.compat._patch.nflows_like.fused_layers import fused_changes
from robustflow.compat._patch.nflows_like.layers import layer_changes
from robustflow.compat._patch.nflows_like.permuted_lu import permuted_lu_changes
from robustflow.compat._patch.recognise import import_library


def modules() -> list[ModuleType]:
    """Import those that define what is changed."""
    return import_library(
        "normflows",
        "normflows.utils.splines",
        "normflows.flows.neural_spline.coupling",
        "normflows.flows.neural_spline.autoregressive",
        "normflows.nets.made",
        "normflows.flows.mixing",
        "normflows.nets",
    )


def changes() -> list[Change]:
    """What to change in normflows."""
    splines, coupling, autoregressive, made, mixing, networks = modules()
    return [
        *changes_of_module(splines, "normflows"),
        *layer_changes(
            "normflows",
            coupling.PiecewiseRationalQuadraticCoupling,
            autoregressive.MaskedPiecewiseRationalQuadraticAutoregressive,
            coupling.PiecewiseRationalQuadraticCDF,
            made.MADE,
        ),
        *fused_changes(
            "normflows",
            coupling.PiecewiseRationalQuadraticCoupling,
            coupling.PiecewiseRationalQuadraticCDF,
            networks,
        ),
        *permuted_lu_changes("normflows", mixing),
    ]
