"""The inverse of an autoregressive layer, with each unit of its masked network computed once.

Inverting D features takes D steps: the parameters of a feature depend on the features before it.
Running the whole network in each step does the same work D times. But a unit can be computed once,
in the first step in which all of its inputs are known. Units are sorted by that step, so that each
step works on slices.
"""

from robustflow.nn.incremental.inverse import incremental_inverse
from robustflow.nn.incremental.obstacles import call_obstacle, context_obstacle, module_obstacle
from robustflow.nn.incremental.operations import (
    ELEMENTWISE,
    Add,
    Gate,
    Masked,
    Operation,
    run_network,
)
from robustflow.nn.incremental.plan import Plan, PlannedNetwork, Planner, make_plan

__all__ = [
    "ELEMENTWISE",
    "Add",
    "Gate",
    "Masked",
    "Operation",
    "Plan",
    "PlannedNetwork",
    "Planner",
    "call_obstacle",
    "context_obstacle",
    "incremental_inverse",
    "make_plan",
    "module_obstacle",
    "run_network",
]
