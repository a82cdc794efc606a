"""Reading a topic between offsets, without a group: the end is fixed before the first record is read.

Plain functions that run an event loop of their own; inside a running one call them in a thread.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer
from aiokafka import TopicPartition as Place
from aiokafka.errors import KafkaError, NoOffsetForPartitionError, OffsetOutOfRangeError
from kafka import TopicPartition
from kafka.admin import OffsetSpec

from pipeline.errors import BadInput, TryAgain
from pipeline.topics.client import Settings, address, admin_client, keywords, ours

GONE = (OffsetOutOfRangeError, NoOffsetForPartitionError)
LOOK_EVERY_MS = 500


class Record(msgspec.Struct, frozen=True, gc=False):
    """One record as it lies in the log. ts_ms: the record's own timestamp; key and value raw, None where null."""

    offset: int
    ts_ms: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


def partitions_of(settings: Settings, topic: str) -> int:
    """How many partitions `topic` has. Raises BadInput when there is no such topic."""
    with admin_client(settings) as admin:
        return _partitions(admin, settings, topic)


def begin_offsets(settings: Settings, topic: str) -> dict[int, int]:
    """The first offset that each partition still holds."""
    return _offsets(settings, topic, OffsetSpec.EARLIEST)[0]


def end_offsets(settings: Settings, topic: str) -> dict[int, int]:
    """The offset that each partition's next record will get."""
    return _offsets(settings, topic, OffsetSpec.LATEST)[0]


def offsets_at(settings: Settings, topic: str, ts_ms: int) -> dict[int, int]:
    """The offset of each partition's first record with a timestamp of at least `ts_ms`; its end where there is none."""
    found, ends = _offsets(settings, topic, ts_ms, OffsetSpec.LATEST)
    return {number: ends[number] if offset == -1 else offset for number, offset in found.items()}


def _partitions(admin: Any, settings: Settings, topic: str) -> int:
    [facts] = admin.describe_topics([topic])
    if facts["error_code"]:
        raise BadInput(f"Kafka at {address(settings)} has no topic {topic}: make it with `narrows topics create`")
    return len(facts["partitions"])


def _offsets(settings: Settings, topic: str, *specs: object) -> list[dict[int, int]]:
    """Offsets of every partition, once for each kind of place that is asked for."""
    with admin_client(settings) as admin:
        places = [TopicPartition(topic, number) for number in range(_partitions(admin, settings, topic))]
        answers = [admin.list_partition_offsets(dict.fromkeys(places, spec)) for spec in specs]
    return [{place.partition: answer[place].offset for place in places} for answer in answers]


def read_range(
    settings: Settings, topic: str, partition: int, start: int, end: int, idle_s: float = 30
) -> Iterator[Record]:
    """Every record with start <= offset < end, in order; offsets that compaction or transactions left out are skipped.

    Raises BadInput when `start` was deleted by retention or `end` lies beyond the log (never other records instead),
    TryAgain when nothing comes for `idle_s`, Unreachable when no broker answers.
    """
    if start >= end:
        return
    begins, ends = _offsets(settings, topic, OffsetSpec.EARLIEST, OffsetSpec.LATEST)
    if partition not in ends:
        raise BadInput(f"topic {topic} has no partition {partition}")
    if start < begins[partition]:
        raise BadInput(
            f"offset {start} of {topic}[{partition}] is no longer kept, the log begins at {begins[partition]}: "
            "start there, or keep records longer (retention.ms)"
        )
    if end > ends[partition]:
        raise BadInput(f"offset {end} of {topic}[{partition}] lies beyond the end of the log, {ends[partition]}")
    for _, record in _read(settings, topic, {partition: (start, end)}, idle_s):
        yield record


def read_topic(
    settings: Settings, topic: str, only: int | None = None, idle_s: float = 30
) -> Iterator[tuple[int, Record]]:
    """(partition, record) of everything that the topic holds at the time of the call, partition by partition.

    only : one partition alone.
    """
    begins, ends = _offsets(settings, topic, OffsetSpec.EARLIEST, OffsetSpec.LATEST)
    ranges = {number: (begins[number], end) for number, end in ends.items() if only in (None, number)}
    yield from _read(settings, topic, ranges, idle_s)


def read_tails(settings: Settings, topic: str, most: int, idle_s: float = 30) -> Iterator[tuple[int, Record]]:
    """(partition, record) of the newest `most` offsets of each partition, partition by partition."""
    begins, ends = _offsets(settings, topic, OffsetSpec.EARLIEST, OffsetSpec.LATEST)
    ranges = {number: (max(begins[number], end - most), end) for number, end in ends.items()}
    yield from _read(settings, topic, ranges, idle_s)


def _read(
    settings: Settings, topic: str, ranges: Mapping[int, tuple[int, int]], idle_s: float
) -> Iterator[tuple[int, Record]]:
    """(partition, record) of ranges that the log holds, one partition after the other."""
    with _reading(settings, topic) as go:
        for partition, (position, end) in ranges.items():
            deadline = time.monotonic() + idle_s
            while position < end:
                records, position = go(partition, position)
                if records:
                    deadline = time.monotonic() + idle_s
                elif time.monotonic() > deadline:
                    raise TryAgain(f"{topic}[{partition}] gave nothing for {idle_s:.0f} s at offset {position}")
                for record in records:
                    if record.offset >= end:
                        break
                    yield (
                        partition,
                        Record(record.offset, record.timestamp, record.key, record.value, record.headers),
                    )


@contextmanager
def _reading(settings: Settings, topic: str) -> Iterator[Callable[[int, int], tuple[list[Any], int]]]:
    """A function of a partition and a position that gives the next records there and the position after them."""
    loop = asyncio.new_event_loop()
    at: Place | None = None
    try:
        consumer = loop.run_until_complete(_consumer(settings))

        async def go(partition: int, position: int) -> tuple[list[Any], int]:
            nonlocal at
            if at is None or at.partition != partition:
                at = Place(topic, partition)
                consumer.assign([at])
                consumer.seek(at, position)
            found = await consumer.getmany(at, timeout_ms=LOOK_EVERY_MS, max_records=5_000)
            return found.get(at, []), await consumer.position(at)

        try:
            yield lambda partition, position: loop.run_until_complete(go(partition, position))
        finally:
            loop.run_until_complete(consumer.stop())
    except GONE as error:
        raise BadInput(f"{topic}: records were deleted while they were read") from error
    except (KafkaError, OSError) as error:
        raise ours(error, settings) from error
    finally:
        loop.close()


async def _consumer(settings: Settings) -> AIOKafkaConsumer:
    """A reader without a group: it commits nothing and nobody sees it. A place that is gone is an error to it."""
    consumer = AIOKafkaConsumer(
        **keywords(settings), group_id=None, enable_auto_commit=False, auto_offset_reset="none",
        max_partition_fetch_bytes=4 << 20,
    )
    try:
        await consumer.start()
    except BaseException:
        await consumer.stop()
        raise
    return consumer


async def follow(settings: Settings, topic: str, start: int, wait_s: float) -> AsyncGenerator[list[Record]]:
    """Records of a topic's one partition from `start` on, as they come; nothing where none came for `wait_s`.

    In a running loop, without a group. Raises aiokafka's errors.
    """
    consumer = await _consumer(settings)
    try:
        place = Place(topic, 0)
        consumer.assign([place])
        consumer.seek(place, start)
        while True:
            found = await consumer.getmany(place, timeout_ms=round(1000 * wait_s))
            yield [
                Record(one.offset, one.timestamp, one.key, one.value, one.headers) for one in found.get(place, [])
            ]
    finally:
        await consumer.stop()


def newest_by_key(settings: Settings, topic: str, only: int | None = None) -> dict[bytes, bytes]:
    """What a compacted topic says: the newest value of each key, without keys whose newest value is null.

    only : one partition alone.
    """
    newest: dict[bytes, bytes] = {}
    for _, record in read_topic(settings, topic, only):
        if record.key is None:
            continue
        if record.value is None:
            newest.pop(record.key, None)
        else:
            newest[record.key] = record.value
    return newest
