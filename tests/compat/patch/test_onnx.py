"""ONNX files of patched flows: where a stock flow's masks cannot be exported, the reference can."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustflow import compat
from tests.compat import flows
from tests.support.onnx_checks import BOTH, check, exported


class BothWays(nn.Module):
    """The density of x, and the x of latents."""

    def __init__(self, library: str, flow: Any) -> None:
        super().__init__()
        self.library, self.flow = library, flow

    def forward(self, x: Tensor, latents: Tensor) -> list[Tensor]:
        density = self.flow.log_prob(x)
        if self.library == "zuko":
            return [density, self.flow.flow().transform.inv(latents)]
        if self.library == "normflows":
            return [density, *self.flow.forward_and_log_det(latents)]
        return [density, *self.flow._transform.inverse(latents)]


def module_and_batches(name: str) -> tuple[str, nn.Module, list[list[Tensor]]]:
    library, flow = flows.make(name)
    batches = [[2 * torch.randn(size, flows.FEATURES) for _ in range(2)] for size in (6, 9)]
    return library, BothWays(library, flow.float()), batches


@pytest.mark.parametrize(
    ("name", "dynamo"),
    [
        ("nflows coupling", True),
        ("nflows coupling", False),
        ("nflows autoregressive", False),
        ("normflows coupling", True),
        ("zuko coupling", True),
    ],
)
def test_patched(name: str, dynamo: bool, tmp_path: Path) -> None:
    library, module, batches = module_and_batches(name)
    # normflows' log_prob and zuko under torch.jit.trace fix the batch size themselves.
    free = [0] if library != "normflows" else []
    with compat.patch(library):
        check(module, batches if free else batches[:1], tmp_path, dynamo=dynamo, free=free)
        # Two layers' inverses are written down as the library's loops, around our splines.
        assert compat.patched()[library]["fallback"] == (2 if "autoregressive" in name else 0)


def test_stock_nflows_is_left_as_it_is(tmp_path: Path) -> None:
    _, module, batches = module_and_batches("nflows coupling")
    check(module, batches, tmp_path, dynamo=False)


@BOTH
def test_a_box_without_tails(dynamo: bool, tmp_path: Path) -> None:
    """The library raises for an input outside, which a file cannot: NaN, in that element."""
    splines = pytest.importorskip("nflows.transforms.splines.rational_quadratic")

    class Boxed(nn.Module):
        def forward(self, x: Tensor, w: Tensor, h: Tensor, d: Tensor) -> list[Tensor]:
            return list(splines.rational_quadratic_spline(x, w, h, d))

    groups = [torch.randn(4, size) for size in (5, 5, 6)]
    x = torch.tensor([0.0, 0.3, 0.7, 1.0])
    with compat.patch("nflows"):
        session = exported(Boxed(), [x, *groups], tmp_path, dynamo, (0,))
        expected = splines.rational_quadratic_spline(x, *groups)
    feed = [entry.name for entry in session.get_inputs()]

    def run(x: Tensor) -> Tensor:
        values = [tensor.numpy() for tensor in (x, *groups)]
        return torch.from_numpy(session.run(None, dict(zip(feed, values, strict=True)))[0])

    torch.testing.assert_close(run(x), expected[0], rtol=1.5e-5, atol=1.5e-5)
    x[1] = 1.5
    assert run(x).isnan().tolist() == [False, True, False, False]
