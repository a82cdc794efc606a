"""A steady load: python -m bench.peers.steady_load BOOTSTRAP TOPIC RATE SECONDS DEVICES PARTITIONS"""

import sys
import time

import msgspec
import numpy as np
from confluent_kafka import Producer

from bench.stream_data import CHANNELS

TICK_S = 0.005


def main() -> None:
    bootstrap, topic = sys.argv[1:3]
    rate, seconds, devices, partitions = map(int, sys.argv[3:7])
    rng = np.random.default_rng(1)
    bodies = [
        msgspec.json.encode(dict(zip(CHANNELS, row.tolist(), strict=True))).decode()
        for row in rng.normal(0, 1, (2000, 8)).round(4)
    ]
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 0})
    start, sent = time.monotonic(), 0
    while (passed := time.monotonic() - start) < seconds:
        due = int(passed * rate)
        now = round(time.time() * 1000)
        while sent < due:
            device = sent % devices
            value = f'{{"device":"d{device}","ts":{now},"values":{bodies[sent % 2000]}}}'
            producer.produce(topic, value, f"d{device}", partition=device % partitions)
            sent += 1
        producer.poll(0)
        time.sleep(TICK_S)
    producer.flush(10)


if __name__ == "__main__":
    main()
