"""`tap`: features by module name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustflow import nn as rnn
from robustflow.diagnostics import MahalanobisScore, tap


class Levels(nn.Module):
    """Two levels of features, in a dict as SRFlow's encoder returns them."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"fine": 2 * x, "coarse": x[..., ::2, ::2]}


class Count(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return len(x)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Sequential(nn.Conv2d(4, 2, 1)))


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_outputs_are_those_of_the_module() -> None:
    model, first, second = network(), torch.randn(2, 3, 5, 5), torch.randn(1, 3, 5, 5)
    with tap(model, "1") as tapped:
        model(first)
        model(second)
    expected = [model[1](model[0](x)) for x in (first, second)]
    assert len(tapped.outputs["1"]) == 2 and hooks(model) == 0
    for found, wanted in zip(tapped.outputs["1"], expected, strict=True):
        assert torch.equal(found, wanted) and not found.requires_grad
    assert torch.equal(tapped.take(), expected[1])  # type: ignore[arg-type]
    assert tapped.outputs == {"1": []}


def test_several_names_are_levels() -> None:
    model, x = network(), torch.randn(2, 3, 5, 5)
    with tap(model, ["0", "2.0"]) as tapped:
        y = model(x)
    features = tapped.last
    assert isinstance(features, dict) and list(features) == ["0", "2.0"]
    assert torch.equal(features["2.0"], y)
    assert MahalanobisScore().fit([features]).levels == {"0": 4, "2.0": 2}


def test_the_model_itself_and_modules_that_return_levels() -> None:
    model, x = Levels(), torch.randn(2, 3, 6, 6)
    with tap(model, "") as tapped:
        model(x)
    assert MahalanobisScore().fit([tapped.last]).levels == {"fine": 3, "coarse": 3}


def test_gradients_are_kept_where_wanted() -> None:
    model = network()
    with tap(model, "0", detach=False) as tapped:
        model(torch.randn(1, 3, 5, 5))
    assert isinstance(tapped.last, Tensor) and tapped.last.requires_grad


def test_hooks_go_whatever_happens() -> None:
    model = network()
    with pytest.raises(ArithmeticError), tap(model, ["0", "1"]):
        assert hooks(model) == 2
        raise ArithmeticError
    with pytest.raises(ValueError, match="no module"), tap(model, ["0", "9"]):
        pass
    assert hooks(model) == 0


@pytest.mark.parametrize(
    ("name", "near"),
    [("levels.0.layers.4.conditioner.trunk", "'levels.0.layers.3.conditioner.trunk'"),
     ("module.encoder", "'encoder'"),
     ("zzz", "'levels'")],
)  # fmt: skip
def test_a_name_that_is_none_is_told_the_nearest(name: str, near: str) -> None:
    encoder = nn.Conv2d(3, 8, 1)
    flow = rnn.ConditionalFlow([rnn.flow_step(4, 8, rnn.Affine())], encoder)
    with (
        pytest.raises(ValueError, match=f"no module '{name}'. Near it are .*{near}"),
        tap(flow, name),
    ):
        pass
    with pytest.raises(ValueError, match="nor any other inside"), tap(nn.ReLU(), "encoder"):
        pass


def test_a_module_that_was_not_called_is_named() -> None:
    with (
        tap(network(), "2.0") as tapped,
        pytest.raises(RuntimeError, match=r"'2\.0' was not called"),
    ):
        tapped.take()


def test_a_compiled_model_says_what_to_run_instead() -> None:
    model, x = network(), torch.randn(2, 3, 5, 5)
    compiled = torch.compile(model, backend="eager")
    compiled(x)
    with tap(model, "0") as tapped:
        compiled(x)
        with pytest.raises(RuntimeError, match="run the one that was given"):
            tapped.take()
        model(x)
        assert torch.equal(tapped.take(), model[0](x))  # type: ignore[arg-type]


def test_outputs_that_are_no_features_are_refused() -> None:
    model = Count()
    with pytest.raises(TypeError, match="'' returned a int"), tap(model, ""):
        model(torch.ones(1))


def test_the_first_layer_of_conditioners_is_called_where_it_is_tapped() -> None:
    """A flow projects all contexts in one convolution, past the layers, unless they are watched."""
    flow = rnn.ConditionalFlow([rnn.flow_step(4, 8, rnn.Affine())])
    context = torch.randn(2, 8, 5, 5)
    names = [n for n, _ in flow.named_modules() if n.endswith("context_layer")]
    modules = dict(flow.named_modules())
    with torch.no_grad(), tap(flow, names) as tapped:
        plain = flow.sample(1, context, temperature=0)
    features = tapped.last
    assert isinstance(features, dict) and len(features) == 2
    for name, found in features.items():
        torch.testing.assert_close(found, modules[name](context))
    torch.testing.assert_close(flow.sample(1, context, temperature=0), plain)
