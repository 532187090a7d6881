"""Whole coupling and autoregressive layers in one call of C++, with a backward pass of its own.

For small batches and networks most of a layer's time is not arithmetic: each of its operations is a
call, and a node in autograd's graph. Here a layer is one call: the features that its network reads,
the network, the K-bin spline of the other features, and the log-determinant.

``program`` describes a network, ``layer`` a layer around it, ``watch`` says whether a module is
still what it was when it was described. Who describes modules is above this package.
"""

from robustflow.fused.layer import FusedLayer, fused_layer, is_available
from robustflow.fused.program import ACTIVATIONS, Builder, Program, activation_of, run_program
from robustflow.fused.watch import Parameters, Watch, call_obstacle

__all__ = [
    "ACTIVATIONS",
    "Builder",
    "FusedLayer",
    "Parameters",
    "Program",
    "Watch",
    "activation_of",
    "call_obstacle",
    "fused_layer",
    "is_available",
    "run_program",
]
