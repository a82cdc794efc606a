"""Preparing and calibrating: parts by time, thresholds from held-out rows, and what bad training data gets."""

import numpy as np
import pytest

from pipeline.core.contract import Channel, Contract
from pipeline.core.threshold import ledoit_wolf, tail_quantile, whitening
from pipeline.errors import BadInput
from pipeline.registry.bundle import load_bundle
from pipeline.scoring.gate import open_session
from training.baselines import fit_baseline
from training.calibrate import calibrate, lift
from training.make_baseline import make_baseline_bundle
from training.prepare import CALIBRATION, COVARIANCE, FIT, prepare, split

CONTRACT = Contract(channels=tuple(Channel(name=name) for name in "abcd"), window=8, memory=40)


def plant(rows: int = 1200, devices: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Correlated, autocorrelated channels of a few devices: device, ts, values."""
    rng = np.random.default_rng(seed)
    parts = []
    for _ in range(devices):
        shocks = rng.normal(size=(rows, 4)) @ rng.normal(size=(4, 4)) * 0.5
        state = np.zeros_like(shocks)
        for at in range(1, rows):
            state[at] = 0.6 * state[at - 1] + shocks[at]
        parts.append(state + rng.normal(0, 5, 4))
    return np.repeat(np.arange(devices), rows), np.tile(np.arange(rows) * 1000, devices), np.vstack(parts)


def prepared(**changes):
    device, ts, values = plant(**changes)
    return prepare(CONTRACT, [f"d{i}" for i in range(device.max() + 1)], device, ts, values)


def test_each_device_is_cut_by_time_into_three_parts():
    part = split(np.repeat([0, 1], [100, 40]), np.zeros(140, dtype=bool))
    for rows in (part[:100], part[100:]):
        assert (np.diff(rows) >= 0).all()
        assert set(rows) == {FIT, COVARIANCE, CALIBRATION}


def test_masked_rows_belong_to_no_part_and_no_training_window():
    device, ts, values = plant(devices=1)
    mask = np.zeros(len(device), dtype=bool)
    mask[300] = True
    ready = prepare(CONTRACT, ["d"], device, ts, values, mask=mask)
    whole = prepare(CONTRACT, ["d"], device, ts, values)
    assert ready.part[300] == -1
    assert abs(len(whole.windows(FIT)) - len(ready.windows(FIT)) - CONTRACT.window) <= 1


def test_late_rows_are_left_out_of_training():
    ready = prepare(CONTRACT, ["d"], np.zeros(100, dtype=int), np.r_[np.arange(99), 5] * 1000, np.random.rand(100, 4))
    assert len(ready.ts_ms) == 99


@pytest.mark.parametrize("kind", ["raw", "pca", "var", "linear"])
def test_a_baseline_bundle_loads_passes_its_gate_and_holds_its_nominal_rate(tmp_path, kind):
    ready = prepared(rows=3000)
    made = make_baseline_bundle(ready, tmp_path / kind, kind)
    bundle = load_bundle(tmp_path / kind, CONTRACT)
    assert bundle.digest == made.digest
    assert open_session(bundle).provider == "CPUExecutionProvider"
    assert 0.2 * 0.01 < bundle.manifest.calibration["held_out_share"] < 3 * 0.01


def test_the_same_data_give_the_same_digest(tmp_path):
    one, other = (make_baseline_bundle(prepared(), tmp_path / name) for name in "ab")
    assert one.digest == other.digest


def test_var_predicts_and_its_rebuilt_window_ends_with_its_newest_row():
    from pipeline.scoring.session import Session

    ready = prepared()
    windows = ready.windows(FIT)[:50]
    session = Session(fit_baseline("var", windows, CONTRACT))
    passed, rebuilt = session.run(windows), session.rebuild(windows)
    np.testing.assert_allclose(rebuilt[:, -1], passed.newest[:, 0], atol=1e-5)
    assert ((windows[:, -1] - passed.newest[:, 0]) ** 2).mean() < 0.8 * (windows[:, -1] ** 2).mean()


def test_a_change_of_regime_in_training_is_refused_and_said_so():
    device, ts, values = plant(devices=1)
    values[-200:] += 20
    ready = prepare(CONTRACT, ["d"], device, ts, values)
    with pytest.raises(BadInput, match="not of one kind"):
        calibrate(fit_baseline("var", ready.windows(FIT), CONTRACT), ready)


def test_devices_of_a_fleet_whose_rows_are_mostly_anomalous_set_no_threshold_and_are_named():
    device, ts, values = plant(rows=400, devices=12)
    names = [f"d{i}" for i in range(12)]

    def made(values):
        ready = prepare(CONTRACT, names, device, ts, values)
        return calibrate(fit_baseline("var", ready.windows(FIT), CONTRACT), ready)

    odd = values.copy()
    for one in (3, 7):                       # in the last quarter, which sets thresholds, far off
        at = np.flatnonzero(device == one)[300:]
        odd[at] += 15 * np.random.default_rng(one).normal(size=(len(at), 4))
    found, plain = made(odd), made(values)
    assert {"d3", "d7"} <= set(found.facts["set_aside"])
    assert found.scorer.threshold < 1.5 * plain.scorer.threshold


def test_a_refusal_names_the_channel_the_device_and_since_when_and_says_what_to_do():
    device, ts, values = plant(devices=1)
    values[-200:, 1] += 20
    ready = prepare(CONTRACT, ["press"], device, ts, values)
    name = CONTRACT.names[1]
    with pytest.raises(BadInput, match=rf"from {name} .*device press.*1970-.* UTC on.*--ignore-columns {name}.*shift"):
        calibrate(fit_baseline("var", ready.windows(FIT), CONTRACT), ready)


def test_an_alert_rate_becomes_a_threshold_and_a_rarer_one_a_higher_threshold():
    ready = prepared()
    model = fit_baseline("var", ready.windows(FIT), CONTRACT)
    often = calibrate(model, ready, alerts_per_device_week=20_000)
    rarely = calibrate(model, ready, alerts_per_device_week=10)
    assert rarely.scorer.threshold > often.scorer.threshold
    assert rarely.facts["alerts_verified"] is False
    assert rarely.facts["lowest_verified_alerts"] > 10


@pytest.mark.parametrize("how", ["constant", "duplicated"])
def test_a_constant_or_duplicated_channel_breaks_nothing(how):
    device, ts, values = plant()
    values[:, 3] = 7.0 if how == "constant" else values[:, 2]
    ready = prepare(CONTRACT, ["a", "b", "c"], device, ts, values)
    made = calibrate(fit_baseline("var", ready.windows(FIT), CONTRACT), ready)
    assert made.facts["held_out_share"] < 0.03


def test_five_percent_missing_rows_keep_the_nominal_rate():
    device, ts, values = plant()
    values[np.random.default_rng(3).random(values.shape) < 0.05] = np.nan
    ready = prepare(CONTRACT, ["a", "b", "c"], device, ts, values)
    assert calibrate(fit_baseline("var", ready.windows(FIT), CONTRACT), ready).facts["held_out_share"] < 0.03


def test_a_channel_that_drifts_in_its_own_normal_rows_is_taken_out_and_named():
    device, ts, values = plant(devices=1)
    values[:, 1] += np.linspace(0, 30, len(values))
    ready = prepare(CONTRACT, ["d"], device, ts, values)
    assert ready.drifted == {"d": ["b"]}
    assert np.isnan(ready.scaled[:, 1]).all()


def test_at_most_half_of_the_channels_are_taken_out():
    noise = np.random.default_rng(0).normal(0, 1e-3, (400, 4))
    values = np.linspace(0, 1, 400)[:, None] * np.array([1.0, 2, 3, 4]) + noise
    ready = prepare(CONTRACT, ["d"], np.zeros(400, dtype=int), np.arange(400) * 1000, values)
    assert len(ready.drifted["d"]) == 2


def test_in_a_fleet_a_channel_drifts_when_it_does_so_in_most_devices():
    device, ts, values = plant(devices=6, rows=600)
    values[:, 1] += np.tile(np.linspace(0, 30, 600), 6)   # in all of them
    values[:600, 2] += np.linspace(0, 30, 600)            # in one of them
    ready = prepare(CONTRACT, [f"d{i}" for i in range(6)], device, ts, values)
    assert {tuple(names) for names in ready.drifted.values()} == {("b",)}
    assert len(ready.drifted) == 6
    assert np.isnan(ready.scaling.scale[:, 1]).all()


def test_too_few_rows_are_refused():
    with pytest.raises(BadInput, match=r"too few|fewer than one window"):
        prepare(CONTRACT, ["d"], np.zeros(3, dtype=int), np.arange(3), np.zeros((3, 4)))


def test_ledoit_wolf_agrees_with_scikit_learn():
    sklearn = pytest.importorskip("sklearn.covariance", reason="scikit-learn comes with narrows[train]")
    samples = np.random.default_rng(0).normal(size=(60, 5)) @ np.random.default_rng(1).normal(size=(5, 5))
    np.testing.assert_allclose(ledoit_wolf(samples), sklearn.LedoitWolf().fit(samples).covariance_, rtol=1e-6)


def test_whitening_gives_the_mahalanobis_distance():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(4, 4))
    covariance, apart = root @ root.T + np.eye(4), rng.normal(size=4)
    expected = apart @ np.linalg.inv(covariance) @ apart
    assert ((apart @ whitening(covariance, 1e-6)) ** 2).sum() == pytest.approx(expected)


def test_a_share_that_the_rows_cannot_verify_is_extrapolated_above_the_largest_of_most():
    values = np.random.default_rng(0).exponential(size=2000)
    level, extrapolated = tail_quantile(values, 1e-5)
    assert extrapolated
    assert 8 < level < 20
    assert tail_quantile(values, 0.01) == (pytest.approx(np.quantile(values, 0.99)), False)


def with_pattern(values: np.ndarray, starts: range, channel: int, size: float) -> tuple[np.ndarray, np.ndarray]:
    """A step of `size` sd on one channel for 25 rows at each start; and which rows those are."""
    odd, rows = values.copy(), np.zeros(len(values), dtype=bool)
    for start in starts:
        odd[start : start + 25, channel] += size * values[:, channel].std()
        rows[start : start + 60] = True   # the score stays up while the filters forget
    return odd, rows


def test_a_pattern_marked_false_twenty_times_is_silent_and_another_fault_is_still_found():
    from pipeline.scoring.session import Session
    from training.calibrate import filter_rows, residual_rows

    device, ts, values = plant(rows=6000, devices=1)
    seen, alerted = with_pattern(values, range(400, 4400, 200), channel=1, size=4.0)
    ready = prepare(CONTRACT, ["d"], device, ts, seen, pardoned=alerted)
    strict = prepare(CONTRACT, ["d"], device, ts, seen, mask=alerted)
    model = fit_baseline("var", strict.windows(FIT), CONTRACT)

    def over(prepared, channel):
        scorer = calibrate(model, prepared, refuse=False).scorer
        later, where = with_pattern(values, range(4600, 5900, 200), channel, 4.0)
        laid = prepare(CONTRACT, ["d"], device, ts, later, mask=alerted)
        residuals, age = residual_rows(Session(model), laid)
        score = scorer.score(filter_rows(scorer, residuals, age), laid.index)
        return (score[where] > scorer.threshold).mean()

    assert over(strict, 1) > 0.3
    assert over(ready, 1) < 0.05
    assert over(ready, 2) > 0.3


def test_a_device_whose_only_channel_never_moves_in_training_is_scored_and_its_first_move_found(tmp_path):
    from pipeline.scoring.session import Session
    from training.calibrate import filter_rows, residual_rows

    one = Contract(channels=(Channel(name="a"),), window=8, memory=40)
    still = np.full((400, 1), -1.0)
    ready = prepare(one, ["d"], np.zeros(400, dtype=int), np.arange(400) * 1000, still)
    scorer = make_baseline_bundle(ready, tmp_path / "still").scorer
    model = (tmp_path / "still" / "model.onnx").read_bytes()
    still[300:] = -0.9
    laid = prepare(one, ["d"], np.zeros(400, dtype=int), np.arange(400) * 1000, still, mask=np.arange(400) >= 300)
    residuals, age = residual_rows(Session(model), laid)
    score = scorer.score(filter_rows(scorer, residuals, age), laid.index)
    assert (score[:300] < scorer.threshold).all()
    assert (score[305:] > scorer.threshold).all()
    assert score.max() < 1e3


def test_stretches_that_disagree_raise_the_threshold_until_the_held_out_share_is_what_was_asked_for():
    rng = np.random.default_rng(0)
    block = np.repeat(np.arange(5), 400)
    score = rng.exponential(size=2000) * np.where(block == 4, 1.3, 1.0)
    factor, held_out = lift(score, block, 0.01, 1.0)
    assert 1.0 < factor <= 1.5
    assert held_out <= 0.01
    assert lift(rng.exponential(size=2000) + 1, block, 0.05, 1.0)[0] < 1.1
