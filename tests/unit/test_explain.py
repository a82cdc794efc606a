"""The nearest normal example of an alert: the device's own, scored before it, normal by its score."""

from types import SimpleNamespace

import numpy as np

from pipeline.cli.explain import nearest_normal
from pipeline.core.contract import Channel, Contract
from pipeline.core.scaling import Scaling

CONTRACT = Contract(channels=(Channel(name="a"), Channel(name="b")))
SCALING = Scaling((), np.zeros((1, 2)), np.array([[1.0, 10.0]]))


def found(observed, score, trigger=100, device="p"):
    """The nearest row of four to an alert at 10, 100; rows 0, 1 and 3 are of the alert's device."""
    rows = SimpleNamespace(names=["p", "q"], is_late=lambda slot: False)
    line = SimpleNamespace(contract=CONTRACT, stream=SimpleNamespace(rows=rows))
    offset = np.arange(4)
    scored = SimpleNamespace(
        observed=np.array(observed, np.float32), score=np.array(score), threshold=1.0, slot=np.array([0, 0, 1, 0]),
        trigger=offset, offset=offset, ts_ms=offset * 1000, verdict=SimpleNamespace(is_anomaly=np.zeros(4, bool)),
    )
    alert = SimpleNamespace(device=device, lane="main", trigger=trigger, observed={"a": 10.0, "b": 100.0})
    return nearest_normal(line, [SimpleNamespace(scored=[scored])], alert, SCALING)


def test_it_is_the_devices_own_row_that_lies_nearest_in_its_scale():
    told = found([[0, 100], [9, 0], [10, 100], [9, 70]], [0.1] * 4)
    assert told == {"ts": 3000, "offset": 3, "values": {"a": 9.0, "b": 70.0}}


def test_rows_that_score_high_or_come_after_the_alert_are_no_example():
    rows = [[0, 100], [9, 0], [10, 100], [9, 70]]
    assert found(rows, [0.1, 0.1, 0.1, 0.6])["offset"] == 0
    assert found(rows, [0.9, 0.1, 0.1, 0.1], trigger=2)["offset"] == 1
    assert found(rows, [0.9] * 4) is None
    assert found(rows, [0.1] * 4, device="r") is None


def test_a_missing_value_is_told_as_missing_and_counts_as_one_deviation():
    told = found([[np.nan, 100], [8, 100], [10, 100], [5, 70]], [0.1] * 4)
    assert told["values"] == {"a": None, "b": 100.0}
