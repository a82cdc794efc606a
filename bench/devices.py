"""What one more device costs, and a storm of a million new names: CPU a record and memory of the computing alone.

    python -m bench.devices [--quick] [--check] [--json OUT] [--docs PAGE]

Records go through `Line.take` in this process, as the worker's computing thread does it (decode, rows, model, scores,
verdicts, blocks, features, all encoded), without Kafka: `bench.stream` measures the rest, which knows no devices.
Batches have 4 096 eight-channel JSON records over 4 partitions whatever the number of devices; every device has filled
its windows before the measuring begins (its memory too, up to 10 000 devices). Each figure has a process of its own.

The storm: 1 000 devices at 1 Hz, and in two minutes of their time a million names more, each seen once, with room for
10 000 devices, so that nearly every record evicts a device and closes a block of one row. Its peak memory is read at
half of it and at the end.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from bench.results import Measurement, machine, options, print_table, report
from bench.stream_data import CHANNELS, START_MS, make_bundle
from pipeline import codec
from pipeline.agent import Part
from pipeline.config import Match
from pipeline.core.records import Records
from pipeline.engine.transport import TP
from pipeline.formats import Format
from pipeline.line import Line, OutputTopics
from tests.support.models import model_of

PARTITIONS, BATCH = 4, 4096
DEVICES = (10, 1_000, 10_000, 100_000)
GOALS = {32: (1.5, 100_000), 1: (2.5, 10_000)}   # hop: (most, over 10 devices; up to how many devices)
FLEET, NAMES, KEPT, STORM_S = 1_000, 1_000_000, 10_000, 120
TOPICS = OutputTopics(None, "anomalies", "blocks", "features", "dead", "codecs")
Raw = namedtuple("Raw", "offset timestamp key value")


class Feed:
    """A line with one model, and records for it; `cpu_s` is what `Line.take` took."""

    def __init__(self, folder: Path, hop: int, max_devices: int, topics: OutputTopics) -> None:
        bundle = make_bundle(folder / "bundle", hop)
        codec.warm_up()
        self.line = Line("bench", "t", bundle.contract, Format(), Match(), topics, max_devices=max_devices)
        model = model_of(bundle)
        for partition in range(PARTITIONS):
            self.line.assign(partition, model, 0, -1, {})
        noise = np.random.default_rng(1).normal(0, 1, (5000, len(CHANNELS))).round(4)
        self.bodies = [msgspec.json.encode(dict(zip(CHANNELS, row.tolist(), strict=True))).decode() for row in noise]
        self.next = [0] * PARTITIONS
        self.sent = 0
        self.cpu_s = 0.0

    def take(self, names: list[str], ts_ms: list[int]) -> None:
        """One batch; a name's partition is its number modulo PARTITIONS."""
        records: list[list[Raw]] = [[] for _ in range(PARTITIONS)]
        for name, ts in zip(names, ts_ms, strict=True):
            partition = int(name[-7:]) % PARTITIONS
            self.sent += 1
            body = f'{{"device":"{name}","ts":{ts},"values":{self.bodies[self.sent * 7919 % 5000]}}}'.encode()
            records[partition].append(Raw(self.next[partition], ts, name.encode(), body))
            self.next[partition] += 1
        parts = []
        for partition, mine in enumerate(records):
            if mine:
                columns = Records.of(mine)
                parts.append(Part(TP("t", partition), columns, np.maximum.accumulate(columns.timestamp), 0))
        began = time.process_time()
        self.line.take(parts)
        self.cpu_s += time.process_time() - began


def peak_mb() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def scale(folder: Path, hop: int, devices: int, measured: int) -> dict[str, float]:
    """Devices in round robin at 1 Hz: warm, then `measured` records."""
    feed = Feed(folder, hop, devices, TOPICS)
    before = peak_mb()
    rows = 40 if hop > 1 or devices > 10_000 else 200
    warm, at = max(devices * rows, 10 * BATCH), 0
    while at < warm + measured:
        if at < warm <= at + BATCH:
            feed.cpu_s, done = 0.0, at
        turn = range(at, at + BATCH)
        feed.take([f"device-{i % devices:07d}" for i in turn], [START_MS + 1000 * (i // devices) for i in turn])
        at += BATCH
    own = feed.line.stream.rows
    return {
        "cpu_us": feed.cpu_s / (at - done) * 1e6, "grown_bytes": (peak_mb() - before) * 2**20 / devices,
        "slab_bytes": own.bytes_a_device, "scored": feed.line.counts["scored"],
    }


def storm(folder: Path, names: int, blocks: int) -> dict[str, float]:
    """A steady fleet with `names` strangers among it. blocks : 0 for a stream that writes none."""
    feed = Feed(folder, 1, KEPT // PARTITIONS, TOPICS if blocks else TOPICS._replace(blocks=None))
    rate = names / STORM_S + FLEET
    half, strangers, known, at = 0.0, 0, 0, 0
    while strangers < names:
        batch, ts = [], []
        for _ in range(BATCH):
            if at % round(rate) < FLEET:
                batch.append(f"fleet-{known % FLEET:07d}")
                known += 1
            else:
                batch.append(f"name-{strangers:07d}")
                strangers += 1
            ts.append(START_MS + round(1000 * at / rate))
            at += 1
        feed.take(batch, ts)
        if not half and strangers >= names / 2:
            half = peak_mb()
    line = feed.line
    return {
        "cpu_us": feed.cpu_s / at * 1e6, "half_mb": half, "peak_mb": peak_mb(), "evicted": line.counts["evicted"],
        "slots": len(line.stream.rows.names), "scored": line.counts["scored"] / known,
    }


def child(*arguments: object) -> dict[str, float]:
    """One figure, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.devices", "--one", *map(str, arguments)], capture_output=True, text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def one(arguments: list[str]) -> None:
    """Measure in this process and print."""
    with tempfile.TemporaryDirectory(prefix="narrows-bench-") as folder:
        what, *numbers = arguments
        figures: Any = (scale if what == "scale" else storm)(Path(folder), *map(int, numbers))
    print(json.dumps(figures))


def main() -> int:
    parser = options(__doc__ or "")
    parser.add_argument("--docs", type=Path, help="write the table into this page")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        one(given.one)
        return 0
    counts, measured, names = (DEVICES[:2], 60_000, 100_000) if given.quick else (DEVICES, 400_000, NAMES)
    found = []
    for hop, (most, up_to) in GOALS.items():
        first = 0.0
        for devices in counts:
            figures = child("scale", hop, devices, measured)
            first = first or figures["cpu_us"]
            name = f"hop {hop}, {devices} devices"
            found.append(Measurement(name, figures["cpu_us"], "us", "lower"))
            if devices > counts[0]:   # of ten devices memory says nothing
                goal = most if devices <= up_to else None
                found.append(Measurement(f"{name}, over {counts[0]}", figures["cpu_us"] / first, "", "lower", goal))
                found.append(Measurement(f"{name}: resident kB a device", figures["grown_bytes"] / 1024, "kB", "lower"))
        found.append(Measurement(f"hop {hop}: slab kB a device", figures["slab_bytes"] / 1024, "kB", "lower"))
    bare, figures = child("storm", names, 0), child("storm", names, 1)
    found.append(Measurement(f"storm of {names} names, without blocks", bare["cpu_us"], "us", "lower"))
    for name, key, unit in (
        ("storm, a block each", "cpu_us", "us"), ("storm: peak memory at half", "half_mb", "MB"),
        ("storm: peak memory at the end", "peak_mb", "MB"), ("storm: devices evicted", "evicted", ""),
        ("storm: slots", "slots", ""), ("storm: share of the fleet's rows scored", "scored", ""),
    ):
        found.append(Measurement(name, figures[key], unit, "lower"))
    print(f"CPU us a record of the computing, {measured} records; {machine()}")
    print_table(found)
    return report(found, "bench.devices", given.json, given.check, given.docs)


if __name__ == "__main__":
    sys.exit(main())
