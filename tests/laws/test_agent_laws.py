"""No commit passes an output that is not delivered, whatever fails, waits or is given up, and in whichever order."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.agent import Agent
from pipeline.engine.checkpoint import read_checkpoint
from pipeline.engine.transport import TP, Begin
from tests.unit.test_agent import TP0, FakeLine, FakeModels, World, fetched

COMPLETIONS = 100_000


class Broken(Exception):
    """A delivery that failed: it ends a worker."""


class ReplayingLine(FakeLine):
    def mark(self, partition, next_offset):
        return max(0, next_offset - 30), 0


class Chance(World):
    """Outputs complete one by one in any order, at any time, or not; commits stand or not, answered or not.

    complete : all outputs below it are delivered.   stands : of the commit.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__(None, 0)
        self.rng = rng
        self.completions = self.complete = self.stands = self.commits = self.failures = 0
        self._delivered: set[int] = set()

    async def deliver(self, outputs: Sequence[Any]) -> None:
        breaks_at = int(self.rng.integers(len(outputs))) if outputs and self.rng.random() < 0.05 else -1
        for done, place in enumerate(self.rng.permutation(len(outputs)).tolist()):
            if self.rng.random() < 0.1:
                await asyncio.sleep(0)
            if done == breaks_at:
                self.failures += 1
                raise Broken
            self._delivered.add(outputs[place][1])
            self.completions += 1
        while self.complete in self._delivered:
            self._delivered.remove(self.complete)
            self.complete += 1

    async def commit(self, commits: Mapping[TP, tuple[int, str]]) -> bool:
        await asyncio.sleep(0)
        fate = self.rng.random()
        if fate < 0.05:
            return False
        for next_offset, metadata in commits.values():
            assert next_offset <= self.complete, f"{next_offset} is committed, {self.complete} is not delivered"
            assert next_offset >= self.stands
            self.stands, self.found = next_offset, read_checkpoint(metadata, "t[0]")
            self.commits += 1
        return fate > 0.1


async def taken_away(world: Chance, agent: Agent) -> None:
    world.begin = None
    await agent.drop([TP0])


async def work(world: Chance, agent: Agent, position: int) -> None:
    """Batches, with commits and an end of the assignment at any time beside them, until something breaks."""
    rng = world.rng
    while world.completions < COMPLETIONS:
        last = position + int(rng.integers(0, 120))
        beside = [agent.commit() for _ in range(int(rng.integers(0, 3)))]
        if rng.random() < 0.02:
            beside.append(taken_away(world, agent))
        tasks = [asyncio.ensure_future(agent.take(fetched(world, position, last))), *map(asyncio.ensure_future, beside)]
        if rng.random() < 0.02:
            await asyncio.sleep(0)
            tasks[0].cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        for error in ended:
            if isinstance(error, AssertionError):
                raise error
        await agent.commit()    # after a failure too: it must not tell what was not delivered
        if any(isinstance(error, BaseException) for error in ended) or not agent.held:
            return
        position = last + 1


async def test_a_hundred_thousand_completions_never_commit_past_an_undelivered_output():
    world = Chance(np.random.default_rng(7))
    world.found = None
    while world.completions < COMPLETIONS:
        line = ReplayingLine("a")
        agent = Agent([line], FakeModels({"a": "one"}), world, 3600.0, lambda *_: None)
        world.begin = Begin(world.stands, world.found)
        await work(world, agent, world.stands if world.found is None else world.found.mark)
        agent.close()
    assert world.commits > 500
    assert world.failures > 50
