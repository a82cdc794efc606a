"""Workers and brokers that die, stop, come and go: nothing lost, nothing wrong, no id with two contents.

Each fault once, small; the full matrix runs as `python -m bench.faults`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient, TopicPartition

from pipeline.local import LocalKafka
from tests.support import scenarios
from tests.support.world import World, small_world

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


@pytest.mark.parametrize("fault", scenarios.BROKERS)
def test_broker_fault(tmp_path: Path, fault: str) -> None:
    quick = {"broker.session.timeout.ms": "2000"}
    with LocalKafka(tmp_path / "kafka", properties=quick) as kafka:
        world = small_world(tmp_path / "world", kafka.bootstrap, SEED)
        try:
            counts = scenarios.BROKERS[fault](world, SEED, kafka)
        finally:
            world.close()
    assert counts["scores"] > 1000


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
