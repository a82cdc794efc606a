"""A fetch's record batches to columns, without a Python object a record.

aiokafka makes an object of its own for each record and a ConsumerRecord around it, two thirds of what reading costs.
Here the batches' bytes are kept, and one compiled pass finds where keys and values lie. It swaps three private names of
the pinned version, guarded by `overrides.check`. Old message formats (before Kafka 0.11) and reading committed
transactions only take the stock path.

Source of the layout: Kafka's documentation, "Record Batch" and "Record".
"""

import struct
from typing import Any

import google_crc32c
import numba
import numpy as np
from aiokafka import conn
from aiokafka.codec import gzip_decode, lz4_decode, snappy_decode, zstd_decode
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.memory_records import MemoryRecords

from pipeline.core.records import Records

FETCH_BYTES = 8 << 20    # of one answer, and what a connection takes in before it pauses
HEADER_BYTES = 61     # of a record batch, up to its first record
LOG_OVERHEAD = 12     # base offset and length, which the length does not count
MAGIC_AT = 16
CRC_AT = 17           # of what comes behind it
CRC = struct.Struct(">I")
COUNT = struct.Struct(">i")
LOG_APPEND_TIME = 1
DECODERS = {1: gzip_decode, 2: snappy_decode, 3: lz4_decode, 4: zstd_decode}


class KeptRecords:
    """aiokafka's record batches, and the bytes that they were made from."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        stock = MemoryRecords(data)
        self.has_next, self.next_batch, self.size_in_bytes = stock.has_next, stock.next_batch, stock.size_in_bytes


def as_columns(value: bytes | None) -> bytes | None:
    """The deserializer of a consumer that wants columns; other consumers of the process keep getting records."""
    return value


class RawFetchResult(fetcher.FetchResult):
    """Hands a whole fetch on as `Records`, to who asks for it by `as_columns`."""

    _partition_records: Any

    def getall(self, max_records: int | None = None) -> Any:
        found: Any = self._partition_records
        if found is None or found._value_deserializer is not as_columns:
            return super().getall(max_records)
        if found._isolation_level == fetcher.READ_COMMITTED:
            return _columns_of(super().getall(max_records))
        if not self.check_assignment(self._topic_partition):
            return []
        records, found.next_fetch_offset = read_batches(
            found._records, found.next_fetch_offset, found._check_crcs, found._tp
        )
        found._records_iterator = None
        self._update_position()
        self._partition_records = None
        return records


def read_batches(kept: KeptRecords, first: int, check_crcs: bool, where: Any) -> tuple[Records, int]:
    """Records from offset `first` on, and the offset behind the last batch.

    Raises CorruptRecordException where a checksum or the layout is wrong; the fetch is made again then.
    """
    data, at = kept.data, 0
    pieces: list[bytes] = []
    batches: list[tuple[int, ...]] = []     # start, stop, base offset, first timestamp, append time or -1, count
    shift, old, next_offset = 0, [], first
    while kept.has_next():
        batch = kept.next_batch()
        start, at = at, at + LOG_OVERHEAD + COUNT.unpack_from(data, at + 8)[0]
        if check_crcs and not _is_whole(batch, data, start, at):
            raise CorruptRecordException(f"Invalid CRC in a batch of {where}")
        if data[start + MAGIC_AT] < 2:
            old += [(one.offset, one.timestamp, one.key, one.value) for one in batch if one.offset >= first]
        elif not batch.is_control_batch:
            codec = batch.compression_type
            if codec:
                piece = bytes(DECODERS[codec](data[start + HEADER_BYTES : at]))
                begin, stop = shift, shift + len(piece)
                pieces.append(piece)
                shift += len(piece)
            else:
                begin, stop = start + HEADER_BYTES, at
            batches.append((
                begin, stop, batch.base_offset, batch.first_timestamp,
                batch.max_timestamp if batch.timestamp_type == LOG_APPEND_TIME else -1,
                COUNT.unpack_from(data, start + HEADER_BYTES - 4)[0], codec,
            ))
        next_offset = batch.next_offset
    if old:
        return Records.of(old), next_offset
    if pieces:                                # compressed batches lie behind the plain ones
        batches = [
            (one[0] + len(data), one[1] + len(data), *one[2:]) if one[6] else one for one in batches
        ]
        data = b"".join([data, *pieces])
    table = np.array(batches, np.int64).reshape(-1, 7)
    n = int(table[:, 5].sum())
    if n < 0 or n > len(data):
        raise CorruptRecordException(f"A batch of {where} claims {n} records")
    offset, timestamp = np.empty(n, np.int64), np.empty(n, np.int64)
    key, value = np.empty((n, 2), np.int64), np.empty((n, 2), np.int64)
    if not split(np.frombuffer(data, np.uint8), table, offset, timestamp, key, value):
        raise CorruptRecordException(f"Invalid record structure in a batch of {where}")
    # A fetch begins with the whole batch that holds its first offset.
    return Records(data, offset, timestamp, key, value).since(first), next_offset


def _is_whole(batch: Any, data: bytes, start: int, stop: int) -> bool:
    """Whether a batch's checksum is right."""
    if data[start + MAGIC_AT] < 2:
        return bool(batch.validate_crc())
    found: int = google_crc32c.value(data[start + CRC_AT + CRC.size : stop])
    return found == CRC.unpack_from(data, start + CRC_AT)[0]


# Without numba's reference counts, which cost more than the work; so these allocate nothing.
@numba.njit(cache=True, nogil=True, error_model="numpy", no_cfunc_wrapper=True, _nrt=False)
def split(data, table, offset, timestamp, key, value):  # type: ignore[no-untyped-def]
    """Fills the columns from batches (start, stop, base offset, first timestamp, append time or -1, count, codec)."""
    n = 0
    for b in range(len(table)):
        at, end = table[b, 0], table[b, 1]
        for _ in range(table[b, 5]):
            size, at = varint(data, at, end)
            stop = at + size
            if at < 0 or size < 0 or stop > end:
                return False
            delta, at = varint(data, at + 1, stop)          # behind the attributes, of which there are none
            timestamp[n] = table[b, 4] if table[b, 4] >= 0 else table[b, 3] + delta
            if at < 0:
                return False
            delta, at = varint(data, at, stop)
            offset[n] = table[b, 2] + delta
            for part in (key, value):
                if at < 0:
                    return False
                size, at = varint(data, at, stop)
                if at < 0 or size > stop - at:
                    return False
                part[n, 0] = at if size >= 0 else -1
                at += max(size, 0)
                part[n, 1] = at
            at = stop                                       # headers are not looked at
            n += 1
    return True


@numba.njit(cache=True, nogil=True, error_model="numpy", no_cfunc_wrapper=True, no_cpython_wrapper=True, _nrt=False)
def varint(data, at, stop):  # type: ignore[no-untyped-def]
    """(zigzag number, place behind it); the place is -1 where it runs over `stop` or ten bytes."""
    number, shift = np.uint64(0), np.uint64(0)
    while at >= 0 and at < stop and shift < 70:
        byte = np.uint64(data[at])
        number |= (byte & np.uint64(0x7F)) << shift
        at += 1
        if byte < 128:
            return np.int64(number >> np.uint64(1)) ^ -np.int64(number & np.uint64(1)), at
        shift += np.uint64(7)
    return np.int64(0), np.int64(-1)


def warm_up() -> None:
    """Compile, or load from the cache."""
    none = np.empty((0, 2), np.int64)
    split(np.frombuffer(b"", np.uint8), np.empty((0, 7), np.int64), none[:, 0].copy(), none[:, 0].copy(), none, none)


def _columns_of(records: list[Any]) -> Any:
    """aiokafka's own records as columns."""
    return Records.of((one.offset, one.timestamp, one.key, one.value) for one in records) if records else []


def install() -> None:
    """From now on, in this process."""
    conn.READER_LIMIT = FETCH_BYTES
    fetcher.MemoryRecords = KeptRecords
    fetcher.FetchResult = RawFetchResult
