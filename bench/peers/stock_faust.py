"""A Faust agent as its docs show it, doing the same work: `take` of a thousand, windows, model, awaited sends.

    python -m bench.peers.stock_faust BOOTSTRAP TOPIC OUTPUT GROUP MODEL

Acks and commits are Faust's own: at-least-once as it is out of the box.
"""

import asyncio
import gc
import sys
import tempfile
from typing import Any

import faust
from faust.worker import Worker

from bench.peers.meter import Meter
from bench.peers.same_work import GC_THRESHOLDS, Autoencoder, Windows, columns, decode, result

BATCH, WITHIN_S = 1000, 0.1


def main() -> None:
    bootstrap, topic, output, group, model_path = sys.argv[1:6]
    meter, windows, model = Meter(), Windows(), Autoencoder(model_path)
    app = faust.App(
        group, broker=f"kafka://{bootstrap}", value_serializer="raw", topic_disable_leader=True, store="memory://",
        web_enabled=False, datadir=tempfile.mkdtemp(), topic_allow_declare=False, consumer_auto_offset_reset="earliest",
        producer_acks=-1,
    )
    results = app.topic(output, value_serializer="raw", key_serializer="raw")

    async def flow(stream: Any) -> None:
        async for events in stream.take_events(BATCH, within=WITHIN_S):
            readings = [decode(event.value) for event in events]
            closed = windows.push([reading.device for reading in readings], columns(readings))
            sent = []
            for row, score in zip(closed.last.tolist(), model.score(closed.windows).tolist(), strict=True):
                message, reading = events[row].message, readings[row]
                sent.append(await results.send(
                    key=message.key, partition=message.partition,
                    value=result(message.partition, message.offset, reading.device, reading.ts, score),
                ))
            await asyncio.gather(*sent)
            meter.count(len(events))

    app.agent(app.topic(topic, value_serializer="raw", value_type=bytes))(flow)
    gc.set_threshold(*GC_THRESHOLDS)
    gc.freeze()
    Worker(app, loglevel="WARN", quiet=True, loop=asyncio.new_event_loop()).execute_from_commandline()


if __name__ == "__main__":
    main()
