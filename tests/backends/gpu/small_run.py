"""Small calls of each kernel, with gradients and in many layouts, for compute-sanitizer.

python -m tests.backends.gpu.small_run BACKEND [DEVICE]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch

import robustflow
from tests.conformance import layouts, operations
from tests.conformance.layouts import Layout
from tests.conformance.operations import Operation
from tests.conformance.samples import Sample, sample

DTYPES = (torch.float32, torch.bfloat16)
# Those that a planar, a staged and a summing kernel meet, with remainders.
NAMES = (
    *("planar", "rows", "channels_last", "unaligned", "rows_unaligned", "params_last"),
    *("shared_by_batch", "shared_by_space", "rows_shared_by_batch", "large_planar", "large_rows"),
    *("large_shared_by_space", "separate_rows", "separate_params_first", "separate_shared_batch"),
)


def calls(device: str) -> Iterator[tuple[Sample, bool, str]]:
    """Ready-made calls, with their direction and reduction."""
    for operation in operations.REPRESENTATIVES:
        for layout in _layouts(operation):
            for dtype in DTYPES:
                for inverse in (False, True):
                    for reduce in ("none", "sum"):
                        call = sample(
                            operation, device, layout=layout, dtype=dtype, inverse=inverse
                        )
                        yield call, inverse, reduce


def _layouts(operation: Operation) -> list[Layout]:
    packed = (*layouts.PACKED, *layouts.LARGE_PACKED)
    every = packed if len(operation.parts) == 1 else layouts.SEPARATE
    return [layout for layout in every if layout.name in NAMES]


def run(backend: str, device: str) -> int:
    """Run every call; returns how many. ValueError where a result is not finite."""
    count = 0
    with robustflow.use_backend(backend):
        for call, inverse, reduce in calls(device):
            for result in call.gradients(inverse, reduce):
                if not bool(result.isfinite().all()):
                    raise ValueError(f"{call.operation.name} in layout {call.layout}: not finite.")
            count += 1
    return count


if __name__ == "__main__":
    backend, device = [*sys.argv[1:], "cuda"][:2]
    print(f"{run(backend, device)} calls")
