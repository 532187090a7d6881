"""Searching conditions by gradient, and the score of the gain: never above what is proven."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustflow import nn as rnn
from robustflow.diagnostics import Certificate, GainScore, certify
from robustflow.diagnostics._gains import watching
from tests.compat.affine_flows import KINDS, normflows_inverse

CONDITIONAL = [name for name, kind in KINDS.items() if kind.conditional]
RUNS: dict[str, Callable[[Any, Tensor], Any]] = {
    "SRFlow": lambda model, c: model.run(c.new_zeros(len(c), 2), c, True),
    "normflows autoregressive": lambda model, c: normflows_inverse(
        model, c.new_zeros(len(c), 2), c
    ),
}


def disturbed(model: Any, by: float = 0.3) -> Any:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.add_(by * torch.randn_like(parameter))
    return model


def flow_of(transform: Any, steps: int = 3, context: int = 3) -> rnn.ConditionalFlow:
    layers = [
        layer
        for _ in range(steps)
        for layer in rnn.flow_step(4, context, transform, spatial_dims=0, hidden_channels=16)
    ]
    torch.manual_seed(0)
    return disturbed(rnn.ConditionalFlow([layers]))


@pytest.mark.parametrize("converted", [False, True])
@pytest.mark.parametrize("name", CONDITIONAL)
def test_no_condition_found_by_gradient_beats_a_library_s_bound(name: str, converted: bool) -> None:
    torch.manual_seed(0)
    model: Any = KINDS[name].make(2, 2)
    if converted:
        KINDS[name].convert(model, torch.randn(64, 2), torch.randn(64, 2))
    disturbed(model)
    certificate = certify(model)
    result = certificate.search(3 * torch.randn(4, 2), steps=15, run=RUNS.get(name))
    assert not result.beaten
    assert len(result.layers) == sum(r.quantity == "inverse derivative" for r in certificate.rows)
    assert all(each.start <= each.found for each in result.layers)
    assert all(each.found <= each.bound * (1 + 1e-4) for each in result.layers)
    assert converted or any(each.found > each.start for each in result.layers)
    inverse = [row for row in certificate.rows if row.quantity == "inverse derivative"]
    if not converted:
        proven: Any = inverse[0].value
        assert all(each.bound <= proven.high for each in result.layers)


@pytest.mark.parametrize("name", KINDS)
def test_converted_layers_show_their_derivatives(name: str) -> None:
    kind = KINDS[name]
    torch.manual_seed(0)
    model: Any = kind.make(2, int(kind.conditional))
    context = torch.randn(64, 1) if kind.conditional else None
    kind.convert(model, torch.randn(64, 2), context)
    disturbed(model)
    with watching(model) as watcher, torch.no_grad():
        kind.inverse(model, torch.randn(64, 2), context)
    rows = [r for r in certify(model).rows if r.quantity == "inverse derivative"]
    assert len(watcher.log_gains) == len(rows)
    for logs in watcher.log_gains.values():
        assert logs.shape == (64,) and bool(logs.isfinite().all())


@pytest.mark.parametrize(
    ("transform", "reached"),
    [
        (rnn.Affine(), 0.99),
        (rnn.Affine(reciprocal=True), 0.99),
        (rnn.Affine(scale="tanh_exp", shift_first=False), 0.99),
        (rnn.Affine(scale="softclip_exp"), 0.2),  # which nears its limit slowly
        (rnn.ModifiedRQSpline(), 0.0),
        (rnn.RQSpline(num_bins=4), 0.0),
    ],
    ids=str,
)
def test_the_search_comes_near_a_bound_that_is_tight(transform: Any, reached: float) -> None:
    certificate = certify(flow_of(transform))
    result = certificate.search(torch.randn(16, 3), steps=60, step_size=0.3)
    assert not result.beaten
    assert result.worst.found >= reached * result.worst.bound
    assert result.worst.found > 1.05 * max(each.start for each in result.layers) or reached


def test_the_search_leaves_the_contexts_and_the_model_as_they_were() -> None:
    flow = flow_of(rnn.Affine()).train()
    flow.levels[0].eval()
    contexts = torch.rand(5, 3)
    before, weights = contexts.clone(), [p.detach().clone() for p in flow.parameters()]
    result = certify(flow).search(contexts, steps=10, within=(0.0, 1.0))
    assert torch.equal(contexts, before)
    assert all(map(torch.equal, weights, flow.parameters()))
    assert all(parameter.grad is None for parameter in flow.parameters())
    assert flow.training and not flow.levels[0].training
    assert result.contexts.shape == (5, 3)
    assert bool(((result.contexts >= 0) & (result.contexts <= 1)).all())
    # What it found is there to be seen again.
    assert torch.allclose(GainScore(flow)(result.contexts), result.gains, rtol=1e-4)
    assert bool((result.gains >= GainScore(flow)(contexts) * (1 - 1e-5)).all())
    assert float(result.gains.max()) == pytest.approx(result.worst.found, rel=1e-5)


def test_the_search_of_pictures_and_of_single_layers() -> None:
    layers = [rnn.Squeeze(2), *rnn.flow_step(4, 3, rnn.Affine(), hidden_channels=8)]
    flow = disturbed(rnn.ConditionalFlow([layers]))
    result = certify(flow).search(torch.randn(2, 3, 4, 4), steps=3)
    assert result.contexts.shape == (2, 3, 4, 4) and not result.beaten
    injector = disturbed(rnn.Injector(4, 3, spatial_dims=0))
    (found,) = certify(injector).search(torch.randn(6, 3), steps=5).layers
    assert (found.layer, found.kind) == ("", "injector")


def test_contexts_may_be_several_tensors() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = rnn.Injector(2, 3, rnn.Affine(), spatial_dims=0)
            self.second = rnn.Coupling(2, 4, rnn.Affine(), spatial_dims=0)

    def run(model: Any, contexts: Any) -> None:
        one, two = contexts
        z, _ = model.second(one.new_zeros(len(one), 2), two, inverse=True)
        model.first(z, one, inverse=True)

    model = disturbed(Two())
    contexts = (torch.randn(3, 3), torch.randn(3, 4))
    result = certify(model).search(contexts, steps=5, run=run)
    assert [each.layer for each in result.layers] == ["second", "first"]
    assert isinstance(result.contexts, tuple)
    assert [tuple(each.shape) for each in result.contexts] == [(3, 3), (3, 4)]
    assert GainScore(model, run=run)(contexts).shape == (3,)


def test_the_result_as_text() -> None:
    result = certify(flow_of(rnn.Affine())).search(torch.randn(2, 3), steps=2)
    text = str(result)
    assert text.startswith("Worst inverse derivative: ") and "no condition passes 10000." in text
    assert "levels.0.layers.3   self-conditional" in text
    assert result.to_dict()["layers"][0]["layer"] == "levels.0.layers.11"


def test_the_gain_score_is_one_over_the_scale() -> None:
    injector = disturbed(rnn.Injector(4, 3, rnn.Affine(), spatial_dims=0))
    contexts = 4 * torch.randn(32, 3)
    with torch.no_grad():
        logits = injector.project(contexts)[:, 1::2]
    expected = (1 / (torch.sigmoid(logits + 2) + 1e-4)).amax(dim=1)
    torch.testing.assert_close(GainScore(injector)(contexts), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("transform", [rnn.Affine(), rnn.ModifiedRQSpline()], ids=str)
def test_the_gain_score_of_an_autoregressive_layer_sees_every_feature(transform: Any) -> None:
    """Whose inverse computes feature by feature, without gradients."""
    layer = disturbed(rnn.Autoregressive(5, 3, transform), 0.5)
    contexts = 2 * torch.randn(16, 3)
    with torch.no_grad():
        x, _ = layer(torch.zeros(16, 5), contexts, inverse=True)
        params = layer.params_of(x, layer.project(contexts))
        log_derivatives = transform(x, params, reduce="none")[1]
    expected = (-log_derivatives).amax(dim=1).exp()
    torch.testing.assert_close(GainScore(layer)(contexts), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["FrEIA all in one", "FrEIA one-sided"])
def test_the_gain_score_is_the_block_s_own_log_determinant(name: str) -> None:
    """One of two channels is transformed; one of the blocks writes to its parameters as it goes."""
    model = disturbed(KINDS[name].make(1, 2), 0.5).double()
    contexts = 3 * torch.randn(16, 2).double()
    _, logabsdet = model(torch.zeros(16, 2).double(), c=[contexts], rev=True)
    if name == "FrEIA all in one":
        block = model.module_list[0]
        logabsdet = logabsdet + block.global_scale_activation(block.global_scale).log().sum()
    torch.testing.assert_close(GainScore(model)(contexts), logabsdet.exp())


def test_the_gain_score_of_some_layers_alone() -> None:
    flow = flow_of(rnn.Affine())
    contexts = 3 * torch.randn(8, 3)
    every = GainScore(flow)(contexts)
    each = [
        GainScore(flow, layers=[f"levels.0.layers.{i}"])(contexts)
        for i in range(12)
        if i % 4 in (2, 3)
    ]
    assert torch.equal(torch.stack(each).amax(dim=0), every)
    assert not torch.equal(each[0], every)


def test_far_conditions_of_an_affine_flow_score_higher() -> None:
    """As they do on the toy; for a reparametrised flow nothing passes 1.0001."""
    near, far = torch.randn(64, 3), 30 * torch.randn(64, 3)
    flow = flow_of(rnn.Affine())
    score = GainScore(flow)
    assert float(score(far).median()) > 10 * float(score(near).median())
    bounded = GainScore(flow_of(rnn.Affine(reciprocal=True)))
    assert float(bounded(far).max()) <= 1.0001 * (1 + 1e-5)


@pytest.mark.parametrize("name", CONDITIONAL)
def test_the_gain_score_of_every_library(name: str) -> None:
    torch.manual_seed(0)
    model = disturbed(KINDS[name].make(2, 2))
    scores = GainScore(model, run=RUNS.get(name))(3 * torch.randn(6, 2))
    assert scores.shape == (6,) and bool((scores > 0).all())
    rows = [row for row in certify(model).rows if row.quantity == "inverse derivative"]
    assert float(scores.max()) <= max(row.value.high for row in rows) * (1 + 1e-4)  # type: ignore[union-attr]


def nflows_spline() -> Any:
    transforms = pytest.importorskip("nflows.transforms")
    flows = pytest.importorskip("nflows.flows")
    from nflows.distributions import StandardNormal
    from nflows.nn.nets import ResidualNet

    def net(inputs: int, outputs: int) -> nn.Module:
        return ResidualNet(inputs, outputs, 16, context_features=3, num_blocks=1)

    layers = [
        transforms.PiecewiseRationalQuadraticCouplingTransform(
            mask, net, num_bins=5, tails="linear", tail_bound=3.0
        )
        for mask in ([0, 1], [1, 0])
    ]
    return flows.Flow(transforms.CompositeTransform(layers), StandardNormal([2]))


def normflows_spline() -> Any:
    nf = pytest.importorskip("normflows")
    kind = nf.flows.CoupledRationalQuadraticSpline
    layers = [
        kind(2, 1, 16, num_context_channels=3, num_bins=5, reverse_mask=turn)
        for turn in (False, True)
    ]
    base = nf.distributions.DiagGaussian(2, trainable=False)
    return nf.ConditionalNormalizingFlow(base, layers)


def zuko_spline(**options: Any) -> Any:
    flows = pytest.importorskip("zuko.flows")
    return flows.NSF(2, 3, transforms=2, bins=5, hidden_features=(16,), **options)


@pytest.mark.parametrize(
    "make",
    [nflows_spline, normflows_spline, zuko_spline, lambda: zuko_spline(passes=2)],
    ids=["nflows", "normflows", "zuko", "zuko coupling"],
)
def test_the_spline_flows_of_the_libraries(make: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    model = disturbed(make())
    contexts = torch.randn(6, 3)
    result = certify(model).search(contexts, steps=20)
    assert len(result.layers) == 2 and not result.beaten
    assert result.worst.found > 1.2 * max(each.start for each in result.layers)
    torch.testing.assert_close(
        GainScore(model)(result.contexts), result.gains, rtol=1e-3, atol=1e-6
    )


def test_a_gain_that_is_not_finite_scores_infinity() -> None:
    injector = rnn.Injector(2, 1, rnn.Affine(), spatial_dims=0)
    with torch.no_grad():
        injector.get_parameter("conditioner.trunk.3.bias").fill_(math.nan)
    assert GainScore(injector)(torch.randn(3, 1)).tolist() == [math.inf] * 3


def certificate() -> Certificate:
    return certify(flow_of(rnn.Affine(), steps=1))


FLOW = flow_of(rnn.Affine(), steps=1)
TEXT: Any = "contexts"


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.flow = rnn.ActNorm(2)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: certificate().search(torch.randn(2, 3), steps=0), ValueError, "steps must be"),
        (lambda: certificate().search(TEXT), TypeError, "a tensor with a context a row"),
        (lambda: certificate().search(torch.randn(0, 3)), ValueError, "at least one context"),
        (lambda: certificate().search(torch.ones(2, 3).long()), TypeError, "floating-point"),
        (lambda: certificate().search(torch.full((2, 3), math.nan)), ValueError, "must be finite"),
        (lambda: certificate().search(torch.randn(2, 5)), ValueError, "must have 3 channels"),
        (
            lambda: certificate().search((torch.randn(2, 3), torch.randn(3, 3))),
            ValueError,
            "one batch size",
        ),
        (
            lambda: certificate().search(torch.randn(2, 3), within=(1.0, 0.0)),
            ValueError,
            "lowest, highest",
        ),
        (
            lambda: certificate().search(torch.full((2, 3), 2.0), within=(0.0, 1.0)),
            ValueError,
            "must lie within",
        ),
        (
            lambda: certificate().search(torch.randn(2, 3), step_size=-1.0),
            ValueError,
            "step_size must be",
        ),
        (
            lambda: certificate().search(torch.randn(2, 3), run=TEXT),
            TypeError,
            "run must be called",
        ),
        (
            lambda: certificate().search(
                torch.randn(2, 3), run=lambda m, c: m.sample(1, c, temperature=0)
            ),
            ValueError,
            "do not depend on the contexts",
        ),
        (
            lambda: certificate().search(torch.randn(2, 3), run=lambda m, c: None),
            ValueError,
            "No layer with an inverse derivative was called",
        ),
        (
            lambda: certificate().search(
                torch.randn(2, 3), run=lambda m, c: m.rsample(1, c[:1], temperature=0)
            ),
            ValueError,
            "once for each of the 2 contexts",
        ),
        (lambda: certify(rnn.Affine()).search(torch.randn(2, 3)), ValueError, "A transform alone"),
        (lambda: certify(Wrapped()).search(torch.randn(2, 3)), ValueError, "a Wrapped samples is"),
        (lambda: GainScore(nn.Linear(2, 2)), ValueError, "No flow layer was found"),
        (lambda: GainScore(FLOW, layers=["none"]), ValueError, "'none'"),
        (lambda: GainScore(FLOW, run=TEXT), TypeError, "run must be called"),
        (lambda: GainScore(FLOW)(torch.randn(2, 3).long()), TypeError, "floating-point"),
        (lambda: GainScore(Wrapped())(torch.randn(2, 3)), ValueError, "pass run="),
    ],
)
def test_bad_calls(call: Callable[[], Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()


def test_the_gain_has_a_conformal_threshold() -> None:
    torch.manual_seed(0)
    flow = rnn.ConditionalFlow([rnn.flow_step(2, 3, rnn.Affine(), spatial_dims=0)])
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    held_out = torch.randn(39, 3)
    score = GainScore(flow)
    with pytest.raises(RuntimeError, match="call calibrate"):
        score.threshold(0.05)
    whole = score.calibrate(held_out).threshold(0.05)
    assert whole == score.calibrate([held_out[:20], held_out[20:]]).threshold(0.05)
    assert int((score.score(held_out) > whole).sum()) == 1  # the 38th of 39
    with pytest.raises(ValueError, match="calibrate on at least one"):
        score.calibrate([])
