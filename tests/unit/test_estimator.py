"""The Python API: shapes, missing values, the incremental step, generation, saving."""

import doctest
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from pipeline.errors import BadInput
from training import AutoencoderModel, estimator, generate
from training.incremental import Replay


def series(rows: int = 500, shift: float = 0.0, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    steps = np.arange(rows)
    waves = np.stack([np.sin(steps / 6), np.cos(steps / 6), np.sin(steps / 3 + shift)], axis=1)
    return (waves + shift * np.array([1, 0, -1]) + 0.05 * rng.normal(size=(rows, 3))) * [1, 10, 100] + [0, 50, 0]


def small(**settings: object) -> AutoencoderModel:
    return AutoencoderModel(window=12, latent=4, settings={"epochs": 6, "hidden": [32], **settings})


@pytest.fixture(scope="module")
def fitted() -> AutoencoderModel:
    return small().fit(series())


def test_the_doctest_of_the_module_holds() -> None:
    assert doctest.testmod(estimator).failed == 0


def test_parameters_can_be_read_set_and_cloned() -> None:
    from sklearn.base import clone

    model = clone(AutoencoderModel(family="conv", latent=3))
    assert model.get_params()["family"] == "conv"
    assert model.set_params(latent=5).latent == 5


def test_rows_and_windows_give_the_same_latents(fitted: AutoencoderModel) -> None:
    rows = series(40)
    windows = np.lib.stride_tricks.sliding_window_view(rows, 12, axis=0).transpose(0, 2, 1)
    np.testing.assert_allclose(fitted.transform(rows), fitted.transform(windows), atol=1e-6)


def test_a_hole_is_not_scored_and_an_empty_window_has_no_score(fitted: AutoencoderModel) -> None:
    rows = series(12)
    rows[5, 1] = np.nan
    assert np.isfinite(fitted.score(rows)).all()
    assert np.isnan(fitted.score(np.full((12, 3), np.nan))).all()


def test_an_offset_scores_higher(fitted: AutoencoderModel) -> None:
    rows = series(60, seed=4)
    assert fitted.score(rows + np.array([0, 0, 150])).mean() > 3 * fitted.score(rows).mean()


def test_the_incremental_step_learns_the_new_and_replay_keeps_the_old() -> None:
    rng = np.random.default_rng(0)
    old, new = ((rng.normal(size=(1200, 2)) @ rng.normal(size=(2, 36))).reshape(-1, 12, 3) for _ in range(2))
    error = {}
    for has_replay in (True, False):
        model = small(epochs=30, linear_path=False, rate=5e-3).fit(old[:1000])
        before_new = model.score(new[1000:]).mean()
        for part in np.split(new[:1000], 4):
            if not has_replay:
                model.replay_ = Replay()
            model.learn(part)
        assert model.score(new[1000:]).mean() < 0.5 * before_new
        error[has_replay] = model.score(old[1000:]).mean()
    assert error[True] < 0.75 * error[False]


def test_a_replay_is_a_uniform_sample_of_all_that_it_saw() -> None:
    replay = Replay(size=200, seed=3)
    for start in range(0, 5000, 50):
        replay.add(np.arange(start, start + 50, dtype=np.float32)[:, None, None])
    kept = replay.windows.ravel()
    assert replay.seen == 5000
    assert len(set(kept.tolist())) == 200
    assert 2000 < kept.mean() < 3000


def test_samples_lie_in_the_range_of_the_data_and_on_its_lattice() -> None:
    rng = np.random.default_rng(0)
    windows = rng.integers(0, 5, size=(300, 12, 2)).astype(np.float32)
    model = AutoencoderModel(family="vae", window=12, latent=3, settings={"epochs": 2}).fit(windows)
    made = model.sample(40, seed=1)
    assert made.shape == (40, 12, 2)
    np.testing.assert_allclose(made, np.rint(made), atol=1e-3)
    assert made.min() >= -1e-3
    assert made.max() <= 4 + 1e-3


def test_samples_are_near_the_data_in_mean_spread_and_correlation_and_no_copies() -> None:
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(3, 36))
    old, new = ((rng.normal(size=(600, 3)) @ mix + rng.normal(size=(600, 36))).astype(np.float32) for _ in range(2))
    model = AutoencoderModel(family="dense", window=12, latent=3, settings={"epochs": 2}).fit(old.reshape(-1, 12, 3))
    made = model.sample(600, seed=1)
    flat = made.reshape(600, -1)
    assert np.abs((flat.mean(axis=0) - new.mean(axis=0)) / new.std(axis=0)).max() < 0.25
    assert np.abs(flat.std(axis=0) / new.std(axis=0) - 1).max() < 0.25
    assert np.abs(np.corrcoef(flat.T) - np.corrcoef(new.T)).mean() < 0.08
    known = old.reshape(-1, 12, 3)
    assert generate.nearness(new.reshape(-1, 12, 3), made, known) > 0.9
    assert generate.nearness(new.reshape(-1, 12, 3), known, known) == 0
    assert (model.sample(5, seed=1) == model.sample(5, seed=1)).all()


def test_errors_of_places_go_together_in_samples_as_in_the_data() -> None:
    """The model's one latent says nothing of the second channel, whose rows all move as one."""
    rng = np.random.default_rng(0)
    windows = np.stack([np.tile(3 * rng.normal(size=(500, 1)), 8), np.tile(rng.normal(size=(500, 1)), 8)], axis=2)
    model = AutoencoderModel(family="dense", window=8, latent=1, settings={"epochs": 2}).fit(windows)
    made = model.sample(500, seed=1)
    assert np.corrcoef(made[:, 0, 1], made[:, 7, 1])[0, 1] > 0.9


def test_the_prior_finds_the_clusters_that_latents_lie_in() -> None:
    rng = np.random.default_rng(0)
    z = np.concatenate([rng.normal(-5, 0.2, (200, 2)), rng.normal(5, 0.2, (300, 2))])
    prior = generate.fit_prior(z)
    drawn = prior.sample(1000, rng)
    assert (np.abs(np.abs(drawn) - 5) < 3).all()
    assert abs((drawn[:, 0] > 0).mean() - 0.6) < 0.06


def test_a_classifier_tells_noise_from_data_and_not_data_from_data() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 200, 6, 2))
    assert generate.told_apart(one, other)["best"] < 0.62
    assert generate.told_apart(one, other + 2)["best"] > 0.9


def test_what_was_saved_says_the_same(fitted: AutoencoderModel, tmp_path: Path) -> None:
    fitted.save(tmp_path / "model.safetensors")
    again = small().load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(again.score(series(50)), fitted.score(series(50)))


def test_bad_shapes_are_refused_with_what_to_give(fitted: AutoencoderModel) -> None:
    with pytest.raises(BadInput, match="fewer than one window"):
        fitted.transform(series(5))
    with pytest.raises(BadInput, match="fitted on 3"):
        fitted.transform(np.zeros((20, 2)))
    with pytest.raises(BadInput, match="no value in any row"):
        small().fit(np.full((100, 2), np.nan))
    with pytest.raises(BadInput, match=r"no array of numbers.*give rows"):
        small().fit([["on", "off"]] * 100)                           # type: ignore[arg-type]
    with pytest.raises(BadInput, match="give 1 or more"):
        fitted.sample(0)


def test_a_file_that_is_none_or_of_other_parameters_and_a_latent_of_another_size_are_refused(
    fitted: AutoencoderModel, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="no file that `save` wrote"):
        small().load(tmp_path / "nothing")
    (tmp_path / "junk").write_text("junk")
    with pytest.raises(BadInput, match="no file that `save` wrote"):
        small().load(tmp_path / "junk")
    fitted.save(tmp_path / "model")
    with pytest.raises(BadInput, match="other parameters"):
        small().set_params(latent=fitted.model_.shape.latent + 1).load(tmp_path / "model")
    for latent in (np.zeros((3, fitted.model_.shape.latent + 1)), np.zeros(3)):
        with pytest.raises(BadInput, match="as `transform` makes them"):
            fitted.inverse_transform(latent)


def test_a_model_that_came_back_goes_on_learning_from_the_same_replay(fitted: AutoencoderModel, tmp_path: Path) -> None:
    fitted.save(tmp_path / "model")
    back = small().load(tmp_path / "model")
    assert back.replay_.seen == fitted.replay_.seen
    np.testing.assert_array_equal(back.replay_.windows, fitted.replay_.windows)
    back.partial_fit(series(120, shift=1.0))
    assert back.replay_.seen == fitted.replay_.seen + 120 - back.window + 1


def test_the_example_of_the_docs_runs_and_gives_the_shapes_that_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    section = page.split("## In Python")[1].split("\n## ")[0]
    code = "\n".join(line.removeprefix("    ") for line in section.splitlines() if line.startswith("    "))
    names: dict[str, Any] = {}
    exec(code, names)
    assert [names[name].shape for name in ("latent", "rebuilt", "error", "drawn")] == [
        (1169, 8), (1169, 32, 3), (1169,), (100, 32, 3)]
    assert (tmp_path / "model.safetensors").exists()
