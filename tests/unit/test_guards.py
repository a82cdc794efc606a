"""Guards: what a sensor does that no machine does; and a labelled suite of all kinds through the stream."""

from collections import Counter

import numpy as np
import pytest

from pipeline.cli.backtest import run_backtest
from pipeline.core.contract import Channel, Contract, EpisodeRule
from pipeline.core.guards import (
    DROPOUT,
    NEVER,
    OK,
    OUT_OF_RANGE,
    STUCK,
    check,
    fire,
    is_fleet_wide,
    kind_of,
    learn_limits,
)
from pipeline.formats.files import Table
from training.make_baseline import make_baseline_bundle
from training.prepare import prepare

LOW, HIGH = np.array([-np.inf, 0.0]), np.array([np.inf, 10.0])
LIMITS = np.array([[3, NEVER], [2, 2]])


def codes(scaled, newest, used=(True, True)):
    windows = np.array(scaled, dtype=np.float32)[None]   # (1,T,S)
    newest = np.array(newest, dtype=np.float32)[None]
    return check(windows, newest, np.array([used]), LOW, HIGH, LIMITS)[0].tolist()


def test_a_channel_that_stands_still_for_its_limit_is_stuck_and_one_row_less_is_not():
    assert codes([[0, 1], [1, 1], [1, 1], [1, 1]], [5, 5]) == [STUCK, OK]
    assert codes([[0, 1], [0, 1], [1, 1], [1, 1]], [5, 5]) == [OK, OK]


def test_a_clipped_channel_is_not_called_stuck():
    assert codes([[10, 1]] * 4, [5, 5]) == [OK, OK]


def test_a_channel_missing_for_its_limit_has_dropped_out():
    nan = np.nan
    assert codes([[0, 1], [1, 1], [nan, 1], [nan, 1]], [nan, 5]) == [DROPOUT, OK]
    assert codes([[0, 1], [1, 1], [1.5, 1], [nan, 1]], [nan, 5]) == [OK, OK]


def test_a_channel_taken_out_for_a_device_is_neither_missing_nor_stuck():
    nan = np.nan
    assert codes([[nan, 1], [nan, 1], [nan, 1], [nan, 1]], [5, 5], used=(False, True)) == [OK, OK]


def test_a_channel_that_was_taken_out_has_not_dropped_out():
    nan = np.nan
    assert codes([[nan, 1]] * 4, [5, 5]) == [OK, OK]


def test_a_value_outside_of_the_contracts_range_is_told_in_its_own_unit():
    assert codes([[0, 1], [1, 2], [2, 3], [3, 4]], [99, 10.5]) == [OK, OUT_OF_RANGE]


def test_limits_are_twice_the_longest_that_normal_rows_show():
    values = np.array([[1, 1.0]] * 6 + [[2, 1], [3, 1], [np.nan, 1], [np.nan, 1], [4, 1]])
    limits = learn_limits(values, np.arange(1, 12), longest=32)
    assert limits.tolist() == [[12, NEVER], [8, 8]]


def test_a_limit_that_the_window_cannot_see_is_never():
    values = np.repeat(np.arange(5.0), 20)[:, None]
    assert learn_limits(values, np.arange(1, 101), longest=32)[0, 0] == NEVER


def test_rows_of_two_runs_never_make_one_stretch():
    values = np.ones((10, 1))
    values[::5] = 0
    run = np.tile(np.arange(1, 6), 2)
    assert learn_limits(values, run, longest=32)[0, 0] == 8


def test_a_guard_that_fires_lifts_the_score_that_the_verdict_sees_and_no_unscored_row():
    score = np.array([0.1, 0.1, np.nan, 9], dtype=np.float32)
    fired = np.array([[0], [STUCK], [STUCK], [STUCK]])
    np.testing.assert_array_equal(fire(score, fired, 1.5), np.array([0.1, 3.0, np.nan, 9], dtype=np.float32))


def test_the_faulty_channel_that_contributes_most_names_the_kind():
    assert kind_of(np.array([STUCK, DROPOUT, OK]), np.array([1.0, 2.0, 9.0])) == "dropout"
    assert kind_of(np.zeros(3, dtype=int), np.ones(3)) == "machine"


def test_half_of_the_fleet_at_once_is_the_fleet_and_a_few_or_a_slow_trickle_is_not():
    assert is_fleet_wide(np.array([0, 10, 20, 30]), devices=8, within_ms=60)
    assert not is_fleet_wide(np.array([0, 10, 20]), devices=8, within_ms=60)
    assert not is_fleet_wide(np.array([0, 1000, 2000, 3000]), devices=8, within_ms=60)
    assert not is_fleet_wide(np.array([0, 1]), devices=2, within_ms=60)


# ------------------------------------------------------------------------------------------------- the labelled suite

CONTRACT = Contract(
    channels=tuple(Channel(name=f"c{i}", low=-40.0, high=40.0) for i in range(4)), window=24, memory=100,
    episode=EpisodeRule(rows_on=4),
)
ROWS, AT = 900, 700
FAULTS = ("machine", "stuck", "out of range", "dropout", "none")


def normal(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(0).normal(size=(4, 4)) * 0.4
    state = np.zeros((ROWS, 4))
    for row in range(1, ROWS):
        state[row] = 0.7 * state[row - 1] + mix @ rng.normal(size=4)
    return state


def broken(kind: str, seed: int) -> np.ndarray:
    rows = normal(seed)
    channel = seed % 4
    if kind == "machine":
        rows[AT:, channel] += 4 * rows[:AT, channel].std()
    elif kind == "stuck":
        rows[AT:, channel] = rows[AT, channel]
    elif kind == "out of range":
        rows[AT:, channel] += 80
    elif kind == "dropout":
        rows[AT:, channel] = np.nan
    return rows


@pytest.fixture(scope="module")
def confusion(tmp_path_factory) -> Counter:
    """How often a fault (row) was told as a kind (column), 8 devices each."""
    learned = [normal(1000 + i)[:600] for i in range(6)]
    device, ts = np.repeat(np.arange(6), 600), np.tile(np.arange(600) * 1000, 6)
    ready = prepare(CONTRACT, [f"n{i}" for i in range(6)], device, ts, np.vstack(learned))
    bundle = make_baseline_bundle(ready, tmp_path_factory.mktemp("suite") / "bundle", refuse=False)
    found: Counter = Counter()
    for kind in FAULTS:
        names = tuple(f"{kind}{i}" for i in range(8))
        values = np.vstack([broken(kind, i) for i in range(8)]).astype(np.float32)
        table = Table(names, np.repeat(np.arange(8), ROWS), np.tile(np.arange(ROWS) * 1000, 8),
                      tuple(CONTRACT.names), values, reason=np.zeros(8 * ROWS, np.uint8))
        _, alarms = run_backtest(bundle, table, 5000)
        first: dict[str, str] = {}
        for name, _, alarm in alarms:
            if alarm.event.kind == "opened" and alarm.ts_ms >= AT * 1000:
                first.setdefault(name, alarm.kind)
        found.update((kind, first.get(name, "none")) for name in names)
    return found


@pytest.mark.parametrize("kind", FAULTS)
def test_the_stream_tells_each_kind_apart(confusion, kind):
    assert confusion[kind, kind] >= 7, dict(confusion)
