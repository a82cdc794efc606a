"""Faust's Kafka transport, with one message for each poll instead of one for each record.

Faust keeps what it is good for: the worker, group membership, assignment, timers. Everything it does per record is
gone: a message's value is a list of `Fetched`, its ack means nothing, and commits are the keeper's.

Invariant (tests/faults): each partition's records reach the agent once per assignment, in order and without a hole
that the log does not have. `expect` holds the next offset of each partition; a fetch that begins later is answered by
a seek back, one that begins earlier is trimmed. Every override is named, with its reason, in `overrides.py`.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from aiokafka.structs import OffsetAndMetadata
from faust.tables import TableManager
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage

from pipeline.core.records import Records
from pipeline.engine import fetch
from pipeline.engine.checkpoint import Checkpoint, read_checkpoint

__all__ = ["TP", "BatchConsumer", "Begin", "Fetched", "Keeper", "Settings", "Tables", "Transport", "install_fetch"]

log = logging.getLogger(__name__)

COMMIT_WITHIN_S = 2.0   # less than a keeper waits before it lets a partition go


@dataclass(frozen=True, slots=True, eq=False)
class Begin:
    """Where an assigned partition starts: `next` delivered so far, and what its commit says. One object for each
    assignment: by it one tells whether a fetch belongs to the present one."""

    next: int
    checkpoint: Checkpoint | None


class Fetched(NamedTuple):
    """Records of one partition from one poll, in log order, of the assignment that began at `begin`.

    end   : the partition's high watermark, -1 unknown.
    since : the offset that these records follow on: nothing lies between in the log.
    """

    tp: TP
    records: Records
    end: int
    begin: Begin
    since: int


def next_batch(left: dict[TP, Fetched], most: int | None) -> list[Fetched]:
    """Take at most so many records out of what is left, an equal share of each partition.

    aiokafka's own limit empties one partition after the other: behind a backlog the last would wait for all others.
    """
    if most is None:
        batch = list(left.values())
        left.clear()
        return batch
    batch, share = [], max(1, most // max(1, len(left)))
    for tp in list(left)[:most]:
        one = left.pop(tp)
        mine, rest = one.records.take(slice(share)), one.records.take(slice(share, None))
        batch.append(one._replace(records=mine))
        if rest:    # behind the others, whose turn comes first
            left[tp] = one._replace(records=rest, since=int(mine.offset[-1]) + 1)
    return batch


class Keeper(Protocol):
    """What the transport asks of whoever holds the partitions' state."""

    async def commit(self) -> bool:
        """Commit every partition as it stands between two batches."""

    async def drop(self, tps: Iterable[TP]) -> None:
        """These partitions are being taken away: commit what can be, then forget them."""

    async def rest(self) -> None:
        """An orderly end: commit what can be, and that nothing is in work any more."""


class Settings(NamedTuple):
    """start : earliest, latest, or milliseconds since 1970.   most : records of one batch; None: what a fetch holds."""

    keeper: Keeper
    start: str | int
    most: int | None
    fetch_min_bytes: int
    fetch_max_wait_ms: int


class Thread(driver.AIOKafkaConsumerThread):
    """The thread that aiokafka's consumer lives in."""

    consumer: "BatchConsumer"

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        settings = self.consumer.settings
        consumer._fetch_min_bytes = settings.fetch_min_bytes
        consumer._fetch_max_wait_ms = settings.fetch_max_wait_ms
        consumer._fetch_max_bytes = fetch.FETCH_BYTES
        consumer._value_deserializer = fetch.as_columns
        return consumer

    async def _commit(self, offsets: Mapping[TP, Any]) -> bool:
        """offsets: tp -> (next, metadata). False where the broker refuses; nothing is half committed."""
        consumer = self._ensure_consumer()
        mine = self.assignment()
        if any(tp not in mine for tp in offsets):
            return False
        wanted = {driver.ensure_aiokafka_TP(tp): OffsetAndMetadata(*commit) for tp, commit in offsets.items()}
        try:
            # aiokafka tries again for ever, in the next generation too, where an old commit would turn things back.
            await asyncio.wait_for(consumer.commit(wanted), COMMIT_WITHIN_S)
        except Exception as error:  # a refused commit is no crash: the next owner goes on from the last one
            log.warning("commit refused: %r", error)
            return False
        return True

    async def committed(self) -> dict[TP, tuple[int, str]]:
        """Offset and metadata of every assigned partition that has a commit."""

        async def ask() -> dict[TP, tuple[int, str]]:
            consumer = self._ensure_consumer()
            tps = list(consumer.assignment())
            found = await consumer._coordinator.fetch_committed_offsets(tps) if tps else {}
            return {TP(*tp): (commit.offset, commit.metadata) for tp, commit in found.items() if commit.offset >= 0}

        return await self.call_thread(ask)

    async def starts(self, tps: Iterable[TP], start: str | int) -> dict[TP, int]:
        """Where partitions without a commit begin."""

        async def ask() -> dict[TP, int]:
            consumer = self._ensure_consumer()
            wanted = [driver.ensure_aiokafka_TP(tp) for tp in tps]
            ends = await consumer.end_offsets(wanted)
            if start == "latest":
                found = ends
            elif start == "earliest":
                found = await consumer.beginning_offsets(wanted)
            else:
                by_time = await consumer.offsets_for_times(dict.fromkeys(wanted, start))
                found = {tp: at.offset if at is not None else ends[tp] for tp, at in by_time.items()}
            return {TP(*tp): offset for tp, offset in found.items()}

        return await self.call_thread(ask)


class BatchConsumer(driver.Consumer):
    """One message a poll, explicit starts, and commits made by the keeper."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.settings: Settings = self.app.narrows
        self.begun: dict[TP, Begin] = {}
        self._expect: dict[TP, int] = {}
        self._sought: dict[TP, tuple[int, int]] = {}
        self._left: dict[TP, Fetched] = {}    # fetched, and not yet of a batch
        self.rewinds = 0

    def _new_consumer_thread(self) -> Thread:
        return Thread(self, loop=self.loop, beacon=self.beacon)

    async def perform_seek(self) -> None:
        """Give every assigned partition an explicit start: the mark of its commit, else the configured one."""
        tps = [TP(*tp) for tp in self.assignment()]
        commits = await self._thread.committed()
        new = [tp for tp in tps if tp not in commits]
        starts = await self._thread.starts(new, self.settings.start) if new else {}
        self.begun, self._expect, self._sought, self._left = {}, {}, {}, {}
        for tp in tps:
            if tp in commits:
                offset, metadata = commits[tp]
                checkpoint = read_checkpoint(metadata, f"{tp.topic}[{tp.partition}]")
                self.begun[tp] = Begin(offset, checkpoint)
                self._expect[tp] = offset if checkpoint is None else checkpoint.mark
            else:
                self.begun[tp] = Begin(starts[tp], None)
                self._expect[tp] = starts[tp]
            self._read_offset[tp] = None  # else Faust drops the replay below the commit without a word
        if tps:
            await self._thread.seek_wait(dict(self._expect))

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Any:
        """Of partitions that have nothing left: what comes of the others waits at the broker."""
        wanted = (active_partitions or set()) - self._left.keys()
        return await super()._getmany(wanted, timeout) if wanted else {}

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, ConsumerMessage]]:
        records, _ = await self._wait_next_records(0.0 if self._left else timeout)
        # Read after the fetch: aiokafka waits through a rebalance and hands the first fetch of the new assignment to
        # the old call, which a generation read before it would drop.
        generation = self.app.consumer_generation_id
        if records is None or self.should_stop:
            return
        for raw_tp, found in records.items():
            tp = TP(*raw_tp)
            expected = self._expect.get(tp)
            if not found or expected is None or not self.flow_active:
                continue
            first = int(found.offset[0])
            if first > expected:
                if self._sought.get(tp) != (expected, first):
                    # Something swallowed a fetch, or the log has a hole; sought once, a second time it is the log's.
                    self.rewinds += 1
                    self._sought[tp] = (expected, first)
                    self._read_offset[tp] = None
                    await self._thread.seek_wait({tp: expected})
                    continue
                log.warning(
                    "%s[%d]: offsets %d to %d are no longer in the log; what they said is not in the state",
                    tp.topic, tp.partition, expected, first - 1,
                )
            found = found.since(expected)
            if not found:
                continue
            self._expect[tp] = int(found.offset[-1]) + 1
            end = self.highwater(tp)
            self._left[tp] = Fetched(tp, found, -1 if end is None else end, self.begun[tp], expected)
        polls: dict[str, list[Fetched]] = defaultdict(list)
        for one in next_batch(self._left, self.settings.most):
            polls[one.tp.topic].append(one)
        for topic, fetched in polls.items():
            tp, last = fetched[0].tp, fetched[0].records
            yield tp, ConsumerMessage(
                topic, tp.partition, int(last.offset[-1]), int(last.timestamp[-1]) / 1e3, 0, [], None, fetched, None,
                0, 0, tp, generation_id=generation,
            )

    def on_buffer_full(self, tp: TP) -> None:
        """Nothing: a poll has one message, put down to one of its partitions, and waits until the queue takes it."""

    def on_buffer_drop(self, tp: TP) -> None:
        """Nothing, as above."""

    def ack(self, message: Any) -> bool:
        message.acked = True
        self._unacked_messages.discard(message)
        return True

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        return None

    async def commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        return await self.settings.keeper.commit()

    async def force_commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        return await self.settings.keeper.commit()

    async def on_stop(self) -> None:
        await self.settings.keeper.rest()

    async def commit_now(self, commits: Mapping[TP, tuple[int, str]]) -> bool:
        """Commit (next, metadata) of each partition; True once the broker has acknowledged."""
        return await self._thread.commit(commits)

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        for tp in revoked:   # first, so that nothing begins anew from a fetch that is still on its way to the agent
            self.begun.pop(tp, None)
            self._expect.pop(tp, None)
            self._left.pop(tp, None)
        await self.settings.keeper.drop(revoked)
        await super().on_partitions_revoked(revoked)


class Producer(driver.Producer):
    """Outputs are acknowledged by all replicas, and a retry writes nothing twice."""

    def _settings_extra(self) -> Mapping[str, Any]:
        return {"acks": "all", "enable_idempotence": True}


class Tables(TableManager):
    """Faust's tables, of which we have none: stock waits a second for them at every start."""

    async def on_start(self) -> None:
        await self._update_channels()
        await self.recovery.start()


class Transport(driver.Transport):
    Consumer = BatchConsumer
    Producer = Producer


def install_fetch() -> None:
    """See `fetch.install`; compiles, or loads what was compiled."""
    fetch.install()
    fetch.warm_up()
