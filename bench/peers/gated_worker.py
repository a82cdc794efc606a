"""A narrows worker of several: python -m bench.peers.gated_worker CONFIG GATE

It joins at once and says how many partitions it holds; it takes its first record when the file GATE is there. After
each batch it says how many records it has finished, those read again after a rebalance included, what CPU it has spent,
and where it is in each partition.
"""

import asyncio
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.peers.meter import cpu_s

LOOK_EVERY_S = 0.1


def say(**what: Any) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")   # past whoever redirected sys.stdout


def main() -> None:
    from pipeline import app
    from pipeline.agent import Agent
    from pipeline.config import load_config

    config, gate = load_config(Path(sys.argv[1])), Path(sys.argv[2])
    take: Callable[..., Any] = Agent.take
    observe: Callable[..., None] = app.Worker._observe
    seen = 0

    async def gated(self: Agent, fetched: Any) -> None:
        while not gate.exists():
            say(held=len(self._outlets.assigned()))
            await asyncio.sleep(LOOK_EVERY_S)
        await take(self, fetched)

    def counted(self: app.Worker, parts: Any, *rest: Any) -> None:
        nonlocal seen
        observe(self, parts, *rest)
        seen += sum(len(part.records) for part in parts)
        say(seen=seen, cpu_s=cpu_s(), next={part.tp.partition: int(part.records.offset[-1]) + 1 for part in parts})

    Agent.take = gated  # type: ignore[method-assign]
    app.Worker._observe = counted  # type: ignore[method-assign]
    app.Worker(config).run()


if __name__ == "__main__":
    main()
