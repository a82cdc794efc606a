"""A stock Faust agent that does nothing: python -m bench.peers.stock_faust BOOTSTRAP TOPIC GROUP"""

import asyncio
import sys
import tempfile
from typing import Any

import faust
from faust.worker import Worker

from bench.peers.meter import Meter


def main() -> None:
    bootstrap, topic, group = sys.argv[1:4]
    meter = Meter()
    app = faust.App(
        group, broker=f"kafka://{bootstrap}", value_serializer="raw", topic_disable_leader=True, store="memory://",
        web_enabled=False, datadir=tempfile.mkdtemp(), topic_allow_declare=False, consumer_auto_offset_reset="earliest",
    )

    async def flow(stream: Any) -> None:
        async for _ in stream.events():
            meter.count(1)

    app.agent(app.topic(topic, value_serializer="raw", value_type=bytes))(flow)
    Worker(app, loglevel="WARN", quiet=True, loop=asyncio.new_event_loop()).execute_from_commandline()


if __name__ == "__main__":
    main()
