"""benchmarks.srflow: the designs that it compares agree, and its results are complete."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from benchmarks import srflow
from robustflow.compat.srflow import CondAffineSeparatedAndCond

TINY = srflow.Shape(pixels=8, steps=1, features=3, seconds=0.0)


@pytest.mark.parametrize("kind", list(srflow.KINDS))
def test_designs_agree(kind: str) -> None:
    """Within the benchmark's tolerance, on a tiny network."""
    made = srflow.cases(TINY, kind)
    srflow.check_agreement(made)
    assert made["robustflow"].batch().shape == (10, 3, 8, 8)
    with torch.no_grad():
        latents, _ = made["robustflow"].network.encode(made["free"].x, made["free"].features)
    assert [latent.shape[1:] for latent in latents] == [(6, 4, 4), (96, 1, 1)]


def test_disagreement_is_an_error() -> None:
    made = srflow.cases(TINY, "affine")
    coupling = next(
        module
        for module in made["robustflow"].network.modules()
        if isinstance(module, CondAffineSeparatedAndCond)
    )
    with torch.no_grad():
        coupling.get_parameter("fAffine.4.bias").add_(1)
    with pytest.raises(RuntimeError, match="samples differ"):
        srflow.check_agreement(made)


def test_results(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    srflow.worker(json.dumps({"shape": asdict(TINY), "kind": "modified_rq"}), str(file))
    result = json.loads(file.read_text())
    for shares in result["shares"].values():
        assert sum(shares.values()) == pytest.approx(1)
        assert {"convolutions of features", "other convolutions", "transforms"} <= shares.keys()
    assert len(srflow.verdicts(result)) == 4
    report = srflow.report({**result, "allocator": "default"})
    assert "ten samples, one_by_one: times faster than published" in report


def test_verdicts_compare_with_the_targets() -> None:
    seconds = {
        "sampling": {"robustflow": 1.05, "free": 1.0},
        "training": {"robustflow": 1.2, "free": 1.0},
        "ten samples": {
            "robustflow, one_by_one": 4.0,
            "robustflow, batch": 1.0,
            "published, a tenth": 1.0,
        },
    }
    result = {
        "seconds": {
            group: {name: {"median_s": each} for name, each in times.items()}
            for group, times in seconds.items()
        }
    }
    assert [verdict.met for verdict in srflow.verdicts(result)] == [True, False, False, True]
