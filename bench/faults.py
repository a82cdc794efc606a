"""The full matrix of faults: each against an oracle that recomputes ids and contents from the input topic.

    python -m bench.faults [--quick] [--check] [--json OUT] [--docs PAGE] [--only WORDS] [--seed N] [--records N]

Outputs that are lost, wrong (nothing causes them, or another content) or under an id with two contents must be 0; a
scenario that finds one says which and how to repeat it. What is written twice, with equal content, is what
at-least-once does; the shipped reader (`pipeline.sinks.SeenOnce`) passes each on once.
"""

import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

from bench.results import Measurement, machine, options, print_table, report
from pipeline.local import LocalKafka
from tests.support import scenarios
from tests.support.world import World, fleet_world, small_world

# Counts of a scenario: label, unit, goal.
SHOWN: dict[str, tuple[str, str, float | None]] = {
    "back_s": ("kill to every partition served again, same member", "s", 5.0),
    "failover_s": ("kill to every partition served again, session time-out 6 s", "s", 11.0),
    "broker_back_s": ("broker up to the next commit", "s", None),
    "sigterm_s": ("SIGTERM to exit", "s", 5.0),
    "replayed": ("most records replayed behind a commit", "", None),
    "deaths": ("workers that died before the record was put aside", "", None),
}
QUICK_SESSIONS = {"broker.session.timeout.ms": "2000"}


def cases(folder: Path, seed: int, records: int) -> dict[str, Callable[[], scenarios.Counts]]:
    """Each scenario on a cluster and a world of its own."""
    def small(place: Path, bootstrap: str, nodes: int) -> World:
        return small_world(place, bootstrap, seed, records, replicas=nodes)

    def fleet(place: Path, bootstrap: str, nodes: int) -> World:
        return fleet_world(place, bootstrap, 2 * records)

    def on(
        nodes: int, scenario: Callable[[World, LocalKafka], scenarios.Counts],
        make: Callable[[Path, str, int], World] = small,
    ) -> scenarios.Counts:
        place = Path(tempfile.mkdtemp(dir=folder))
        with LocalKafka(place / "kafka", nodes=nodes, properties=QUICK_SESSIONS) as kafka:
            world = make(place / "world", kafka.bootstrap, nodes)
            try:
                return scenario(world, kafka)
            finally:
                world.close()

    found: dict[str, Callable[[], scenarios.Counts]] = {}
    for name, worker_fault in (scenarios.WORKERS | scenarios.LONG).items():
        found[name] = lambda run=worker_fault: on(1, lambda world, _: run(world, seed))  # type: ignore[misc]
    for name, broker_fault in scenarios.BROKERS.items():
        nodes = 3 if name in scenarios.CLUSTERS else 1
        found[name] = lambda run=broker_fault, nodes=nodes: on(  # type: ignore[misc]
            nodes, lambda world, kafka: run(world, seed, kafka)
        )
    found["the demo's fleet: kill -9 five times with swaps"] = lambda: on(
        1, lambda world, _: scenarios.killed_with_swaps(world, seed), fleet
    )
    return found


def main() -> int:
    parser = options(__doc__ or "")
    parser.add_argument("--docs", type=Path, help="write the table into this page")
    parser.add_argument("--only", default="", help="scenarios whose name holds this")
    parser.add_argument("--seed", type=int, default=21)
    parser.add_argument("--records", type=int, help="of each of two partitions; default 12000, quick 2500")
    given = parser.parse_args()
    records = given.records or (2_500 if given.quick else 12_000)
    measurements: list[Measurement] = []
    with tempfile.TemporaryDirectory(prefix="narrows-faults-") as folder:
        for name, run in cases(Path(folder), given.seed, records).items():
            if given.only not in name:
                continue
            print(f"{name} ...", flush=True)
            lost = wrong = 0.0
            counts: scenarios.Counts = {}
            try:
                counts = run()
            except AssertionError as error:
                lost, wrong = getattr(error, "lost", 0.0), getattr(error, "wrong", 1.0)
                traceback.print_exception(error, limit=1)
                print(f"repeat: python -m bench.faults --only {name!r} --seed {given.seed} --records {records}")
            outputs = sum(counts.get(kind, 0) for kind in ("scores", "blocks", "features", "alarms"))
            measurements += [
                Measurement(f"{name}: outputs compared", outputs, "", "higher"),
                Measurement(f"{name}: lost", lost, "", "lower", 0.0),
                Measurement(f"{name}: wrong", wrong, "", "lower", 0.0),
                Measurement(f"{name}: written twice, equal", counts.get("repeated", 0), "", "lower"),
                Measurement(f"{name}: twice behind SeenOnce", counts.get("passed_twice", 0), "", "lower", 0.0),
            ]
            for what, (label, unit, goal) in SHOWN.items():
                if what in counts:
                    measurements.append(Measurement(f"{name}: {label}", counts[what], unit, "lower", goal))
    print(f"seed {given.seed}, {records} records a partition; {machine()}")
    print_table(measurements)
    return report(measurements, "bench.faults", given.json, given.check, given.docs)


if __name__ == "__main__":
    sys.exit(main())
