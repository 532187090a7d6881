"""What torch.compile sees of the Triton operators, traced on CPU tensors: nothing is launched.

    python -m tests.backends.gpu.traced

A process of its own: torch is told that it has CUDA, and Triton that there is an H100, before
robustflow is imported. For each call it prints how many kernels and how many operators of
robustflow stand in the graphs of the forward and of the backward pass, with sizes left open.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

torch.version.cuda = "13.0"


class _Driver:
    """As much of a driver as tracing asks for."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0


triton.runtime.driver.set_active(_Driver())

from torch._dynamo.backends.common import aot_autograd  # noqa: E402
from torch._functorch.partitioners import (  # noqa: E402
    min_cut_rematerialization_partition,
)

import robustflow  # noqa: E402
from robustflow import _backend  # noqa: E402
from tests.conformance.layouts import Layout  # noqa: E402
from tests.conformance.operations import RQ, Affine, ModifiedRQ, Operation  # noqa: E402
from tests.conformance.samples import sample  # noqa: E402

# With the direction: tracing one takes some seconds.
CALLS: tuple[tuple[Operation, bool], ...] = (
    (ModifiedRQ("exp"), False),
    (RQ(5, "circular", "softclip", separate=True), True),
    (Affine("sigmoid"), False),
)


class _Traced(Exception):
    """Both graphs are there; running them is for a GPU."""


def graphs(operation: Operation, inverse: bool) -> list[torch.fx.GraphModule]:
    """The graphs of a training step, the forward pass's first."""
    found: list[torch.fx.GraphModule] = []

    def compiler(module: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        found.append(module)

        def run(*args: Any) -> Any:
            raise _Traced

        return run

    def function(*tensors: torch.Tensor) -> Any:
        return operation.call(tensors[0], tensors[1:], inverse, "sum")

    torch._dynamo.reset()
    call = sample(operation, layout=Layout("open", (9, 3, 1300))).requires_grad_()
    backend = aot_autograd(
        fw_compiler=compiler,
        bw_compiler=compiler,
        partition_fn=min_cut_rematerialization_partition,
    )
    try:
        torch.compile(function, fullgraph=True, dynamic=True, backend=backend)(*call.tensors)
    except _Traced:
        return found
    raise AssertionError("the compiled function ran without its graph")


def main() -> None:
    _backend.add_backend("traced", "triton", ("cpu",))
    with robustflow.use_backend("traced"):
        for operation, inverse in CALLS:
            targets = [[str(n.target) for n in g.graph.nodes] for g in graphs(operation, inverse)]
            kernels = [sum("triton_kernel_wrapper" in t for t in each) for each in targets]
            operators = [sum("robustflow" in t for t in each) for each in targets]
            print(operation.name, kernels, operators)


if __name__ == "__main__":
    main()
