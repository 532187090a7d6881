"""Fused layers: coupling and autoregressive layers in one call of C++, with its own backward pass.

For small batches and networks most of a layer's time is not arithmetic: each of its operations is a
call, and a node in autograd's graph. Here a layer is one call: the features that its network reads,
the network, the K-bin spline of the other features, and the log-determinant.

``program`` describes a network, ``layer`` a layer around it, ``order`` says how an autoregressive
one is inverted with each unit of its network computed once, ``watch`` says whether a module is
still what it was when it was described, and ``call`` runs the layer if so. ``lu`` is a linear layer
of triangular factors. What describes the modules of a library is above this package.
"""

from robustflow.fused.call import FusedCall
from robustflow.fused.layer import FusedLayer, fused_layer, is_available
from robustflow.fused.lu import has_lu_linear, lu_linear, run_lu_linear
from robustflow.fused.order import find_order
from robustflow.fused.program import ACTIVATIONS, Builder, Program, run_program
from robustflow.fused.watch import Parameters, Watch, call_obstacle

__all__ = [
    "ACTIVATIONS",
    "Builder",
    "FusedCall",
    "FusedLayer",
    "Parameters",
    "Program",
    "Watch",
    "call_obstacle",
    "find_order",
    "fused_layer",
    "has_lu_linear",
    "is_available",
    "lu_linear",
    "run_lu_linear",
    "run_program",
]
