"""From a table to a bundle: what a run writes, what it refuses, and that a champion can be trained on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from pipeline.core.contract import Contract
from pipeline.errors import BadBundle, BadInput
from pipeline.formats.files import Table
from pipeline.registry.bundle import load_bundle
from pipeline.scoring.gate import open_session
from training import data, evaluate, train
from training.prepare import prepare
from training.recipe import Recipe, parse_recipe

RECIPE = Recipe(model="dense", epochs=2, latent=3, hidden=(16,))


def table_of(rows: int = 700, devices: int = 2, seed: int = 0, holes: float = 0.0) -> Table:
    rng = np.random.default_rng(seed)
    parts = []
    for place in range(devices):
        steps = np.arange(rows)
        waves = np.stack([np.sin(steps / 9 + k + place) for k in range(3)], axis=1)
        parts.append(waves * [1, 5, 0.2] + [0, 40, -3] + 0.05 * rng.normal(size=(rows, 3)) * [1, 5, 0.2])
    values = np.concatenate(parts).astype(np.float32)
    values[rng.random(values.shape) < holes] = np.nan
    ts_ms = np.tile(1_700_000_000_000 + 1000 * np.arange(rows), devices)
    return Table(
        devices=tuple(f"d{place}" for place in range(devices)), device=np.repeat(np.arange(devices), rows), ts_ms=ts_ms,
        channels=("a", "b", "c"), values=values, reason=np.zeros(len(ts_ms), np.uint8))


def first_channel(table: Table, value: object) -> Table:
    return replace(table, values=np.where([True, False, False], value, table.values).astype(np.float32))


def contract_of(table: Table, window: int = 8) -> Contract:
    return data.derive_contract(table, window=window, memory=40)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> train.Trained:
    table = table_of(holes=0.01)
    folder = tmp_path_factory.mktemp("bundles") / "one"
    return train.train(table, contract_of(table), RECIPE, folder, source={"files": ["x.csv"]}, refuse=False)


def test_a_bundle_holds_what_it_was_made_of_and_passes_the_load_gate(made: train.Trained) -> None:
    assert made.bundle.folder is not None
    bundle = load_bundle(made.bundle.folder, made.prepared.contract)
    open_session(bundle)
    manifest = bundle.manifest
    assert manifest.family == "dense"
    assert manifest.data["files"] == ["x.csv"]
    assert parse_recipe(manifest.recipe) == RECIPE
    assert manifest.training["parity"] <= 1e-5
    assert {"dense", "raw", "pca", "var", "pca, same D"} <= set(manifest.quality)


def test_the_weights_of_a_bundle_give_its_model_back(made: train.Trained) -> None:
    assert made.bundle.folder is not None
    model = train.restore(load_bundle(made.bundle.folder))
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), made.model.state_dict()[name].numpy())


def test_a_challenger_goes_on_from_its_champion_and_names_it(made: train.Trained, tmp_path: Path) -> None:
    table = table_of(seed=5)
    challenger = train.train(table, made.prepared.contract, train.going_on(made.bundle), tmp_path / "next",
                             parent=made.bundle, refuse=False)
    assert challenger.bundle.manifest.parent == made.bundle.digest
    assert challenger.bundle.digest != made.bundle.digest
    fresh = train.build(made.prepared.contract, RECIPE)
    learn, held_out = data.learning_windows(challenger.prepared, RECIPE.validation)
    del learn
    from training import loop

    device = loop.pick_device(RECIPE)
    assert challenger.history.first_loss < 0.5 * loop.evaluate(fresh, held_out, RECIPE, device)


def test_weights_of_another_contract_are_refused(made: train.Trained) -> None:
    other = contract_of(table_of(), window=12)
    with pytest.raises(BadBundle, match="train anew"):
        train.put_weights(train.build(other, RECIPE), made.bundle)


def test_masked_rows_stand_in_no_window_that_is_learned_from() -> None:
    table = table_of(devices=1)
    masked = np.zeros(len(table), dtype=bool)
    masked[100:110] = True
    contract = contract_of(table)
    prepared = prepare(contract, table.devices, table.device, table.ts_ms, table.values, mask=masked)
    learn, held_out = data.learning_windows(prepared, 0.2)
    for windows in (learn, held_out):
        rows = windows.ends[:, None] + np.arange(1 - windows.length, 1)
        assert not masked[rows].any()
    assert not set((learn.ends[:, None] - np.arange(8)).ravel()) & set((held_out.ends[:, None] - np.arange(8)).ravel())


def test_scores_of_recorded_rows_are_finite_from_the_first_whole_window_on(made: train.Trained) -> None:
    table = table_of(rows=60, devices=1, seed=9)
    scored = evaluate.score_table(made.bundle, table)
    assert np.flatnonzero(scored.is_scored)[0] == made.prepared.contract.window - 1
    sums = scored.contribution[scored.is_scored].sum(axis=1)
    np.testing.assert_allclose(sums, scored.score[scored.is_scored], rtol=1e-4)
    shifted = replace(table, values=table.values + np.float32(50))
    hot = evaluate.score_table(made.bundle, shifted)
    assert np.nanmedian(hot.score) > 3 * np.nanmedian(scored.score)


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda t: first_channel(t, np.float32(np.nan)), "no value"),
    (lambda t: replace(first_channel(t, t.values > 0), channels=("target", "b", "c")), "looks like a label"),
], ids=["all missing", "label"])
def test_a_channel_that_teaches_nothing_is_refused_with_the_option_that_helps(spoil, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(BadInput, match=message):
        contract_of(spoil(table_of()))


def test_a_channel_that_never_moves_is_named_and_kept() -> None:
    table = first_channel(table_of(), np.float32(1.5))
    assert data.constant(table) == ["a"]
    assert contract_of(table).channels[0].role == "sensor"


def test_too_few_rows_and_time_that_goes_backwards_are_refused(tmp_path: Path) -> None:
    table = table_of(rows=20, devices=1)
    with pytest.raises(BadInput, match="rows"):
        train.train(table, data.derive_contract(table, window=32), RECIPE, tmp_path / "b")
    back = table_of(devices=1)
    with pytest.raises(BadInput, match=r"time goes backwards.*--device-column"):
        train.train(replace(back, ts_ms=back.ts_ms[::-1].copy()), contract_of(back), RECIPE, tmp_path / "b")


def test_the_pattern_of_alerts_called_false_is_silent_in_a_family_of_torch_too(tmp_path: Path) -> None:
    table = table_of(devices=1, rows=900)
    pattern = np.zeros(len(table), dtype=bool)
    pattern[300:330] = True
    table = replace(table, values=(table.values + np.outer(pattern, [0, 15, 0])).astype(np.float32))
    scores = {}
    for name, pardoned in (("marked", None), ("pardoned", pattern)):
        made = train.train(table, contract_of(table), RECIPE, tmp_path / name, masked=pattern, pardoned=pardoned,
                           refuse=False)
        scored = evaluate.score_table(made.bundle, table)
        scores[name] = float(np.median(scored.score[310:330]) / scored.threshold)
    assert scores["marked"] > 1
    assert scores["pardoned"] < 0.6 * scores["marked"]


def test_pictures_are_split_whole_and_share_one_scale() -> None:
    from training import examples

    example = examples.tones(count=40)
    table = example.table
    prepared = prepare(example.contract, table.devices, table.device, table.ts_ms, table.values)
    assert all(len(set(prepared.part[prepared.device == one])) == 1 for one in np.unique(prepared.device))
    assert len(np.unique(prepared.scaling.scale)) == 1
    learn, held_out = data.learning_windows(prepared, 0.2)
    assert len(learn) + len(held_out) == 24
