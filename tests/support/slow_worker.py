"""`narrows worker` with a pause after each batch, so that kills fall inside the work; and one that dies at a record.

    DIES_AT=raise:0:700 SLOW_BATCHES=7,7 python -m tests.support.slow_worker PAUSE_MS [options of narrows worker]

STOPS_LOOP : the first batch never gives the event loop back.
SLOW_BATCHES : seconds that the first batches compute.
DIES_AT : `raise` or `kill`, partition, offset; whoever computes with that record raises, or is killed.
"""

import asyncio
import os
import signal
import sys
import time
from typing import Any

from pipeline.agent import Agent
from pipeline.cli.main import main
from pipeline.line import Line


def slow_down(pause_s: float) -> None:
    take = Agent.take

    async def slow(self: Agent, fetched: Any) -> None:
        await take(self, fetched)
        await asyncio.sleep(pause_s)

    Agent.take = slow  # type: ignore[method-assign]


def die_at(how: str, partition: int, offset: int) -> None:
    compute = Line.compute

    def deadly(self: Line, batch: Any) -> Any:
        for part in batch:
            if part.tp.partition == partition and offset in part.records.offset and offset not in part.crashed:
                if how == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise RuntimeError(f"a bug that shows at offset {offset}")
        return compute(self, batch)

    Line.compute = deadly  # type: ignore[method-assign]


def compute_slowly(pauses_s: list[float]) -> None:
    compute = Line.compute

    def slow(self: Line, batch: Any) -> Any:
        if pauses_s:
            time.sleep(pauses_s.pop(0))
        return compute(self, batch)

    Line.compute = slow  # type: ignore[method-assign]


def stop_the_loop() -> None:
    async def stuck(self: Agent, fetched: Any) -> None:
        time.sleep(1e6)   # noqa: ASYNC251

    Agent.take = stuck  # type: ignore[method-assign]


if __name__ == "__main__":
    pause_ms = int(sys.argv.pop(1))
    if pause_ms:
        slow_down(pause_ms / 1000)
    if "STOPS_LOOP" in os.environ:
        stop_the_loop()
    if "SLOW_BATCHES" in os.environ:
        compute_slowly([float(pause) for pause in os.environ["SLOW_BATCHES"].split(",")])
    if "DIES_AT" in os.environ:
        deadly_how, deadly_partition, deadly_offset = os.environ["DIES_AT"].split(":")
        die_at(deadly_how, int(deadly_partition), int(deadly_offset))
    sys.argv.insert(1, "worker")
    main()
