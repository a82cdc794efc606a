"""What `narrows evaluate` measures: events and ranges device by device, alert rates, delays, baselines beside them."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.core.contract import Channel, Contract
from pipeline.core.episode import EpisodeEvent
from training.evaluate import WEEK_MS, Scored, measure
from training.prepare import prepare

CONTRACT = Contract(channels=(Channel(name="a"),), window=8, memory=40)
ROWS = 200


@pytest.fixture
def scored() -> Scored:
    """Two devices; one alert at the end of the first, where nothing is, and one three rows late in the other."""
    device, ts_ms = np.repeat([0, 1], ROWS), np.tile(np.arange(ROWS) * 1000, 2)
    values = np.random.default_rng(0).normal(size=(2 * ROWS, 1))
    prepared = prepare(CONTRACT, ["p", "q"], device, ts_ms, values)
    called = np.zeros(2 * ROWS, bool)
    called[[ROWS - 2, ROWS - 1]] = True
    called[ROWS + 53 : ROWS + 60] = True
    opened = [EpisodeEvent("opened", slot, 0, 0, 0, 0, 0, 1.0, 0, 1.0, "low") for slot in (0, 1)]
    return Scored(prepared, np.arange(2 * ROWS), called.astype(np.float32) + 0.1, np.zeros((2 * ROWS, 1)),
                  np.zeros((2 * ROWS, 1)), called, opened, 0.5)


def test_an_alert_at_a_devices_last_rows_touches_no_event_of_the_next_device(scored: Scored) -> None:
    label = np.zeros(2 * ROWS, np.float32)
    label[ROWS : ROWS + 10] = label[ROWS + 50 : ROWS + 60] = 1
    figures = measure(scored, label)
    assert figures["false_alerts"] == 1
    assert figures["events_found_share"] == 0.5
    assert figures["event_f1"] == pytest.approx(2 / (2 + 1 + 1))
    assert figures["median_delay_s"] == 3.0
    normal_weeks = (2 * ROWS - 20) * 1000 / WEEK_MS
    assert figures["false_alerts_per_normal_device_week"] == pytest.approx(1 / normal_weeks)
    assert figures["alerts_per_device_week"] == pytest.approx(2 / (2 * ROWS * 1000 / WEEK_MS))


def test_all_figures_that_are_asked_for_are_there_and_none_is_point_adjusted(scored: Scored) -> None:
    label = np.zeros(2 * ROWS, np.float32)
    label[ROWS + 50 : ROWS + 60] = 1
    figures = measure(scored, label)
    assert {"vus_pr", "event_f1", "range_f1", "far_percent", "mar_percent", "alerts_per_device_week", "median_delay_s",
            "always_alarm_f1", "zscore_vus_pr"} <= figures.keys()
    assert not [name for name in figures if "adjust" in name]
    blind = measure(replace(scored, score=np.random.default_rng(1).random(2 * ROWS).astype(np.float32)), label)
    assert figures["vus_pr"] > 0.5 > blind["vus_pr"]


def test_without_an_anomalous_row_rates_are_told_and_nothing_that_needs_one(scored: Scored) -> None:
    figures = measure(scored, np.zeros(2 * ROWS, np.float32))
    assert figures["far_percent"] == pytest.approx(100 * 9 / (2 * ROWS))
    assert "vus_pr" not in figures
