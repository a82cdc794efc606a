"""Guards: what a sensor does that no machine does; and a labelled suite of all kinds through the stream."""

import numpy as np
import pytest

from bench import detection_kinds as kinds
from pipeline.cli.backtest import run_backtest
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
from pipeline.core.rows import Clock, Columns
from pipeline.formats.files import Table
from pipeline.scoring.gate import open_session
from pipeline.scoring.stream import Model, Stream

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
    assert is_fleet_wide(np.array([0, 10, 20, 30]), 30, devices=8, within_ms=60)
    assert not is_fleet_wide(np.array([0, 10, 20]), 20, devices=8, within_ms=60)
    assert not is_fleet_wide(np.array([0, 1000, 2000, 3000]), 3000, devices=8, within_ms=60)
    assert not is_fleet_wide(np.array([0, 1]), 1, devices=2, within_ms=60)


# ------------------------------------------------------------------------------------------------- the labelled suite


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return kinds.make_suite_bundle(tmp_path_factory.mktemp("suite") / "bundle")


@pytest.mark.parametrize("kind", kinds.CASES)
def test_the_stream_tells_each_kind_apart(bundle, kind):
    table, faulty = kinds.suite_table(kind)
    told = kinds.told_kinds(bundle, table)
    if kind == "none":
        assert not told
    else:
        assert sum(told.get(name) == kinds.CASES[kind] for name in faulty) >= 7 / 8 * len(faulty), told
        assert told.keys() <= set(faulty)


def onset(rows: slice) -> Table:
    """The fleet's shift, the rows about its onset alone."""
    table, _ = kinds.suite_table("fleet")
    row = table.ts_ms // 1000
    return table.take((row >= rows.start) & (row < rows.stop))


def test_no_batch_changes_what_an_episode_is_told_as(bundle):
    told = [
        [(name, one.event.kind, one.event.trigger, one.kind) for name, _, one in run_backtest(bundle, table, size)[1]]
        for table in [onset(slice(672, 720))] for size in (1, 7, 5000)
    ]
    assert told[0] == told[1] == told[2]
    assert {"machine", "fleet"} <= {kind for *_, kind in told[0]}


def test_a_stream_begun_again_at_any_alert_tells_the_rest_as_the_same(bundle):
    table = onset(slice(672, 720))
    model = Model(bundle.digest, open_session(bundle), bundle.scaling, bundle.scorer, None)
    names = [table.devices[place] for place in table.device.tolist()]
    offset = np.arange(len(table))

    def run(stream, rows):
        part = offset[rows]
        slots = stream.slots(0, names[rows])
        time = table.ts_ms[rows]
        found = stream.push(
            Columns(slots, time, part, part, time, part, time, table.values[rows]), [Clock(0, part, time)]
        ).alarms
        return [(stream.rows.names[one.event.slot], one.event.kind, one.event.trigger, one.kind) for one in found]

    def start(emit_from, states):
        stream = Stream(bundle.contract)
        stream.assign(0, model, emit_from, -1, states)
        return stream

    whole = sorted(run(start(0, {}), slice(None)), key=lambda one: one[2])
    for cut in sorted({trigger for *_, trigger, _ in whole})[::3]:
        before = start(0, {})
        run(before, slice(0, cut))
        states = {(before.rows.names[slot], False): before.verdicts.state(slot) for slot in before.verdicts.changed()}
        again = start(cut, {name: state for name, state in states.items() if state is not None})
        rest = sorted(run(again, slice(None)), key=lambda one: one[2])
        assert rest == [one for one in whole if one[2] >= cut]
