"""`narrows worker` with a pause after each batch, so that kills fall inside the work.

    python -m tests.support.slow_worker PAUSE_MS [options of narrows worker]
"""

import asyncio
import sys
from typing import Any

from pipeline.agent import Agent
from pipeline.cli.main import main


def slow_down(pause_s: float) -> None:
    take = Agent.take

    async def slow(self: Agent, fetched: Any) -> None:
        await take(self, fetched)
        await asyncio.sleep(pause_s)

    Agent.take = slow  # type: ignore[method-assign]


if __name__ == "__main__":
    pause_ms = int(sys.argv.pop(1))
    if pause_ms:
        slow_down(pause_ms / 1000)
    sys.argv.insert(1, "worker")
    main()
