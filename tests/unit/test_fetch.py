"""Record batches to columns: what aiokafka's own reader says, for every compression, and nothing from broken ones."""

import pytest
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.engine.fetch import HEADER_BYTES, KeptRecords, read_batches

Row = tuple[int, int, bytes | None, bytes | None]

field = st.none() | st.binary(max_size=200)
rows = st.lists(st.tuples(st.integers(-5000, 5000), field, field), min_size=1, max_size=30)


def batch_of(rows: list[tuple[int, bytes | None, bytes | None]], compression: int) -> tuple[bytes, list[Row]]:
    builder = DefaultRecordBatchBuilder(
        magic=2, compression_type=compression, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=0,
        batch_size=1 << 20,
    )
    found: list[Row] = []
    for offset, (ahead, key, value) in enumerate(rows):
        found.append((offset, 1_700_000_000_000 + ahead, key, value))
        headers = [("name", b"value"), ("null", None)] if offset % 3 == 0 else []
        builder.append(offset, timestamp=found[-1][1], key=key, value=value, headers=headers)
    return bytes(builder.build()), found


def read(data: bytes, first: int = 0) -> list[Row]:
    records, _ = read_batches(KeptRecords(data), first, True, "t[0]")
    return list(zip(
        records.offset.tolist(), records.timestamp.tolist(), records.keys(), records.values(), strict=True
    ))


@given(st.lists(st.tuples(rows, st.sampled_from([0, 1, 2, 3, 4])), min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_columns_hold_what_was_written(batches):
    built = [batch_of(*batch) for batch in batches]
    found = read(b"".join(data for data, _ in built))
    assert found == [row for _, rows in built for row in rows]


def test_a_fetch_begins_at_its_first_offset():
    data, wanted = batch_of([(0, b"k", b"v")] * 10, 0)
    assert read(data, 7) == wanted[7:]


def test_an_unfinished_batch_at_the_end_is_left():
    data, wanted = batch_of([(0, b"k", b"v")] * 10, 0)
    assert read(data + data[:-1]) == wanted


def test_old_message_formats_are_read():
    builder = LegacyRecordBatchBuilder(magic=1, compression_type=0, batch_size=1 << 20)
    for offset in range(5):
        builder.append(offset, timestamp=1000 + offset, key=b"k", value=b"v%d" % offset)
    assert read(bytes(builder.build())) == [(i, 1000 + i, b"k", b"v%d" % i) for i in range(5)]


@given(st.binary(min_size=1, max_size=40), st.integers(0, 200))
@settings(max_examples=200, deadline=None)
def test_a_damaged_batch_is_refused(noise, at):
    data, _ = batch_of([(0, b"key", b"value")] * 10, 0)
    place = HEADER_BYTES + at % (len(data) - HEADER_BYTES)
    damaged = bytearray(data)
    damaged[place : place + len(noise)] = noise[: len(data) - place]
    if bytes(damaged) == data:
        return
    with pytest.raises(CorruptRecordException):
        read(bytes(damaged))
    records, _ = _unchecked(bytes(damaged))     # without a checksum the layout alone decides: an error, or bytes of it
    assert records is None or all(len(value or b"") <= len(data) for value in records.values())


def _unchecked(data: bytes):
    try:
        return read_batches(KeptRecords(data), 0, False, "t[0]")
    except CorruptRecordException:
        return None, -1
