"""Probes of honest scores: nothing of the future, of row numbers, of units or of channel order may leak in."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline.cli.backtest import run_backtest
from pipeline.cli.main import app
from pipeline.core.contract import Channel, Contract
from pipeline.formats.files import Table
from pipeline.registry.bundle import Bundle
from training.make_baseline import make_baseline_bundle
from training.prepare import prepare

NAMES = ("flow", "pressure", "current", "vibration")
CONTRACT = Contract(channels=tuple(Channel(name=name) for name in NAMES), window=16, memory=80)
DEVICES, ROWS, LEARNED = 3, 900, 600


def plant(seed: int = 0) -> np.ndarray:
    """(devices, rows, channels): correlated, autocorrelated, each device at its own level; a fault from row 750 on."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(4, 4))
    state = np.zeros((DEVICES, ROWS, 4))
    for row in range(1, ROWS):
        state[:, row] = 0.7 * state[:, row - 1] + rng.normal(size=(DEVICES, 4)) @ mix * 0.3
    state += rng.normal(0, 4, (DEVICES, 1, 4))
    state[:, 750:, 2] += 3
    return state


def table(values: np.ndarray, names: tuple[str, ...] = NAMES, first: int = 0, devices: tuple[str, ...] = ()) -> Table:
    count, rows = values.shape[:2]
    return Table(
        devices=devices or tuple(f"d{i}" for i in range(count)), device=np.repeat(np.arange(count), rows),
        ts_ms=np.tile((first + np.arange(rows)) * 1000, count), channels=names,
        values=values.reshape(count * rows, -1).astype(np.float32), reason=np.zeros(count * rows, np.uint8),
    )


def bundle_of(values: np.ndarray, folder: Path, contract: Contract = CONTRACT) -> Bundle:
    learned = table(values[:, :LEARNED], contract.names)
    ready = prepare(contract, learned.devices, learned.device, learned.ts_ms, learned.values)
    return make_baseline_bundle(ready, folder)


def scores(bundle: Bundle, values: np.ndarray, batch_rows: int = 500, **how) -> np.ndarray:
    found, _ = run_backtest(bundle, table(values, bundle.contract.names, **how), batch_rows)
    return found.score.reshape(len(values), -1)


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    return plant()


@pytest.fixture(scope="module")
def bundle(values, tmp_path_factory) -> Bundle:
    return bundle_of(values, tmp_path_factory.mktemp("probes") / "bundle")


def test_the_fault_is_found_and_the_normal_rows_before_it_are_quiet(bundle, values):
    score = scores(bundle, values)
    assert (score[:, 760:] > bundle.scorer.threshold).mean() > 0.9
    assert (score[:, LEARNED:750] > bundle.scorer.threshold).mean() < 0.05


def test_noise_in_the_future_leaves_every_score_before_it_unchanged_to_the_bit(bundle, values):
    noisy = values.copy()
    noisy[:, 700:] = np.random.default_rng(9).normal(0, 50, noisy[:, 700:].shape)
    assert np.array_equal(scores(bundle, values)[:, :700], scores(bundle, noisy)[:, :700], equal_nan=True)


@pytest.mark.parametrize("start", [401, 437, 550])
def test_the_row_that_a_series_starts_at_does_not_matter_once_the_memory_is_full(bundle, values, start):
    late = scores(bundle, values[:, start:], first=start)
    full = CONTRACT.memory
    assert np.array_equal(late[:, full:], scores(bundle, values)[:, start + full :])


def test_the_time_of_day_does_not_matter(bundle, values):
    assert np.array_equal(scores(bundle, values), scores(bundle, values, first=40_000), equal_nan=True)


@pytest.mark.parametrize("batch_rows", [1, 7, 100_000])
def test_batches_change_no_bit(bundle, values, batch_rows):
    some = values[:, 600:800]
    assert np.array_equal(scores(bundle, some), scores(bundle, some, batch_rows), equal_nan=True)


def test_another_order_of_the_channels_gives_the_same_scores(bundle, values, tmp_path):
    order = [2, 0, 3, 1]
    channels = tuple(CONTRACT.channels[place] for place in order)
    other = bundle_of(values[:, :, order], tmp_path / "other", Contract(channels=channels, window=16, memory=80))
    np.testing.assert_allclose(scores(other, values[:, :, order]), scores(bundle, values), rtol=1e-3, atol=1e-3)


def test_another_unit_gives_the_same_scores(bundle, values, tmp_path):
    factor, offset = np.array([1000, 0.01, 1.8, 1]), np.array([0, 5, 32, 0])
    other = bundle_of(values * factor + offset, tmp_path / "other")
    np.testing.assert_allclose(scores(other, values * factor + offset), scores(bundle, values), rtol=5e-3, atol=5e-3)


def test_a_unit_that_changes_after_training_is_an_anomaly_at_once(bundle, values):
    changed = values.copy()
    changed[:, 650:, 0] *= 1000
    assert (scores(bundle, changed)[:, 660:700] > bundle.scorer.threshold).all()


def test_a_device_never_seen_is_scored_with_the_fleets_scaling(bundle, values):
    score = scores(bundle, values[:1], devices=("stranger",))
    assert np.isfinite(score[0, CONTRACT.window - 1 :]).all()


def test_five_percent_of_the_rows_gone_leave_the_false_alarms_few_and_the_fault_found(bundle, values):
    whole = table(values)
    kept = np.random.default_rng(4).random(len(whole)) > 0.05
    found, alarms = run_backtest(bundle, whole.take(kept), 500)
    row, over = whole.ts_ms[kept] // 1000, found.score > bundle.scorer.threshold
    assert over[row >= 760].mean() > 0.9
    assert over[(row >= LEARNED) & (row < 750)].mean() < 0.05
    assert {name for name, _, one in alarms if one.event.start_ts >= 750_000} == {"d0", "d1", "d2"}


def test_a_file_with_its_columns_in_another_order_gives_the_same_lines(bundle, values, tmp_path):
    rows = values[0, :200].astype(np.float32).tolist()
    for name, order in (("one", [0, 1, 2, 3]), ("other", [3, 1, 0, 2])):
        lines = [",".join(["ts", *(NAMES[place] for place in order)])]
        lines += [",".join([str(1_700_000_000 + at), *(repr(row[place]) for place in order)])
                  for at, row in enumerate(rows)]
        (tmp_path / name).mkdir()
        (tmp_path / name / "pump.csv").write_text("\n".join(lines) + "\n")
        done = CliRunner().invoke(app, [
            "backtest", str(tmp_path / name / "pump.csv"), "--bundle", str(bundle.folder), "--contributions",
            "--out", str(tmp_path / f"{name}.csv"),
        ])
        assert done.exit_code == 0, (done.output, done.exception)
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "other.csv").read_bytes()


def test_five_percent_missing_values_leave_the_false_alarms_few_and_the_fault_found(bundle, values):
    holes = values.copy()
    holes[np.random.default_rng(4).random(holes.shape) < 0.05] = np.nan
    score = scores(bundle, holes)
    assert (score[:, 760:] > bundle.scorer.threshold).mean() > 0.9
    assert (score[:, LEARNED:750] > bundle.scorer.threshold).mean() < 0.05


@pytest.mark.parametrize("how", ["constant", "duplicated"])
def test_a_constant_or_duplicated_channel_leaves_the_fault_found(values, tmp_path, how):
    odd = values.copy()
    odd[:, :, 3] = 7.0 if how == "constant" else odd[:, :, 0]
    score = scores(bundle_of(odd, tmp_path / "odd"), odd)
    threshold = bundle_of(odd, tmp_path / "odd").scorer.threshold
    assert (score[:, 760:] > threshold).mean() > 0.9
    assert (score[:, LEARNED:750] > threshold).mean() < 0.05


def test_contributions_of_the_fault_name_its_channel_and_sum_to_the_score(bundle, values):
    found, _ = run_backtest(bundle, table(values), 500)
    np.testing.assert_allclose(
        found.contributions[np.isfinite(found.score)].sum(axis=1), found.score[np.isfinite(found.score)], rtol=1e-5
    )
    late = found.contributions.reshape(DEVICES, ROWS, 4)[:, 800:]
    assert (late.mean(axis=1).argmax(axis=1) == 2).all()


