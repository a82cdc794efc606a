"""One worker serves several streams: two that share a topic, and one of long readings on a topic of its own."""

import json
import os
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import yaml
from kafka import KafkaProducer

from pipeline import topics
from pipeline.core.contract import Contract
from pipeline.sinks import read_score
from tests.support.models import small_contract, write_small_bundle
from tests.support.world import until

ROWS = 60
START_MS = 1_700_000_000_000


def stream_of(folder: Path, name: str, topic: str, contract: Contract, **more: Any) -> dict[str, Any]:
    bundle = write_small_bundle(folder / name, contract, threshold=50.0)
    return {
        "topic": topic, "contract": msgspec.to_builtins(contract), "bundle": str(bundle.folder),
        "outputs": {"scores": True}, **more,
    }


def test_streams_share_a_worker_and_a_topic(kafka: Any, tmp_path: Path) -> None:
    shared, own = kafka.new_topic(2, "shared"), kafka.new_topic(1, "long")
    pumps, fans = small_contract(3), small_contract(2)
    prefix = f"{shared}."
    config = {
        "kafka": {"bootstrap": kafka.bootstrap, "group": f"{shared}-group", "topic_prefix": prefix},
        "registry": {"path": str(tmp_path / "registry")}, "worker": {"metrics_port": 0, "commit_interval_s": 0.3},
        "streams": {
            "pumps": stream_of(tmp_path, "pumps", shared, pumps, match={"device_prefix": "pump-"}),
            "fans": stream_of(tmp_path, "fans", shared, fans, match={"device_prefix": "fan-"}),
            "meters": stream_of(tmp_path, "meters", own, fans, format={"layout": "long"}),
        },
    }
    path = tmp_path / "narrows.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    topics.create(kafka.bootstrap, [shared, own], prefix)
    rng = np.random.default_rng(1)
    producer = KafkaProducer(bootstrap_servers=kafka.bootstrap, acks="all", linger_ms=20)
    for i in range(ROWS):
        ts = START_MS + 1000 * i
        for device, width in (("pump-1", 3), ("pump-2", 3), ("fan-1", 2), ("other", 1)):
            values = {f"c{c}": float(rng.normal()) for c in range(width)}
            body = json.dumps({"device": device, "ts": ts, "values": values}).encode()
            producer.send(shared, body, key=device.encode(), timestamp_ms=ts)
        for c in range(2):
            body = json.dumps({"device": "m", "ts": ts + c, "channel": f"c{c}", "value": float(rng.normal())}).encode()
            producer.send(own, body, key=b"m", timestamp_ms=ts + c)
    producer.flush()
    producer.close()

    def scores() -> dict[tuple[str, str], int]:
        found: dict[tuple[str, str], int] = defaultdict(int)
        for _, record in topics.read_topic(kafka.bootstrap, f"{prefix}narrows.scores"):
            score = read_score(record.value or b"")
            found[score.stream, score.device] += 1
        return found

    wanted = dict.fromkeys((("pumps", "pump-1"), ("pumps", "pump-2"), ("fans", "fan-1"), ("meters", "m")), ROWS - 7)
    log = (tmp_path / "worker.log").open("wb")
    worker = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli.main", "worker", "--config", str(path)], stdout=log, stderr=log,
        env=dict(os.environ), cwd=Path(__file__).parents[2],
    )
    try:
        until(lambda: scores() == wanted, 120, "the scores of all streams")
    finally:
        worker.send_signal(signal.SIGTERM)
        worker.wait(30)
        log.close()
    assert worker.returncode == 0
    assert list(topics.read_topic(kafka.bootstrap, f"{prefix}narrows.dead-letters")) == []
