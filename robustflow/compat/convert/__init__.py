"""Migration: a trained model's affine couplings become modified RQ splines, in place.

:func:`convert_affine` is the public function; each library's layers have a module of their own.
"""

from robustflow.compat.convert._convert import convert_affine
from robustflow.compat.convert._report import ConversionReport, Kept, Replaced
from robustflow.compat.convert._spline import RescaledModifiedRQSpline

__all__ = [
    "ConversionReport",
    "Kept",
    "Replaced",
    "RescaledModifiedRQSpline",
    "convert_affine",
]
