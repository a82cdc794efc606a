"""Quix Streams as its docs show it, doing the same work: python -m bench.peers.quix BOOTSTRAP TOPIC OUTPUT GROUP MODEL

Tumbling windows by count, collected in its state store with a changelog, at-least-once; it runs in an environment of
its own. Tuned where its settings allow: typed decoding, large fetches, commits as far apart as the others'.
"""

import gc
import tempfile
from sys import argv
from typing import Any

import numpy as np
from quixstreams import Application, message_context
from quixstreams.models.topics import TopicConfig

from bench.peers.meter import Meter
from bench.peers.same_work import GC_THRESHOLDS, WINDOW, Autoencoder, columns, decode, result

PARTITIONS = 4   # of the topics, which exist


def main() -> None:
    bootstrap, topic, output, group, model_path = argv[1:6]
    meter, model = Meter(), Autoencoder(model_path)

    def processed(*_: Any) -> None:
        if meter.ends_with(1):
            app._producer.flush(30)
        meter.count(1)

    app = Application(
        broker_address=bootstrap, consumer_group=group, auto_offset_reset="earliest", commit_interval=1.0,
        loglevel="WARNING", state_dir=tempfile.mkdtemp(), on_message_processed=processed,
        consumer_extra_config={"fetch.queue.backoff.ms": 10, "queued.min.messages": 200_000},
        producer_extra_config={"linger.ms": 20, "batch.size": 1 << 20},
    )
    shape = TopicConfig(num_partitions=PARTITIONS, replication_factor=1)
    readings = app.topic(topic, value_deserializer="bytes", config=shape)
    results = app.topic(output, value_serializer="bytes", config=shape)

    def row(value: bytes) -> list[Any]:
        reading = decode(value)
        return [reading.device, reading.ts, *columns([reading])[0].tolist()]

    def score(window: dict[str, Any]) -> bytes:
        rows = window["value"]
        found = model.score(np.array([one[2:] for one in rows], np.float32)[None])    # (1,T,C)
        at = message_context()
        return result(at.partition, at.offset, rows[-1][0], rows[-1][1], float(found[0]))

    stream = app.dataframe(readings)
    stream.apply(row).tumbling_count_window(WINDOW).collect().final().apply(score).to_topic(results)
    gc.set_threshold(*GC_THRESHOLDS)
    gc.freeze()
    app.run()


if __name__ == "__main__":
    main()
