"""Latency at a steady load: broker append of a scored row to broker append of its score, and what it costs.

    python -m bench.latency [--quick] [--check] [--json OUT] [--docs PAGE]

5 000 records a second, 400 devices, 4 partitions, eight-channel JSON, the model of bench.stream; the worker lets the
broker coalesce (fetch_min_bytes 1 MB, fetch_max_wait_ms as listed). CPU is the worker's, as a share of one core.
"""

import os
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import msgspec
import numpy as np
import psutil
import yaml

from bench.results import Measurement, machine, options, print_table, report
from bench.stream_data import make_bundle
from pipeline import topics
from pipeline.local import LocalKafka
from pipeline.sinks import read_score

RATE, DEVICES, PARTITIONS = 5_000, 400, 4
STEP_MS = 1000 * DEVICES // RATE
SETTLE_S = 8
# hop, fetch_max_wait_ms, goals: p50 ms, p99 ms, share of a core
CASES = ((32, 10, 15.0, 30.0, 0.25), (1, 20, 20.0, 40.0, 0.40))


def run(folder: Path, bootstrap: str, hop: int, wait_ms: int, seconds: int) -> tuple[np.ndarray, float, float]:
    """(latencies ms, share of a core, longest pause between two scores in ms)."""
    name = uuid.uuid4().hex[:8]
    topic = f"{name}-readings"
    topics.create(bootstrap, [topic], f"{name}.", partitions=PARTITIONS)
    with topics.client.admin_client(bootstrap) as admin:
        from kafka.admin import ConfigResource, ConfigResourceType

        admin.alter_configs([ConfigResource(
            ConfigResourceType.TOPIC, topic, {"message.timestamp.type": "LogAppendTime"}
        )])
    bundle = make_bundle(folder / f"bundle-{name}", hop, STEP_MS)
    config = folder / f"{name}.yaml"
    config.write_text(yaml.safe_dump({
        "kafka": {"bootstrap": bootstrap, "group": name, "topic_prefix": f"{name}."},
        "registry": {"path": str(folder / f"registry-{name}")},
        "worker": {"metrics_port": 0, "fetch_max_wait_ms": wait_ms},
        "streams": {"bench": {
            "topic": topic, "contract": msgspec.to_builtins(bundle.contract), "bundle": str(bundle.folder),
            "outputs": {"scores": True},
        }},
    }), encoding="utf-8")
    log = (folder / f"{name}.log").open("wb")
    worker = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli.main", "worker", "--config", str(config)], stdout=log, stderr=log,
    )
    load = None
    try:
        time.sleep(SETTLE_S)
        if worker.poll() is not None:
            raise RuntimeError((folder / f"{name}.log").read_text()[-2000:])
        load = subprocess.Popen([
            sys.executable, "-m", "bench.peers.steady_load", bootstrap, topic, str(RATE), str(seconds + 2 * SETTLE_S),
            str(DEVICES), str(PARTITIONS),
        ])
        time.sleep(SETTLE_S)
        process = psutil.Process(worker.pid)
        before, began = process.cpu_times(), time.time()
        time.sleep(seconds)
        after, ended = process.cpu_times(), time.time()
        load.wait(60)
        time.sleep(2)
    finally:
        for child in (load, worker):
            if child is not None:
                if child.poll() is None:
                    child.terminate()
                child.wait(20)
        log.close()
    share = (after.user + after.system - before.user - before.system) / (ended - began)
    appended = {(partition, record.offset): record.ts_ms for partition, record in topics.read_topic(bootstrap, topic)}
    latencies, times = [], []
    for partition, record in topics.read_topic(bootstrap, f"{name}.narrows.scores"):
        at = appended[partition, read_score(record.value or b"").offset]
        if began * 1000 <= at < ended * 1000:
            latencies.append(record.ts_ms - at)
            times.append(record.ts_ms)
    pause = float(np.diff(np.unique(times)).max()) if len(times) > 1 else float("inf")
    return np.array(latencies, float), share, pause


def main() -> int:
    parser = options(__doc__ or "")
    parser.add_argument("--docs", type=Path, help="write the table into this page")
    given = parser.parse_args()
    seconds = 15 if given.quick else 60
    found: list[Measurement] = []
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    with tempfile.TemporaryDirectory(prefix="narrows-bench-") as temporary:
        folder = Path(temporary)
        with LocalKafka(folder / "kafka") as kafka:
            for hop, wait_ms, p50, p99, core in CASES:
                late, share, pause = run(folder, kafka.bootstrap, hop, wait_ms, seconds)
                name = f"hop {hop}, fetch_max_wait_ms {wait_ms}"
                found += [
                    Measurement(f"{name}: p50", float(np.percentile(late, 50)), "ms", "lower", p50),
                    Measurement(f"{name}: p90", float(np.percentile(late, 90)), "ms", "lower"),
                    Measurement(f"{name}: p99", float(np.percentile(late, 99)), "ms", "lower", p99),
                    Measurement(f"{name}: largest", float(late.max()), "ms", "lower"),
                    Measurement(f"{name}: longest pause", pause, "ms", "lower", 500.0),
                    Measurement(f"{name}: share of a core", share, "", "lower", core),
                    Measurement(f"{name}: scores", float(len(late)), "", "higher"),
                ]
    print(f"{RATE} records a second for {seconds} s; {machine()}, load {psutil.getloadavg()[0]:.1f}")
    print_table(found)
    return report(found, "bench.latency", given.json, given.check, given.docs)


if __name__ == "__main__":
    sys.exit(main())
