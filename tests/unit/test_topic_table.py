"""Rows out of a topic for training: the same as the worker's, whatever the layout; alerted and late rows left out."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

import training.masks
import training.topic
from pipeline.core.contract import Channel, Contract
from pipeline.errors import BadInput
from pipeline.formats import Format
from pipeline.topics.reader import Record
from training.duel import FAULT_ROWS, cut, plant
from training.masks import episodes
from training.spool import Spool, spool
from training.topic import main_lane, read_blocks, read_table

CONTRACT = Contract(channels=(Channel(name="a"), Channel(name="b")), window=4, memory=8)
STEPS = 40


@pytest.fixture
def log(monkeypatch) -> dict[int, list[Record]]:
    """Partition -> records, instead of a broker's."""
    records: dict[int, list[Record]] = {}

    def read_range(settings, topic, partition, start, end):
        return (record for record in records[partition] if start <= record.offset < end)

    for module in (training.topic, training.masks):
        monkeypatch.setattr(module, "read_range", read_range)
    return records


def record(offset: int, body: object, ts_ms: int = 0) -> Record:
    return Record(offset, ts_ms, None, body if isinstance(body, bytes) else msgspec.json.encode(body), ())


def wide(device: str, step: int) -> dict:
    return {"device": device, "ts": 1000 * step, "values": {"a": float(step), "b": step / 2}}


def long(device: str, step: int, channel: str, value: float) -> dict:
    return {"device": device, "ts": 1000 * step, "channel": channel, "value": value}


def test_wide_and_long_readings_give_the_same_rows(log):
    log[0] = [record(step, wide("one", step), 1000 * step) for step in range(STEPS)]
    table = read_table("", "t", {0: (0, STEPS)}, CONTRACT, Format())
    log[0] = [
        record(2 * step + place, long("one", step, channel, value), 1000 * step)
        for step in range(STEPS) for place, (channel, value) in enumerate(wide("one", step)["values"].items())
    ]
    joined = read_table("", "t", {0: (0, 2 * STEPS)}, CONTRACT, Format(layout="long"))
    np.testing.assert_array_equal(joined.values, table.values)
    np.testing.assert_array_equal(joined.ts_ms, table.ts_ms)
    assert joined.devices == table.devices == ("one",)


def test_only_the_ranges_are_read_and_bad_records_are_left_out(log):
    log[0] = [record(step, b"{" if step == 5 else wide("one", step)) for step in range(STEPS)]
    log[1] = [record(step, wide("two", step)) for step in range(STEPS)]
    table = read_table("", "t", {0: (3, 10), 1: (0, 2)}, CONTRACT, Format())
    assert table.values[:, 0].tolist() == [3, 4, 6, 7, 8, 9, 0, 1]
    assert [table.devices[place] for place in table.device] == ["one"] * 6 + ["two"] * 2


def test_devices_of_other_streams_are_left_out(log):
    log[0] = [record(step, wide(("one", "two")[step % 2], step)) for step in range(STEPS)]
    table = read_table("", "t", {0: (0, STEPS)}, CONTRACT, Format(), matches=lambda name: name == "two")
    assert len(table) == STEPS // 2
    with pytest.raises(BadInput, match="format and match"):
        read_table("", "t", {0: (0, STEPS)}, CONTRACT, Format(), matches=lambda name: False)


def test_a_topic_without_a_readable_record_is_bad_input(log):
    log[0] = [record(0, b"{")]
    with pytest.raises(BadInput, match="format"):
        read_table("", "t", {0: (0, 1)}, CONTRACT, Format())


def test_rows_that_come_late_are_left_out(log):
    log[0] = [record(place, wide("one", step)) for place, step in enumerate((1, 2, 5, 3, 5, 6, 4))]
    table = main_lane(read_table("", "t", {0: (0, 7)}, CONTRACT, Format()))
    assert (table.ts_ms // 1000).tolist() == [1, 2, 5, 6]


def laid_from(log: dict[int, list[Record]], folder: Path, steps: int, devices: tuple[str, ...]) -> Spool:
    log[0] = [record(step, wide(devices[step % len(devices)], step)) for step in range(steps)]
    return spool(read_blocks("", "t", {0: (0, steps)}, CONTRACT, Format()), folder)


def test_a_mask_covers_its_device_and_time_alone(log, tmp_path):
    with laid_from(log, tmp_path / "s", STEPS, ("one", "two")) as laid:
        inside = laid.inside([("one", 10_000, 14_000), ("three", 0, 99_000)], "mask") > 0
        assert (laid.ts_ms[inside] // 1000).tolist() == [10, 12, 14]
        assert laid.count(inside) == 3


def test_an_episode_masks_from_its_start_to_its_close_or_to_the_end(log, tmp_path):
    with laid_from(log, tmp_path / "s", STEPS, ("one",)) as laid:
        event = {"stream": "pump", "device": "one", "episode_id": "e", "state": "opened", "window_start": 5_000}
        log[0] = [
            record(0, {**event, "window_end": 5_000}), record(1, {**event, "state": "closed", "window_end": 7_000}),
            record(2, {**event, "stream": "fan", "episode_id": "f", "window_end": 20_000}), record(3, b"not ours"),
            record(4, {**event, "episode_id": "g", "window_start": 38_000, "window_end": 38_000}),
        ]
        spans = episodes("", "narrows.anomalies", {0: (0, 5)}, "pump")
        inside = laid.inside(spans.values(), "mask") > 0
        assert (laid.ts_ms[inside] // 1000).tolist() == [5, 6, 7, 38, 39]


def test_the_newest_rows_of_each_device_are_judged_and_never_learned(log, tmp_path):
    with laid_from(log, tmp_path / "s", 200, ("one", "two")) as laid:
        earlier, places, lead = cut(laid, CONTRACT, 1000, share=0.2)
        judge = laid.take(places)
        assert len(earlier) == 160
        assert lead.sum() == 2 * CONTRACT.memory
        for device in range(2):
            judged = judge.ts_ms[(judge.device == device) & ~lead]
            assert len(judged) == 20
            assert judged.min() > laid.ts_ms[earlier.stops[device] - 1]


def test_where_few_rows_fit_the_newest_are_judged_and_as_many_learned_as_before(log, tmp_path):
    with laid_from(log, tmp_path / "s", 200, ("one", "two")) as laid:
        earlier, places, lead = cut(laid, CONTRACT, 20, share=0.2)
        assert len(earlier) == 160
        assert (laid.ts_ms[places[~lead]] // 1000).tolist() == [*range(180, 200, 2), *range(181, 200, 2)]


def test_rows_that_are_judged_are_in_no_sample_of_those_to_learn_from(log, tmp_path):
    with laid_from(log, tmp_path / "s", 2000, ("one", "two")) as laid:
        earlier, _, _ = cut(laid, CONTRACT, 400)
        masked = earlier.inside([("one", 0, 50_000)], "masked")
        earlier.cut(CONTRACT, (masked,))
        table, prepared = earlier.prepare(CONTRACT, 400, earlier.inside([("one", 0, 20_000)], "pardoned"))
        assert 200 < len(table) < 800
        assert table.ts_ms.max() < 1_600_000
        assert earlier.count_masked() == 26
        assert prepared.pardoned is not None
        assert prepared.pardoned.sum() == 11
        assert len(earlier.learn(prepared, 0.2)[0]) > 600


def test_planted_faults_lie_on_judged_rows_alone_and_apart():
    judged = np.arange(400) >= 100
    values = np.zeros((400, 2), np.float32)
    planted, fault = plant(values, np.zeros(400, np.int64), judged, CONTRACT, np.ones(2))
    assert (fault[:100] == -1).all()
    assert np.array_equal((planted != 0).any(axis=1), fault >= 0)
    assert (np.bincount(fault[fault >= 0]) == FAULT_ROWS).all()
    assert ((planted != 0).sum(axis=1) <= 1).all()
    assert not values.any()
