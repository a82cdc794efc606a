"""CPU a row, from Kafka to delivered and acknowledged outputs, beside rivals that do the same work on the same topic.

    python -m bench.stream [--only SECTION] [--rounds N] [--quick] [--check] [--json OUT] [--docs PAGE]

Eight channels, 400 devices, 4 partitions, windows of 32 rows and a dense autoencoder 256-64-8-64-256, on the embedded
Kafka. A figure is CPU of the whole process after a warm-up, broker not included. Sections:

    same-work       JSON, one result a window (hop 32), at-least-once; narrows and its rivals in turn
    everything      every row scored, episodes, blocks, features, metrics
    without-blocks  as everything, but neither blocks nor features
    encodings       same-work with records in other encodings

A ratio is the median over pairs of neighbouring runs, with its 95 % interval by order statistics. Every run's number
of results is checked against the number that the topic's rows give. Rivals of 20 us and more get a shorter topic.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bench.peers.environment import quix_python
from bench.results import Measurement, interval, machine, median_of, options, print_table, report
from bench.stream_data import load_topic, make_bundle, results_of, rows_for
from pipeline import topics
from pipeline.local import LocalKafka

PARTITIONS, DEVICES = 4, 400
GOAL_SAME_WORK_US, GOAL_OVER_LOOP, GOAL_EVERYTHING_US, GOAL_WITHOUT_BLOCKS_US = 3.0, 0.9, 10.0, 6.0
GOAL_ENCODING_US = {"arrow": 1.5}
ENCODINGS = ("msgpack", "cbor", "arrow")
SAME_WORK = {"scores": True, "anomalies": False, "blocks": False, "features": False}
SECTIONS = ("same-work", "everything", "without-blocks", "encodings")
LIMIT_S = 300


@dataclass(frozen=True)
class Input:
    """A loaded topic. rows : of all devices.  records : fewer where one record holds many rows."""

    topic: str
    rows: int
    records: int
    encoding: str = "json"


@dataclass(frozen=True)
class Figure:
    """One run. cpu_us : a row, as are the parts."""

    cpu_us: float
    rows_per_s: float
    parts: dict[str, float]


class Bench:
    """One broker, the topics that were asked for, and the runs on them."""

    def __init__(self, bootstrap: str, folder: Path, partitions: int = PARTITIONS) -> None:
        self._bootstrap, self._folder, self._partitions = bootstrap, folder, partitions
        self._inputs: dict[str, Input] = {}
        self._model = make_bundle(folder / "model", 32).folder / "model.onnx"

    def load(self, rows: int, encoding: str = "json") -> Input:
        """The topic with so many rows, made where it is new."""
        name = f"bench-{encoding}-{rows}"
        if name not in self._inputs:
            topics.create(self._bootstrap, [name], partitions=self._partitions, outputs=[])
            records = load_topic(self._bootstrap, name, rows, DEVICES, self._partitions, encoding=encoding)
            self._inputs[name] = Input(name, rows, records, encoding)
        return self._inputs[name]

    def configure(self, source: Input, hop: int, outputs: dict[str, bool]) -> tuple[Path, str]:
        """(file, prefix of the output topics) of a configuration with a group and output topics of its own."""
        run = f"r{uuid.uuid4().hex[:8]}"     # a name, whatever the digits look like to YAML
        prefix = f"{run}."
        topics.create(self._bootstrap, [source.topic], prefix)
        bundle = make_bundle(self._folder / f"bundle-{run}", hop)
        path = self._folder / f"{run}.yaml"
        path.write_text(yaml.safe_dump({
            "kafka": {"bootstrap": self._bootstrap, "group": run, "topic_prefix": prefix},
            "registry": {"path": str(self._folder / f"registry-{run}")}, "worker": {"metrics_port": 0},
            "streams": {"bench": {
                "topic": source.topic, "contract": str(bundle.folder / "contract.json"), "bundle": str(bundle.folder),
                "outputs": outputs, **({} if source.encoding == "json" else {"format": {"encoding": source.encoding}}),
            }},
        }), encoding="utf-8")
        return path, prefix

    def narrows(self, source: Input, hop: int, outputs: dict[str, bool]) -> Figure:
        """One worker."""
        path, prefix = self.configure(source, hop, outputs)
        figure = self._run([sys.executable, "-m", "bench.peers.narrows_worker", str(path)], source)
        if outputs.get("scores"):
            self.check("narrows", f"{prefix}narrows.scores", results_of(source.rows, DEVICES))
        return figure

    def rival(self, module: str, source: Input, python: str = sys.executable) -> Figure:
        """A rival that does the same work."""
        run = f"r{uuid.uuid4().hex[:8]}"     # a name, whatever the digits look like to YAML
        output = f"{run}-results"
        topics.create(self._bootstrap, [output], partitions=self._partitions, outputs=[])
        arguments = [self._bootstrap, source.topic, output, run, str(self._model)]
        figure = self._run([python, "-m", f"bench.peers.{module}", *arguments], source)
        self.check(module, output, results_of(source.rows, DEVICES))
        return figure

    def reading(self, source: Input) -> Figure:
        """aiokafka's consumer, which decodes nothing and writes nothing."""
        return self._run(
            [sys.executable, "-m", "bench.peers.raw_aiokafka", self._bootstrap, source.topic, uuid.uuid4().hex[:8]],
            source,
        )

    def _run(self, command: list[str], source: Input) -> Figure:
        """One child from start to its figure."""
        sizes = {"BENCH_WARM": str(source.records // 4), "BENCH_END": str(source.records)}
        child = subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT_S, env=os.environ | sizes, check=False
        )
        for line in child.stdout.splitlines():
            with contextlib.suppress(json.JSONDecodeError, ValueError):
                found: dict[str, Any] = json.loads(line[line.index("{") :])
                each = source.records / source.rows
                parts = _parts(found["stages"], found["threads"]) if found["stages"] else {}
                return Figure(
                    found["cpu_us"] * each, found["per_s"] / each,
                    {name: spent * each for name, spent in parts.items()},
                )
        raise RuntimeError(f"{' '.join(command)} gave no figure, exit {child.returncode}: {child.stderr[-3000:]}")

    def check(self, name: str, topic: str, expected: int, may_repeat: bool = False) -> None:
        """Raises where a topic holds another number of results; may_repeat : more are no error, after a rebalance."""
        begins, ends = topics.begin_offsets(self._bootstrap, topic), topics.end_offsets(self._bootstrap, topic)
        written = sum(ends.values()) - sum(begins.values())
        if written < expected or (written > expected and not may_repeat):
            raise RuntimeError(f"{name} wrote {written} results; the topic's rows give {expected}")


def _parts(stages: dict[str, float], threads: dict[str, float]) -> dict[str, float]:
    """The stages, and what each thread spent beside them; together the whole process, us a record."""
    scoring = sum(spent for name, spent in threads.items() if name.startswith("narrows-scoring"))
    main = threads.get("MainThread", 0.0)
    consumer = sum(spent for name, spent in threads.items() if name == "WorkerThread")
    rest = dict(stages)
    rest["scoring thread and event loop, rest"] = main + scoring - sum(stages.values())
    rest["aiokafka's consumer thread"] = consumer
    rest["other threads"] = sum(threads.values()) - main - scoring - consumer
    return rest


def in_turn(pairs: int, runs: list[tuple[str, Callable[[], Figure]]]) -> dict[str, list[Figure]]:
    """Each round runs all of them, every other round backwards: neighbours are pairs, and nobody is always first."""
    found: dict[str, list[Figure]] = {name: [] for name, _ in runs}
    for turn in range(pairs):
        for name, run in runs if turn % 2 == 0 else runs[::-1]:
            found[name].append(run())
            print(f"  {name}: {found[name][-1].cpu_us:.3f} us", file=sys.stderr, flush=True)
    return found


def figures_of(name: str, found: list[Figure], goal: float | None = None, split: bool = False) -> list[Measurement]:
    """Median CPU and rate of some runs; with the split of the last one where asked for."""
    measured = [
        median_of(name, [one.cpu_us for one in found], "us", goal=goal),
        median_of(f"{name}: rows a second", [one.rows_per_s for one in found], "/s", "higher"),
    ]
    if split:
        parts = {part for one in found for part in one.parts}
        medians = [
            median_of(f"{name}: {part}", [one.parts.get(part, 0.0) for one in found], "us") for part in sorted(parts)
        ]
        measured += sorted(medians, key=lambda one: -one.value)
    return measured


def ratio_of(name: str, mine: list[Figure], theirs: list[Figure], goal: float | None = None) -> Measurement:
    """Median and interval of the pairs' ratios."""
    ratios = [one.cpu_us / other.cpu_us for one, other in zip(mine, theirs, strict=True)]
    low, high = interval(ratios)
    return median_of(f"{name} ({low:.3f}..{high:.3f})", ratios, "", goal=goal)


def same_work(bench: Bench, pairs: int, rows: int, few: int) -> list[Measurement]:
    source, short = bench.load(rows), bench.load(few)
    ours, loop = "narrows, same work", "confluent-kafka loop, same work"
    runs: list[tuple[str, Callable[[], Figure]]] = [
        ("aiokafka, reading alone", lambda: bench.reading(source)),
        (ours, lambda: bench.narrows(source, 32, SAME_WORK)),
        (loop, lambda: bench.rival("confluent_loop", source)),
        ("stock Faust, same work", lambda: bench.rival("stock_faust", short)),
    ]
    python = quix_python()
    if python is not None:
        runs.append(("Quix Streams, same work", lambda: bench.rival("quix", short, python)))
    found = in_turn(pairs, runs)
    measured = figures_of(ours, found[ours], GOAL_SAME_WORK_US, split=True)
    for name, theirs in found.items():
        if name != ours:
            measured += figures_of(name, theirs)
            goal = GOAL_OVER_LOOP if name == loop else None
            measured.append(ratio_of(f"narrows over {name}", found[ours], theirs, goal))
    return measured


def everything(bench: Bench, pairs: int, rows: int, few: int) -> list[Measurement]:
    source, name = bench.load(rows), "narrows, hop 1, everything"
    return figures_of(
        name, in_turn(pairs, [(name, lambda: bench.narrows(source, 1, {}))])[name], GOAL_EVERYTHING_US, split=True
    )


def without_blocks(bench: Bench, pairs: int, rows: int, few: int) -> list[Measurement]:
    source, name = bench.load(rows), "narrows, hop 1, without blocks"
    outputs = {"blocks": False, "features": False}
    return figures_of(
        name, in_turn(pairs, [(name, lambda: bench.narrows(source, 1, outputs))])[name], GOAL_WITHOUT_BLOCKS_US,
        split=True,
    )


def encodings(bench: Bench, pairs: int, rows: int, few: int) -> list[Measurement]:
    def run(encoding: str) -> tuple[str, Callable[[], Figure]]:
        source = bench.load(rows, encoding)
        return f"narrows, same work, {encoding}", lambda: bench.narrows(source, 32, SAME_WORK)

    found = in_turn(pairs, [run(encoding) for encoding in ENCODINGS])
    return [
        one for encoding, (name, runs) in zip(ENCODINGS, found.items(), strict=True)
        for one in figures_of(name, runs, GOAL_ENCODING_US.get(encoding), split=encoding == "arrow")
    ]


RUN: dict[str, Callable[[Bench, int, int, int], list[Measurement]]] = dict(
    zip(SECTIONS, (same_work, everything, without_blocks, encodings), strict=True)
)


def measure(sections: Iterable[str], pairs: int, rows: int, few: int) -> list[Measurement]:
    """The figures of some sections, on a broker of their own."""
    folder = Path(tempfile.mkdtemp(prefix="narrows-bench-"))
    try:
        with LocalKafka(folder / "kafka") as kafka:
            bench = Bench(kafka.bootstrap, folder)
            return [one for section in sections for one in RUN[section](bench, pairs, rows, few)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    parser = options(__doc__ or "")
    parser.add_argument("--only", choices=SECTIONS, help="this section alone")
    parser.add_argument("--rounds", type=int, metavar="N", help="pairs of runs (default 5, with --quick 2)")
    parser.add_argument("--docs", type=Path, help="write the table into this page")
    given = parser.parse_args()
    rows, few = (rows_for(200_000, DEVICES), rows_for(60_000, DEVICES)) if given.quick else (
        rows_for(2_000_000, DEVICES), rows_for(200_000, DEVICES))
    pairs = given.rounds or (2 if given.quick else 5)
    found = measure([given.only] if given.only else SECTIONS, pairs, rows, few)
    print(f"CPU us a row of the whole process; {rows} rows of {DEVICES} devices ({few} for the slow rivals), "
          f"{pairs} rounds; {machine()}")
    print_table(found)
    return report(found, "bench.stream", given.json, given.check, given.docs)


if __name__ == "__main__":
    sys.exit(main())
