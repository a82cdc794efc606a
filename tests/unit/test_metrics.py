"""Measures on cases worked out by hand."""

import numpy as np
import pytest

from training.metrics import (
    average_precision,
    change_points,
    count_events,
    count_rows,
    range_f1,
    ranges,
    vus_pr,
)


def test_row_counts_give_f1_far_and_mar():
    counts = count_rows(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 0]))
    assert (counts.f1, counts.far, counts.mar) == (0.5, 50, 50)


def test_always_alarm_misses_nothing_and_alarms_falsely_always():
    counts = count_rows(np.array([0, 1, 0]), np.ones(3))
    assert (counts.far, counts.mar) == (100, 0)


def test_ranges_merge_over_small_gaps_only():
    assert ranges(np.array([1, 1, 0, 1, 0, 0, 1])) == [(0, 1), (3, 3), (6, 6)]
    assert ranges(np.array([1, 1, 0, 1, 0, 0, 1]), merge=1) == [(0, 3), (6, 6)]


def test_an_event_is_found_by_touch_and_an_alert_elsewhere_is_false():
    label = np.array([0, 1, 1, 1, 0, 0, 0, 0, 1])
    called = np.array([0, 0, 1, 0, 0, 1, 0, 0, 0])
    counts = count_events(label, called)
    assert (counts.found, counts.missed, counts.false, counts.delays) == (1, 1, 1, (1,))


def test_range_f1_pays_for_pieces():
    label = np.array([0, 1, 1, 1, 1, 0])
    assert range_f1(label, label) == 1
    assert range_f1(label, np.array([0, 1, 0, 1, 0, 0])) < range_f1(label, np.array([0, 1, 1, 0, 0, 0]))


def test_average_precision_of_a_perfect_and_of_a_constant_score():
    label = np.array([0, 0, 1, 1])
    assert average_precision(label, label) == 1
    assert average_precision(label, np.zeros(4)) == 0.5


def test_vus_pr_is_one_for_the_label_itself_without_a_buffer_and_low_for_noise():
    label = np.zeros(600, dtype=int)
    label[200:260] = 1
    assert vus_pr(label, label + 0.0, 0) == pytest.approx(1.0)
    assert vus_pr(label, np.random.default_rng(0).random(600), 30) < 0.3


def test_vus_pr_agrees_with_the_published_code_on_recorded_cases():
    """Figures of TSB-AD's RangeAUC_volume_opt for these very arrays."""
    rng = np.random.default_rng(0)
    found = []
    for case in range(4):
        label = np.zeros(700, dtype=int)
        for first, stop in [(0, 10), (100, 160), (170, 180), (400, 520), (690, 700)][case % 3 :]:
            label[first:stop] = 1
        score = np.round(rng.random(700) + label * 0.5, 2 if case % 2 else 6)
        found.append(vus_pr(label, score, 30))
    assert found == pytest.approx([0.8615893170624963, 0.8273364675840101, 0.6771891339161142, 0.8071105114807053])


def test_each_change_point_is_matched_once_and_only_from_behind():
    counts = change_points(np.array([5, 12, 13, 90]), np.array([10, 50]), within=10)
    assert (counts.found, counts.missed, counts.false, counts.delays) == (1, 1, 3, (2,))
