"""When a stream asks for a new model."""

from pipeline.config import Retrain
from pipeline.retraining.triggers import TRIGGERS, Counters, due

RULE = Retrain(after_rows=5_000, after_s=3_600.0, min_rows=1_000, cooldown_s=60.0)


def counters(rows: int = 1_000, age_s: int = 0, asked_ms: int | None = None) -> Counters:
    return Counters(rows=rows, data_end_ms=0, stream_time_ms=age_s * 1000, asked_ms=asked_ms)


def test_neither_volume_nor_age_asks_below_its_limit():
    assert due(RULE, counters(rows=4_999, age_s=3_599), now_ms=0) is None


def test_volume_asks_at_its_limit_and_says_so():
    assert due(RULE, counters(rows=5_000), now_ms=0) == "volume: 5000 rows since the champion's data ended, limit 5000"


def test_age_is_counted_in_the_streams_own_time():
    assert due(RULE, counters(age_s=3_600), now_ms=0) == "age: the champion's data ended 3600 s ago, limit 3600 s"


def test_nothing_asks_with_fewer_rows_than_a_training_run_takes():
    assert due(RULE, counters(rows=999, age_s=9_999), now_ms=0) is None


def test_nothing_asks_twice_within_the_cooldown():
    assert due(RULE, counters(rows=5_000, asked_ms=1_000), now_ms=60_999) is None
    assert due(RULE, counters(rows=5_000, asked_ms=1_000), now_ms=61_000) is not None


def test_a_stream_without_limits_never_asks():
    assert due(Retrain(), counters(rows=10**9, age_s=10**9), now_ms=0) is None


def test_a_stream_without_a_record_has_no_age():
    assert due(RULE, Counters(rows=1_000, data_end_ms=0), now_ms=0) is None


def test_a_drift_detector_plugs_in_beside_the_others():
    def drift(rule: object, counters: Counters) -> str:
        return "drift: seen"

    assert due(RULE, counters(), now_ms=0, triggers=(*TRIGGERS, drift)) == "drift: seen"
