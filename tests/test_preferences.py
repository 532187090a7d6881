"""Measured preferences: what a file may say, and what a call makes of it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from robustflow import _backend, _native, _preferences, _triton

RULE: dict[str, Any] = {
    "transform": "modified_rq",
    "direction": "forward",
    "training": False,
    "dtype": "float32",
    "layout": "planar",
    "min_elements": 0,
    "max_elements": 1000,
    "backend": "triton",
    "measured": {"card": "a card", "elements": 512, "cuda_us": 2.5, "triton_us": 2},
}


def changed(**fields: Any) -> dict[str, Any]:
    return {**copy.deepcopy(RULE), **fields}


def measured(**fields: Any) -> dict[str, Any]:
    return changed(measured={**RULE["measured"], **fields})


def test_the_rules_of_the_package_are_valid() -> None:
    rules = _preferences.read_rules()
    assert _preferences.make_table(rules) == _preferences._table


def test_rules_survive_the_file(tmp_path: Path) -> None:
    rules = [RULE, changed(min_elements=1001, max_elements=None, training=True)]
    file = tmp_path / "preferences.json"
    _preferences.write_rules(rules, file)
    assert _preferences.read_rules(file) == rules


BAD: list[tuple[list[dict[str, Any]], str]] = [
    ([changed(transform="spline")], "rule 0 .* transform must be one of .*'rq'.*, got 'spline'"),
    ([RULE, changed(direction="both")], "rule 1 .* direction must be one of"),
    ([changed(training="yes")], "training must be one of"),
    ([changed(dtype="float8")], "dtype must be one of"),
    ([changed(layout="tiles")], "layout must be one of"),
    ([changed(backend="reference")], "backend must be one of"),
    ([changed(min_elements=-1)], "min_elements must be a whole number from 0, got -1"),
    ([changed(min_elements=1001)], "max_elements must be null or a whole number from min"),
    ([changed(speed=1)], "speed is unknown"),
    ([{k: v for k, v in RULE.items() if k != "measured"}], "measured is missing"),
    ([changed(measured={"card": "a card"})], "measured must hold card, elements, cuda_us"),
    ([measured(card=7)], "measured must hold card"),
    ([measured(cuda_us=1.0)], "backend is 'triton', but cuda was measured faster"),
    ([RULE, changed(min_elements=1000, max_elements=None)], "two rules .* hold for 1000 elements"),
    ([RULE, changed(min_elements=20, max_elements=30)], "two rules .* hold for 20 elements"),
]


@pytest.mark.parametrize(("rules", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_rules_are_refused_with_their_place(
    rules: list[dict[str, Any]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        _preferences.write_rules(rules, tmp_path / "preferences.json")
    assert not (tmp_path / "preferences.json").exists()


@pytest.mark.parametrize("content", ["[]", '{"schema": 0, "rules": []}'])
def test_another_schema_is_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "preferences.json"
    file.write_text(content)
    with pytest.raises(ValueError, match="must be an object with schema 1"):
        _preferences.read_rules(file)


TABLE = _preferences.make_table(
    [
        changed(min_elements=1001, max_elements=None, backend="cuda"),
        RULE,
        changed(dtype="bfloat16"),
        changed(training=True, max_elements=None),
        changed(layout="rows", min_elements=10),
    ]
)


def _params(*shape: int, rows: bool = False, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Parameters (*shape, 4), planes of them or rows."""
    if rows:
        return torch.zeros(*shape, 4, dtype=dtype)
    return torch.zeros(4, *shape, dtype=dtype).movedim(0, -1)


def _preferred(x: torch.Tensor, params: torch.Tensor, *, inverse: bool = False) -> str | None:
    return _preferences.preferred("modified_rq", x, params, inverse)


def test_a_call_finds_its_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_preferences, "_table", TABLE)
    x = torch.zeros(1000)
    assert _preferred(x, _params(1000)) == "triton"
    assert _preferred(torch.zeros(1001), _params(1001)) == "native"
    assert _preferred(x, _params(1000), inverse=True) is None
    assert _preferences.preferred("affine", x, _params(1000), False) is None
    assert _preferred(x, _params(1000, dtype=torch.bfloat16)) == "triton"
    assert _preferred(x, _params(1000, dtype=torch.float16)) is None
    assert _preferred(x[:9], _params(9, rows=True)) is None
    assert _preferred(x[:10], _params(10, rows=True)) == "triton"


def test_a_gradient_is_another_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_preferences, "_table", TABLE)
    x, params = torch.zeros(2000), _params(2000)
    assert _preferred(x, params) == "native"
    for tensors in ((x.requires_grad_(), params), (x.detach(), params.requires_grad_())):
        assert _preferred(*tensors) == "triton"
    with torch.no_grad():
        assert _preferred(x, params) == "native"


def test_a_compiled_call_takes_the_rule_for_large_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one graph, and not one a size."""
    torch._dynamo.reset()
    monkeypatch.setattr(_preferences, "_table", TABLE)
    found: list[str | None] = []
    graphs = 0

    def counting(module: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        nonlocal graphs
        graphs += 1
        return module

    def function(x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
        return x + (1.0 if _preferred(x, params) == "native" else 2.0)

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=counting)
    for size in (100, 999, 1001, 5000):
        found.append(
            "native" if float(compiled(torch.zeros(size), _params(size))[0]) == 1.0 else None
        )
    assert found == ["native"] * 4 and graphs == 1
    assert function(torch.zeros(100), _params(100))[0] == 2.0


@pytest.mark.parametrize(
    ("cuda", "triton", "measured", "wanted"),
    [
        (True, True, True, "triton"),
        (True, True, False, "native"),
        (True, False, True, "native"),
        (False, True, False, "triton"),
        (False, False, True, "reference"),
    ],
)
def test_auto_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, triton: bool, measured: bool, wanted: str
) -> None:
    """The measured faster; unmeasured CUDA where it is built, Triton elsewhere, else reference."""
    monkeypatch.setattr(_preferences, "_table", TABLE if measured else {})
    monkeypatch.setattr(_native, "cuda_loaded", lambda: cuda)
    monkeypatch.setattr(_triton, "load", lambda: triton)
    x, params = torch.zeros(10), _params(10)
    assert _backend._on_gpu("modified_rq", x, params, False) == wanted
