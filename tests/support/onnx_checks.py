"""Exporting a module to ONNX, and comparing what onnxruntime makes of the file with torch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("onnxscript")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

BOTH = pytest.mark.parametrize("dynamo", [True, False], ids=["torch.export", "torch.jit.trace"])
TOLERANCE = 1.5e-5


def exported(
    module: nn.Module, args: Sequence[Tensor], folder: Path, dynamo: bool, free: Sequence[int]
) -> Any:
    """A session of the file; dimensions in ``free`` of every argument may vary."""
    path = folder / "model.onnx"
    names = [f"input{i}" for i in range(len(args))]
    free_sizes: dict[str, Any] = {}
    if dynamo:
        free_sizes["dynamic_shapes"] = [dict.fromkeys(free, torch.export.Dim.AUTO) for _ in args]
    else:
        free_sizes["dynamic_axes"] = {name: {d: f"size{d}" for d in free} for name in names}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # each exporter has many
        torch.onnx.export(
            module,
            tuple(args),
            path,
            input_names=names,
            dynamo=dynamo,
            verbose=False,
            optimize=False,  # onnxruntime does it too
            **free_sizes,
        )
    domains = {node.domain for node in onnx.load(path).graph.node}
    assert domains <= {"", "ai.onnx"}, domains
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def check(
    module: nn.Module,
    batches: Sequence[Sequence[Tensor]],
    folder: Path,
    *,
    dynamo: bool,
    free: Sequence[int] = (0,),
) -> None:
    """Export with the first batch; all must give what torch gives."""
    module = module.eval()
    session = exported(module, batches[0], folder, dynamo, free)
    inputs = [entry.name for entry in session.get_inputs()]
    for batch in batches:
        with torch.no_grad():
            expected = module(*batch)
        feed = {name: value.numpy() for name, value in zip(inputs, batch, strict=True)}
        actual = [torch.from_numpy(each) for each in session.run(None, feed)]
        torch.testing.assert_close(
            actual, list(expected), rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True
        )
