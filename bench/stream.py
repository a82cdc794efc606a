"""CPU a record, from Kafka to delivered outputs, beside raw aiokafka and stock Faust on the same topic.

    python -m bench.stream [--quick] [--check] [--json OUT]

Eight-channel JSON, 400 devices, 4 partitions, a dense autoencoder 256-64-8-64-256 over windows of 32 rows; CPU seconds
of the whole process after a warm-up, medians over interleaved rounds. `same work`: one result a window at hop 32.
`everything`: every row scored, with scores off and anomalies, blocks, features, dead letters and metrics on.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

import msgspec
import yaml

from bench.results import Measurement, interval, machine, median_of, options, print_table, report
from bench.stream_data import load_topic, make_bundle
from pipeline import topics
from pipeline.local import LocalKafka

PARTITIONS, DEVICES = 4, 400
GOAL_HOP_32_US, GOAL_HOP_1_US = 8.0, 12.0
TOPIC = "bench-readings"

NARROWS = {
    # name: (hop, outputs)
    "narrows, hop 32, one result a window": (32, {"scores": True, "blocks": False, "features": False}),
    "narrows, hop 32, everything": (32, {"scores": True}),
    "narrows, hop 1, without blocks": (1, {"blocks": False}),
    "narrows, hop 1, everything": (1, {}),
}
GOALS = {"narrows, hop 32, everything": GOAL_HOP_32_US, "narrows, hop 1, everything": GOAL_HOP_1_US}


def write_config(folder: Path, bootstrap: str, hop: int, outputs: dict[str, bool]) -> Path:
    """A worker's configuration with a group and output topics of its own."""
    run = uuid.uuid4().hex[:8]
    bundle = make_bundle(folder / f"bundle-{run}", hop)
    prefix = f"{run}."
    topics.create(bootstrap, [TOPIC], prefix)
    path = folder / f"{run}.yaml"
    path.write_text(yaml.safe_dump({
        "kafka": {"bootstrap": bootstrap, "group": run, "topic_prefix": prefix},
        "registry": {"path": str(folder / f"registry-{run}")}, "worker": {"metrics_port": 0},
        "streams": {"bench": {
            "topic": TOPIC, "contract": json.loads(msgspec.json.encode(bundle.contract)), "bundle": str(bundle.folder),
            "outputs": outputs,
        }},
    }), encoding="utf-8")
    return path


def run_peer(module: str, arguments: list[str], warm: int, end: int, limit_s: float = 300) -> dict[str, Any]:
    """One child from start to its figure."""
    child = subprocess.run(
        [sys.executable, "-m", f"bench.peers.{module}", *arguments], capture_output=True, text=True, timeout=limit_s,
        env=os.environ | {"BENCH_WARM": str(warm), "BENCH_END": str(end)}, check=False,
    )
    for line in child.stdout.splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            figure: dict[str, Any] = json.loads(line[line.index("{") :] if "{" in line else line)
            return figure
    raise RuntimeError(f"{module} gave no figure, exit {child.returncode}: {child.stderr[-2000:]}")


def main() -> int:
    parser = options(__doc__ or "")
    parser.add_argument("--docs", type=Path, help="write the table into this page")
    given = parser.parse_args()
    records, slow, rounds = (200_000, 60_000, 1) if given.quick else (600_000, 120_000, 5)
    samples: dict[str, list[float]] = {}
    stages: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="narrows-bench-") as temporary:
        folder = Path(temporary)
        with LocalKafka(folder / "kafka") as kafka:
            bootstrap = kafka.bootstrap
            topics.create(bootstrap, [TOPIC], "load.", partitions=PARTITIONS)
            load_topic(bootstrap, TOPIC, records, DEVICES, PARTITIONS)
            for _ in range(rounds):
                for name, (hop, outputs) in NARROWS.items():
                    config = write_config(folder, bootstrap, hop, outputs)
                    figure = run_peer("narrows_worker", [str(config)], records // 4, records - 1)
                    samples.setdefault(name, []).append(figure["cpu_us"])
                    stages[name] = figure["stages"]
                for name, module, most in (
                    ("raw aiokafka, reading alone", "raw_aiokafka", records),
                    ("stock Faust, reading alone", "stock_faust", slow),
                ):
                    group = uuid.uuid4().hex[:8]
                    figure = run_peer(module, [bootstrap, TOPIC, group], most // 4, most - 1)
                    samples.setdefault(name, []).append(figure["cpu_us"])
    found = [median_of(name, values, "us", goal=GOALS.get(name)) for name, values in samples.items()]
    stock = samples["stock Faust, reading alone"]
    for name, values in samples.items():
        ratios = [mine / theirs for mine, theirs in zip(values, stock, strict=True)]
        low, high = interval(ratios)
        found.append(median_of(f"{name}, over stock Faust ({low:.3f}..{high:.3f})", ratios, ""))
    for name, split in stages.items():
        found += [Measurement(f"{name}: {stage}", value, "us", "lower") for stage, value in split.items()]
    print(f"CPU us a record of the whole process; {records} records of {DEVICES} devices, {rounds} rounds; {machine()}")
    print_table(found)
    return report(found, "bench.stream", given.json, given.check, given.docs)


if __name__ == "__main__":
    sys.exit(main())
