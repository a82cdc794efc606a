"""Recorded data as a stream: order, pace and times, without a broker."""

import json

import numpy as np
import pytest

from pipeline.cli.replay import Pace, _shift_ms, _step_ms, arrange, spread
from pipeline.core.contract import Channel, Contract
from pipeline.formats import Format, LongDecoder, Readings, make_decoder
from pipeline.formats.encode import encode_records, encode_rows
from pipeline.formats.files import Table

NOW = 1_700_000_000_000


def table(device: list[int], ts_s: list[int], devices: tuple[str, ...] = ("a", "b")) -> Table:
    count = len(device)
    return Table(
        devices=devices, device=np.array(device), ts_ms=NOW + np.array(ts_s) * 1000, channels=("x",),
        values=np.arange(count, dtype=np.float32)[:, None], reason=np.zeros(count, np.uint8),
    )


def test_devices_are_merged_by_time_and_a_late_row_stays_late() -> None:
    order, clock = arrange(table([0, 0, 0, 1, 1], [0, 5, 2, 1, 6]))
    assert order.tolist() == [0, 3, 1, 2, 4]
    assert (clock - NOW).tolist() == [0, 1000, 5000, 5000, 6000]


def test_copies_are_the_same_rows_begun_elsewhere() -> None:
    spun = spread(table([0, 0, 0, 0], [0, 1, 2, 3], ("a",)), 2)
    assert spun.devices == ("a-01", "a-02")
    assert spun.device.tolist() == [0] * 4 + [1] * 4
    assert spun.values[:, 0].tolist() == [0, 1, 2, 3, 2, 3, 0, 1]
    assert (spun.ts_ms - NOW).tolist() == [0, 1000, 2000, 3000] * 2


@pytest.mark.parametrize(
    ("rate", "speedup", "loops"), [(None, 1.0, 1), (None, 60.0, 1), (None, 60.0, 3), (2.0, 1.0, 1)]
)
def test_shifted_to_now_the_last_row_is_sent_at_its_own_time(
    rate: float | None, speedup: float, loops: int
) -> None:
    data = table([0, 0, 0, 0], [0, 1, 2, 3], ("a",))
    span_ms = 3000 + _step_ms(data)
    begin = 1_800_000_000.0
    shift = _shift_ms(Pace(rate=rate, speedup=speedup, times="now", loops=loops), begin, data, span_ms)
    ends_s = begin + (4 * loops / rate if rate else span_ms * loops / 1000 / speedup)
    newest_ms = int(data.ts_ms.max()) + shift + (loops - 1) * span_ms
    assert abs(newest_ms - (ends_s * 1000 - _step_ms(data))) <= 1


def test_without_a_shift_the_times_are_the_datas_own() -> None:
    assert _shift_ms(Pace(), 1e9, table([0], [0], ("a",)), 1000) == 0


def test_a_long_row_is_one_record_a_channel() -> None:
    contract = Contract(channels=(Channel(name="x"), Channel(name="y")))
    spec = Format(layout="long")
    values = np.array([[0.1, np.nan], [1.5, 2]], np.float32)
    encoded = encode_rows(spec, contract.names, ["a", "b"], np.array([NOW, NOW]), values)
    assert [len(records) for records in encoded] == [1, 2]
    assert json.loads(encoded[0][0]) == {"device": "a", "ts": NOW, "channel": "x", "value": 0.1}
    flat = [value for records in encoded for value in records]
    readings, _ = LongDecoder(contract, spec).decode(flat, None, np.full(3, NOW))
    assert readings.value.tolist() == [np.float32(0.1), 1.5, 2]
    assert readings.channel.tolist() == [0, 0, 1]


def test_an_arrow_record_gathers_rows_of_one_device_and_goes_out_with_the_last() -> None:
    spec, device = Format(encoding="arrow"), ["a", "b", "a", "a", "b"]
    values = np.arange(5, dtype=np.float32)[:, None]
    found = encode_records(spec, ("x",), device, NOW + np.array([0, 1, 5, 2, 3]), values, rows_a_record=2)
    assert [(one.last, one.rows, one.ts_ms - NOW) for one in found] == [(2, 2, 5), (3, 1, 2), (4, 2, 3)]
    decoder = make_decoder(Contract(channels=(Channel(name="x"),)), spec)
    readings, _ = decoder.decode([one.values[0] for one in found], None, np.full(3, NOW))
    assert isinstance(readings, Readings)
    assert readings.device == ["a", "a", "a", "b", "b"]
    assert readings.values[:, 0].tolist() == [0, 2, 3, 1, 4]
