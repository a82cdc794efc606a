"""The agent against a world that the test holds in its hands: what is committed before what is written."""

import asyncio
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from pipeline.agent import Agent
from pipeline.core.maintenance import Plans, Window
from pipeline.core.records import Records
from pipeline.engine.checkpoint import Checkpoint, read_checkpoint
from pipeline.engine.transport import TP, Begin, Fetched
from pipeline.errors import StopWorker

TP0 = TP("t", 0)
FakeModel = namedtuple("FakeModel", "digest")


class FakeLine:
    """A stream whose every record is one output: (stream, offset, digest)."""

    topic = "t"

    def __init__(self, name: str) -> None:
        self.name = name
        self.digest = ""

    def assign(self, partition, model, emit_from, mark_time, states):
        self.digest = model.digest

    def swap(self, partition, model):
        self.digest = model.digest
        return 0

    def revoke(self, partition): ...
    def heed(self, partition, plan):
        self.plan = plan

    def mark(self, partition, next_offset):
        return next_offset, 0

    def changed(self, partition):
        return {}

    def settled(self): ...
    def take(self, batch):
        return [
            (self.name, offset, self.digest) for part in batch for offset in part.records.offset.tolist()
            if offset >= part.emit_from
        ]


class FakeModels:
    def __init__(self, wanted: dict[str, str]) -> None:
        self.names = wanted

    def wanted(self, stream):
        return FakeModel(self.names[stream])

    def load(self, stream, digest):
        return FakeModel(digest)


class World:
    """Broker and group. `happened`, in order: ("commit", next, digests, until), ("output", stream, offset, digest)."""

    def __init__(self, checkpoint: Checkpoint | None, next_offset: int) -> None:
        self.begin: Begin | None = Begin(next_offset, checkpoint)
        self.happened: list[tuple[Any, ...]] = []
        self.while_reading: Callable[[], None] = lambda: None

    async def deliver(self, outputs: Sequence[Any]) -> None:
        self.happened += [("output", *output) for output in outputs]

    async def commit(self, commits: Mapping[TP, tuple[int, str]]) -> bool:
        for next_offset, metadata in commits.values():
            told = _decode(metadata)
            self.happened.append(("commit", next_offset, told.digests, told.until))
        return True

    async def read_state(self, tp, epoch, next_offset):
        self.while_reading()
        return {}, []

    def state_record(self, partition, key, value):
        return ("state", -1, "")

    def assigned(self):
        return {TP0}

    def begun(self, tp):
        return self.begin


def _decode(metadata: str) -> Checkpoint:
    found = read_checkpoint(metadata, "t[0]")
    assert found is not None
    return found


def make_agent(
    world: World, wanted: dict[str, str], plans: Plans | None = None, line: type[FakeLine] = FakeLine
) -> tuple[Agent, FakeModels]:
    models = FakeModels(wanted)
    agent = Agent([line(name) for name in wanted], models, world, 3600.0, lambda *_: None, plans=plans)
    return agent, models


def fetched(world: World, first: int, last: int) -> list[Fetched]:
    records = Records.of((offset, offset, None, b"") for offset in range(first, last + 1))
    return [Fetched(TP0, records, last + 1, world.begin, first)]


def outputs_before_their_commit(world: World) -> list[tuple[Any, ...]]:
    """Outputs whose digest, or whose offset below `until`, no earlier commit had named."""
    found = world.begin.checkpoint if world.begin else None
    digests, until = (dict(found.digests), found.until) if found else ({}, -1)
    wrong = []
    for what, *facts in world.happened:
        if what == "commit":
            _, digests, until = facts
        elif digests.get(facts[0]) != facts[2] or facts[1] >= until:
            wrong.append(tuple(facts))
    return wrong


@pytest.mark.parametrize("last", [9, 5_000])
async def test_the_first_output_comes_after_the_first_commit(last):
    world = World(None, 0)
    agent, _ = make_agent(world, {"a": "one"})
    await agent.take(fetched(world, 0, last))
    assert world.happened[0][:3] == ("commit", 0, {"a": "one"})
    assert outputs_before_their_commit(world) == []


async def test_outputs_at_or_beyond_until_wait_for_a_commit():
    world = World(None, 0)
    agent, _ = make_agent(world, {"a": "one"})
    for first in range(0, 20_000, 700):
        await agent.take(fetched(world, first, first + 699))
    assert outputs_before_their_commit(world) == []


async def test_a_stream_that_is_new_in_a_topic_writes_nothing_before_a_commit_names_its_digest():
    world = World(Checkpoint(90, 0, 5_000, "e", {"a": "one"}), 100)
    agent, _ = make_agent(world, {"a": "one", "b": "two"})
    await agent.take(fetched(world, 90, 120))
    assert outputs_before_their_commit(world) == []
    assert {output[1] for output in world.happened if output[0] == "output"} == {"a", "b"}


async def test_a_promise_found_in_a_commit_is_never_taken_back():
    world = World(Checkpoint(90, 0, 500_000, "e", {"a": "one"}), 100)
    agent, _ = make_agent(world, {"a": "one", "b": "two"})
    await agent.take(fetched(world, 90, 120))
    assert [facts[2] for what, *facts in world.happened if what == "commit"] == [500_000]


async def test_who_took_over_names_a_new_digest_only_where_the_old_promise_ends():
    world = World(Checkpoint(100, 0, 400, "e", {"a": "one"}), 100)
    agent, _ = make_agent(world, {"a": "new"})
    for first in range(100, 1_000, 50):
        await agent.take(fetched(world, first, first + 49))
    written = [facts for what, *facts in world.happened if what == "output"]
    assert {digest for _, offset, digest in written if offset < 400} == {"one"}
    assert {digest for _, offset, digest in written if offset >= 400} == {"new"}
    assert outputs_before_their_commit(world) == []


async def test_a_swap_names_its_digest_in_a_commit_before_the_first_output():
    world = World(None, 0)
    agent, models = make_agent(world, {"a": "one"})
    await agent.take(fetched(world, 0, 9))
    models.names["a"] = "two"
    await agent.take(fetched(world, 10, 19))
    assert outputs_before_their_commit(world) == []
    assert world.happened[-1] == ("output", "a", 19, "two")


async def test_records_fetched_for_an_assignment_that_is_over_are_dropped():
    world = World(None, 0)
    agent, _ = make_agent(world, {"a": "one"})
    old = fetched(world, 0, 9)
    world.begin = Begin(0, None)
    await agent.take(old)
    assert world.happened == []


async def test_records_that_wait_when_their_partition_is_taken_away_begin_nothing():
    world = World(None, 0)
    agent, _ = make_agent(world, {"a": "one"})
    await agent.take(fetched(world, 0, 9))
    waiting = fetched(world, 10, 19)
    world.begin = None
    await agent.drop([TP0])
    del world.happened[:]
    await agent.take(waiting)
    assert world.happened == []
    assert not agent.held


async def test_a_partition_taken_away_while_its_state_is_read_is_not_begun():
    world = World(Checkpoint(0, 0, 5_000, "e", {"a": "one"}), 0)
    agent, _ = make_agent(world, {"a": "one"})
    found = fetched(world, 0, 9)

    def taken_away() -> None:
        world.begin = Begin(50, Checkpoint(50, 0, 5_000, "f", {"a": "one"}))

    world.while_reading = taken_away
    await agent.take(found)
    assert world.happened == []
    world.while_reading = lambda: None
    await agent.take(fetched(world, 50, 59))
    assert [facts[1] for what, *facts in world.happened if what == "output"] == list(range(50, 60))


async def test_a_partition_taken_away_in_a_careful_step_is_committed_no_further_than_it_was_worked_on():
    world = World(Checkpoint(0, 0, 5_000, "e", {"a": "one"}, attempts=1), 0)
    agent, _ = make_agent(world, {"a": "one"})
    found = fetched(world, 0, 199)
    deliver = world.deliver

    async def deliver_until_revoked(outputs):
        await deliver(outputs)
        if any(offset >= 50 for _, offset, _ in outputs):
            world.begin = None

    world.deliver = deliver_until_revoked
    await agent.take(found)
    written = [facts[1] for what, *facts in world.happened if what == "output"]
    assert written == list(range(written[-1] + 1))
    assert 50 <= written[-1] < 60
    assert max(facts[0] for what, *facts in world.happened if what == "commit") <= written[-1] + 1


async def test_records_that_never_reached_the_agent_end_the_worker():
    world = World(None, 0)
    agent, _ = make_agent(world, {"a": "one"})
    await agent.take(fetched(world, 0, 9))
    with pytest.raises(StopWorker, match="from 10 to 20 went astray"):
        await agent.take(fetched(world, 20, 29))
    assert max(facts[1] for what, *facts in world.happened if what == "output") == 9


async def test_a_commit_whose_partition_was_taken_away_while_its_state_was_written_is_not_sent():
    world = World(None, 0)
    agent, _ = make_agent(world, {"a": "one"})
    await agent.take(fetched(world, 0, 9))
    del world.happened[:]

    async def taken_away(outputs):
        agent._drop(TP0)

    world.deliver = taken_away
    assert not await agent.commit()
    assert world.happened == []


async def test_an_orderly_end_finishes_the_batch_in_work_and_commits_it():
    world = World(None, 0)
    agent, _ = make_agent(world, {"a": "one"})
    deliver, in_work, go_on = world.deliver, asyncio.Event(), asyncio.Event()

    async def held_up(outputs):
        in_work.set()
        await go_on.wait()
        await deliver(outputs)

    await agent.take(fetched(world, 0, 9))
    world.deliver = held_up
    taking = asyncio.create_task(agent.take(fetched(world, 10, 19)))
    await in_work.wait()
    taking.cancel()                       # as Faust ends
    with pytest.raises(asyncio.CancelledError):
        await taking
    asyncio.get_running_loop().call_later(0.05, go_on.set)
    await agent.rest()
    assert [facts[1] for what, *facts in world.happened if what == "output"] == list(range(20))
    assert world.happened[-1][:2] == ("commit", 20)


class PlannedLine(FakeLine):
    """Its outputs name the plan that it heeds, in the digest's place."""

    def take(self, batch):
        return [(stream, offset, f"plan {self.plan.end}") for stream, offset, _ in super().take(batch)]


class PlannedWorld(World):
    """Its commits tell the plan in the digests' place."""

    async def commit(self, commits: Mapping[TP, tuple[int, str]]) -> bool:
        for next_offset, metadata in commits.values():
            told = _decode(metadata)
            self.happened.append(("commit", next_offset, {"a": f"plan {told.plan}"}, told.until))
        return True


def planned(end: int) -> Plans:
    plans = Plans()
    for offset in range(end):
        plans.take(offset, f"w{offset}", Window(id=f"w{offset}", stream="a", begin_ms=0, end_ms=9))
    return plans


async def test_a_window_is_heeded_from_a_commit_on_that_names_it():
    world, plans = PlannedWorld(None, 0), planned(1)
    agent, _ = make_agent(world, {"a": "one"}, plans, PlannedLine)
    await agent.take(fetched(world, 0, 9))
    plans.take(1, "w1", None)
    await agent.take(fetched(world, 10, 19))
    assert outputs_before_their_commit(world) == []
    written = [facts for what, *facts in world.happened if what == "output"]
    assert {told for _, offset, told in written if offset < 10} == {"plan 1"}
    assert {told for _, offset, told in written if offset >= 10} == {"plan 2"}


async def test_who_took_over_heeds_the_windows_of_the_commit_until_the_old_promise_ends():
    world = PlannedWorld(Checkpoint(100, 0, 400, "e", {"a": "one"}, plan=2), 100)
    agent, _ = make_agent(world, {"a": "one"}, planned(3), PlannedLine)
    for first in range(100, 1_000, 50):
        await agent.take(fetched(world, first, first + 49))
    written = [facts for what, *facts in world.happened if what == "output"]
    assert {told for _, offset, told in written if offset < 400} == {"plan 2"}
    assert {told for _, offset, told in written if offset >= 400} == {"plan 3"}


async def test_a_commit_that_knew_more_of_maintenance_is_waited_for():
    world, plans = PlannedWorld(Checkpoint(0, 0, 5_000, "e", {"a": "one"}, plan=2), 0), planned(1)
    agent, _ = make_agent(world, {"a": "one"}, plans, PlannedLine)
    begun = asyncio.create_task(agent.take(fetched(world, 0, 9)))
    await asyncio.sleep(0)
    assert world.happened == []
    plans.take(1, "w1", None)
    await begun
    assert {facts[2] for what, *facts in world.happened if what == "output"} == {"plan 2"}
