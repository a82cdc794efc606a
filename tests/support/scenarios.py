"""What may happen to workers and brokers, each as a function of a `World`: for tests, small, and for bench.faults.

Each ends with everything committed and compared with the oracle; it returns counts, and seconds under names that end
in `_s`. Seeds are given, so that a failed run can be repeated.
"""

import random
import re
import signal
import time
from collections.abc import Callable

import yaml

from pipeline.engine.attempts import DEADLY
from pipeline.local import LocalKafka
from tests.support.logs import make_log, poisoned
from tests.support.world import World, until

Counts = dict[str, float]


def commit_beyond(world: World, offset: int = 0, limit_s: float = 90) -> float:
    """Until the commits of all partitions together lie beyond this; the seconds."""
    return until(lambda: sum(world.committed().values()) > offset, limit_s, f"a commit ({world.tail()})")


def serving_again(world: World, before: dict[int, int], limit_s: float = 120) -> float:
    """Until every partition has moved on from these commits, or is done; the seconds."""
    def claim() -> bool:
        now = world.committed()
        return all(
            now.get(p, 0) > before.get(p, 0) or now.get(p, 0) >= len(log) for p, log in enumerate(world.logs)
        )

    return until(claim, limit_s, f"every partition served again ({world.tail()})")


def finish(world: World) -> Counts:
    """Wait for the end, stop whoever lives, compare."""
    world.wait(240)
    for child in world.workers:
        if child.poll() is None:
            world.stop(child)
    return dict(world.check()) | {"replayed": world.replayed()}


def killed_with_swaps(world: World, seed: int, kills: int = 5) -> Counts:
    """kill -9 at random moments of one static member, another champion promoted before each."""
    chance = random.Random(seed)
    child = world.start("one")
    back = []
    for turn in range(kills):
        if world.is_done():
            break
        commit_beyond(world, sum(world.committed().values()))
        world.promote((turn + 1) % len(world.bundles))
        time.sleep(chance.uniform(0, 1.5))
        world.kill(child)
        before = world.committed()
        child = world.start("one")
        back.append(serving_again(world, before))
    return finish(world) | {"back_s": max(back, default=0.0)}


def slow_beside_fast(world: World, seed: int, kills: int = 3, max_replay: int = 60) -> Counts:
    """kill -9 while slow devices' rows lie further back than the mark may trail: they come from `narrows.state`."""
    chance = random.Random(seed)
    world.config["worker"]["max_replay"] = max_replay
    world.path.write_text(yaml.safe_dump(world.config), encoding="utf-8")
    for turn in range(kills):
        child = world.start("one")
        commit_beyond(world, sum(world.committed().values()) + 10 * max_replay, 180)
        world.promote((turn + 1) % len(world.bundles))
        time.sleep(chance.uniform(0, 1))
        world.kill(child)
    world.start("one")
    counts = finish(world)
    begun = [
        (int(at), int(mark)) for log in world.folder.glob("worker*.log")
        for at, mark in re.findall(r"begin \S+ at (\d+), replay from (\d+)", log.read_text(errors="replace"))
    ]
    longest = max(at - mark for at, mark in begun)
    assert 0 < longest <= max_replay, f"a replay of {longest} records"
    return counts | {"replayed": longest}


def killed_before_the_first_commit(world: World, seed: int, kills: int = 3) -> Counts:
    """Killed as soon as a partition is begun, the champion another each time."""
    for turn in range(kills):
        child = world.start("one")
        world.begins(child)
        world.kill(child)
        world.promote((turn + 1) % len(world.bundles))
    world.start("one")
    return finish(world)


def two_workers(world: World, seed: int) -> Counts:
    """One of two killed, a third joins, the second is told to end; a swap meanwhile."""
    first = world.start()
    commit_beyond(world)
    second = world.start()
    world.begins(second)
    world.promote(1)
    world.kill(first)
    back = serving_again(world, world.committed())
    third = world.start()
    world.begins(third)
    code = world.stop(second)
    assert code == 0, f"SIGTERM ended with {code}: {world.tail()}"
    return finish(world) | {"failover_s": back}


def joined_before_any_commit(world: World, seed: int) -> Counts:
    """Three workers join one after the other while none has committed, and one is killed as it begins."""
    first, second = world.start(), world.start()
    world.begins(first)
    third = world.start()
    world.kill(first)
    world.begins(second)
    world.kill(third)
    return finish(world)


def stopped_then_on(world: World, seed: int) -> Counts:
    """SIGSTOP past the session, another takes over and swaps, SIGCONT."""
    first = world.start()
    commit_beyond(world)
    second = world.start()
    world.begins(second)
    first.send_signal(signal.SIGSTOP)
    world.begins(second)
    world.promote(1)
    if not world.is_done():
        commit_beyond(world, sum(world.committed().values()))
    first.send_signal(signal.SIGCONT)
    return finish(world)


def told_to_end(world: World, seed: int) -> Counts:
    """SIGTERM under load, then on: nothing is written twice."""
    child = world.start()
    commit_beyond(world)
    began = time.monotonic()
    code = world.stop(child, 10)
    assert code == 0, f"SIGTERM ended with {code}: {world.tail()}"
    ended = time.monotonic() - began
    world.start()
    counts = finish(world)
    assert counts["repeated"] == 0, f"{counts['repeated']} outputs written twice after an orderly end"
    return counts | {"sigterm_s": ended}


def deadly_record(world: World, seed: int) -> Counts:
    """One record ends every worker that computes with it, by an error or kill -9 by turns; a supervisor goes on."""
    partition, place = 1, len(world.logs[1]) * 2 // 5 + seed % 100
    at = next(one.offset for one in world.logs[partition][place:] if one.values is not None)
    deaths = 0
    child = world.start("one", DIES_AT=f"raise:{partition}:{at}")
    while not world.is_done():
        if child.poll() is not None:
            deaths += 1
            assert deaths <= DEADLY + 3, f"{deaths} workers died at one record: {world.tail()}"
            child = world.start("one", DIES_AT=f"{'kill' if deaths % 2 else 'raise'}:{partition}:{at}")
        time.sleep(0.2)
    assert deaths > DEADLY, f"{deaths} deaths only: the record was not alone in work so often"
    world.give_up(partition, at)
    return finish(world) | {"deaths": deaths}


def poison(world: World, seed: int) -> Counts:
    """Tombstones, times beyond int64, pieces that only joined make valid JSON, and more, anywhere in a batch."""
    world.start("one")
    world.produce([poisoned(make_log(seed + 50, 1300)) for _ in world.logs])
    return finish(world)


def slow_agent(world: World, seed: int) -> Counts:
    """Batches that take longer than the session, from a small buffer; a second worker joins meanwhile."""
    first = world.start(SLOW_BATCHES="7,7")
    world.begins(first)
    second = world.start()
    world.begins(second)
    return finish(world)


def output_too_large(world: World, seed: int) -> Counts:
    """An output topic takes only small records: the worker ends and says so, and goes on once that is mended."""
    blocks = f"{world.prefix}narrows.blocks"
    world.configure(blocks, max_message_bytes="150")
    for _ in range(2):
        child = world.start("one")
        code = child.wait(90)
        told = world.tail()
        assert code == 1, f"ended with {code}: {told}"
        assert f"topic {blocks}: a record is larger than it takes; raise its max.message.bytes" in told, told
    stood = world.committed()
    assert all(stood.get(p, 0) < len(log) for p, log in enumerate(world.logs))
    world.configure(blocks, max_message_bytes="")
    world.start("one")
    return finish(world)


def writes_refused(world: World, seed: int) -> Counts:
    """The broker refuses to write an output topic for a while: too few replicas are in sync."""
    scores = f"{world.prefix}narrows.scores"
    world.start("one")
    commit_beyond(world)
    world.configure(scores, min_insync_replicas="2")
    time.sleep(5)
    world.configure(scores, min_insync_replicas="")
    revive(world)
    return finish(world)


def retention_took_the_mark(world: World, seed: int) -> Counts:
    """What a replay would read is no longer in the log: devices begin cold, and nothing else is lost."""
    child = world.start("one")
    world.wait(240)
    assert world.stop(child) == 0
    begins = [len(log) for log in world.logs]
    for partition, begin in enumerate(begins):
        world.forget(partition, begin)
    world.produce([make_log(seed + 60, 600) for _ in world.logs])
    child = world.start("one")
    world.wait(240)
    assert world.stop(child) == 0
    assert "are no longer in the log" in (world.folder / "worker1.log").read_text(errors="replace")
    return dict(world.check_cold(begins))


def broker_killed(world: World, seed: int, kafka: LocalKafka) -> Counts:
    """kill -9 of the only broker, which comes back with its data."""
    world.start("one")
    commit_beyond(world)
    at = sum(world.committed().values())
    kafka.nodes[0].kill()
    time.sleep(2)
    kafka.nodes[0].start()
    revive(world)
    return {"broker_back_s": commit_beyond(world, at, 180)} | finish(world)


def broker_away(world: World, seed: int, kafka: LocalKafka, seconds: float = 60) -> Counts:
    """The only broker stopped for a minute."""
    world.start("one")
    commit_beyond(world)
    at = sum(world.committed().values())
    kafka.nodes[0].stop()
    time.sleep(seconds)
    kafka.nodes[0].start()
    revive(world)
    return {"broker_back_s": commit_beyond(world, at, 180)} | finish(world)


def leader_change(world: World, seed: int, kafka: LocalKafka) -> Counts:
    """One of three brokers killed, back, then another."""
    world.start("one")
    for node in kafka.nodes[:2]:
        at = sum(world.committed().values())
        if world.is_done():
            break
        commit_beyond(world, at)
        node.kill()
        time.sleep(3)
        revive(world)
        commit_beyond(world, at, 120)
        node.start()
    revive(world)
    return finish(world)


def revive(world: World) -> None:
    """What a supervisor does: a worker that ended by itself is started again."""
    if all(child.poll() is not None for child in world.workers):
        world.start("one")


WORKERS: dict[str, Callable[[World, int], Counts]] = {
    "kill -9 with swaps": killed_with_swaps,
    "kill -9, slow devices beside fast ones": slow_beside_fast,
    "killed before the first commit": killed_before_the_first_commit,
    "two workers: kill, join, SIGTERM": two_workers,
    "SIGSTOP past the session, SIGCONT": stopped_then_on,
    "SIGTERM under load": told_to_end,
    "a record that kills": deadly_record,
    "join before any commit": joined_before_any_commit,
    "poison anywhere": poison,
    "slow agent": slow_agent,
    "output too large": output_too_large,
    "writes refused for a while": writes_refused,
}
LONG: dict[str, Callable[[World, int], Counts]] = {   # for bench.faults alone; a shorter one stands in tests/faults
    "retention took the mark": retention_took_the_mark,
}
BROKERS: dict[str, Callable[[World, int, LocalKafka], Counts]] = {
    "broker kill -9": broker_killed,
    "broker stopped": broker_away,
    "leader change, three brokers": leader_change,
}
CLUSTERS = {"leader change, three brokers"}   # these need three brokers
