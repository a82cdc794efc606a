"""The loop that a good engineer writes by hand: librdkafka, large batches, vectorised windows, at-least-once.

    python -m bench.peers.confluent_loop BOOTSTRAP TOPIC OUTPUT GROUP MODEL [quick]

Set for throughput, or, with `quick`, for latency at a low rate.

A commit names, for each partition, the first row of its oldest open window, and only once every result up to here is
acknowledged; so a restart loses no window. Commits are once a second.
"""

import gc
import sys
import time

import numpy as np
from confluent_kafka import Consumer, Producer, TopicPartition

from bench.peers.meter import Meter
from bench.peers.same_work import GC_THRESHOLDS, Autoencoder, Windows, columns, decode, result

COMMIT_EVERY_S = 1.0
BATCH = 40_000
WAIT_S, QUICK_WAIT_S = 0.1, 0.01   # for a whole batch


def main() -> None:
    bootstrap, topic, output, group, model_path = sys.argv[1:6]
    is_quick = sys.argv[6:] == ["quick"]
    wait_s, linger_ms = (QUICK_WAIT_S, 0) if is_quick else (WAIT_S, 20)
    consumer = Consumer({
        "bootstrap.servers": bootstrap, "group.id": group, "enable.auto.commit": False, "auto.offset.reset": "earliest",
        "fetch.queue.backoff.ms": 10, "fetch.wait.max.ms": 10, "queued.min.messages": 200_000,
        "queued.max.messages.kbytes": 1 << 17, "fetch.message.max.bytes": 4 << 20,
    })
    producer = Producer({
        "bootstrap.servers": bootstrap, "acks": "all", "enable.idempotence": True, "linger.ms": linger_ms,
        "batch.size": 1 << 20,
    })
    meter, windows, model = Meter(), Windows(), Autoencoder(model_path)
    partition_of = np.full(len(windows.filled), -1, np.int64)
    first = np.zeros(len(windows.filled), np.int64)     # offset of the row that began each open window
    failed: list[str] = []

    def acknowledged(error: object, message: object) -> None:
        if error is not None:
            failed.append(str(error))

    def settle() -> None:
        if producer.flush(30) or failed:
            raise SystemExit(f"results were not delivered: {failed[:1]}")

    consumer.subscribe([topic])
    gc.set_threshold(*GC_THRESHOLDS)
    gc.freeze()
    committed_at = time.monotonic()
    while True:
        messages = consumer.consume(BATCH, wait_s)
        if not messages:
            continue
        readings = [decode(message.value()) for message in messages]
        devices = [reading.device for reading in readings]
        closed = windows.push(devices, columns(readings))
        for slot, row in zip(closed.opened_slot.tolist(), closed.opened.tolist(), strict=True):
            first[slot] = messages[row].offset()
            if partition_of[slot] < 0:
                partition_of[slot] = messages[row].partition()
        scores = model.score(closed.windows)
        for row, score in zip(closed.last.tolist(), scores.tolist(), strict=True):
            message, reading = messages[row], readings[row]
            partition = message.partition()
            producer.produce(
                output, result(partition, message.offset(), reading.device, reading.ts, score), message.key(),
                partition=partition, on_delivery=acknowledged,
            )
        producer.poll(0)
        if meter.ends_with(len(messages)):
            settle()
        if time.monotonic() - committed_at >= COMMIT_EVERY_S:
            settle()
            places = []
            for place in consumer.position(consumer.assignment()):
                opened = first[(partition_of == place.partition) & (windows.filled > 0)]
                places.append(TopicPartition(topic, place.partition, min([place.offset, *opened.tolist()])))
            consumer.commit(offsets=[place for place in places if place.offset >= 0], asynchronous=False)
            committed_at = time.monotonic()
        meter.count(len(messages))


if __name__ == "__main__":
    main()
