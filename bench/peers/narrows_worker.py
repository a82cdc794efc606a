"""A narrows worker that counts what it finishes, with CPU by stage: python -m bench.peers.narrows_worker CONFIG"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.peers.meter import Meter


def timed(meter: Meter, owner: Any, name: str, stage: str) -> None:
    """Add the thread's CPU inside a method to a stage."""
    inner = getattr(owner, name)

    def outer(*args: Any, **kwargs: Any) -> Any:
        began = time.thread_time()
        try:
            return inner(*args, **kwargs)
        finally:
            meter.stages[stage] = meter.stages.get(stage, 0.0) + time.thread_time() - began

    setattr(owner, name, outer)


def main() -> None:
    from pipeline import codec, line
    from pipeline.agent import Agent
    from pipeline.app import Worker
    from pipeline.config import load_config
    from pipeline.core.rows import Rows
    from pipeline.core.score import Scorer
    from pipeline.formats import WideDecoder
    from pipeline.scoring.session import Session

    meter = Meter()
    for owner, name, stage in (
        (WideDecoder, "decode", "decode"), (Rows, "push", "rows"), (Rows, "windows", "gather"),
        (Rows, "residuals", "gather"), (Session, "run", "onnx"), (Session, "rebuild_and_gist", "onnx"),
        (Scorer, "filter", "filter"), (Scorer, "score", "score"), (line, "encode_blocks", "blocks"),
        (line.Line, "take", "all computing"),
    ):
        timed(meter, owner, name, stage)
    take: Callable[..., Any] = Agent.take

    async def counted(self: Agent, fetched: Any) -> None:
        await take(self, fetched)
        meter.count(sum(len(part.records) for part in fetched))

    Agent.take = counted  # type: ignore[method-assign]
    assert codec is not None
    Worker(load_config(Path(sys.argv[1]))).run()


if __name__ == "__main__":
    main()
