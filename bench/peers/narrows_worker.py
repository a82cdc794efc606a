"""A narrows worker that counts what it finishes, with CPU by stage: python -m bench.peers.narrows_worker CONFIG"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.peers.meter import Meter


def main() -> None:
    from pipeline import app, line
    from pipeline.agent import Agent
    from pipeline.config import load_config
    from pipeline.core.rows import Rows
    from pipeline.core.score import Scorer
    from pipeline.engine.transport import BatchConsumer
    from pipeline.scoring.blocks import BlockCoder
    from pipeline.scoring.session import Session
    from pipeline.scoring.stream import Stream

    meter = Meter()
    for owner, name, stage in (
        (Rows, "slots", "rows"), (Rows, "push", "rows"), (Rows, "settle", "rows"),
        (Rows, "windows", "gather"), (Rows, "residuals", "gather"), (Session, "run", "onnx"),
        (Session, "rebuild_and_gist", "onnx"), (Scorer, "filter", "filter"), (Scorer, "score", "score"),
        (Stream, "push", "rest of scoring"), (BlockCoder, "encode", "blocks"), (line.Line, "_blocks", "encode"),
        (line.Line, "_take_result", "encode"), (line.Line, "take", "records to columns"),
        (Agent, "_part", "records to columns"), (app.Worker, "_observe", "metrics"),
    ):
        meter.time(owner, name, stage)
    for owner, name, stage in (
        (app, "deliver", "deliver"), (Agent, "_commit", "commit"), (BatchConsumer, "_wait_next_records", "poll"),
    ):
        meter.time_coroutine(owner, name, stage)
    meter.time_collector()
    make_decoder: Callable[..., Any] = line.make_decoder

    def timed_decoder(*given: Any) -> Any:
        decoder = make_decoder(*given)
        meter.time(decoder, "decode_records", "decode")
        return decoder

    line.make_decoder = timed_decoder
    observe: Callable[..., None] = app.Worker._observe

    def counted(self: app.Worker, parts: Any, *rest: Any) -> None:
        observe(self, parts, *rest)
        meter.count(sum(len(part.records) for part in parts))   # delivered; a fetch that was dropped is not among them

    app.Worker._observe = counted  # type: ignore[method-assign]
    app.Worker(load_config(Path(sys.argv[1]))).run()


if __name__ == "__main__":
    main()
