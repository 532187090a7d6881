"""The oracle with its knots left where they are is the oracle: two ways to the same spline."""

from __future__ import annotations

import pytest
import torch

from tests.conformance import operations
from tests.conformance.compare import run_oracle
from tests.conformance.operations import Operation

SPLINES = [op for op in operations.ALL if not op.name.startswith("affine")]


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("operation", SPLINES, ids=lambda op: op.name)
def test_unmoved_knots(operation: Operation, inverse: bool) -> None:
    generator = torch.Generator().manual_seed(operation.seed())
    shape = (50, 3)
    params = operation.sample_params(shape, generator)
    x = operation.sample_x(params, generator, inverse)
    cotangents = (torch.ones(shape).double(), torch.ones(shape).double())
    expected = run_oracle(operation, x, params, inverse, cotangents)
    still = (torch.ones(1, 2).double(), torch.ones(1, 2).double())
    actual = run_oracle(
        operation,
        x.unsqueeze(-1),
        params.unsqueeze(-2),
        inverse,
        (cotangents[0].unsqueeze(-1), cotangents[1].unsqueeze(-1)),
        (0.0, still),
    )
    for (name, value), (_, other) in zip(expected.items(), actual.items(), strict=True):
        torch.testing.assert_close(
            other.reshape(value.shape), value, rtol=1e-8, atol=1e-8, msg=name
        )
