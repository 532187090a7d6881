"""Gradients of flows whose inputs are rebuilt from their outputs: error and memory against depth.

    python -m benchmarks.reversible [--threads N] [--json FILE] [--quick]

One level of a flow, 12 channels under 16 channels of context, with 4 to 64 steps (actnorm, 1x1
convolution, injector, coupling), off the identity. ``ConditionalFlow(..., activations=...)`` keeps
the activations for the backward pass (``store``) or rebuilds them by inverting each layer
(``reversible``), which multiplies rounding by the local gains of the inverses. Compared are

- ``modified RQ`` and ``affine``: raw parameters of deviation 1;
- ``modified RQ, steep``: of deviation 2. No value is moved by more than the box, whatever the
  parameters, but inside it a spline may be steep, and its inverse or the other way round;
- ``affine, small scales``: scale logits of mean -4 and deviation 6, so that scales fall to 1e-4
  here and there, as for conditions that a network was not trained on: nothing bounds the result.

The error is that of all gradients (weights, x and context) in float32, over their norm in float64
with the activations stored: ``norm of the difference / norm``. Rebuilt inputs are compared with the
inputs themselves in the same way. The peak is that of one forward and backward pass, beyond weights
and inputs, gradients included. ``python -m benchmarks.plots FILE --out DIR`` draws the results.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from robustflow import nn as rnn
from robustflow._arguments import output_file, whole_number
from robustflow.benchmarks import allocator, machine, memory
from robustflow.benchmarks.rows import table, write_json
from robustflow.nn.level import Activations

MODULE = "benchmarks.reversible"
CHANNELS, CONTEXT = 12, 16
WAYS: tuple[Activations, ...] = ("store", "reversible")


@dataclass(frozen=True)
class Kind:
    """A transform and its raw parameters.

    Attributes:
        transform: of all injectors and couplings.
        deviation: of the raw parameters.
        logit: mean of the scale logits of an affine transform.
    """

    transform: rnn.ElementwiseTransform
    deviation: float = 1.0
    logit: float = 0.0


KINDS = {
    "modified RQ": Kind(rnn.ModifiedRQSpline()),
    "affine": Kind(rnn.Affine()),
    "modified RQ, steep": Kind(rnn.ModifiedRQSpline(), deviation=2.0),
    "affine, small scales": Kind(rnn.Affine(), deviation=6.0, logit=-4.0),
}


@dataclass(frozen=True)
class Shape:
    """Of what is measured.

    Attributes:
        depths: numbers of steps.
        side: of z where errors are measured.
        memory_side: and where memory is.
        batch: number of pictures.
        hidden: channels of the conditioners.
    """

    depths: tuple[int, ...] = (4, 8, 16, 32, 64)
    side: int = 16
    memory_side: int = 48
    batch: int = 4
    hidden: int = 32


QUICK = Shape(depths=(4, 8), side=8, memory_side=8, batch=2, hidden=8)


def flow_of(kind: str, depth: int, shape: Shape) -> rnn.ConditionalFlow:
    """A flow of one level, as after some training: actnorms set, heads not zero."""
    torch.manual_seed(0)
    chosen = KINDS[kind]
    steps = [
        rnn.flow_step(CHANNELS, CONTEXT, chosen.transform, hidden_channels=shape.hidden)
        for _ in range(depth)
    ]
    flow = rnn.ConditionalFlow([[layer for step in steps for layer in step]])
    with torch.no_grad():
        for weight in flow.parameters():
            if not weight.any() and weight.dim() == 4:  # of a last layer, which starts at zero
                weight.normal_(std=chosen.deviation / weight[0].numel() ** 0.5)
        for layer in flow.modules():
            if chosen.logit and isinstance(layer, rnn.Coupling | rnn.Injector):
                last = [each for each in layer.modules() if isinstance(each, nn.Conv2d)][-1]
                assert last.bias is not None
                last.bias[1::2] = chosen.logit  # shift, scale logit, shift, ...
        flow.train().log_prob(*inputs(shape, shape.side))
    return flow.eval()


def inputs(shape: Shape, side: int) -> tuple[Tensor, Tensor]:
    """z and the context."""
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(shape.batch, CHANNELS, side, side, generator=generator)
    return z, torch.randn(shape.batch, CONTEXT, side, side, generator=generator)


def gradients(flow: rnn.ConditionalFlow, way: Activations, tensors: Sequence[Tensor]) -> Tensor:
    """Of the mean log-density by weights, z and context, in one vector."""
    for level in flow.levels:
        assert isinstance(level, rnn.FlowLevel)
        level.activations = way
    leaves = [each.detach().requires_grad_() for each in tensors]
    variables = [*flow.parameters(), *leaves]
    grads = torch.autograd.grad(flow.log_prob(*leaves).mean(), variables)
    return torch.cat([each.flatten() for each in grads])


def measure_errors(kind: str, depth: int, shape: Shape) -> dict[str, float]:
    """Relative errors of the gradients, by way, and of rebuilt inputs."""
    flow = flow_of(kind, depth, shape)
    tensors = inputs(shape, shape.side)
    exact_flow = copy.deepcopy(flow).double()
    exact = gradients(exact_flow, "store", [each.double() for each in tensors])
    errors: dict[str, float] = {
        way: _relative(gradients(flow, way, tensors), exact) for way in WAYS
    }
    with torch.no_grad():
        latents, _ = flow(*tensors)
        rebuilt, _ = flow.inverse(latents, tensors[1])
    return {**errors, "rebuilt inputs": _relative(rebuilt, tensors[0])}


def _relative(values: Tensor, exact: Tensor) -> float:
    """Infinite where the values are not finite."""
    error = float((values.double() - exact.double()).norm() / exact.double().norm())
    return error if error == error else float("inf")


def measure_peaks(kind: str, depth: int, shape: Shape) -> dict[str, int]:
    """Bytes, by way."""
    flow = flow_of(kind, depth, shape)
    tensors = inputs(shape, shape.memory_side)
    return {
        way: memory.peak_bytes(lambda way=way: gradients(flow, way, tensors))  # type: ignore[misc]
        for way in WAYS
    }


def measure(kind: str, shape: Shape) -> list[dict[str, Any]]:
    """A kind at all depths, in this process."""
    for way in WAYS:  # loads what there is to load
        gradients(flow_of(kind, 1, QUICK), way, inputs(QUICK, QUICK.side))
    return [
        {
            "kind": kind,
            "depth": depth,
            "errors": {
                name: error if error < float("inf") else "inf"
                for name, error in measure_errors(kind, depth, shape).items()
            },
            "peak_bytes": measure_peaks(kind, depth, shape),
        }
        for depth in shape.depths
    ]


def worker(task: str, file: str) -> None:
    """What :mod:`robustflow.benchmarks.allocator` starts: one kind, in a process of its own."""
    options = json.loads(task)
    shape = Shape(**{**options["shape"], "depths": tuple(options["shape"]["depths"])})
    Path(file).write_text(json.dumps(measure(options["kind"], shape)))


def report(results: Sequence[Mapping[str, Any]]) -> str:
    """A table: a line for each kind and depth."""
    lines = []
    for result in results:
        errors = {name: float(error) for name, error in result["errors"].items()}
        lines.append(
            [
                f"{result['kind']}, {result['depth']} steps",
                *(f"{errors[name]:.1e}" for name in (*WAYS, "rebuilt inputs")),
                *(f"{result['peak_bytes'][way] / 2**20:.0f} MiB" for way in WAYS),
            ]
        )
    header = ["flow", "error, stored", "error, rebuilt", "of inputs", "peak, stored", "rebuilt"]
    return table(header, lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--threads", type=whole_number(1), help="of PyTorch (default: its own)")
    parser.add_argument("--json", type=output_file, help="write the results there")
    parser.add_argument("--quick", action="store_true", help="tiny flows: shows that it runs")
    options = parser.parse_args(arguments)
    shape = QUICK if options.quick else Shape()
    if options.threads:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)  # of the processes that measure
        torch.set_num_threads(options.threads)
    description = machine.describe()
    print(machine.headline(description), flush=True)
    results: list[dict[str, Any]] = []
    for kind in KINDS:
        work = json.dumps({"shape": asdict(shape), "kind": kind})
        measured = allocator.run("returning", MODULE, ["--worker", work])
        results += cast("list[dict[str, Any]]", measured)
    print("\n" + report(results))
    if not options.json:
        return 0
    return int(
        not write_json(options.json, description, [], reversible=results, quick=options.quick)
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(*sys.argv[2:])
    else:
        sys.exit(main())
