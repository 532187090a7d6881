"""Layers of conditional flows.

Every layer is called as ``layer(z, context=None, *, inverse=False) -> (z, logabsdet (N,))``.
:class:`ConditionalFlow` combines them, projects a context once for all of them, and has
``log_prob`` and ``sample``.
"""

from robustflow.nn.actnorm import ActNorm
from robustflow.nn.autoregressive import Autoregressive
from robustflow.nn.circle import CircularBase, CircularShift, PeriodicFeatures, PhaseShift
from robustflow.nn.condition import Condition
from robustflow.nn.conditioner import Conditioner, TwoPartConditioner
from robustflow.nn.conv1x1 import InvertibleConv1x1
from robustflow.nn.coupling import Coupling
from robustflow.nn.dequantize import Dequantize
from robustflow.nn.elementwise import (
    Affine,
    CubicBSpline,
    ElementwiseTransform,
    ModifiedRQSpline,
    RQSpline,
)
from robustflow.nn.flow import ConditionalFlow
from robustflow.nn.injector import Injector
from robustflow.nn.layer import ConditionalLayer
from robustflow.nn.level import FlowLevel, flow_step
from robustflow.nn.log_prob import LogProb
from robustflow.nn.masked import MaskedConditioner
from robustflow.nn.named import (
    ConditionalAffineCoupling,
    ConditionalAffineInjector,
    CubicBSplineCoupling,
    CubicBSplineInjector,
    ModifiedRQSplineCoupling,
    ModifiedRQSplineInjector,
    RQSplineAutoregressive,
    RQSplineCoupling,
    RQSplineInjector,
)
from robustflow.nn.split import Split
from robustflow.nn.squeeze import Squeeze
from robustflow.nn.upsampled import Upsampled

__all__ = [
    "ActNorm",
    "Affine",
    "Autoregressive",
    "CircularBase",
    "CircularShift",
    "Condition",
    "ConditionalAffineCoupling",
    "ConditionalAffineInjector",
    "ConditionalFlow",
    "ConditionalLayer",
    "Conditioner",
    "Coupling",
    "CubicBSpline",
    "CubicBSplineCoupling",
    "CubicBSplineInjector",
    "Dequantize",
    "ElementwiseTransform",
    "FlowLevel",
    "Injector",
    "InvertibleConv1x1",
    "LogProb",
    "MaskedConditioner",
    "ModifiedRQSpline",
    "ModifiedRQSplineCoupling",
    "ModifiedRQSplineInjector",
    "PeriodicFeatures",
    "PhaseShift",
    "RQSpline",
    "RQSplineAutoregressive",
    "RQSplineCoupling",
    "RQSplineInjector",
    "Split",
    "Squeeze",
    "TwoPartConditioner",
    "Upsampled",
    "flow_step",
]
