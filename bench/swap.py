"""Hot swaps under a steady load: when the new model scores, what waits meanwhile, and whether memory comes back.

    python -m bench.swap [--swaps N] [--quick] [--check] [--json OUT] [--docs PAGE]

The load of bench.latency, every row scored (hop 1). The worker runs for a while as it is, then one bundle after the
other is promoted, three of them in turn, so that each swap opens its model anew. Every record of the input must have
one score, by one model; the models must follow each other in the order of promotion, in each partition.
"""

import sys
import tempfile
import time
import uuid
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import psutil

from bench.latency import (
    DEVICES,
    DRAIN_LIMIT_S,
    GOAL_PAUSE_MS,
    PARTITIONS,
    RATE,
    SETTLE_S,
    START_LIMIT_S,
    STEP_MS,
    by_append,
    child,
    is_still,
    wait_until,
    worker_of,
    written,
)
from bench.results import Measurement, machine, median_of, options, print_table, report
from bench.stream_data import make_bundle
from pipeline import topics
from pipeline.local import LocalKafka
from pipeline.registry.store import Registry
from pipeline.sinks import read_score

BUNDLES = 3
REST_S = 1.0         # between a swap and the next promotion
SWAP_LIMIT_S = 60
CALM_S = 20.0        # without a swap, to compare with
FIRST_SWAPS = 3      # until each bundle was open once: memory is compared from there on
MIB = 1 << 20


@dataclass(frozen=True)
class Seen:
    """What the topics say.

    at, late_ms : when each score was appended, and how long after its record.   swaps_s : of each promotion, until
    every partition had a score of the new model.
    """

    at: np.ndarray
    late_ms: np.ndarray
    swaps_s: list[float]
    lost: int
    twice: int
    two_models: int
    out_of_order: int


def run(folder: Path, bootstrap: str, swaps: int) -> list[Measurement]:
    """The whole of it."""
    name = f"r{uuid.uuid4().hex[:8]}"
    topic, scores = f"{name}-readings", f"{name}.narrows.scores"
    topics.create(bootstrap, [topic], f"{name}.", partitions=PARTITIONS)
    by_append(bootstrap, topic)
    registry = Registry(folder / "registry")
    bundles = [make_bundle(folder / f"bundle{seed}", 1, STEP_MS, seed) for seed in range(BUNDLES)]
    digests = [registry.publish("bench", folder / f"bundle{seed}") for seed in range(BUNDLES)]
    promoted: list[tuple[str, int]] = []

    def promote(number: int) -> None:
        promoted.append((digests[number % BUNDLES], now_ms()))
        registry.promote("bench", promoted[-1][0], now_ms=promoted[-1][1])

    promote(0)
    log = folder / "worker.log"
    with child(log, worker_of(folder, bootstrap, name, bundles[0], folder / "registry", {})) as worker:
        load = ["bench.peers.steady_load", bootstrap, topic, RATE, DEVICES, PARTITIONS]
        with child(folder / "load.log", list(map(str, load))):
            wait_until(lambda: written(bootstrap, scores) > 0, worker, START_LIMIT_S)
            time.sleep(SETTLE_S)
            process, calm = psutil.Process(worker.pid), now_ms()
            time.sleep(CALM_S)
            began, memory = now_ms(), []
            for number in range(1, swaps + 1):
                promote(number)
                wait_until(partial(has_swapped, log, number * PARTITIONS), worker, SWAP_LIMIT_S)
                time.sleep(REST_S)
                memory.append(process.memory_info().rss / MIB)
            ended = now_ms()
        wait_until(lambda: is_still(bootstrap, scores), worker, DRAIN_LIMIT_S)
    seen = read(bootstrap, topic, scores, calm, ended, promoted)
    found = [
        median_of("promotion to the first score of the new model, in every partition", seen.swaps_s, "s"),
        Measurement("the same, longest", max(seen.swaps_s, default=float("nan")), "s", "lower"),
    ]
    for what, first, last in (("without a swap", calm, began), ("with swaps", began, ended)):
        inside = (seen.at >= first) & (seen.at < last)
        pause = float(np.diff(np.unique(seen.at[inside])).max())
        late = seen.late_ms[inside]
        found += [
            Measurement(f"{what}: p50", float(np.percentile(late, 50)), "ms", "lower"),
            Measurement(f"{what}: p99", float(np.percentile(late, 99)), "ms", "lower"),
            Measurement(f"{what}: longest pause", pause, "ms", "lower", GOAL_PAUSE_MS),
        ]
    grown = (memory[-1] - memory[FIRST_SWAPS]) / max(1, len(memory) - 1 - FIRST_SWAPS)
    return [
        *found,
        Measurement("records without a score", seen.lost, "", "lower", 0),
        Measurement("records scored twice", seen.twice, "", "lower", 0),
        Measurement("records scored by two models", seen.two_models, "", "lower", 0),
        Measurement("partitions whose models came in another order", seen.out_of_order, "", "lower", 0),
        Measurement("memory, after the first swaps", memory[FIRST_SWAPS], "MB", "lower"),
        Measurement("memory, more with each swap", grown, "MB", "lower"),
    ]


def has_swapped(log: Path, times: int) -> bool:
    """Whether the worker says that so many partitions have changed their model by now."""
    return log.read_bytes().count(b"swap bench ") == times


def read(
    bootstrap: str, topic: str, scores: str, first: int, last: int, promoted: list[tuple[str, int]]
) -> Seen:
    """Compare the scores with the records that were appended from `first` to `last`, ms."""
    appended = {(partition, record.offset): record.ts_ms for partition, record in topics.read_topic(bootstrap, topic)}
    wanted = {place for place, at in appended.items() if first <= at < last}
    count: Counter[tuple[int, int]] = Counter()
    models: dict[tuple[int, int], str] = {}
    told: dict[tuple[int, int], int] = {}
    at, late, two_models = [], [], 0
    for partition, record in topics.read_topic(bootstrap, scores):
        score = read_score(record.value or b"")
        place = partition, score.offset
        two_models += models.setdefault(place, score.digest) != score.digest
        told.setdefault(place, record.ts_ms)
        count[place] += 1
        if place in wanted:
            at.append(record.ts_ms)
            late.append(record.ts_ms - appended[place])
    starts: list[dict[int, int]] = [{} for _ in promoted]      # of each promotion: partition -> its first score
    out_of_order = 0
    for partition in range(PARTITIONS):
        turn = 0
        for place in sorted(place for place in models if place[0] == partition):
            if models[place] != promoted[turn][0]:
                turn += 1
                if turn == len(promoted) or models[place] != promoted[turn][0]:
                    out_of_order += 1
                    break
                starts[turn][partition] = told[place]
        else:
            out_of_order += turn + 1 != len(promoted)
    swaps_s = [
        (max(begun.values()) - when) / 1000 for begun, (_, when) in zip(starts[1:], promoted[1:], strict=True) if begun
    ]
    return Seen(np.array(at), np.array(late, float), swaps_s, len(wanted - count.keys()),
                sum(number - 1 for number in count.values()), two_models, out_of_order)


def now_ms() -> int:
    return round(time.time() * 1000)


def main() -> int:
    parser = options(__doc__ or "")
    parser.add_argument("--swaps", type=int, metavar="N", help="promotions (default 40, with --quick 6)")
    parser.add_argument("--docs", type=Path, help="write the table into this page")
    given = parser.parse_args()
    if given.swaps is not None and given.swaps < FIRST_SWAPS + 2:
        parser.error(f"--swaps: give at least {FIRST_SWAPS + 2}")
    swaps = given.swaps or (6 if given.quick else 40)
    with tempfile.TemporaryDirectory(prefix="narrows-bench-") as temporary, \
            LocalKafka(Path(temporary) / "kafka") as kafka:
        found = run(Path(temporary), kafka.bootstrap, swaps)
    print(f"{RATE} records a second, {swaps} swaps; {machine()}, load {psutil.getloadavg()[0]:.1f}")
    print_table(found)
    return report(found, "bench.swap", given.json, given.check, given.docs)


if __name__ == "__main__":
    sys.exit(main())
