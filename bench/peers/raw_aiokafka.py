"""Reading alone, with aiokafka's getmany: python -m bench.peers.raw_aiokafka BOOTSTRAP TOPIC GROUP"""

import asyncio
import sys

from aiokafka import AIOKafkaConsumer

from bench.peers.meter import Meter


async def main() -> None:
    bootstrap, topic, group = sys.argv[1:4]
    meter = Meter()
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=bootstrap, group_id=group, auto_offset_reset="earliest", enable_auto_commit=False,
        max_partition_fetch_bytes=1 << 20,
    )
    await consumer.start()
    while True:
        found = await consumer.getmany(timeout_ms=1000)
        meter.count(sum(map(len, found.values())))


if __name__ == "__main__":
    asyncio.run(main())
