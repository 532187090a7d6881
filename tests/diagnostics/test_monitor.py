"""The monitor on flows of robustflow.nn: what it records, what it finds, what it leaves behind."""

from __future__ import annotations

import copy
import io
import json
import math
import pickle
import threading
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustflow import functional as F
from robustflow import nn as rnn
from robustflow.diagnostics import monitor as monitor_module
from robustflow.diagnostics.monitor import ExplodingInverseError, ExplosionWarning, InverseMonitor
from tests.diagnostics.exploding_flows import (
    CHANNELS,
    GAIN,
    SIZE,
    latents,
    plant,
    planted_flow,
    reached_by,
)

MEMBERS = ("transform_with", "forward")


@torch.no_grad()
def inverse(flow: Any, z: Tensor) -> Tensor:
    return flow.inverse((z,))[0]


def methods_of(*kinds: type) -> list[dict[str, Any]]:
    return [dict(vars(kind)) for kind in kinds]


# ---- what it records ---------------------------------------------------------------------------


def test_it_records_every_layer_in_the_order_of_sampling() -> None:
    flow, z = planted_flow(2), latents()
    with InverseMonitor(flow) as monitor:
        x = inverse(flow, z)
    report = monitor.report()
    assert [each.name for each in report.layers] == [
        f"levels.0.layers.{i}" for i in range(5, -1, -1)
    ]
    assert [each.kind for each in report.layers] == ["self-conditional", "1x1", "actnorm"] * 2
    assert {each.library for each in report.layers} == {"robustflow.nn"}
    assert {each.calls for each in report.layers} == {1} and report.samples == len(z)
    with torch.no_grad():
        for each in report.layers:
            out = flow.get_submodule(each.name)(z, None, inverse=True)[0]
            for found, tensor in (
                ((each.input_magnitude, each.input_variance), z),
                ((each.output_magnitude, each.output_variance), out),
            ):
                assert found[0] == float(tensor.abs().max())
                assert found[1] == pytest.approx(float(tensor.var(correction=0)), rel=1e-5)
            z = out
    assert torch.equal(x, z)
    assert not monitor.onsets and monitor.first_explosion is None
    assert monitor.contaminated.shape == x.shape and not monitor.contaminated.any()


def test_variances_of_several_calls_are_those_of_all_samples() -> None:
    flow = planted_flow(1)
    one, two = latents(3), 5 * latents(2) + 1
    with InverseMonitor(flow) as monitor:
        inverse(flow, one)
    with monitor:
        inverse(flow, two)
    first = monitor.report().layers[0]
    assert first.calls == 2 and len(monitor.runs) == 2
    both = torch.cat([one, two])
    assert first.input_variance == pytest.approx(float(both.var(correction=0)), rel=1e-5)
    monitor.clear()
    with pytest.raises(ValueError, match="No layer of this ConditionalFlow was called"):
        monitor.report()


@pytest.mark.parametrize(
    "transform",
    [
        rnn.Affine(),
        rnn.Affine(reciprocal=True),
        rnn.Affine("exp", shift_first=False),
        rnn.ModifiedRQSpline(),
        rnn.RQSpline(5),
    ],
    ids=str,
)
@pytest.mark.parametrize("make", [rnn.Injector, rnn.Coupling])
def test_derivatives_are_those_of_the_inverse(transform: Any, make: Any) -> None:
    layer = make(CHANNELS, 3, transform).eval()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.4)
    z, context = 2 * latents(), torch.randn(3, 3, SIZE, SIZE)
    with torch.no_grad(), InverseMonitor(nn.ModuleList([layer])) as monitor:
        y, logabsdet = layer(z, context, inverse=True)
        params = layer.params_of(z[:, :2], layer.project(context)) if make is rnn.Coupling else None
        if params is None:
            params = layer.project(context)
        changed = z[:, 2:] if make is rnn.Coupling else z
        _, each = transform(changed, params, inverse=True, reduce="none")
    (record,) = monitor.report().layers
    assert record.smallest_derivative == pytest.approx(float(each.min().exp()), rel=1e-5)
    assert record.largest_derivative == pytest.approx(float(each.max().exp()), rel=1e-5)
    with torch.no_grad():
        expected, log = layer(z, context, inverse=True)
    assert torch.equal(y, expected)
    torch.testing.assert_close(logabsdet, log, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("transform", [rnn.Affine("exp"), rnn.ModifiedRQSpline()], ids=str)
@pytest.mark.parametrize("grad", [False, True], ids=["in order", "in passes"])
def test_derivatives_of_an_autoregressive_inverse(transform: Any, grad: bool) -> None:
    layer = rnn.Autoregressive(4, 2, transform)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.4)
    z, context = torch.randn(50, 4), torch.randn(50, 2)
    with torch.set_grad_enabled(grad), InverseMonitor(layer) as monitor:
        x, _ = layer(z, context, inverse=True)
    with torch.no_grad():
        params = layer.params_of(x, layer.project(context))
        _, each = transform(z, params, inverse=True, reduce="none")
    (record,) = monitor.report().layers
    assert record.kind == "autoregressive"
    assert record.smallest_derivative == pytest.approx(float(each.min().exp()), rel=1e-4)
    assert record.largest_derivative == pytest.approx(float(each.max().exp()), rel=1e-4)


def test_the_density_direction_is_recorded_only_if_asked_for() -> None:
    flow = planted_flow(1)
    x = latents()
    with torch.no_grad(), InverseMonitor(flow) as monitor:
        flow.log_prob(x)
    with pytest.raises(ValueError, match="log_prob"):
        monitor.contaminated  # noqa: B018
    with torch.no_grad(), InverseMonitor(flow, density=True) as monitor:
        latent = flow(x)[0][0]
        flow.inverse((latent,))
    report = monitor.report()
    assert [each.direction for each in report.layers] == ["density"] * 3 + ["sampling"] * 3
    assert [each.name for each in report.layers[:3]] == [f"levels.0.layers.{i}" for i in range(3)]
    there, back = report.layers[2], report.layers[3]
    assert there.largest_derivative == pytest.approx(1 / (back.smallest_derivative or 0), rel=1e-5)
    assert monitor.contaminated.shape == x.shape


def test_nonfinite_values_are_counted_and_left_out_of_variances() -> None:
    flow, z = planted_flow(1), latents()
    z[0, 2, 3, 3], z[1, 3, 0, 0] = math.nan, math.inf
    with InverseMonitor(flow) as monitor:
        x = inverse(flow, z)
    first, last = monitor.report().layers[0], monitor.report().layers[-1]
    assert (first.nonfinite_inputs, first.nonfinite_outputs) == (2, 2)
    assert last.nonfinite_outputs == int((~x.isfinite()).sum())
    finite = z[z.isfinite()]
    assert first.input_variance == pytest.approx(float(finite.var(correction=0)), rel=1e-5)
    assert first.input_magnitude == math.inf
    assert not monitor.onsets  # they were there before


def test_values_at_the_end_of_the_range_have_their_moments() -> None:
    z = torch.tensor([[3e38, -1e38], [1e30, 2.0]])
    norm = rnn.ActNorm(2)
    with InverseMonitor(norm, magnitude=math.inf) as monitor, torch.no_grad():
        norm(z, inverse=True)
    (record,) = monitor.report().layers
    assert record.input_variance == pytest.approx(float(z.double().var(correction=0)), rel=1e-5)
    assert record.input_magnitude == pytest.approx(3e38) and not record.nonfinite_inputs


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    flow = planted_flow(2).to(dtype)
    name = plant(flow, 1, 1, 0, 4, 4)
    z = latents().to(dtype)
    with InverseMonitor(flow) as monitor:
        x = inverse(flow, z)
    assert x.dtype == dtype and [onset.layer for onset in monitor.onsets] == [name]


# ---- what it finds -----------------------------------------------------------------------------


def test_an_explosion_is_found_where_it_was_planted() -> None:
    flow, z = planted_flow(), latents()
    name = plant(flow, 2, 1, 1, 5, 7)
    with InverseMonitor(flow) as monitor:
        x = inverse(flow, z)
    (onset,) = monitor.onsets
    assert (onset.layer, onset.kind, onset.reason) == (name, "self-conditional", "growth")
    assert (onset.sample, onset.position) == (1, (3, 5, 7))  # the second of two changed channels
    assert onset.shape == (CHANNELS, SIZE, SIZE) and onset.elements == 1
    (step,) = (i for i, each in enumerate(monitor.report().layers) if each.name == name)
    assert onset.step == step and monitor.report().layers[step].onsets == 1
    assert onset.growth == pytest.approx(
        onset.magnitude / max(1.0, onset.magnitude / GAIN), rel=0.01
    )
    assert monitor.first_explosion is onset
    marked = torch.zeros(z.shape, dtype=torch.bool)
    marked[1, 3, 5, 7] = True
    assert torch.equal(monitor.contaminated, reached_by(flow, name, marked))
    assert 0 < float(monitor.contaminated[1].float().mean()) < 0.5
    assert bool((x.abs() > 100)[1].any()) and not bool((x.abs() > 100)[~monitor.contaminated].any())


def test_what_earlier_crossings_reach_is_no_onset() -> None:
    flow, z = planted_flow(), latents()
    first = plant(flow, 3, 0, 0, 6, 6)
    plant(flow, 2, 0, 1, 7, 7)  # one position on: the conditioner reaches one
    other = plant(flow, 2, 0, 1, 1, 1)
    with InverseMonitor(flow) as monitor:
        inverse(flow, z)
    assert [(each.layer, each.position[1:]) for each in monitor.onsets] == [
        (first, (6, 6)),
        (other, (1, 1)),
    ]
    marks = torch.zeros(2, *z.shape, dtype=torch.bool)
    marks[0, 0, 2, 6, 6] = marks[1, 0, 3, 1, 1] = True
    expected = reached_by(flow, first, marks[0]) | reached_by(flow, other, marks[1])
    assert torch.equal(monitor.contaminated, expected)


def test_elements_that_touch_are_one_onset() -> None:
    flow, z = planted_flow(1), latents(1)
    for place in ((4, 4), (5, 5), (5, 6), (9, 9)):
        plant(flow, 0, None, 0, *place)
    plant(flow, 0, None, 1, 4, 4)
    z[:, 2:] = 0.5  # all grow alike ...
    z[0, 2, 5, 6] = 0.75  # ... but this
    with InverseMonitor(flow) as monitor:
        inverse(flow, z)
    assert [(each.elements, each.position) for each in monitor.onsets] == [
        (4, (2, 5, 6)),
        (1, (2, 9, 9)),
    ]


def test_a_rise_in_small_steps_is_found_as_it_passes_the_magnitude() -> None:
    """FrEIA's couplings: no layer multiplies by more than e^2."""
    layers: list[Any] = [
        rnn.ConditionalAffineCoupling(2, spatial_dims=0, scale="atan_exp", reverse=bool(i % 2))
        for i in range(10)
    ]
    for layer in layers:
        head = layer.conditioner.trunk[-1]
        with torch.no_grad():
            head.bias.copy_(torch.tensor([0.0, -100.0]))
    flow: Any = rnn.ConditionalFlow([layers])
    z = torch.tensor([[0.5, -0.5]])
    with InverseMonitor(flow) as monitor:
        inverse(flow, z)
    (onset,) = monitor.onsets
    assert onset.reason == "magnitude" and onset.growth < math.exp(2)
    assert 1000 <= onset.magnitude < 1000 * math.exp(2)
    # Each multiplies one of two by nearly e^2: the fourth on the first channel is the first beyond.
    assert onset.layer == "levels.0.layers.3"


def test_what_overflows_is_found() -> None:
    norm = rnn.ActNorm(CHANNELS)
    flow: Any = rnn.ConditionalFlow([[norm]])
    with torch.no_grad():
        norm.log_scale[1] = -88.0  # e^88 is half of float32's limit
    z = latents().clamp(-1, 1)
    z[2, 1, 5, 5] = 4.0
    with InverseMonitor(flow, magnitude=math.inf) as monitor:
        inverse(flow, z)
    (onset,) = monitor.onsets
    assert (onset.kind, onset.reason, onset.growth) == ("actnorm", "non-finite", math.inf)
    assert (onset.sample, onset.position) == (2, (1, 5, 5))
    assert json.loads(json.dumps(monitor.report().to_dict()))["onsets"][0]["growth"] == "inf"


def test_thresholds() -> None:
    flow, z = planted_flow(2), latents()
    plant(flow, 1, 0, 0, 6, 6)
    with InverseMonitor(flow, growth=2 * GAIN, magnitude=math.inf) as monitor:
        inverse(flow, z)
    assert not monitor.onsets
    for name in ("growth", "magnitude"):
        with pytest.raises(ValueError, match=f"{name} must be more than 1, got 0.5"):
            InverseMonitor(flow, **{name: 0.5})  # type: ignore[arg-type]


def test_a_healthy_spline_with_large_derivatives_is_no_explosion() -> None:
    flow: Any = rnn.ConditionalFlow([[rnn.ModifiedRQSplineCoupling(2, spatial_dims=0)]])
    coupling = flow.levels[0].layers[0]
    with torch.no_grad():  # a bin as wide as half of the box, and a thousandth of it high
        coupling.conditioner.trunk[-1].bias.copy_(torch.tensor([0.0, -8.0, 0.0, 0.0]))
    with InverseMonitor(flow) as monitor:
        inverse(flow, torch.linspace(-3, -2.99, 4001)[:, None].expand(-1, 2).contiguous())
    (record,) = monitor.report().layers
    assert record.largest_derivative is not None and record.largest_derivative > 500
    assert not monitor.onsets and record.output_magnitude <= 3


def test_several_levels() -> None:
    """A crossing in a level's split goes on through the finer levels."""
    levels: list[list[nn.Module]] = [
        [
            rnn.Squeeze(2),
            rnn.Coupling(4, 0, rnn.Affine(), hidden_channels=4),
            rnn.Split(4, hidden_channels=4),
        ],
        [rnn.Squeeze(2), rnn.Coupling(8, 0, rnn.Affine(), hidden_channels=4)],
    ]
    flow: Any = rnn.ConditionalFlow(levels).eval()
    split = flow.levels[0].layers[2]
    z = (0.5 * torch.randn(2, 2, 8, 8), 0.5 * torch.randn(2, 8, 4, 4))
    z[0][1, 1, 3, 3] = 2.0
    with torch.no_grad():
        split.conditioner.trunk[-1].bias.copy_(torch.tensor([0.0, -50.0] * 2))
        with InverseMonitor(flow, growth=12.0) as monitor:
            x, _ = flow.inverse(z)
    kinds = [each.kind for each in monitor.report().layers]
    assert kinds == ["self-conditional", "split", "self-conditional"]
    assert all(onset.kind == "split" for onset in monitor.onsets) and len(monitor.onsets) >= 1
    split_record = monitor.report().layers[1]
    bound = math.exp(50 / (1 + 50 / 3))  # ours is bounded
    assert split_record.largest_derivative == pytest.approx(bound, rel=1e-4)
    found = {(onset.sample, *onset.position) for onset in monitor.onsets}
    assert (1, 3, 3, 3) in found  # of a latent channel, behind the two that stayed
    contaminated = monitor.contaminated
    assert contaminated.shape == x.shape and not bool(contaminated.all())
    # Channel 3 is no one's condition in the finer level: one of the four pixels of its position.
    assert contaminated[1, 0, 6:8, 6:8].tolist() == [[False, False], [False, True]]


def test_samples_are_counted_over_runs() -> None:
    flow = planted_flow(2)
    plant(flow, 1, 1, 0, 6, 6)
    with InverseMonitor(flow) as monitor:
        x = torch.cat([inverse(flow, latents(number)) for number in (2, 4)])
    assert [(run.first_sample, run.samples) for run in monitor.runs] == [(0, 2), (2, 4)]
    assert [(each.sample, each.run) for each in monitor.onsets] == [(1, 0), (3, 1)]
    assert monitor.contaminated.shape == x.shape
    assert monitor.contaminated.flatten(1).any(1).tolist() == [
        False,
        True,
        False,
        True,
        False,
        False,
    ]
    with monitor:
        inverse(flow, latents(2)[..., :8])
    with pytest.raises(ValueError, match="different sizes"):
        monitor.contaminated  # noqa: B018


def test_a_layer_that_serves_several_steps_is_one_run() -> None:
    shared = rnn.Coupling(CHANNELS, 0, rnn.Affine())
    flow: Any = rnn.ConditionalFlow([[shared, rnn.ActNorm(CHANNELS), shared]]).eval()
    with InverseMonitor(flow) as monitor:
        inverse(flow, latents())
    assert len(monitor.runs) == 1
    assert {each.name: each.calls for each in monitor.report().layers} == {
        "levels.0.layers.0": 2,
        "levels.0.layers.1": 1,
    }


# ---- what happens at an onset ------------------------------------------------------------------


def test_warn_says_so_once_a_run() -> None:
    flow = planted_flow(2)
    plant(flow, 1, 0, 0, 1, 1)
    name = plant(flow, 1, 0, 0, 9, 9)
    with InverseMonitor(flow, on_explosion="warn"), pytest.warns(ExplosionWarning) as caught:
        inverse(flow, latents())
        inverse(flow, latents())
    assert len(caught) == 2 and name in str(caught[0].message)


def test_raise_stops_the_sampling_and_leaves_nothing_behind() -> None:
    flow = planted_flow(2)
    plant(flow, 1, 0, 0, 6, 6)
    kinds = (rnn.Coupling, rnn.ActNorm, rnn.InvertibleConv1x1, rnn.Affine)
    before = methods_of(*kinds)
    with (
        pytest.raises(ExplodingInverseError, match=r"levels\.0\.layers\.5") as raised,
        InverseMonitor(flow, on_explosion="raise") as monitor,
    ):
        inverse(flow, latents())
    assert raised.value.onset is monitor.first_explosion
    assert methods_of(*kinds) == before
    assert bool(monitor.contaminated.any())
    inverse(flow, latents())  # nobody looks


def test_a_function_is_called_with_each_onset_and_may_sample() -> None:
    flow = planted_flow(2)
    plant(flow, 1, 0, 0, 1, 1)
    plant(flow, 1, 0, 0, 9, 9)
    seen: list[Any] = []

    def call(onset: Any) -> None:
        seen.append(onset)
        inverse(flow, latents())  # not recorded

    with InverseMonitor(flow, on_explosion=call) as monitor:
        inverse(flow, latents())
    assert seen == monitor.onsets and len(seen) == 2 and len(monitor.runs) == 1
    with pytest.raises(ValueError, match='must be "warn", "raise", a function'):
        InverseMonitor(flow, on_explosion="shout")  # type: ignore[arg-type]


# ---- what it leaves behind ---------------------------------------------------------------------


def test_an_error_inside_leaves_nothing_behind() -> None:
    flow = planted_flow(2)
    kinds = (rnn.Coupling, rnn.ActNorm, rnn.InvertibleConv1x1, rnn.Affine, nn.Module)
    before = methods_of(*kinds)
    with pytest.raises(ValueError, match="channels"), InverseMonitor(flow) as monitor:
        inverse(flow, torch.zeros(1, 7, 4, 4))
    assert methods_of(*kinds) == before
    with monitor:
        inverse(flow, latents())
    assert monitor.report().layers[0].calls == 1
    with monitor, pytest.raises(RuntimeError, match="already active"), monitor:
        pass


def test_the_model_has_no_trace_of_it() -> None:
    flow, z = planted_flow(2), latents()
    expected = inverse(flow, z)
    state = flow.state_dict()
    attributes = [set(vars(module)) for module in flow.modules()]
    with InverseMonitor(flow) as monitor:
        inverse(flow, z)
        copied = copy.deepcopy(flow)
        stored = io.BytesIO()
        pickle.dump(flow, stored)
        assert flow.state_dict().keys() == state.keys()
        assert torch.equal(inverse(copied, z), expected)
        assert len(monitor.runs) == 1  # the copy is not watched
    stored.seek(0)
    for each in (copied, pickle.load(stored), copy.deepcopy(flow)):
        assert torch.equal(inverse(each, z), expected)
        assert [set(vars(module)) for module in each.modules()] == attributes
        assert not any(module._forward_hooks for module in each.modules())


def test_monitors_overlap() -> None:
    flow = planted_flow(2)
    plant(flow, 1, 0, 0, 6, 6)
    before = methods_of(rnn.Coupling, rnn.Affine)
    one, two = InverseMonitor(flow), InverseMonitor(flow, layers=["levels.0.layers.2"])
    one.__enter__()
    inverse(flow, latents())
    two.__enter__()
    inverse(flow, latents())
    one.__exit__(None, None, None)
    inverse(flow, latents())
    two.__exit__(None, None, None)
    assert (len(one.runs), len(two.runs)) == (2, 2) and len(one.onsets) == 2
    assert [each.name for each in two.report().layers] == ["levels.0.layers.2"]
    assert methods_of(rnn.Coupling, rnn.Affine) == before


def test_what_a_monitor_asks_of_a_layer_is_no_run_of_another() -> None:
    """To follow an explosion through a squeeze, the inner monitor calls it once more."""
    flow = planted_flow(2, channels=4)
    plant(flow, 1, 0, 0, 6, 6)
    squeezed = rnn.ConditionalFlow([[rnn.Squeeze(), *flow.levels[0].layers]]).eval()
    z = torch.ones(1, 4, 12, 12)
    with InverseMonitor(squeezed) as outer, InverseMonitor(squeezed) as inner:
        inverse(squeezed, z)
    assert len(inner.runs) == len(outer.runs) == 1
    assert len(inner.onsets) == len(outer.onsets) == 1
    assert torch.equal(outer.contaminated, inner.contaminated) and outer.contaminated.any()


def test_threads_have_runs_of_their_own() -> None:
    flow = planted_flow(3)
    plant(flow, 1, 0, 0, 6, 6)
    start = threading.Barrier(4)

    def work() -> None:
        start.wait()
        for _ in range(5):
            inverse(flow, latents())

    with InverseMonitor(flow) as monitor:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(monitor.runs) == 20 and {run.samples for run in monitor.runs} == {3}
    assert sorted(onset.sample for onset in monitor.onsets) == [3 * i for i in range(20)]
    assert {each.calls for each in monitor.report().layers} == {20}
    assert sorted(run.first_sample for run in monitor.runs) == [3 * i for i in range(20)]


def test_gradients_flow_as_ever() -> None:
    flow: Any = rnn.ConditionalFlow([[rnn.ModifiedRQSplineCoupling(2, spatial_dims=0)]])
    z = torch.randn(5, 2, requires_grad=True)
    flow.inverse((z,))[0].square().sum().backward()
    expected, z.grad = z.grad, None
    with InverseMonitor(flow) as monitor:
        flow.inverse((z,))[0].square().sum().backward()
    assert torch.equal(z.grad, expected) and len(monitor.runs) == 1  # type: ignore[arg-type]
    with InverseMonitor(flow) as monitor, torch.inference_mode():
        flow.inverse((z,))
    assert monitor.report().layers[0].calls == 1


def test_where_tensors_have_no_values_nothing_is_recorded() -> None:
    flow: Any = rnn.ConditionalFlow([[rnn.ModifiedRQSplineCoupling(2, spatial_dims=0)]])
    z = torch.randn(5, 2)
    expected = inverse(flow, z)
    with InverseMonitor(flow) as monitor:
        found = torch.func.vmap(lambda z: flow.inverse((z[None],))[0][0])(z)
        torch.testing.assert_close(found, expected)
        compiled = torch.compile(lambda z: flow.inverse((z,))[0], backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(z), expected)
    assert not monitor.runs
    torch.compiler.reset()


# ---- which layers ------------------------------------------------------------------------------


def test_layers_are_chosen_by_name_or_by_module() -> None:
    flow = planted_flow(2)
    level = flow.levels[0]
    for chosen in (
        ["levels.0.layers.1", "levels.0.layers.5"],
        [level.layers[1], "levels.0.layers.5"],
    ):
        with InverseMonitor(flow, layers=chosen) as monitor:
            inverse(flow, latents())
        names = [each.name for each in monitor.report().layers]
        assert names == ["levels.0.layers.5", "levels.0.layers.1"]
    with InverseMonitor(flow, layers="levels.0") as monitor:
        inverse(flow, latents())
    assert len(monitor.report().layers) == 6


class Doubling(nn.Module):
    """A layer that no library is known for."""

    def forward(self, z: Tensor, context: Any = None, *, inverse: bool = False) -> Any:
        return (z * 20 if inverse else z / 20), z.new_zeros(len(z))


def test_a_layer_of_the_users_own() -> None:
    flow: Any = rnn.ConditionalFlow([[rnn.ActNorm(CHANNELS), Doubling()]])
    z = latents().clamp(-3, 3)
    z[1, 2, 3, 3] = 4.0
    with InverseMonitor(flow, growth=15.0) as monitor:
        inverse(flow, z)
    (record, _) = monitor.report().layers
    assert (record.name, record.kind, record.library) == ("levels.0.layers.1", "other", "other")
    # Of a layer that may move values, growth is that of a sample's largest: 20 in each.
    assert sorted({onset.sample for onset in monitor.onsets}) == [0, 1, 2]
    assert monitor.contaminated.flatten(1).any(1).all()


def test_any_module_can_be_named() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    with pytest.raises(ValueError, match=r"No flow layer was found in this Sequential.*layers="):
        InverseMonitor(net)
    with InverseMonitor(net, layers=["0", net[1]]) as monitor:
        net(torch.ones(3, 2))
    assert [each.name for each in monitor.report().layers] == ["0", "1"]
    assert monitor.report().layers[1].output_magnitude <= 1


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["levels.0.layer.1"], "no name in model.named_modules"),
        ([nn.Linear(1, 1)], "a Linear that is no part of model"),
        ([], "layers is empty"),
    ],
)
def test_bad_layers(layers: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InverseMonitor(planted_flow(1), layers=layers)


def test_models_that_cannot_be_watched() -> None:
    flow = planted_flow(1)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got function"):
        InverseMonitor(inverse)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"compiled by torch\.compile.*use model\._orig_mod"):
        InverseMonitor(torch.compile(flow))  # type: ignore[arg-type]
    wrapped = nn.ModuleDict({"flow": torch.compile(flow)})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"its submodule 'flow' is compiled.*flow\._orig_mod"):
        InverseMonitor(wrapped)
    flow.compile()
    with pytest.raises(ValueError, match=r"compiled in place by \.compile\(\)"):
        InverseMonitor(flow)


# ---- what it says ------------------------------------------------------------------------------


def test_the_report_reads() -> None:
    flow = planted_flow(2)
    name = plant(flow, 1, 1, 1, 5, 7)
    with InverseMonitor(flow) as monitor:
        inverse(flow, latents())
    lines = str(monitor.report()).splitlines()
    assert lines[0].split()[:3] == ["layer", "kind", "calls"] and len(lines) == 8
    assert lines[1].startswith(f"{name}  self-conditional") and lines[1].endswith("1")
    assert "1e+04" in lines[1]
    assert lines[-1].startswith("ConditionalFlow: 3 samples watched, 1 onset of explosions.")
    assert "sample 1, channel 3, position (5, 7)" in lines[-1]
    values = json.loads(json.dumps(monitor.report().to_dict()))
    assert values["onset_count"] == 1 and values["onsets"][0]["layer"] == name
    assert values["layers"][0]["largest_derivative"] == pytest.approx(GAIN, rel=1e-4)


def test_onsets_beyond_the_most_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor_module, "_MOST_ONSETS", 1)
    flow = planted_flow(1)
    plant(flow, 0, None, 0, 6, 6)
    with InverseMonitor(flow) as monitor:
        inverse(flow, latents(3))
    report = monitor.report()
    assert len(report.onsets) == 1 and report.onset_count == 3 and report.layers[0].onsets == 3


def test_nothing_warns() -> None:
    flow = planted_flow(2)
    plant(flow, 1, 0, 0, 6, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with InverseMonitor(flow) as monitor:
            inverse(flow, latents())
        str(monitor.report())


def test_functional_is_untouched() -> None:
    """The splines' log-determinants come from the same call, summed here."""
    x, params = torch.randn(2, 3), torch.randn(2, 12)
    y, each = rnn.ModifiedRQSpline()(x, params, reduce="none")
    expected = F.modified_rq_spline(
        x, params, interval=(-3, 3), derivative="softclip", reduce="none"
    )
    assert torch.equal(y, expected[0]) and torch.equal(each, expected[1])
