"""Layers of conditional flows.

Every layer is called as ``layer(z, context=None, *, inverse=False) -> (z, logabsdet (N,))``.
:class:`ConditionalFlow` puts them together, projects a context once for all of them, and has
``log_prob`` and ``sample``.
"""

from robustflow.nn.actnorm import ActNorm
from robustflow.nn.condition import Condition
from robustflow.nn.conditioner import Conditioner
from robustflow.nn.conv1x1 import InvertibleConv1x1
from robustflow.nn.coupling import Coupling
from robustflow.nn.elementwise import Affine, ElementwiseTransform, ModifiedRQSpline
from robustflow.nn.flow import ConditionalFlow
from robustflow.nn.injector import Injector
from robustflow.nn.layer import ConditionalLayer
from robustflow.nn.level import FlowLevel, flow_step
from robustflow.nn.split import Split
from robustflow.nn.squeeze import Squeeze

__all__ = [
    "ActNorm",
    "Affine",
    "Condition",
    "ConditionalFlow",
    "ConditionalLayer",
    "Conditioner",
    "Coupling",
    "ElementwiseTransform",
    "FlowLevel",
    "Injector",
    "InvertibleConv1x1",
    "ModifiedRQSpline",
    "Split",
    "Squeeze",
    "flow_step",
]
