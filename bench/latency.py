"""Latency at a steady load: broker append of a row to broker append of its result, and what it costs.

    python -m bench.latency [--minutes N] [--only WORDS] [--quick] [--check] [--json OUT] [--docs PAGE]

5 000 records a second, 400 devices, 4 partitions, eight-channel JSON, the model of bench.stream. Input and output
topics carry the time of the broker's append, so both ends are on one clock, in whole milliseconds. The worker lets the
broker coalesce (fetch_min_bytes 1 MB, fetch_max_wait_ms as listed). CPU is the process's, as a share of one core. The
rival is the confluent-kafka loop of bench.stream, set for latency. `--minutes 10 --only narrows` is for the longest
pause.
"""

import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import yaml

from bench.peers.same_work import Found
from bench.results import Measurement, machine, options, print_table, report
from bench.stream_data import make_bundle
from pipeline import topics
from pipeline.local import LocalKafka
from pipeline.registry.bundle import Bundle
from pipeline.sinks import read_score

RATE, DEVICES, PARTITIONS = 5_000, 400, 4
STEP_MS = 1000 * DEVICES // RATE
SETTLE_S = 5.0
START_LIMIT_S, DRAIN_LIMIT_S = 120, 60
GOAL_PAUSE_MS = 500.0
NEVER = str(1 << 60)   # records after which a rival would print its cost and end


@dataclass(frozen=True)
class Goals:
    p50_ms: float | None = None
    p99_ms: float | None = None
    pause_ms: float | None = None
    core: float | None = None


@dataclass(frozen=True)
class Case:
    """One subject. wait_ms : the worker's fetch_max_wait_ms; None is the rival, at hop 32."""

    name: str
    hop: int
    wait_ms: int | None
    goals: Goals


CASES = (
    Case("narrows, hop 32, fetch_max_wait_ms 15", 32, 15, Goals(15.0, 30.0, GOAL_PAUSE_MS, 0.25)),
    Case("confluent-kafka loop, hop 32", 32, None, Goals()),
    Case("narrows, hop 1, fetch_max_wait_ms 20", 1, 20, Goals(20.0, 40.0, GOAL_PAUSE_MS, 0.40)),
)


@dataclass(frozen=True)
class Seen:
    """late_ms : (n,) of each result.  core : share.  pause_ms : longest time between two results."""

    late_ms: np.ndarray
    core: float
    pause_ms: float


def run(folder: Path, bootstrap: str, case: Case, seconds: int) -> Seen:
    """One subject under the load, after some seconds of it."""
    name = f"r{uuid.uuid4().hex[:8]}"     # a name, whatever the digits look like to YAML
    topic = f"{name}-readings"
    topics.create(bootstrap, [topic], f"{name}.", partitions=PARTITIONS)
    by_append(bootstrap, topic)
    bundle = make_bundle(folder / f"bundle-{name}", case.hop, STEP_MS)
    offset_of: Callable[[bytes], int]
    if case.wait_ms is None:
        output = f"{name}-results"
        topics.create(bootstrap, [output], partitions=PARTITIONS, outputs=[])
        by_append(bootstrap, output)
        model = str(bundle.folder / "model.onnx")
        command = ["bench.peers.confluent_loop", bootstrap, topic, output, name, model, "quick"]
        read = msgspec.json.Decoder(Found).decode
        offset_of = lambda value: read(value).offset  # noqa: E731
    else:
        output = f"{name}.narrows.scores"
        registry, stream = folder / f"registry-{name}", {"bundle": str(bundle.folder)}
        command = worker_of(folder, bootstrap, name, bundle, registry, stream, fetch_max_wait_ms=case.wait_ms)
        offset_of = lambda value: read_score(value).offset  # noqa: E731
    with child(folder / f"{name}.log", command) as subject:
        load = ["bench.peers.steady_load", bootstrap, topic, RATE, DEVICES, PARTITIONS]
        with child(folder / f"{name}.load.log", list(map(str, load))):
            wait_until(lambda: written(bootstrap, output) > 0, subject, START_LIMIT_S)
            time.sleep(SETTLE_S)
            process = psutil.Process(subject.pid)
            before, began = process.cpu_times(), time.time()
            time.sleep(seconds)
            after, ended = process.cpu_times(), time.time()
        wait_until(lambda: is_still(bootstrap, output), subject, DRAIN_LIMIT_S)   # late results count too
    core = (after.user + after.system - before.user - before.system) / (ended - began)
    appended = {(partition, record.offset): record.ts_ms for partition, record in topics.read_topic(bootstrap, topic)}
    late, times = [], []
    for partition, record in topics.read_topic(bootstrap, output):
        at = appended[partition, offset_of(record.value or b"")]
        if began * 1000 <= at < ended * 1000:
            late.append(record.ts_ms - at)
            times.append(record.ts_ms)
    if len(late) < RATE * seconds / case.hop / 2:
        raise RuntimeError(f"{case.name}: {len(late)} results are fewer than half of what the load gives")
    return Seen(np.array(late, float), core, float(np.diff(np.unique(times)).max()))


def worker_of(
    folder: Path, bootstrap: str, name: str, bundle: Bundle, registry: Path, stream: dict[str, Any], **worker: Any
) -> list[str]:
    """The command of a worker that scores NAME-readings by the bundle's contract; its configuration is written.

    stream, worker : settings beside those.
    """
    config = folder / f"{name}.yaml"
    config.write_text(yaml.safe_dump({
        "kafka": {"bootstrap": bootstrap, "group": name, "topic_prefix": f"{name}."},
        "registry": {"path": str(registry)}, "worker": {"metrics_port": 0, **worker},
        "streams": {"bench": {
            "topic": f"{name}-readings", "contract": str(bundle.folder / "contract.json"), "outputs": {"scores": True},
            **stream,
        }},
    }), encoding="utf-8")
    return ["pipeline.cli.main", "worker", "--config", str(config)]


def written(bootstrap: str, topic: str) -> int:
    """Records of a topic so far."""
    return sum(topics.end_offsets(bootstrap, topic).values())


def is_still(bootstrap: str, topic: str) -> bool:
    """Whether nothing is written for a second."""
    before = written(bootstrap, topic)
    time.sleep(1)
    return written(bootstrap, topic) == before


def wait_until(true: Callable[[], bool], subject: subprocess.Popen[bytes], limit_s: float) -> None:
    """Raises where the subject ends before, or it takes too long."""
    deadline = time.monotonic() + limit_s
    while not true():
        if subject.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the subject {'ended' if subject.poll() is not None else 'wrote nothing in time'}")
        time.sleep(0.2)


def by_append(bootstrap: str, topic: str) -> None:
    """Records of the topic carry the time of the broker's append."""
    from kafka.admin import ConfigResource, ConfigResourceType

    with topics.client.admin_client(bootstrap) as admin:
        admin.alter_configs([ConfigResource(
            ConfigResourceType.TOPIC, topic, {"message.timestamp.type": "LogAppendTime"}
        )])


@contextmanager
def child(log: Path, command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A module as a child process, ended afterwards. Raises with the end of its log where it failed before."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], stdout=out, stderr=out,
            env=os.environ | {"BENCH_WARM": NEVER, "BENCH_END": NEVER},
        )
        try:
            yield process
        finally:
            if process.poll():
                raise RuntimeError(f"{command[0]} ended with {process.returncode}: {log.read_text()[-2000:]}")
            if process.poll() is None:
                process.terminate()
            process.wait(20)


def main() -> int:
    parser = options(__doc__ or "")
    parser.add_argument("--minutes", type=float, default=1.0, metavar="N", help="of each case (default 1)")
    parser.add_argument("--only", default="", metavar="WORDS", help="cases whose name holds this")
    parser.add_argument("--docs", type=Path, help="write the table into this page")
    given = parser.parse_args()
    seconds = 15 if given.quick else round(60 * given.minutes)
    found: list[Measurement] = []
    with tempfile.TemporaryDirectory(prefix="narrows-bench-") as temporary:
        folder = Path(temporary)
        with LocalKafka(folder / "kafka") as kafka:
            for case in CASES:
                if given.only not in case.name:
                    continue
                seen, name, goals = run(folder, kafka.bootstrap, case, seconds), case.name, case.goals
                found += [
                    Measurement(f"{name}: p50", float(np.percentile(seen.late_ms, 50)), "ms", "lower", goals.p50_ms),
                    Measurement(f"{name}: p90", float(np.percentile(seen.late_ms, 90)), "ms", "lower"),
                    Measurement(f"{name}: p99", float(np.percentile(seen.late_ms, 99)), "ms", "lower", goals.p99_ms),
                    Measurement(f"{name}: largest", float(seen.late_ms.max()), "ms", "lower"),
                    Measurement(f"{name}: longest pause", seen.pause_ms, "ms", "lower", goals.pause_ms),
                    Measurement(f"{name}: share of a core", seen.core, "", "lower", goals.core),
                    Measurement(f"{name}: results", float(len(seen.late_ms)), "", "higher"),
                ]
    print(f"{RATE} records a second for {seconds} s; {machine()}, load {psutil.getloadavg()[0]:.1f}")
    print_table(found)
    return report(found, "bench.latency", given.json, given.check, given.docs)


if __name__ == "__main__":
    sys.exit(main())
