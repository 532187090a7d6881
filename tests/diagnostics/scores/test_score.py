"""Scores of features: moments, shrinkage, distances, files, and calls that are wrong."""

from __future__ import annotations

import copy
import importlib
import math
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.covariance import OAS
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from robustflow.diagnostics import KNNScore, MahalanobisScore, RelativeMahalanobisScore
from robustflow.diagnostics.scores import features, mahalanobis
from robustflow.diagnostics.scores.coreset import Reservoir, greedy_k_center
from robustflow.diagnostics.scores.moments import Moments
from robustflow.diagnostics.scores.shrinkage import oas_shrinkage


def pictures(number: int, *, channels: int = 5, side: int = 6, seed: int = 0) -> Tensor:
    """Features (number, channels, side, side): correlated channels and neighbours, a large mean."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(channels, channels, generator=generator, dtype=torch.float64)
    noise = torch.randn(number, channels, side, side, generator=generator, dtype=torch.float64)
    own = torch.randn(number, channels, 1, 1, generator=generator, dtype=torch.float64)
    return torch.einsum("dc,nchw->ndhw", mixing, noise + 0.7 * own) + 3


def rows(batch: Tensor) -> Tensor:
    return batch.movedim(1, -1).reshape(-1, batch.shape[1])


def moments_of(*batches: Tensor) -> Moments:
    found = Moments(batches[0].shape[1], torch.device("cpu"))
    for batch in batches:
        found.add(batch)
    return found


def number_by_two_passes(groups: list[Tensor]) -> float:
    """The formula of the effective number as it is written, from rows (m, C) of each picture."""
    everything = torch.cat(groups)
    mean = everything.mean(dim=0)
    covariance = (everything - mean).T @ (everything - mean) / len(everything)
    errors = [(g - mean).T @ (g - mean) - len(g) * covariance for g in groups]
    squares = sum(float(error.square().sum()) for error in errors)
    variance = squares * len(groups) / (len(groups) - 1) / len(everything) ** 2
    return float(covariance.square().sum() + covariance.trace() ** 2) / variance


@pytest.fixture(params=[2**21, 60], ids=["one tile", "many tiles"])
def _tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (features, importlib.import_module(Moments.__module__)):
        monkeypatch.setattr(module, "TILE_ELEMENTS", request.param)


@pytest.mark.usefixtures("_tiles")
def test_moments_are_those_of_all_pixels() -> None:
    batches = [pictures(4), pictures(3, seed=1), pictures(2, side=3, seed=2)]
    found = moments_of(*batches)
    every = torch.cat([rows(batch) for batch in batches])
    assert (found.pixels, found.pictures) == (len(every), 9)
    torch.testing.assert_close(found.mean, every.mean(dim=0), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(found.covariance, every.T.cov(correction=0), rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("_tiles")
def test_the_effective_number_is_its_formula() -> None:
    batches = [pictures(4), pictures(3, seed=1), pictures(2, side=3, seed=2)]
    groups = [rows(picture[None]) for batch in batches for picture in batch]
    expected = number_by_two_passes(groups)
    assert 9 < expected < 250  # neither bound is near
    assert moments_of(*batches).effective_number() == pytest.approx(expected, rel=1e-9)
    assert moments_of(*reversed(batches)).effective_number() == pytest.approx(expected, rel=1e-9)


def test_a_mean_that_is_large_costs_no_accuracy() -> None:
    batch = pictures(6)
    far = moments_of(batch + 2.0**20)  # exact: the features have few bits to spare, so compare to
    near = moments_of((batch + 2.0**20) - 2.0**20)  # what is left of them
    torch.testing.assert_close(far.covariance, near.covariance, rtol=1e-9, atol=1e-9)
    assert far.effective_number() == pytest.approx(near.effective_number(), rel=1e-6)


def test_repeated_pixels_count_once() -> None:
    batch = pictures(8)
    number = moments_of(batch).effective_number()
    repeated = batch.repeat_interleave(3, dim=2).repeat_interleave(3, dim=3)
    assert moments_of(repeated).effective_number() == pytest.approx(number, rel=1e-9)


def test_independent_pixels_all_count() -> None:
    number = moments_of(torch.randn(400, 4, 5, 5, dtype=torch.float64)).effective_number()
    assert 0.85 * 10_000 < number <= 10_000


@pytest.mark.parametrize("samples", [12, 300])
def test_shrinkage_is_scikit_learns(samples: int) -> None:
    batch = pictures(samples, channels=20, side=1)[:, :, 0, 0]
    reference = OAS().fit(batch.numpy())
    (gaussian,) = MahalanobisScore().fit(batch).gaussians.values()
    assert gaussian.shrinkage == pytest.approx(reference.shrinkage_, rel=1e-12)
    torch.testing.assert_close(
        gaussian.cholesky @ gaussian.cholesky.T, torch.from_numpy(reference.covariance_)
    )
    assert gaussian.number == samples


def test_shrinkage_and_distances_of_pixels_are_scikit_learns() -> None:
    batch, other = pictures(4), pictures(2, seed=3)
    reference = OAS().fit(rows(batch).numpy())
    score = MahalanobisScore(effective_number="pixels").fit(batch)
    assert score.gaussians["0"].shrinkage == pytest.approx(reference.shrinkage_, rel=1e-12)
    expected = torch.from_numpy(reference.mahalanobis(rows(other).numpy())).view(2, 6, 6)
    torch.testing.assert_close(score.score(other, per="pixel"), expected)
    torch.testing.assert_close(score.score(other), expected.mean(dim=(1, 2)))
    largest = MahalanobisScore(effective_number="pixels", pooling="max").fit(batch)
    torch.testing.assert_close(largest.score(other), expected.amax(dim=(1, 2)))


def test_the_number_decides_the_shrinkage() -> None:
    batch = pictures(7)
    for choice, number in (("pictures", 7.0), ("pixels", 252.0), (31.5, 31.5)):
        (gaussian,) = MahalanobisScore(effective_number=choice).fit(batch).gaussians.values()  # type: ignore[arg-type]
        assert gaussian.number == number
        covariance = moments_of(batch).covariance
        assert gaussian.shrinkage == pytest.approx(oas_shrinkage(covariance, number))
    assert MahalanobisScore(shrinkage=0.25).fit(batch).gaussians["0"].shrinkage == 0.25
    estimated = MahalanobisScore().fit(batch).gaussians["0"].number
    assert estimated == pytest.approx(number_by_two_passes([rows(p[None]) for p in batch]))


def test_one_channel_is_not_shrunk() -> None:
    batch = pictures(5, channels=1)
    score = MahalanobisScore().fit(batch)
    z = (batch - batch.mean()) / batch.std(correction=0)
    torch.testing.assert_close(score.score(batch, per="pixel"), z[:, 0].square())


Fit = Callable[[], Any]
FITTED: dict[str, Fit] = {
    "mahalanobis": lambda: MahalanobisScore(pooling="max").fit(pictures(6)),
    "knn": lambda: KNNScore(k=3, coreset_size=40).fit(pictures(6)),
    "relative": lambda: RelativeMahalanobisScore().fit(pictures(6), pictures(6, seed=7) * 2),
}


@pytest.fixture(params=FITTED)
def fitted(request: pytest.FixtureRequest) -> Any:
    return FITTED[request.param]()


@pytest.mark.usefixtures("_tiles")
def test_scores_do_not_depend_on_tiles_layout_or_batch(fitted: Any) -> None:
    batch = pictures(4, seed=5)
    expected = fitted.score(batch, per="pixel")
    assert expected.shape == (4, 6, 6) and expected.dtype == torch.float64
    for same in (
        torch.cat([fitted.score(picture[None], per="pixel") for picture in batch]),
        fitted.score(batch.to(memory_format=torch.channels_last), per="pixel"),
        fitted.score(batch.mT.contiguous().mT, per="pixel"),
        fitted.score(rows(batch), per="pixel").view(4, 6, 6),
        fitted.score(batch.flatten(2), per="pixel").view(4, 6, 6),  # signals (N, C, T)
    ):
        torch.testing.assert_close(same, expected, rtol=1e-11, atol=1e-11)


def test_half_precision_is_scored_as_the_values_that_it_holds(fitted: Any) -> None:
    batch = pictures(2, seed=5)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        low = batch.to(dtype)
        torch.testing.assert_close(fitted.score(low), fitted.score(low.double()))


def test_a_pixel_that_is_not_finite_scores_infinity_and_no_other_does(fitted: Any) -> None:
    batch = pictures(3, seed=5)
    expected = fitted.score(batch, per="pixel")
    batch[1, 2, 3, 4] = math.nan
    batch[2, 0, 0, 0] = -math.inf
    found = fitted.score(batch, per="pixel")
    bad = torch.zeros(3, 6, 6, dtype=torch.bool)
    bad[1, 3, 4] = bad[2, 0, 0] = True
    assert torch.equal(torch.isinf(found), bad)
    torch.testing.assert_close(found[~bad], expected[~bad])
    assert torch.isinf(fitted.score(batch)).tolist() == [False, True, True]


def test_levels_apart_and_summed() -> None:
    fine, coarse = pictures(5, channels=3), pictures(5, channels=4, side=3, seed=1)
    levels = {"fine": fine, "coarse": coarse}
    score = MahalanobisScore().fit(levels)
    assert score.levels == {"fine": 3, "coarse": 4}
    apart = score.score(levels, per="pixel", apart=True)
    for name, level in levels.items():
        alone = MahalanobisScore().fit(level)
        torch.testing.assert_close(apart[name], alone.score(level, per="pixel"))
        torch.testing.assert_close(score.score(levels, apart=True)[name], alone.score(level))
    torch.testing.assert_close(
        score.score(levels), apart["fine"].mean(dim=(1, 2)) + apart["coarse"].mean(dim=(1, 2))
    )
    spread = apart["coarse"].repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    torch.testing.assert_close(score.score(levels, per="pixel"), apart["fine"] + spread)
    pair = MahalanobisScore().fit([(fine, coarse)])  # a tuple in a list: one batch of two levels
    torch.testing.assert_close(pair.score((fine, coarse)), score.score(levels))


def test_levels_of_a_whole_picture_count_for_every_pixel() -> None:
    levels = (pictures(5), pictures(5, channels=3, side=1)[:, :, 0, 0])
    score = MahalanobisScore().fit([levels])
    apart = score.score(levels, per="pixel", apart=True)
    torch.testing.assert_close(
        score.score(levels, per="pixel"), apart["0"] + apart["1"].view(5, 1, 1)
    )


def test_batches_are_read_once_and_let_go() -> None:
    alive: list[weakref.ref[Tensor]] = []

    def batches() -> Iterator[Tensor]:
        for seed in range(4):
            assert all(reference() is None for reference in alive[:-1])
            batch = pictures(3, seed=seed)
            alive.append(weakref.ref(batch))
            yield batch
            del batch

    for score in (MahalanobisScore(), KNNScore(k=1, coreset_size=10)):
        score.fit(batches()).calibrate(batches())
        alive.clear()


def test_without_float64_the_sums_are_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = pictures(6).float()
    expected = MahalanobisScore().fit(batch)
    before = expected.score(batch)
    for module in (features, mahalanobis):
        monkeypatch.setattr(module, "supports_float64", lambda device: False)
    with pytest.warns(UserWarning, match="cpu has no float64"):
        score = MahalanobisScore().fit(batch)
    assert score.gaussians["0"].mean.dtype == torch.float64
    torch.testing.assert_close(score.gaussians["0"].cholesky, expected.gaussians["0"].cholesky)
    assert score.score(batch).dtype == torch.float32
    torch.testing.assert_close(score.score(batch).double(), before, rtol=1e-4, atol=0)


def test_devices_without_float64_are_recognised() -> None:
    features.supports_float64.cache_clear()
    assert features.supports_float64(torch.device("cpu"))


@pytest.mark.parametrize("standardize", [True, False])
def test_knn_is_scikit_learns_where_all_pixels_are_kept(standardize: bool) -> None:
    batch, other = pictures(6), pictures(2, seed=3)
    score = KNNScore(k=4, coreset_size=1000, coreset="reservoir", standardize=standardize)
    score.fit(batch)
    scale = rows(batch).std(dim=0, correction=0) if standardize else torch.ones(5)
    reference = NearestNeighbors(n_neighbors=4).fit((rows(batch) / scale).numpy())
    distances, _ = reference.kneighbors((rows(other) / scale).numpy())
    expected = torch.from_numpy(np.ascontiguousarray(distances[:, -1])).view(2, 6, 6)
    torch.testing.assert_close(score.score(other, per="pixel"), expected)


def test_small_distances_far_from_the_origin_are_exact() -> None:
    line = torch.arange(50.0, dtype=torch.float64).view(50, 1) * 1e-6 + 1e4
    score = KNNScore(k=1, coreset_size=50, coreset="reservoir", standardize=False).fit(line)
    torch.testing.assert_close(
        score.score(line + 2e-7), torch.full((50,), 2e-7).double(), rtol=1e-3, atol=0
    )


def test_knn_is_decided_by_its_seed() -> None:
    batch = pictures(8)
    whole = KNNScore(k=2, coreset_size=20).fit(batch)
    parts = KNNScore(k=2, coreset_size=20).fit(batch.split(3))
    other = KNNScore(k=2, coreset_size=20, seed=1).fit(batch)
    assert torch.equal(whole.neighbours["0"].coreset, parts.neighbours["0"].coreset)
    assert not torch.equal(whole.neighbours["0"].coreset, other.neighbours["0"].coreset)


def test_a_reservoir_is_a_uniform_choice() -> None:
    counts = torch.zeros(30)
    for seed in range(2000):
        reservoir = Reservoir(6, seed)
        for part in torch.arange(30.0).view(30, 1).split(7):
            reservoir.add(part)
        assert len(reservoir.rows.unique()) == 6 and reservoir.seen == 30
        counts[reservoir.rows.flatten().long()] += 1
    # Each row is kept with probability 1/5: 400 times, standard deviation 18.
    assert (counts - 400).abs().max() < 4.5 * 18


def test_k_center_covers_what_a_random_choice_misses() -> None:
    rare = torch.full((3, 2), 50.0)
    points = torch.cat([torch.randn(5000, 2), rare]).double()
    chosen = points[greedy_k_center(points, 40)]
    assert len(chosen.unique(dim=0)) == 40
    assert torch.cdist(points, chosen).amin(dim=1).max() < 1.5  # covers all, rare ones too


def test_k_center_chooses_the_farthest_each_time() -> None:
    points = torch.randn(60, 3, dtype=torch.float64)
    chosen = greedy_k_center(points, 60).tolist()
    assert sorted(chosen) == list(range(60))
    for count in range(1, 59):
        distances = torch.cdist(points, points[chosen[:count]]).amin(dim=1)
        assert distances[chosen[count]] == pytest.approx(float(distances.max()))


def test_a_constant_channel_keeps_a_unit() -> None:
    batch = pictures(6)
    batch[:, 2] = 7
    scale = KNNScore(k=1).fit(batch).neighbours["0"].scale
    others = rows(batch)[:, [0, 1, 3, 4]].std(dim=0, correction=0)
    torch.testing.assert_close(scale[[0, 1, 3, 4]], others)
    torch.testing.assert_close(scale[2], others.mean())


def test_the_relative_score_is_a_difference() -> None:
    training, background, batch = pictures(6), 2 * pictures(9, seed=7), pictures(3, seed=8)
    relative = RelativeMahalanobisScore().fit(training, background)
    expected = MahalanobisScore().fit(training).score(batch, per="pixel")
    expected = expected - MahalanobisScore().fit(background).score(batch, per="pixel")
    torch.testing.assert_close(relative.score(batch, per="pixel"), expected)


def test_a_file_holds_everything(fitted: Any, tmp_path: Path) -> None:
    batch = pictures(3, seed=5)
    path = tmp_path / "score.safetensors"
    fitted.calibrate(pictures(19, seed=6)).save(path)
    loaded = type(fitted).load(path)
    for per in ("picture", "pixel"):
        assert torch.equal(loaded.score(batch, per=per), fitted.score(batch, per=per))
    assert loaded.threshold(0.05) == fitted.threshold(0.05)
    assert loaded._settings() == fitted._settings() and loaded.levels == fitted.levels
    again = tmp_path / "again.safetensors"
    loaded.save(again)
    assert again.read_bytes() == path.read_bytes()


def test_a_file_keeps_the_names_of_levels(tmp_path: Path) -> None:
    levels = {"encoder.0": pictures(5, channels=3), "a level": pictures(5, channels=4)}
    MahalanobisScore().fit(levels).save(tmp_path / "score")
    loaded = MahalanobisScore.load(tmp_path / "score")
    assert loaded.levels == {"encoder.0": 3, "a level": 4}
    assert loaded.calibration_scores is None


def test_a_fit_forgets_what_was_before() -> None:
    score = MahalanobisScore().fit(pictures(6)).calibrate(pictures(19, seed=1))
    score.fit(pictures(6, channels=3))
    assert score.levels == {"0": 3} and score.calibration_scores is None
    copied = copy.deepcopy(score)
    torch.testing.assert_close(
        copied.score(pictures(2, channels=3)), score.score(pictures(2, channels=3))
    )


BATCH = pictures(4)
BAD_CALLS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "another width": (
        lambda: MahalanobisScore().fit(BATCH).score(pictures(2, channels=3)),
        ValueError,
        r"Level '0' of features has 3 channels \(shape \(2, 3, 6, 6\)\), and 5 were fitted",
    ),
    "another width in a later batch": (
        lambda: MahalanobisScore().fit([BATCH, pictures(2, channels=3)]),
        ValueError,
        "3 channels.*5 were fitted",
    ),
    "another level": (
        lambda: KNNScore().fit({"a": BATCH}).score({"b": BATCH}),
        ValueError,
        r"levels \['b'\].*had \['a'\]",
    ),
    "not fitted": (
        lambda: MahalanobisScore().score(BATCH),
        RuntimeError,
        "MahalanobisScore has learned nothing: call fit first",
    ),
    "nothing to save": (lambda: KNNScore().save("x"), RuntimeError, "call fit first"),
    "no batch": (lambda: MahalanobisScore().fit([]), ValueError, "fit on at least two pictures"),
    "no batch for knn": (lambda: KNNScore().fit(iter(())), ValueError, "at least one picture"),
    "no calibration picture": (
        lambda: MahalanobisScore().fit(BATCH).calibrate([]),
        ValueError,
        "calibrate on at least one picture",
    ),
    "one picture": (
        lambda: MahalanobisScore().fit(BATCH[:1]),
        ValueError,
        "at least 2 pictures .*effective_number='pixels'",
    ),
    "one row": (
        lambda: MahalanobisScore().fit(BATCH[:1, :, 0, 0]),
        ValueError,
        "has 1 pixel, and a covariance needs at least 2 .*fit on more pictures",
    ),
    "too few pixels": (
        lambda: MahalanobisScore(shrinkage=0).fit(BATCH[:, :, 0, 0]),
        ValueError,
        "covariance of level '0' is singular: 4 pixels for 5 channels, shrinkage 0. Fit on more",
    ),
    "constant features": (
        lambda: MahalanobisScore().fit(torch.ones(4, 3, 5, 5)),
        ValueError,
        "singular: 100 pixels for 3 channels.*constant",
    ),
    "a feature that is not finite": (
        lambda: MahalanobisScore().fit([BATCH, BATCH * math.inf]),
        ValueError,
        "must be finite.*leave their picture out",
    ),
    "a feature that is not finite for knn": (
        lambda: KNNScore().fit(BATCH * math.nan),
        ValueError,
        "must be finite",
    ),
    "fewer pixels than neighbours": (
        lambda: KNNScore(k=5).fit(BATCH[:3, :, 0, 0]),
        ValueError,
        "has 3 pixels, and k = 5 neighbours are wanted",
    ),
    "a choice too small": (lambda: KNNScore(k=5, coreset_size=4), ValueError, "at least 5"),
    "k of zero": (lambda: KNNScore(k=0), ValueError, "k must be a whole number of at least 1"),
    "another coreset": (
        lambda: KNNScore(coreset="best"),  # type: ignore[arg-type]
        ValueError,
        "coreset must be one of 'k-center', 'reservoir', got 'best'",
    ),
    "no background": (
        lambda: RelativeMahalanobisScore().fit(BATCH),
        ValueError,
        r"needs a background: fit\(batches, background\)",
    ),
    "another background": (
        lambda: RelativeMahalanobisScore().fit(BATCH, pictures(4, channels=3)),
        ValueError,
        "background has levels of channels {'0': 3}, and batches {'0': 5}",
    ),
    "a shrinkage above one": (
        lambda: MahalanobisScore(shrinkage=1.5),
        ValueError,
        "shrinkage must be 'oas' or a number from 0 to 1, got 1.5",
    ),
    "another number": (
        lambda: MahalanobisScore(effective_number="rows"),  # type: ignore[arg-type]
        ValueError,
        "effective_number must be 'estimate', 'pixels', 'pictures' or a number of at least 1",
    ),
    "another pooling": (
        lambda: MahalanobisScore(pooling="sum"),  # type: ignore[arg-type]
        ValueError,
        "pooling must be one of 'mean', 'max'",
    ),
    "no features": (
        lambda: MahalanobisScore().fit(3),  # type: ignore[arg-type]
        TypeError,
        "batches must be an iterable of features",
    ),
    "no tensor": (
        lambda: MahalanobisScore().fit(["a"]),  # type: ignore[list-item]
        TypeError,
        "features must be a tensor .*got str",
    ),
    "whole numbers": (
        lambda: MahalanobisScore().fit(torch.ones(4, 3, dtype=torch.int64)),
        TypeError,
        "must be float64",
    ),
    "no channels": (
        lambda: MahalanobisScore().fit([torch.randn(4)]),
        ValueError,
        r"must have shape \(N, C, \*S\) or \(N, C\), got \(4,\)",
    ),
    "no pixel": (
        lambda: MahalanobisScore().fit(torch.randn(0, 3)),
        ValueError,
        r"Level '0' of features is empty: \(0, 3\)",
    ),
    "no level": (lambda: MahalanobisScore().fit({}), ValueError, "features holds no level"),
    "levels of other pictures": (
        lambda: MahalanobisScore().fit([(BATCH, BATCH[:2])]),
        ValueError,
        "of the same pictures, got batch sizes {'0': 4, '1': 2}",
    ),
    "levels without common pixels": (
        lambda: (
            MahalanobisScore()
            .fit([(BATCH, BATCH.flatten(2))])
            .score((BATCH, BATCH.flatten(2)), per="pixel")
        ),
        ValueError,
        "ask for apart=True",
    ),
    "no threshold": (
        lambda: MahalanobisScore().fit(BATCH).threshold(0.1),
        RuntimeError,
        r"call calibrate\(batches\) first",
    ),
    "no file": (lambda: KNNScore.load("not there"), FileNotFoundError, "no file not there"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls_say_what_to_do(name: str) -> None:
    call, error, message = BAD_CALLS[name]
    with pytest.raises(error, match=message):
        call()


def test_a_file_of_something_else_is_named(tmp_path: Path) -> None:
    path = tmp_path / "score"
    KNNScore(k=1).fit(BATCH).save(path)
    with pytest.raises(ValueError, match=r"holds a KNNScore: read it with KNNScore\.load"):
        MahalanobisScore.load(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    with pytest.raises(ValueError, match="no whole safetensors file"):
        KNNScore.load(path)
    path.write_bytes(whole.replace(b'version\\": 1', b'version\\": 9'))
    with pytest.raises(ValueError, match="its form is 9, and 1 is wanted"):
        KNNScore.load(path)
