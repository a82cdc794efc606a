"""Whether CPU a row grows with the number of workers of one group.

    python -m bench.scale [--rounds N] [--quick] [--check] [--json OUT] [--docs PAGE]

1, 2 and 4 workers on 8 partitions, the work of bench.stream's `same-work`: CPU of all workers together a row, each
after its own warm-up. The workers first join; they begin once each holds its share of the partitions. Each round runs
every count once, and a ratio is that round's cost over its cost with one worker: median and 95 % interval, whose upper
end is held against the goal.
"""

import json
import os
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.results import Measurement, interval, machine, median_of, options, print_table, report
from bench.stream import DEVICES, SAME_WORK, Bench, Input
from bench.stream_data import results_of, rows_for
from pipeline.local import LocalKafka

PARTITIONS = 8
WORKERS = (1, 2, 4)
GOAL_RATIO = 1.15
JOIN_LIMIT_S, RUN_LIMIT_S = 90, 240
SETTLED_S = 2.0      # so long must all shares be right before they begin
WARM = 0.25


@dataclass
class Child:
    """One worker as its lines tell it. spent : (records, CPU seconds) after each batch.  next : offset by partition."""

    process: subprocess.Popen[str]
    held: int = 0
    spent: list[tuple[int, float]] = field(default_factory=list)
    next: dict[str, int] = field(default_factory=dict)

    def cost(self, warm: float) -> tuple[int, float]:
        """(records, CPU seconds) after its first `warm` records."""
        start = next((one for one in self.spent if one[0] >= warm), self.spent[-1])
        return self.spent[-1][0] - start[0], self.spent[-1][1] - start[1]


def run(bench: Bench, folder: Path, source: Input, workers: int) -> float:
    """CPU us a row of all workers together."""
    config, prefix = bench.configure(source, 32, SAME_WORK)
    gate = folder / f"{config.stem}.gate"
    log = (folder / f"{config.stem}.log").open("w+")
    children = [
        Child(subprocess.Popen(
            [sys.executable, "-m", "bench.peers.gated_worker", str(config), str(gate)], stdout=subprocess.PIPE,
            stderr=log, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )) for _ in range(workers)
    ]
    try:
        with selectors.DefaultSelector() as selector:
            for child in children:
                assert child.process.stdout is not None
                os.set_blocking(child.process.stdout.fileno(), False)
                selector.register(child.process.stdout, selectors.EVENT_READ, (child, [""]))
            _follow(selector, children, log, JOIN_LIMIT_S, lambda: all(
                child.held == PARTITIONS // workers for child in children
            ), SETTLED_S)
            gate.touch()
            _follow(selector, children, log, RUN_LIMIT_S, lambda: _finished(children) == source.records)
    finally:
        for child in children:
            child.process.kill()
            child.process.wait()
        log.close()
    bench.check(f"{workers} workers", f"{prefix}narrows.scores", results_of(source.rows, DEVICES), may_repeat=True)
    costs = [child.cost(WARM * source.records / workers) for child in children]
    return sum(cpu for _, cpu in costs) / sum(records for records, _ in costs) * 1e6


def _finished(children: list[Child]) -> int:
    """Records of the topic that some worker has finished; its offsets begin at 0 and have no holes."""
    partitions = {partition for child in children for partition in child.next}
    return sum(max(child.next.get(partition, 0) for child in children) for partition in partitions)


def _follow(selector: Any, children: list[Child], log: Any, limit_s: float, done: Any, hold_s: float = 0.0) -> None:
    """Read what the workers say until `done` has been true for `hold_s`."""
    deadline, since = time.monotonic() + limit_s, None
    while since is None or time.monotonic() - since < hold_s:
        for key, _ in selector.select(0.1):
            child, tail = key.data
            *lines, tail[0] = (tail[0] + key.fileobj.read()).split("\n")
            for line in lines:
                said = json.loads(line)
                child.held = said.get("held", child.held)
                if "seen" in said:
                    child.spent.append((said["seen"], said["cpu_s"]))
                    child.next |= said["next"]
        dead = [child for child in children if child.process.poll() is not None]
        if dead or time.monotonic() > deadline:
            log.seek(0)
            raise RuntimeError(f"{'a worker ended' if dead else 'no end in sight'}: {log.read()[-3000:]}")
        since = (since or time.monotonic()) if done() else None


def main() -> int:
    parser = options(__doc__ or "")
    parser.add_argument("--rounds", type=int, metavar="N", help="runs of each count (default 5, with --quick 2)")
    parser.add_argument("--docs", type=Path, help="write the table into this page")
    given = parser.parse_args()
    rows = rows_for(400_000 if given.quick else 8_000_000, DEVICES)
    rounds = given.rounds or (2 if given.quick else 5)
    cost: dict[int, list[float]] = {workers: [] for workers in WORKERS}
    folder = Path(tempfile.mkdtemp(prefix="narrows-bench-"))
    try:
        with LocalKafka(folder / "kafka") as kafka:
            bench = Bench(kafka.bootstrap, folder, PARTITIONS)
            source = bench.load(rows)
            for turn in range(rounds):
                for workers in WORKERS if turn % 2 == 0 else WORKERS[::-1]:
                    cost[workers].append(run(bench, folder, source, workers))
                    print(f"  {workers} workers: {cost[workers][-1]:.3f} us", file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    found = [median_of(f"workers: {workers}", cost[workers], "us") for workers in WORKERS]
    for workers in WORKERS[1:]:
        ratios = [many / one for many, one in zip(cost[workers], cost[1], strict=True)]
        low, high = interval(ratios)
        found.append(median_of(f"workers: {workers}, over one ({low:.3f}..{high:.3f})", ratios, ""))
        found.append(Measurement(
            f"workers: {workers}, over one, upper end of the interval", high, "", "lower", GOAL_RATIO, tuple(ratios)
        ))
    print(f"CPU us a row of all workers; {rows} rows, {PARTITIONS} partitions, {rounds} rounds; {machine()}")
    print_table(found)
    return report(found, "bench.scale", given.json, given.check, given.docs)


if __name__ == "__main__":
    sys.exit(main())
