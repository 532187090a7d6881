"""What is saved while patched works in a process without robustflow."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from robustflow import compat
from tests.compat import flows

LIBRARIES = {
    "nflows": "nflows coupling, unconditional too",
    "normflows": "normflows autoregressive",
    "glasflow": "glasflow",
    "zuko": "zuko",
}

READER = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "robustflow":
            raise ImportError(name)

sys.meta_path.insert(0, Missing())
import torch

torch.set_num_threads(1)
for name, (model, x, expected) in torch.load(sys.argv[1], weights_only=False).items():
    with torch.no_grad():
        if name == "transform":
            found = model(x)
        elif name.startswith("zuko"):
            found = model().log_prob(x)
        else:
            found = model.log_prob(x)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    print("read", name)
assert not any(name.startswith("robustflow") for name in sys.modules)
"""


def test_models_transforms_and_copies(tmp_path: Path) -> None:
    saved: dict[str, Any] = {}
    x = torch.randn(5, flows.FEATURES, dtype=torch.float64)
    zuko = pytest.importorskip("zuko")
    phi = [torch.randn(5, flows.FEATURES, size).double() for size in (5, 5, 4)]
    path = tmp_path / "saved.pt"
    for library, name in LIBRARIES.items():
        _, flow = flows.make(name)
        flow = flow.flow if library == "zuko" else flow
        with torch.no_grad():
            expected = flow().log_prob(x) if library == "zuko" else flow.log_prob(x)
        saved[library] = (flow, x, expected)
    expected = zuko.transforms.MonotonicRQSTransform(*phi)(x)
    handles = [compat.patch(library) for library in LIBRARIES]
    try:
        with torch.no_grad():
            for library, (flow, _, _) in list(saved.items()):
                flow().log_prob(x) if library == "zuko" else flow.log_prob(x)
                saved[f"{library}, copied"] = (copy.deepcopy(flow), *saved[library][1:])
        transform = zuko.transforms.MonotonicRQSTransform(*phi)
        transform(x)
        saved["transform"] = (transform, x, expected)
        torch.save(saved, path)
    finally:
        for handle in handles:
            handle.restore()
    reader = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", READER, str(path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert reader.returncode == 0, reader.stderr[-2000:]
    assert reader.stdout.count("read") == len(saved)
