"""The verdict machine: the same rows give the same verdicts, however they are cut and whenever it is put to sleep."""

import itertools
import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.contract import EpisodeRule
from pipeline.core.episode import Verdicts

RULE = EpisodeRule(rows_on=3, rows_off=4, merge_ms=5_000, refractory_rows=6)
SLOTS = 3
levels = st.sampled_from([0.1, 0.5, 0.9, 1.1, 1.4, 2.5, 5.0, 9.0, float("nan")])
waits, shifts = st.sampled_from([1000, 1000, 9000]), st.sampled_from([0.0, 0.0, 2.0])
mutes = st.sampled_from([False, False, False, True])
row = st.tuples(st.integers(0, SLOTS - 1), levels, shifts, waits, mutes)
REACH = 5


def lay_out(rows):
    """Rows in log order: slot, offset, ts, score, shift, in maintenance."""
    clock = [0] * SLOTS
    out = []
    for offset, (slot, score, shift, wait, muted) in enumerate(rows):
        clock[slot] += wait
        out.append((slot, offset, clock[slot], score, shift, muted))
    return out


def push(verdicts, part):
    """One batch; what it told about each offset, and its events without the place in the batch."""
    ordered = sorted(part, key=lambda one: one[0])   # stable: grouped by slot, ordered within
    slot, offset, ts, score, shift, muted = (np.array(column) for column in zip(*ordered, strict=True))
    verdict = verdicts.push(slot, offset, ts, score.astype(np.float32), 1.0, shift.astype(np.float32), 1.0, muted)
    told = {
        int(place): (
            bool(verdict.is_anomaly[i]), int(verdict.episode_offset[i]), bool(verdict.is_change[i]),
            bool(verdict.is_muted[i]),
        )
        for i, place in enumerate(offset)
    }
    for is_anomaly, _, is_change, is_muted in told.values():
        assert not (is_muted and (is_anomaly or is_change))
    events = [
        (e.kind, e.slot, e.trigger, e.start_offset, e.start_ts, e.end_ts, e.peak, e.peak_offset, e.score, e.severity)
        for e in verdict.events
    ]
    for event in verdict.events:
        assert offset[event.row] == event.trigger
    return told, events


@given(rows=st.lists(row, min_size=1, max_size=120), cuts=st.sets(st.integers(1, 119)), naps=st.booleans())
@settings(max_examples=200, deadline=None)
def test_batches_and_restarts_change_no_verdict_event_or_state(rows, cuts, naps):
    rows = lay_out(rows)
    whole = Verdicts(RULE, SLOTS, REACH)
    told, events = push(whole, rows)

    pieces, part_told, part_events = Verdicts(RULE, SLOTS, REACH), {}, []
    edges = [0, *sorted(cut for cut in cuts if cut < len(rows)), len(rows)]
    for start, stop in itertools.pairwise(edges):
        some, more = push(pieces, rows[start:stop])
        part_told |= some
        part_events += more
        if naps:
            states = json.loads(json.dumps([pieces.state(slot) for slot in range(SLOTS)]))
            pieces = Verdicts(RULE, SLOTS, REACH)
            for slot, state in enumerate(states):
                pieces.restore(slot, state)
    assert part_told == told
    assert sorted(part_events) == sorted(events)
    assert [pieces.state(slot) for slot in range(SLOTS)] == [whole.state(slot) for slot in range(SLOTS)]


@given(rows=st.lists(row, min_size=1, max_size=120))
@settings(max_examples=100, deadline=None)
def test_every_episode_opens_once_and_closes_once(rows):
    verdicts = Verdicts(RULE, SLOTS, REACH)
    _, events = push(verdicts, lay_out(rows))
    for slot in range(SLOTS):
        events += [("closed", slot, -1, e.start_offset) for e in verdicts.close(slot, -1)]
    for slot in range(SLOTS):
        kinds = [(event[0], event[3]) for event in events if event[1] == slot]
        opened = [start for kind, start in kinds if kind == "opened"]
        closed = [start for kind, start in kinds if kind == "closed"]
        assert opened == closed
        assert len(set(opened)) == len(opened)
        assert verdicts.state(slot) is None


def run(scores, rule=RULE, step_ms=1000, muted=None):
    """One slot; (is_anomaly, kinds of events). muted : rows in maintenance."""
    count = len(scores)
    in_window = np.isin(np.arange(count), list(muted or ()))
    verdict = Verdicts(rule, 1, REACH).push(
        np.zeros(count, dtype=np.int64), np.arange(count), np.arange(count) * step_ms, np.array(scores, np.float32),
        1.0, muted=in_window,
    )
    return verdict.is_anomaly.tolist(), [event.kind for event in verdict.events]


def test_an_episode_opens_after_enough_rows_in_a_row_and_never_earlier():
    anomaly, kinds = run([2, 2, 0.5, 2, 2, 2, 2])
    assert anomaly == [False] * 5 + [True, True]
    assert kinds == ["opened"]


def test_rows_below_half_of_the_peak_release_it_even_above_the_threshold():
    anomaly, _ = run([5] * 5 + [2] * 6)
    assert anomaly == [False, False] + [True] * 6 + [False] * 3


def test_a_row_at_three_thresholds_is_never_a_release_however_high_the_peak_was():
    anomaly, _ = run([50] * 5 + [3.1] * 30)
    assert all(anomaly[2:])


def test_the_level_left_behind_must_be_passed_to_open_again():
    anomaly, _ = run([5] * 5 + [2] * 20)
    assert not any(anomaly[8:])
    anomaly, _ = run([5] * 5 + [2] * 6 + [2.7] * 3)
    assert anomaly[-1]


def test_a_return_within_the_merge_time_is_the_same_episode():
    _, kinds = run([1.5] * 4 + [0.1] * 7 + [1.5] * 4)
    assert kinds == ["opened"]
    _, kinds = run([1.5] * 4 + [0.1] * 12 + [1.5] * 4)
    assert kinds == ["opened", "closed", "opened"]


def test_updates_come_with_a_higher_severity_only():
    _, kinds = run([1.5] * 5 + [1.6] * 5 + [2.5] * 5 + [9] * 3)
    assert kinds == ["opened", "updated", "updated"]


def test_an_unscored_row_gets_no_verdict_and_breaks_no_run():
    anomaly, kinds = run([2, 2, float("nan"), 2])
    assert anomaly == [False, False, False, True]
    assert kinds == ["opened"]


def test_a_change_point_is_announced_once_in_the_refractory_time():
    count = 20
    verdict = Verdicts(RULE, 1).push(
        np.zeros(count, dtype=np.int64), np.arange(count), np.arange(count) * 1000, np.zeros(count, np.float32), 1.0,
        np.full(count, 3.0, np.float32), 1.0,
    )
    assert np.flatnonzero(verdict.is_change).tolist() == [0, 7, 14]


def test_maintenance_ends_what_is_open_and_opens_nothing():
    anomaly, kinds = run([2] * 20, muted=range(8, 20))
    assert anomaly == [False, False] + [True] * 6 + [False] * 12
    assert kinds == ["opened", "closed"]


def test_what_maintenance_left_in_the_scores_raises_nothing_and_what_goes_on_after_it_does():
    quiet, _ = run([2] * 10 + [2] * (REACH - 1) + [0.5] * 5, muted=range(10))
    assert not any(quiet), "rows whose score still stands on rows in the window"
    anomaly, kinds = run([2] * 10 + [2] * 12, muted=range(10))
    assert np.flatnonzero(anomaly).tolist() == list(range(10 + REACH - 1 + RULE.rows_on - 1, 22))
    assert kinds == ["opened"]
    anomaly, _ = run([2] * 10 + [0.5] + [2] * 12, muted=range(10))
    assert np.flatnonzero(anomaly)[0] == 10 + RULE.rows_on, "a row below the threshold: the device is as before"


def test_changed_slots_are_told_until_settled():
    verdicts = Verdicts(RULE, 4)
    verdicts.push(np.array([2]), np.array([7]), np.array([0]), np.array([5.0], np.float32), 1.0)
    assert verdicts.changed() == [2]
    verdicts.settled()
    assert verdicts.changed() == []
    verdicts.grow(9)
    assert verdicts.state(2) is not None
    assert verdicts.state(8) is None
