"""Arrow records to columns: many rows a record, what each bad record is called, and that hostile bytes cost nothing."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.core.contract import Channel, Contract
from pipeline.core.ids import MOST_ROWS
from pipeline.errors import BadInput
from pipeline.formats import Format, Readings, Reason, Rejects, make_decoder
from pipeline.formats.arrow import ArrowDecoder, write_stream

NOW = 1_700_000_000_000
CONTRACT = Contract(
    channels=(Channel(name="flow"), Channel(name="heat °C"), Channel(name="set", role="context")), max_ahead_ms=60_000
)
COLUMNS: dict[str, Any] = {
    "device": ["a", "b"], "ts": [NOW, NOW + 1], "flow": pa.array([1.5, 2.5], pa.float32()), "heat °C": [1, None],
}


def record(**changes: Any) -> bytes:
    """Two rows; a column that is None is left out."""
    columns = {name: column for name, column in (COLUMNS | changes).items() if column is not None}
    return write_stream(pa.record_batch(columns))


def decode(values: list[bytes | None], keys: list[bytes | None] | None = None, **spec: Any) -> tuple[Readings, Rejects]:
    decoder = make_decoder(CONTRACT, Format(encoding="arrow", **spec))
    readings, rejects = decoder.decode(values, keys, np.full(len(values), NOW))
    assert isinstance(readings, Readings)
    return readings, rejects


GOOD = record()


def streamed(batches: list[Any], **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batches[0].schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def filed() -> bytes:
    sink = pa.BufferOutputStream()
    batch = pa.record_batch(COLUMNS)
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


BATCH = pa.record_batch(COLUMNS)
BAD: list[tuple[bytes | None, Reason]] = [
    (None, Reason.TOMBSTONE),
    (b"", Reason.MALFORMED),
    (b"{}", Reason.MALFORMED),
    (GOOD[:-9], Reason.MALFORMED),
    (GOOD[: len(GOOD) // 2], Reason.MALFORMED),
    (GOOD + b"x", Reason.MALFORMED),
    (GOOD + GOOD, Reason.MALFORMED),
    (filed(), Reason.MALFORMED),
    (streamed([BATCH], compression="lz4"), Reason.MALFORMED),
    (pa.schema([("device", pa.string())]).serialize().to_pybytes(), Reason.NO_CHANNEL),
    (record(flow=["x", "y"]), Reason.WRONG_TYPE),
    (record(flow=[True, False]), Reason.WRONG_TYPE),
    (record(device=[1, 2]), Reason.WRONG_TYPE),
    (record(device=[b"a", b"b"]), Reason.WRONG_TYPE),
    (record(ts=["noon", "one"]), Reason.WRONG_TYPE),
    (record(device=["a", ""]), Reason.NO_DEVICE),
    (record(device=["a", "x" * 257]), Reason.NO_DEVICE),
    (record(device=["a", None]), Reason.NO_DEVICE),
    (record(device=None), Reason.NO_DEVICE),
    (record(ts=[NOW, -1]), Reason.BAD_TIME),
    (record(ts=[NOW, 2**62]), Reason.BAD_TIME),
    (record(ts=pa.array([NOW, 2**64 - 1], pa.uint64())), Reason.BAD_TIME),
    (record(ts=[NOW, float("nan")]), Reason.BAD_TIME),
    (record(ts=pa.array([NOW, 2**60], pa.timestamp("s"))), Reason.BAD_TIME),
    (record(ts=[NOW, NOW + 60_001]), Reason.FUTURE),
    (record(flow=[1.0, 1e39]), Reason.OVERFLOW),
    (record(flow=[1.0, float("-inf")]), Reason.OVERFLOW),
    (record(flow=[1.0, None]), Reason.NO_CHANNEL),
    (record(flow=None, **{"heat °C": None, "set": [1, 2]}), Reason.NO_CHANNEL),
    (write_stream(BATCH[:0]), Reason.NO_CHANNEL),
    (record(device=None, ts=None, flow=pa.nulls(MOST_ROWS + 1), **{"heat °C": None}), Reason.TOO_MANY_ROWS),
    (write_stream(pa.record_batch({"flow": pa.nulls(3)})).replace(
        (3).to_bytes(8, "little"), (2**50).to_bytes(8, "little")
    ), Reason.TOO_MANY_ROWS),
    (streamed([pa.record_batch({"flow": pa.nulls(MOST_ROWS)})] * 2), Reason.TOO_MANY_ROWS),
    (record(filler=["x" * 200_000] * 2), Reason.TOO_LARGE),
]


@pytest.mark.parametrize(("value", "reason"), BAD, ids=[f"{reason.code}-{i}" for i, (_, reason) in enumerate(BAD)])
def test_a_bad_record_has_its_reason_and_harms_no_neighbour(value: bytes | None, reason: Reason) -> None:
    readings, rejects = decode([GOOD, value, GOOD])
    assert [Reason(code) for code in rejects.reason] == [reason]
    assert rejects.index.tolist() == [1]
    assert readings.kept.tolist() == [0, 0, 2, 2]
    assert readings.index is not None
    assert readings.index.tolist() == [0, 1, 0, 1]
    assert readings.device == ["a", "b"] * 2
    assert readings.ts_ms.tolist() == [NOW, NOW + 1] * 2
    np.testing.assert_array_equal(
        readings.values, np.array([[1.5, 1, np.nan], [2.5, np.nan, np.nan]] * 2, np.float32)
    )


def test_all_bad_records_at_once_keep_their_reasons() -> None:
    batch = [value for pair in BAD for value in (pair[0], GOOD)]
    readings, rejects = decode(batch)
    assert [Reason(code) for code in rejects.reason] == [reason for _, reason in BAD]
    assert readings.kept.tolist() == np.repeat(np.arange(1, len(batch), 2), 2).tolist()


def test_records_of_several_schemas_keep_their_order() -> None:
    renamed = record(more=[1, 2], device=None)
    readings, rejects = decode([GOOD, renamed, GOOD, renamed], [b"k0", b"k1", b"k2", b"k3"])
    assert len(rejects.index) == 0
    assert readings.device == ["a", "b", "k1", "k1", "a", "b", "k3", "k3"]
    assert readings.kept.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert readings.index is not None
    assert readings.index.tolist() == [0, 1] * 4


def test_devices_may_be_a_dictionary_and_those_without_a_name_have_the_key() -> None:
    coded = [
        record(device=pa.array(names).dictionary_encode()) for names in (["a", "b"], ["b", None], ["c", "a"])
    ]
    with_null = record(device=pa.DictionaryArray.from_arrays([0, 1], ["z", None]))
    readings, rejects = decode([*coded, with_null], [b"k0", b"k1", b"k2", b"k3"])
    assert len(rejects.index) == 0
    assert readings.device == ["a", "b", "b", "k1", "c", "a", "z", "k3"]


@pytest.mark.parametrize(("unit", "times"), [
    ("ms", [NOW, None]), ("ms", [float(NOW), None]), ("s", [NOW / 1000, None]), ("s", [NOW // 1000, None]),
    ("us", [NOW * 1000, None]), ("ns", [NOW * 1_000_000 + 999_999, None]),
    ("iso", pa.array([NOW // 1000, None], pa.timestamp("s"))),
    ("ms", pa.array([NOW * 1_000_000, None], pa.timestamp("ns", "Europe/Paris"))), ("ms", pa.nulls(2)), ("ms", None),
])
def test_times_in_every_unit(unit: str, times: Any) -> None:
    readings, rejects = decode([record(ts=times)], ts_unit=unit)
    assert (readings.ts_ms.tolist(), rejects.reason.tolist()) == ([NOW, NOW], [])


def test_integers_round_as_those_of_json_do() -> None:
    odd = (1 << 53) + (1 << 29) + 1   # rounded at once it is another float32 than by way of float64
    readings, _ = decode([record(flow=[odd, odd])])
    assert readings.values[0, 0] == np.float32(np.float64(odd))


def test_unknown_columns_are_counted_once_a_record_and_never_read() -> None:
    decoder = make_decoder(CONTRACT, Format(encoding="arrow"))
    nested = record(more=[[{"x": 1}], None], text=["a", "b"])
    readings, rejects = decoder.decode([GOOD, nested, nested], None, np.full(3, NOW))
    assert len(rejects.index) == 0
    assert len(readings.device) == 6
    assert decoder.unknown == {"more": 2, "text": 2}


def test_a_rejected_record_still_names_a_device() -> None:
    decoder = make_decoder(CONTRACT, Format(encoding="arrow"))
    assert decoder.device_of(record(flow=[1e39, 1]), b"key") == "a"
    assert decoder.device_of(record(flow=["x", "y"]), b"key") == "a"
    assert decoder.device_of(record(flow=None, **{"heat °C": None, "speed": [1, 2]}), b"key") == "a"
    assert decoder.device_of(record(device=[None, "b"]), b"key") == "key"
    assert decoder.device_of(record(device=[1, 2]), b"key") == "key"
    assert decoder.device_of(record(device=None), b"key") == "key"
    assert decoder.device_of(b"x", None) is None


def test_no_byte_of_a_record_makes_it_cost_more_than_it_holds() -> None:
    """Every byte altered in several ways: rows, or a reason, and never more memory than the record's own."""
    decoder = ArrowDecoder(CONTRACT, Format(encoding="arrow"))
    value = record(device=pa.array(["a", "b"]).dictionary_encode())
    most = max(pa.default_memory_pool().max_memory(), 16 << 20)
    for at in range(len(value)):
        for byte in (0x00, 0x7F, 0xFF, value[at] ^ 1):
            readings, rejects = decoder.decode([value[:at] + bytes([byte]) + value[at + 1:]], [b"k"], np.array([NOW]))
            assert len(readings.device) + len(rejects.index) in (1, 2)
    assert pa.default_memory_pool().max_memory() <= most


@pytest.mark.parametrize("spec", [
    {"layout": "long"}, {"fields": {"flow": "device"}}, {"fields": {"flow": "set"}}, {"ts": "flow"},
])
def test_a_format_that_contradicts_itself_is_refused(spec: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        make_decoder(CONTRACT, Format(encoding="arrow", **spec))


def test_a_record_of_several_devices_is_split_with_all_its_columns() -> None:
    decoder = ArrowDecoder(CONTRACT, Format(encoding="arrow"))
    value = streamed([
        pa.record_batch(COLUMNS | {
            "device": names, "text": ["x", "y"], "view": pa.array(["x", "y"], pa.string_view()), "list": [[1], None],
        }) for names in (["a", "b"], [None, "a"])
    ])
    found = decoder.split(value, b"key")
    assert [name for name, _ in found] == ["a", "b", "key"]
    tables = [pa.ipc.open_stream(part).read_all().to_pydict() for _, part in found]
    assert [table["text"] for table in tables] == [["x", "y"], ["y"], ["x"]]
    readings, _ = decoder.decode([part for _, part in found], [b"key"] * 3, np.full(3, NOW))
    assert readings.device == ["a", "a", "b", "key"]
    assert decoder.split(GOOD[:50], b"key") == [("key", GOOD[:50])]
    alone = record(device=["a", "a"])
    assert decoder.split(alone, None) == [("a", alone)]
