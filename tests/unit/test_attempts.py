"""A record that kills whoever reads it is found and put aside; whatever else dies, no other record is."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.agent import Agent
from pipeline.core.records import Records
from pipeline.engine.attempts import DEADLY, STEPS, Attempts
from pipeline.engine.checkpoint import Checkpoint, read_checkpoint
from pipeline.engine.transport import TP, Begin, Fetched
from pipeline.errors import StopWorker
from tests.unit.test_agent import FakeLine, FakeModels

KEPT = 7   # records behind the commit that a replay needs


class Killed(BaseException):
    """The worker is gone in the middle of something."""


class DeadlyLine(FakeLine):
    """Dies at some records; keeps the last `KEPT` ones, so that a replay reads them again."""

    def __init__(self, world: "Cluster") -> None:
        super().__init__("a")
        self.world = world

    def mark(self, partition, next_offset):
        return max(0, next_offset - KEPT), 0

    def take(self, batch):
        self.world.tick()
        outputs = []
        for part in batch:
            for offset in part.records.offset.tolist():
                if offset in part.crashed:
                    outputs += [("dead", part.tp.partition, offset)] * (offset >= part.emit_from)
                    continue
                if (part.tp.partition, offset) in self.world.deadly:
                    raise Killed if self.world.is_killed else RuntimeError("a bug")
                outputs += [("out", part.tp.partition, offset)] * (offset >= part.emit_from)
        return outputs


class Cluster:
    """A log of some partitions, its commits, and workers that follow one another.

    deadly : (partition, offset) of records that end who reads them, as kill -9 does where `is_killed`.
    strays : ticks (batches, deliveries, commits) at which the worker is killed for no reason of its own; fewer than
             `DEADLY`, since as many at one record that is alone in work are what a deadly record looks like.
    """

    def __init__(self, lengths: Sequence[int], deadly: set[tuple[int, int]], strays: set[int], is_killed: bool) -> None:
        self.lengths, self.deadly, self.strays, self.is_killed = lengths, deadly, strays, is_killed
        self.commits: dict[TP, tuple[int, str]] = {}
        self.begins: dict[TP, Begin] = {}
        self.outputs: dict[tuple[int, int], set[str]] = {}
        self.ticks = self.deaths = 0

    def tick(self) -> None:
        self.ticks += 1
        if self.ticks in self.strays:
            raise Killed

    async def deliver(self, outputs: Sequence[Any]) -> None:
        self.tick()
        for what, partition, offset in outputs:
            self.outputs.setdefault((partition, offset), set()).add(what)

    async def commit(self, commits: Mapping[TP, tuple[int, str]]) -> bool:
        self.tick()
        self.commits |= commits
        return True

    async def read_state(self, tp, epoch, next_offset):
        return {}, []

    def assigned(self):
        return set(self.begins)

    def begun(self, tp):
        return self.begins.get(tp)

    @property
    def is_done(self) -> bool:
        return all(self.commits.get(TP("t", p), (0, ""))[0] >= length for p, length in enumerate(self.lengths))

    async def live(self, most: int) -> None:
        """One worker, until it dies or everything is committed. most : records of a fetch."""
        positions = {}
        for p in range(len(self.lengths)):
            tp = TP("t", p)
            offset, metadata = self.commits.get(tp, (0, ""))
            found = read_checkpoint(metadata, "t")
            self.begins[tp] = Begin(offset, found)
            positions[tp] = found.mark if found else 0
        agent = Agent([DeadlyLine(self)], FakeModels({"a": "one"}), self, 0.0, lambda *_: None)
        try:
            while not self.is_done:
                fetched = []
                for tp, begin in self.begins.items():
                    at, end = positions[tp], self.lengths[tp.partition]
                    records = Records.of((offset, offset, None, b"") for offset in range(at, min(at + most, end)))
                    if records:
                        fetched.append(Fetched(tp, records, end, begin, at))
                        positions[tp] += len(records)
                await agent.take(fetched)
                await agent.commit()
            await agent.rest()
        except RuntimeError:
            await agent.rest()   # as Faust stops a worker that ended by an error
            raise
        finally:
            agent.close()

    def run(self, most: int, deaths: int = 60) -> None:
        """Workers one after the other, as a supervisor starts them."""
        for _ in range(deaths):
            try:
                asyncio.run(self.live(most))
                return
            except (Killed, RuntimeError):
                self.deaths += 1
        raise AssertionError(f"not done after {deaths} deaths; commits {self.commits}")

    @property
    def dead(self) -> set[tuple[int, int]]:
        return {place for place, what in self.outputs.items() if "dead" in what}


@pytest.mark.parametrize("is_killed", [True, False])
@pytest.mark.parametrize("culprit", [0, 1_555, 3_999])
def test_the_record_that_kills_is_dead_lettered_alone(is_killed, culprit):
    world = Cluster([4_000, 3_000], {(0, culprit)}, set(), is_killed)
    world.run(2_000)
    assert world.outputs == {
        (p, offset): {"dead"} if (p, offset) == (0, culprit) else {"out"}
        for p, length in enumerate(world.lengths) for offset in range(length)
    }
    assert DEADLY < world.deaths <= DEADLY + 3


def test_a_short_stretch_takes_four_deaths():
    world = Cluster([STEPS], {(0, 40)}, set(), True)
    world.run(STEPS)
    assert world.dead == {(0, 40)}
    assert world.deaths == DEADLY + 1


@settings(max_examples=40)
@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=3).flatmap(lambda lengths: st.tuples(
        st.just(lengths),
        st.sets(st.integers(0, len(lengths) - 1).flatmap(
            lambda p: st.tuples(st.just(p), st.integers(0, lengths[p] - 1))
        ), max_size=3),
    )),
    st.sets(st.integers(1, 400), max_size=DEADLY - 1), st.integers(1, 200), st.booleans(),
)
def test_no_other_record_is_called_dead_whatever_dies(log, strays, most, is_killed):
    lengths, deadly = log
    world = Cluster(lengths, deadly, strays, is_killed)
    world.run(most)
    assert world.dead == deadly
    assert set(world.outputs) == {(p, offset) for p, length in enumerate(lengths) for offset in range(length)}
    assert all(len(what) == 1 for what in world.outputs.values())


def test_a_replay_leaves_a_dead_record_out():
    world = Cluster([100], {(0, 95)}, set(), True)
    world.run(50)
    world.lengths = [200]
    world.run(50)
    assert world.dead == {(0, 95)}
    assert read_checkpoint(world.commits[TP("t", 0)][1], "t").crashed == ()   # no replay reaches it any more


def told(world: Cluster) -> Checkpoint:
    found = read_checkpoint(world.commits[TP("t", 0)][1], "t")
    assert found is not None
    return found


def test_an_orderly_end_is_no_crash_and_work_is_told_before_it_begins():
    world = Cluster([100], set(), set(), True)
    seen: list[int] = []

    async def deliver(outputs):
        if outputs:
            seen.append(told(world).attempts)

    world.deliver = deliver
    world.run(50)
    assert set(seen) == {1}
    assert told(world).attempts == 0


def test_an_output_that_its_topic_refuses_is_no_crash():
    world = Cluster([100], set(), set(), True)

    async def refuse(outputs):
        if outputs:
            raise StopWorker("topic x: a record is larger than it takes")

    async def live_and_rest():
        agents = []
        take = Agent.take

        async def catch(self, fetched):
            agents.append(self)
            await take(self, fetched)

        Agent.take = catch
        try:
            await world.live(50)
        except StopWorker:
            await agents[-1].rest()
        finally:
            Agent.take = take

    world.deliver = refuse
    for _ in range(8):
        asyncio.run(live_and_rest())
        assert told(world).attempts == 0
    del world.deliver
    world.run(50)
    assert world.dead == set()


def test_a_suspect_stretch_ends_with_the_log_and_where_its_record_is_gone():
    checkpoint = Checkpoint(0, 0, 5_000, "e", {}, attempts=1)
    assert Attempts.found(checkpoint, 100, -1).suspect == 5_000
    assert Attempts.found(checkpoint, 100, 130).suspect == 130
    gone = Attempts.found(Checkpoint(0, 0, 5_000, "e", {}, attempts=3, attempt_end=101), 100, 400)
    assert gone.is_deadly
    assert gone.is_suspect(100)
    assert not gone.is_suspect(101)
