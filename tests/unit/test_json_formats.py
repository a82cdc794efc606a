"""JSON records to columns: what each bad record is called, and that its neighbours never notice."""

import json
import math
from datetime import UTC, datetime

import numpy as np
import pytest

from pipeline.core.contract import Channel, Contract
from pipeline.errors import BadInput
from pipeline.formats import Format, LongDecoder, Readings, Reason, Rejects, WideDecoder
from pipeline.formats.readings import LAST_MS
from pipeline.formats.records import LEARNED

NOW = 1_700_000_000_000
CONTRACT = Contract(
    channels=(Channel(name="flow"), Channel(name="heat °C"), Channel(name="set", role="context")), max_ahead_ms=60_000
)
TREE = {"device": "pump-7", "ts": NOW, "values": {"flow": 1.5, "heat °C": 2, "set": -3.25}}
GOOD = json.dumps(TREE).encode()


def wide(
    values: list[bytes | None], keys: list[bytes | None] | None = None, **spec: object
) -> tuple[Readings, Rejects]:
    decoder = WideDecoder(CONTRACT, Format(**spec))  # type: ignore[arg-type]
    return decoder.decode(values, keys, np.full(len(values), NOW))


def record(**changes: object) -> bytes:
    return json.dumps(TREE | changes).encode()


BAD: list[tuple[bytes | None, Reason]] = [
    (None, Reason.TOMBSTONE),
    (b"", Reason.BAD_JSON),
    (b'{"device":"pump-7","ts":17', Reason.BAD_JSON),
    (GOOD + b"x", Reason.BAD_JSON),
    (b"\xff\xfe", Reason.BAD_UTF8),
    (GOOD.replace(b"pump", b"pu\xffp"), Reason.BAD_UTF8),
    (b"[" * 100_000, Reason.TOO_DEEP),
    (b'{"more":' + b"[" * 100_000 + b"]" * 100_000 + b"}", Reason.TOO_DEEP),
    (GOOD.replace(b"1.5", b"Infinity"), Reason.NOT_FINITE),
    (GOOD.replace(b"1.5", b"NaN"), Reason.NOT_FINITE),
    (GOOD.replace(b"1.5", b"1e39"), Reason.OVERFLOW),
    (GOOD.replace(b"1.5", b"-1e39"), Reason.OVERFLOW),
    (GOOD.replace(b"1.5", b"1e400"), Reason.OVERFLOW),
    (GOOD.replace(b"1.5", b"9" * 400), Reason.OVERFLOW),
    (GOOD.replace(b"1.5", b'"1.5"'), Reason.WRONG_TYPE),
    (GOOD.replace(b"1.5", b"true"), Reason.WRONG_TYPE),
    (GOOD.replace(b"1.5", b"[1.5]"), Reason.WRONG_TYPE),
    (b"[]", Reason.WRONG_TYPE),
    (b"null", Reason.WRONG_TYPE),
    (b"5", Reason.WRONG_TYPE),
    (record(device=5), Reason.WRONG_TYPE),
    (record(values=[1, 2]), Reason.WRONG_TYPE),
    (record(ts=True), Reason.WRONG_TYPE),
    (record(ts=[NOW]), Reason.WRONG_TYPE),
    (record(ts=-1), Reason.BAD_TIME),
    (record(ts=LAST_MS + 1), Reason.BAD_TIME),
    (record(ts=2**63), Reason.BAD_TIME),
    (record(ts=99999999999999999999), Reason.BAD_TIME),
    (record(ts="noon"), Reason.BAD_TIME),
    (record(ts=NOW + 60_001), Reason.FUTURE),
    (record(device=None), Reason.NO_DEVICE),
    (record(device=""), Reason.NO_DEVICE),
    (record(device="x" * 257), Reason.NO_DEVICE),
    (record(values={}), Reason.NO_CHANNEL),
    (record(values=None), Reason.NO_CHANNEL),
    (record(values={"set": 1.0}), Reason.NO_CHANNEL),
    (record(values={"flow": None, "other": 3}), Reason.NO_CHANNEL),
    (b"{}", Reason.NO_DEVICE),
    (record(filler="x" * 300_000), Reason.TOO_LARGE),
]


@pytest.mark.parametrize(("value", "reason"), BAD, ids=[f"{reason.code}-{i}" for i, (_, reason) in enumerate(BAD)])
def test_a_bad_record_has_its_reason_and_harms_no_neighbour(value: bytes | None, reason: Reason) -> None:
    readings, rejects = wide([GOOD, value, GOOD])
    assert [Reason(code) for code in rejects.reason] == [reason]
    assert rejects.index.tolist() == [1]
    assert readings.kept.tolist() == [0, 2]
    assert readings.device == ["pump-7", "pump-7"]
    assert readings.ts_ms.tolist() == [NOW, NOW]
    np.testing.assert_array_equal(readings.values, np.array([[1.5, 2, -3.25]] * 2, np.float32))


def test_all_bad_records_at_once_keep_their_reasons() -> None:
    batch = [value for pair in BAD for value in (pair[0], GOOD)]
    readings, rejects = wide(batch)
    assert [Reason(code) for code in rejects.reason] == [reason for _, reason in BAD]
    assert readings.kept.tolist() == list(range(1, len(batch), 2))


def test_what_is_absent_or_null_is_nan() -> None:
    readings, rejects = wide([record(values={"flow": 1}), record(values={"flow": None, "heat °C": 2.5}), GOOD])
    assert len(rejects.index) == 0
    np.testing.assert_array_equal(
        readings.values, np.array([[1, math.nan, math.nan], [math.nan, 2.5, math.nan], [1.5, 2, -3.25]], np.float32)
    )


def test_the_slow_path_gives_the_same_bits_as_the_fast_one() -> None:
    values = [record(values={"flow": number, "heat °C": 0.1}) for number in (0.1, 1e-46, 3.4e38, 16777217, -0.0)]
    quick, _ = wide(values)
    slow, _ = wide([*values, record(values={"flow": None, "heat °C": 1})])
    assert quick.values.tobytes() == slow.values[:-1].tobytes()


def test_unknown_fields_are_ignored_and_counted_exactly() -> None:
    decoder = WideDecoder(CONTRACT, Format())
    odd = record(fw="1.2", values={"flow": 1, "gas": 5})
    for _ in range(2):
        readings, rejects = decoder.decode([GOOD, odd, odd, GOOD], None, np.full(4, NOW))
        assert len(rejects.index) == 0
        assert readings.values[:, 0].tolist() == [1.5, 1, 1, 1.5]
    assert decoder.unknown == {"fw": 4, "gas": 4}


def test_names_without_end_are_counted_together() -> None:
    decoder = WideDecoder(CONTRACT, Format())
    values = [record(**{f"odd{i}": 1}) for i in range(LEARNED + 30)] + [record(**{'a"b': 1}), record(**{"a\\b": 1})]
    readings, rejects = decoder.decode(values, None, np.full(len(values), NOW))
    assert len(rejects.index) == 0
    assert len(readings.device) == len(values)
    assert decoder.unknown[""] == 32
    assert decoder.unknown.total() == len(values)


def test_a_reading_without_time_has_its_records_time() -> None:
    readings, _ = wide([record(ts=None), GOOD])
    assert readings.ts_ms.tolist() == [NOW, NOW]
    readings, _ = wide([record(ts=5)], ts=None)
    assert readings.ts_ms.tolist() == [NOW]


def test_a_reading_without_device_has_its_records_key() -> None:
    readings, rejects = wide([record(device=None), GOOD, record(device=None)], [b"key-1", b"key-2", b"\xff"])
    assert readings.device == ["key-1", "pump-7"]
    assert rejects.reason.tolist() == [Reason.NO_DEVICE]
    readings, _ = wide([GOOD], [b"key-1"], device=None)
    assert readings.device == ["key-1"]


@pytest.mark.parametrize(
    ("unit", "ts"),
    [
        ("ms", NOW), ("ms", float(NOW)), ("ms", "2023-11-14T22:13:20Z"), ("ms", "2023-11-14 22:13:20"),
        ("ms", "2023-11-14T23:13:20.000+01:00"), ("s", NOW // 1000), ("s", NOW / 1000), ("s", "2023-11-14T22:13:20Z"),
        ("us", NOW * 1000), ("ns", NOW * 1_000_000), ("ns", "2023-11-14T22:13:20Z"), ("iso", "2023-11-14T22:13:20Z"),
        ("iso", "2023-11-14T22:13:20"),
    ],
)
def test_times_in_every_unit(unit: str, ts: object) -> None:
    readings, rejects = wide([record(ts=ts)] * 2, ts_unit=unit)
    assert (readings.ts_ms.tolist(), rejects.reason.tolist()) == ([NOW, NOW], [])
    assert datetime.fromtimestamp(NOW / 1000, UTC).isoformat() == "2023-11-14T22:13:20+00:00"


def test_values_can_lie_flat_under_other_names() -> None:
    value = json.dumps({"id": "p", "t": NOW, "F": 1, "heat °C": 2, "junk": {"a": [1]}}).encode()
    decoder = WideDecoder(CONTRACT, Format(values=None, device="id", ts="t", fields={"flow": "F"}))
    for _ in range(2):
        readings, rejects = decoder.decode([value, None], None, np.full(2, NOW))
        np.testing.assert_array_equal(readings.values, np.array([[1, 2, math.nan]], np.float32))
        assert rejects.reason.tolist() == [Reason.TOMBSTONE]
    assert decoder.unknown == {"junk": 2}


def test_a_field_that_is_named_twice_is_refused() -> None:
    with pytest.raises(BadInput, match="`device` is named twice"):
        WideDecoder(CONTRACT, Format(values=None, fields={"flow": "device"}))


def test_an_empty_batch_is_empty_columns() -> None:
    readings, rejects = wide([])
    assert readings.values.shape == (0, 3)
    assert len(readings.device) == len(readings.ts_ms) == len(rejects.index) == 0


def test_long_readings_are_single_values() -> None:
    decoder = LongDecoder(CONTRACT, Format(layout="long", fields={"heat °C": "heat"}))
    values = [
        json.dumps({"device": "p", "ts": NOW + i, "channel": name, "value": value}).encode()
        for i, (name, value) in enumerate([("flow", 1.5), ("heat", 2), ("gas", 3), ("set", None), ("flow", 1e39)])
    ]
    readings, rejects = decoder.decode([*values, b"{"], None, np.full(6, NOW))
    assert readings.kept.tolist() == [0, 1, 3]
    assert readings.channel.tolist() == [0, 1, 2]
    assert readings.ts_ms.tolist() == [NOW, NOW + 1, NOW + 3]
    np.testing.assert_array_equal(readings.value, np.array([1.5, 2, math.nan], np.float32))
    assert list(zip(rejects.index.tolist(), rejects.reason.tolist(), strict=True)) == [
        (2, Reason.NO_CHANNEL), (4, Reason.OVERFLOW), (5, Reason.BAD_JSON),
    ]
