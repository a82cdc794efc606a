"""A steady load until it is ended: python -m bench.peers.steady_load BOOTSTRAP TOPIC RATE DEVICES PARTITIONS"""

import sys
import time

import msgspec
import numpy as np
from confluent_kafka import Producer

from bench.stream_data import CHANNELS

TICK_S = 0.005


def main() -> None:
    bootstrap, topic = sys.argv[1:3]
    rate, devices, partitions = map(int, sys.argv[3:6])
    rng = np.random.default_rng(1)
    bodies = [
        msgspec.json.encode(dict(zip(CHANNELS, row.tolist(), strict=True))).decode()
        for row in rng.normal(0, 1, (2000, 8)).round(4)
    ]
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 0, "enable.idempotence": True})
    start, start_ms, sent = time.monotonic(), round(time.time() * 1000), 0
    while True:
        due = int((time.monotonic() - start) * rate)
        while sent < due:
            device, ts = sent % devices, start_ms + 1000 * sent // rate    # as due: no time of a device comes twice
            value = f'{{"device":"d{device}","ts":{ts},"values":{bodies[sent % 2000]}}}'
            try:
                producer.produce(topic, value, f"d{device}", partition=device % partitions)
            except BufferError:
                raise SystemExit(f"the broker does not take {rate} records a second on this machine now") from None
            sent += 1
        producer.poll(0)
        time.sleep(TICK_S)


if __name__ == "__main__":
    main()
