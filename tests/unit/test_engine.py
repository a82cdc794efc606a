"""Checkpoints, the watchdog and delivery, without a broker."""

import asyncio
import threading
from typing import Any

import pytest
from aiokafka.errors import MessageSizeTooLargeError, UnknownTopicOrPartitionError
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.records import Records
from pipeline.engine.checkpoint import Checkpoint, read_checkpoint
from pipeline.engine.deliver import deliver
from pipeline.engine.transport import TP, BatchConsumer, Begin, Fetched, next_batch
from pipeline.engine.watchdog import Pulse, Seen, Watchdog
from pipeline.errors import LoopStalled, NoAssignment, Stalled, StopWorker
from pipeline.sinks import Record

CHECKPOINT = Checkpoint(5, 1_700_000_000_000, 900, "ab12", {"pump": "0" * 64})


def test_a_checkpoint_comes_back() -> None:
    assert read_checkpoint(CHECKPOINT.encode(), "t[0]") == CHECKPOINT


def test_a_commit_without_metadata_has_no_checkpoint() -> None:
    assert read_checkpoint("", "t[0]") is None


@pytest.mark.parametrize("metadata", ["hello", "{}", '{"v":1}', '{"v":"x"}', "[1]"])
def test_metadata_of_another_program_stops_the_worker(metadata: str) -> None:
    with pytest.raises(StopWorker, match=r"t\[0\].*offsets reset"):
        read_checkpoint(metadata, "t[0]")


def test_a_newer_checkpoint_is_refused() -> None:
    newer = CHECKPOINT.encode().replace('"v":1', '"v":2')
    with pytest.raises(StopWorker, match="newer narrows"):
        read_checkpoint(newer, "t[0]")


def test_more_streams_than_metadata_holds_are_refused() -> None:
    crowd = Checkpoint(0, 0, 0, "e", {f"stream-{i}": "0" * 64 for i in range(60)})
    with pytest.raises(StopWorker, match="60 streams share"):
        crowd.encode()


def test_more_deadly_records_than_metadata_holds_are_told_as_a_fault_of_the_worker() -> None:
    crowd = Checkpoint(0, 0, 0, "e", {"pump": "0" * 64}, crashed=tuple(range(10_000, 11_000)))
    with pytest.raises(StopWorker, match=r"1000 records .* is a fault of the worker"):
        crowd.encode()


def seen(at: float, position: int = 0, lag: int = 10, assigned: int = 1, joining: bool = False) -> Seen:
    return Seen(at, position, lag, assigned, joining)


def test_a_full_queue_leaves_no_partition_unread() -> None:
    """A poll of many partitions is put down to one of them: Faust would stop reading that one, for ever."""
    consumer = BatchConsumer.__new__(BatchConsumer)
    both = {TP("t", 0), TP("t", 1)}
    consumer._active_partitions, consumer._buffered_partitions = set(both), set()
    consumer.on_buffer_full(TP("t", 0))
    assert consumer._get_active_partitions() == both


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.none() | st.integers(1, 30))
def test_a_poll_is_dealt_in_equal_shares_of_its_partitions(sizes: list[int], most: int | None) -> None:
    poll = [
        Fetched(TP("t", place), Records.of((3 * at, 0, None, b"x") for at in range(size)), -1, Begin(0, None), 0)
        for place, size in enumerate(sizes)
    ]
    left, batches = {one.tp: one for one in poll}, []
    while left:
        batches.append(next_batch(left, most))
    for place, one in enumerate(poll):
        mine = [part for batch in batches for part in batch if part.tp.partition == place]
        assert [at for part in mine for at in part.records.offset.tolist()] == one.records.offset.tolist()
        assert [part.since for part in mine] == [0, *(int(part.records.offset[-1]) + 1 for part in mine[:-1])]
    if most is None:
        assert len(batches) == 1
        return
    assert all(sum(len(part.records) for part in batch) <= most for batch in batches)
    if most >= len(sizes):     # a partition waits for no other
        for place in range(len(sizes)):
            there = [any(part.tp.partition == place for part in batch) for batch in batches]
            assert there == sorted(there, reverse=True)


def test_records_that_wait_without_progress_are_a_stall() -> None:
    dog = Watchdog(10)
    assert [dog.look(seen(at)) for at in (0, 5, 10)] == [None, None, None]
    stalled = dog.look(seen(11))
    assert "10 records wait" in str(stalled)
    assert stalled.exit_code == 5   # type: ignore[union-attr]


def test_progress_idleness_and_no_partitions_are_no_stall() -> None:
    dog = Watchdog(10)
    assert all(dog.look(seen(at, position=at)) is None for at in range(0, 100, 5))
    assert all(dog.look(seen(at, lag=0)) is None for at in range(100, 200, 5))
    assert all(dog.look(seen(at, assigned=0, lag=0)) is None for at in range(200, 300, 5))


def test_a_rebalance_that_never_ends_is_a_stall() -> None:
    dog = Watchdog(10)
    assert dog.look(seen(0, joining=True, assigned=0)) is None
    stalled = dog.look(seen(11, joining=True, assigned=0))
    assert "rebalance" in str(stalled)
    assert stalled.exit_code == 7   # type: ignore[union-attr]


def test_a_loop_that_stands_still_is_a_stall_and_one_that_beats_or_has_not_begun_is_none() -> None:
    ended: list[Stalled] = []
    over = threading.Event()
    pulse = Pulse(0.05, lambda why: (ended.append(why), over.set())[1], look_every_s=0.01)   # type: ignore[func-returns-value]
    pulse.start()
    assert not over.wait(0.1)
    pulse.beat()
    assert over.wait(10)
    assert [type(why) for why in ended] == [LoopStalled]
    assert "stood still" in str(ended[0])


def test_each_reason_to_end_has_an_exit_code_of_its_own() -> None:
    codes = [error.exit_code for error in (Stalled, LoopStalled, NoAssignment, StopWorker)]
    assert len({*codes, 0, 2, 3, 4}) == len(codes) + 4


class Batch:
    def __init__(self, most: int) -> None:
        self.most, self.values = most, []   # type: ignore[var-annotated]

    def append(self, *, key: Any, value: Any, timestamp: Any, headers: Any) -> object | None:
        if len(self.values) == self.most:
            return None
        self.values.append(value)
        return object()


class Producer:
    """Batches of two records; a topic named `bad` fails as told."""

    def __init__(self, error: Exception | None = None) -> None:
        self.sent: list[tuple[str, int, list[bytes]]] = []
        self.error = error

    def create_batch(self) -> Batch:
        return Batch(2)

    async def send_batch(self, batch: Batch, topic: str, partition: int) -> "asyncio.Future[None]":
        self.sent.append((topic, partition, batch.values))
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.error is not None and topic == "bad":
            done.set_exception(self.error)
        else:
            done.set_result(None)
        return done


def test_records_go_out_in_order_in_batches_of_their_partition() -> None:
    producer = Producer()
    outputs = [Record("a", i % 2, None, bytes([i]), []) for i in range(6)]
    asyncio.run(deliver(producer, outputs))
    assert producer.sent == [
        ("a", 0, [b"\0", b"\2"]), ("a", 0, [b"\4"]), ("a", 1, [b"\1", b"\3"]), ("a", 1, [b"\5"]),
    ]


@pytest.mark.parametrize(("error", "remedy"), [
    (MessageSizeTooLargeError(), r"bad: a record is larger.*max\.message\.bytes"),
    (UnknownTopicOrPartitionError(), "bad: missing.*narrows topics create"),
])
def test_a_failed_delivery_names_the_topic_and_the_remedy(error: Exception, remedy: str) -> None:
    outputs = [Record("good", 0, None, b"1", []), Record("bad", 0, None, b"2", [])]
    with pytest.raises(StopWorker, match=remedy):
        asyncio.run(deliver(Producer(error), outputs))
