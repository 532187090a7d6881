"""The 2-D toy's parts on laws and flows whose answers are known, and a tiny run of all of it."""

from __future__ import annotations

import io
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from robustflow import nn as rnn
from robustflow.cli import main
from robustflow.diagnostics import certify
from robustflow.experiments.toy import attack, figures, reading, runs, tables
from robustflow.experiments.toy.demonstration import share_out
from robustflow.experiments.toy.law import LAWS, Checkerboard, Parallelogram
from robustflow.experiments.toy.models import COUPLINGS, Conditioner, build_flow, shift_of
from robustflow.experiments.toy.reading import absurd_limit, conditions, latents, walk
from robustflow.experiments.toy.runs import CONTENT, Run, RunResult, runs_of, train_and_read
from robustflow.experiments.toy.summary import Outcome, to_json
from robustflow.experiments.toy.training import Settings, train

TINY = Settings(iterations=2)
NUMBER = 200_000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("y", "width"), [((0.0, 0.0), 0.05), ((0.5, -1.0), 1.0), ((2, 1), 3.85)])
def test_the_parallelogram_has_its_moments(y: tuple[float, float], width: float) -> None:
    condition = torch.tensor([y])
    x = Parallelogram().given(condition.expand(NUMBER, 2), generator()).double()
    matrix = 0.5 * width * torch.tensor([[0.8, 0.4], [0.0, 0.5]], dtype=torch.float64)
    covariance = matrix @ matrix.T / 3  # a third is the variance of U[-1, 1]
    error = 5 * width / math.sqrt(NUMBER)
    torch.testing.assert_close(x.mean(0), 0.5 * condition[0].double(), atol=error, rtol=0)
    torch.testing.assert_close(x.T.cov(), covariance, atol=error * width, rtol=0)


@pytest.mark.parametrize("name", ["widening", "fixed width"])
def test_the_parallelogram_has_its_entropy_and_its_range(name: str) -> None:
    law = LAWS[name]
    assert isinstance(law, Parallelogram)
    x, y = law.sample(NUMBER, generator())
    assert y.abs().max() <= 1 and 0.95 * law.largest < x.abs().max() <= law.largest
    # Uniform on the image of a square of area 4 under a map of determinant w² / 10.
    entropy = (0.4 * law.width(y).double().square()).log().mean()
    assert law.entropy == pytest.approx(float(entropy), abs=0.01)


def test_the_checkerboard_has_eight_equal_fields() -> None:
    x, y = Checkerboard().sample(NUMBER, generator())
    fields = ((x - 0.5 * y + 1) / 0.5).floor().long()
    assert fields.min() == 0 and fields.max() == 3
    counts = torch.zeros(4, 4).index_put_(tuple(fields.T), torch.ones(NUMBER), accumulate=True)
    dark = torch.eye(2).repeat(2, 2)
    torch.testing.assert_close(counts / NUMBER, dark / 8, atol=0.005, rtol=0)
    assert x.abs().max() <= Checkerboard().largest


def test_conditions_lie_on_their_square_in_every_direction() -> None:
    y = conditions(3.0)
    assert y.shape == (64, 2)
    torch.testing.assert_close(y.abs().amax(dim=1), torch.full((64,), 3.0))
    angles = torch.atan2(y[:, 1], y[:, 0]) % (2 * math.pi)
    torch.testing.assert_close(angles.diff(), torch.full((63,), 2 * math.pi / 64))


class Planted(nn.Module):
    """Parameters of an affine coupling whose scale collapses where y₁ > 2."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(()))

    def forward(self, z1: Tensor, context: Tensor) -> Tensor:
        logit = torch.where(context[:, :1] > 2, -50.0, 50.0)
        return torch.cat([torch.zeros_like(logit), logit], dim=1) + self.nothing


def planted() -> rnn.ConditionalFlow:
    coupling = rnn.Coupling(2, 2, rnn.Affine(), Planted())
    return rnn.ConditionalFlow([[rnn.ActNorm(2), coupling]]).eval()


def test_a_planted_explosion_is_read_where_it_is() -> None:
    law = LAWS["widening"]
    near, far = (reading.read_radius(planted(), law, radius) for radius in (2.0, 3.0))
    assert near.directions == near.absurd == 0 and near.largest < 10
    angles = torch.atan2(conditions(3.0)[:, 1], conditions(3.0)[:, 0])
    expected = (3 * angles.tan().abs().reciprocal().clamp(max=1) > 2) & (angles.cos() > 0)
    assert far.directions == pytest.approx(float(expected.float().mean()))
    # |z₂| / 1e-4 is above the limit but where |z₂| is below 0.0033.
    limit = absurd_limit(law, 3.0)
    assert limit == 10 * 3 * law.largest
    assert far.absurd == pytest.approx(
        far.directions * (1 - 0.0033 * math.sqrt(2 / math.pi)), rel=0.01
    )
    z = latents(64 * 128)
    assert far.largest == pytest.approx(1e4 * float(z[:, 1].abs().max()), rel=0.3)


def test_layers_are_read_in_the_order_of_sampling() -> None:
    outside = reading.read_layers(planted(), torch.full((64, 2), 3.0))
    assert [layer.name for layer in outside] == ["coupling 1", "actnorm 1"]
    coupling, norm = outside
    assert coupling.slopes is not None and norm.slopes is None
    torch.testing.assert_close(coupling.slopes, torch.full((64,), 1e-4))
    z = latents(64)
    # Every |z₂| of these is above 0.01: it grows to 100 or more, and so explodes.
    assert (z[:, 1].abs() > 0.01).all() and coupling.onsets == 64 and norm.onsets == 0
    assert coupling.magnitude == norm.magnitude == pytest.approx(1e4 * float(z[:, 1].abs().max()))
    everything = torch.stack([z[:, 0], 1e4 * z[:, 1]])
    assert coupling.variance == norm.variance == pytest.approx(float(everything.var()), rel=0.02)


def test_a_flow_that_is_not_finite_is_absurd() -> None:
    flow = planted()
    with torch.no_grad():
        next(layer for layer in flow.modules() if isinstance(layer, Planted)).nothing.fill_(
            math.nan
        )
    result = reading.read_radius(flow, LAWS["widening"], 1.0)
    assert result.directions == result.absurd == 1 and result.largest == math.inf


def trained(coupling: str, seed: int = 0) -> rnn.ConditionalFlow:
    """Two updates, then heads that matter."""
    torch.manual_seed(seed)
    flow = build_flow(COUPLINGS[coupling], TINY)
    train(flow, LAWS["widening"], TINY, seed, lambda *_: None)
    with torch.no_grad():
        for layer in flow.modules():
            if isinstance(layer, rnn.Coupling):
                assert isinstance(layer.conditioner, Conditioner)
                layer.conditioner.head.weight.normal_(std=0.5)
    return flow


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_walking_is_sampling_and_no_search_beats_the_certificate(coupling: str) -> None:
    flow = trained(coupling)
    z, y = latents(100), conditions(3.0, 100)
    *_, last = walk(flow, z, y)
    torch.testing.assert_close(last.after, flow.inverse((z,), y)[0])
    found = attack.attack(flow, 3.0)
    assert reading.read_radius(flow, LAWS["widening"], 3.0).largest <= found.largest <= found.bound
    assert max(map(abs, found.condition)) <= 3
    with torch.no_grad():
        again = flow.inverse((latents(64 * 128),), torch.tensor([found.condition]))[0]
    assert found.largest <= again.abs().max() * (1 + 1e-4)
    for index in range(20):
        bound, _ = attack.bound_at(flow, z[index : index + 1], y[index : index + 1])
        assert last.after[index].abs().max() <= bound


def test_shifts_are_what_the_transforms_move_by() -> None:
    """Outside every box a transform moves a value by its shift alone; an affine one scales it."""
    for coupling in COUPLINGS:
        flow = trained(coupling)
        layer = next(layer for layer in flow.modules() if isinstance(layer, rnn.Coupling))
        z, y = torch.tensor([[0.3, 1000.0]], dtype=torch.float32), torch.tensor([[0.5, -0.2]])
        with torch.no_grad():
            moved, logabsdet = layer(z, y)
            expected = (z[:, 1] + shift_of(layer, z, y)) * logabsdet.exp()
        torch.testing.assert_close(moved[:, 1], expected, msg=coupling)


def test_a_new_transform_must_say_where_its_shift_is() -> None:
    class OwnAffine(rnn.Affine):
        pass

    layer = rnn.Coupling(2, 2, OwnAffine(), spatial_dims=0)
    with pytest.raises(ValueError, match=r"OwnAffine has a shift.*SHIFT_INDEX"):
        shift_of(layer, torch.zeros(1, 2), torch.zeros(1, 2))


def test_certificates_know_which_couplings_can_explode() -> None:
    gains = {
        coupling: certify(build_flow(transform, TINY)).growth.conditional
        for coupling, transform in COUPLINGS.items()
    }
    assert gains["affine"] == pytest.approx(1e16)  # 1 / eps in each of four steps
    assert gains["soft-clamped affine"] == pytest.approx(math.exp(4 * 2 * 0.636 * math.pi / 2))
    assert gains["reparametrised affine"] == pytest.approx(1.0001**4)
    others = [gain for coupling, gain in gains.items() if "affine" not in coupling]
    assert others == [1.0] * 5


def result(run: Run, nats: float) -> RunResult:
    zeros = torch.zeros(4, 2, 2)
    certified = runs.Certified(1.0, 1.0, 0.0, True)
    radii = [reading.RadiusReading(radius, 0.0, 0.0, 1.0, 0.5) for radius in reading.RADII]
    return RunResult(run, nats, 1.0, radii, [], [], [], certified, zeros, zeros, zeros[0])


def test_an_affine_flow_far_behind_is_rejected_by_its_own_seed() -> None:
    law, standard = "widening", "reparametrised affine"
    nats = {
        Run(law, "affine", 0): -1.64,
        Run(law, standard, 0): -2.49,
        Run(law, "affine", 1): -2.36,
        Run(law, standard, 1): -2.50,
        Run(law, "additive", 0): -1.6,  # whose expressive power is the point
        Run("checkerboard", "affine", 0): 3.0,  # nothing to compare it with
        Run(law, "affine", 2): math.nan,
        Run(law, standard, 2): -2.4,
    }
    outcome = Outcome(tuple(result(run, value) for run, value in nats.items()), Settings())
    behind = outcome.rejected
    assert list(behind) == [Run(law, "affine", 0), Run(law, "affine", 2)]
    assert behind[Run(law, "affine", 0)] == pytest.approx(0.85)
    assert [each.run.seed for each in outcome.of(law, "affine")] == [1]
    assert outcome.couplings(law) == ["affine", standard, "additive"]
    alone = Outcome(outcome.results[:2], Settings())
    assert alone.couplings(law) == [standard]


def test_the_bounded_likelihood_term_is_convex_and_clips_at_its_bound() -> None:
    """Why a scale sits at its upper bound where x is narrow, and falls where x is wide.

    An element's term of the negative log-likelihood, (s x + t)² / 2 - log s, is convex in (s, t).
    On s <= s_u its minimum over data is at 1 / deviation, or at s_u if that is less.
    """

    def term(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        params = torch.stack([t, s.log()]).expand(len(x), 2)
        y, logabsdet = rnn.Affine(scale="exp", shift_first=False)(x, params)
        return (0.5 * y[:, 0].square() - logabsdet).mean()

    noise = torch.randn(500, 1, generator=generator(), dtype=torch.float64)
    noise = (noise - noise.mean()) / noise.std(correction=0)
    for deviation, centre in ((0.2, 1.5), (3.0, -0.5)):
        x = deviation * noise + centre
        for s, t in ((0.1, -2.0), (1.0, 0.3), (8.0, 4.0)):
            point = torch.tensor([s, t], dtype=torch.float64)
            hessian = torch.autograd.functional.hessian(lambda p, x=x: term(x, p[0], p[1]), point)
            expected = [[float(x.square().mean()) + 1 / s**2, centre], [centre, 1.0]]
            torch.testing.assert_close(hessian, torch.tensor(expected, dtype=torch.float64))
            assert torch.linalg.eigvalsh(hessian).min() > 0
        bound = 1.0001
        scales = torch.linspace(0.01, bound, 2000, dtype=torch.float64)
        # For each scale the best shift is minus the scaled mean: the term's minimum in t.
        values = torch.stack([term(x, s, -s * centre) for s in scales])
        best = float(scales[values.argmin()])
        assert best == pytest.approx(min(1 / deviation, bound), abs=1e-3)


@pytest.fixture(scope="module")
def run_of_seed_3() -> RunResult:
    return train_and_read(Run("widening", "RQ, 8 bins", 3), TINY, lambda *_: None)


def test_a_seed_decides_a_run(run_of_seed_3: RunResult) -> None:
    first, again = run_of_seed_3, train_and_read(run_of_seed_3.run, TINY, lambda *_: None)
    assert first.radii == again.radii and first.attacks == again.attacks
    assert torch.equal(first.corners_outside, again.corners_outside)
    assert first.nats == again.nats


def test_every_run_is_shared_out_once() -> None:
    every = runs_of([0, 1, 2])
    assert len(every) == len(set(every)) == 3 * sum(map(len, CONTENT.values()))
    for processes in (1, 2, 5, 100):
        shares = share_out(every, processes)
        assert sorted(map(str, itertools.chain(*shares.values()))) == sorted(map(str, every))
        sizes = [len(share) for share in shares.values()]
        assert len(sizes) == min(processes, len(every)) and max(sizes) - min(sizes) <= 1


def test_labels_are_moved_apart_and_no_further() -> None:
    assert figures.spread([0.0, 2.0, 3.5], 1.0, -9) == [0.0, 2.0, 3.5]
    places = figures.spread([0.0, 0.0, 0.1, 0.9, 5.0], 0.5, -9)
    assert min(b - a for a, b in itertools.pairwise(places)) >= 0.5 - 1e-12
    assert places[4] == 5.0 and sum(places[:4]) == pytest.approx(1.0)  # as their mean wants
    assert figures.spread([0.0, 0.0], 1.0, 0.0) == [0.0, 1.0]


def test_an_exploded_flow_is_drawn_and_written_as_json(run_of_seed_3: RunResult) -> None:
    exploded = train_and_read(Run("widening", "affine", 3), TINY, lambda *_: None)
    controls = [replace(exploded, run=Run(law, "affine", 3)) for law in LAWS]
    exploded.corners_outside[0, :5] = math.inf
    exploded.corners_outside[1, :5] = math.nan
    radii = [replace(each, largest=math.inf, absurd=0.5) for each in exploded.radii]
    outside = [replace(layer, variance=math.inf, magnitude=math.inf) for layer in exploded.outside]
    attacks = [replace(each, largest=math.inf, bound=math.inf) for each in exploded.attacks]
    controls[0] = replace(exploded, radii=radii, outside=outside, attacks=attacks)
    outcome = Outcome((*controls, run_of_seed_3), TINY)
    assert figures.draw(outcome).startswith(b"\x89PNG")
    run = json.loads(to_json(outcome, 1.0))["runs"][0]
    assert run["radii"][3]["largest"] == run["layers"]["outside"][0]["variance"] == "inf"
    assert run["s_u"] == pytest.approx(1.0001) and run["certified"]["gain"] == pytest.approx(1e16)
    slopes = run["layers"]["inside"][0]["slopes"]
    assert 1e-4 <= slopes["0.0"] <= slopes["0.5"] <= slopes["1.0"] <= 1.0001


def test_tables_of_three_seeds_are_80_characters_wide(run_of_seed_3: RunResult) -> None:
    results = []
    for run in runs_of([0, 1, 2]):
        size = (1.25, 2.4e5, 3.4e38)[run.seed]
        radii = [replace(each, largest=size, absurd=0.125) for each in run_of_seed_3.radii]
        attacks = [replace(each, largest=size, bound=1e16) for each in run_of_seed_3.attacks]
        nats = -1.0 - run.seed
        results.append(replace(run_of_seed_3, run=run, nats=nats, radii=radii, attacks=attacks))
    console = Console(width=80, file=io.StringIO(), color_system=None)
    tables.print_outcome(console, Outcome(tuple(results), TINY))
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    for coupling in COUPLINGS:
        assert printed.count(f"{coupling} ") >= 3
    assert printed.count("1.2…3e38") == 6 * len(COUPLINGS) + 1  # and of the control
    assert printed.count("-3.00…-1.00") == len(COUPLINGS)
    assert printed.count(" 3e38 ") == 3 * len(COUPLINGS) and "-3.69…-1.69" in printed


@pytest.mark.slow
def test_the_command_writes_its_files_and_prints_its_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    assert main(["demo", "--toy", "--iterations", "2", "--output", str(folder)]) == 0
    assert sorted(file.name for file in folder.iterdir()) == ["toy.json", "toy.png"]
    content = json.loads((folder / "toy.json").read_text())
    assert len(content["runs"]) == sum(map(len, CONTENT.values()))
    assert not content["meaningful"] and content["settings"]["iterations"] == 2
    printed = capsys.readouterr().out
    assert "the numbers mean nothing" in printed
    for coupling in COUPLINGS:
        assert printed.count(coupling) >= 3
    lines = [line.rstrip() for line in printed.splitlines() if str(folder) not in line]
    assert max(map(len, lines)) <= 80
