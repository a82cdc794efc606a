"""Workers and brokers that die, stop, come and go: nothing lost, nothing wrong, no id with two contents.

Each fault once, small; the full matrix runs as `python -m bench.faults`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition

from pipeline.local import LocalKafka
from tests.support import scenarios
from tests.support.world import World, small_world, until

pytestmark = pytest.mark.timeout(500)
SEED = 21


@pytest.fixture
def world(kafka: Any, tmp_path: Path) -> Iterator[World]:
    made = small_world(tmp_path, kafka.bootstrap, SEED)
    yield made
    made.close()


@pytest.mark.parametrize("fault", scenarios.WORKERS)
def test_worker_fault(world: World, fault: str) -> None:
    counts = scenarios.WORKERS[fault](world, SEED)
    assert counts["scores"] > 1000
    assert counts.get("passed_twice", 0) == 0


@pytest.mark.parametrize("fault", scenarios.BROKERS)
def test_broker_fault(tmp_path: Path, fault: str) -> None:
    quick = {"broker.session.timeout.ms": "2000"}
    nodes = 3 if fault in scenarios.CLUSTERS else 1
    with LocalKafka(tmp_path / "kafka", nodes=nodes, properties=quick) as kafka:
        world = small_world(tmp_path / "world", kafka.bootstrap, SEED, replicas=nodes)
        try:
            counts = scenarios.BROKERS[fault](world, SEED, kafka)
        finally:
            world.close()
    assert counts["scores"] > 1000


@pytest.mark.parametrize(("stall", "code", "told"), [
    ({"SLOW_BATCHES": "100000"}, 5, "records wait and none was finished"),
    ({"STOPS_LOOP": "1"}, 6, "the event loop stood still"),
])
def test_a_stall_ends_the_worker_and_the_next_one_goes_on(
    kafka: Any, tmp_path: Path, stall: dict[str, str], code: int, told: str
) -> None:
    world = small_world(tmp_path, kafka.bootstrap, SEED, records=300, stall_s=2.0)
    try:
        assert world.start("one", **stall).wait(120) == code, world.tail()
        assert told in world.tail()
        world.start("one")
        scenarios.finish(world)
    finally:
        world.close()


def test_memory_stays_flat_with_a_backlog_and_a_slow_model(kafka: Any, tmp_path: Path) -> None:
    """What waits in the worker is bounded by the fetches, 1 MB a partition, not by what waits in the log."""
    backlog = 100 << 20
    world = small_world(tmp_path, kafka.bootstrap, SEED, records=300, slow_ms=0, max_poll_records=None)
    reading = b'{"device":"d0","ts":%d,"values":{"c0":1.0,"c1":1.0,"c2":1.0},"pad":"' + b"x" * 1900 + b'"}'
    producer = KafkaProducer(bootstrap_servers=kafka.bootstrap, batch_size=1 << 19, linger_ms=20)
    for number in range(backlog // 2000):
        producer.send(world.topic, reading % (2_000_000 + 1000 * number), partition=number % 2, timestamp_ms=2_000_000)
    producer.flush()
    producer.close()
    try:
        child = world.start(SLOW_BATCHES=",".join(["0.25"] * 400))
        scenarios.commit_beyond(world)
        process = psutil.Process(child.pid)
        first = process.memory_info().rss
        until(lambda: sum(world.committed().values()) > backlog // 2000 // 5, 120, "a fifth of the backlog")
        assert process.memory_info().rss - first < backlog // 2
        assert world.stop(child) == 0
    finally:
        world.close()


def test_a_mark_that_retention_took_begins_cold_and_says_so(kafka: Any, tmp_path: Path) -> None:
    world = small_world(tmp_path, kafka.bootstrap, SEED, records=1200)
    try:
        child = world.start("one")
        scenarios.commit_beyond(world, 600, 180)
        world.kill(child)
        start = {TopicPartition(world.topic, p): at for p, at in world.committed().items()}
        admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
        admin.delete_records(start)
        admin.close()
        world.start("one")
        world.wait(240)
        log = (world.folder / "worker1.log").read_text(errors="replace")
        assert "are no longer in the log" in log
    finally:
        world.close()
