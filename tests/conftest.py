"""One Kafka and one Redis for a whole test run, and topics that nobody else uses.

Each is, in this order: at the address given by NARROWS_TEST_KAFKA or NARROWS_TEST_REDIS; a container where a Docker
engine answers; a child process of ours. The same tests run on each.
"""

import gc
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings
from kafka import KafkaAdminClient

from pipeline.local import LocalKafka, LocalRedis
from pipeline.local.server import free_port

# Torch, its exporter and Hypothesis make a million objects that stay; looking among them for garbage at the usual pace
# is a tenth of the run.
gc.set_threshold(100_000, 10, 10)

# A busy machine is no counterexample.
settings.register_profile("narrows", deadline=None, print_blob=True)
settings.load_profile("narrows")

LAST = ("integration", "browser", "faults")  # folders of slow tests; what is quick to fail runs first
KAFKA_IMAGE = "apache/kafka:4.1.2"
REDIS_IMAGE = "redis:8.2-alpine"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow folders last, everything else in its order."""
    items.sort(key=lambda item: max((LAST.index(part) + 1 for part in item.path.parts if part in LAST), default=0))


@dataclass(frozen=True)
class KafkaAddress:
    """A broker for tests.

    bootstrap : host:port, or several with commas between.
    owned     : the embedded cluster where it is ours (a test that stops a broker starts its own, never this one).
    """

    bootstrap: str
    owned: LocalKafka | None = None

    def new_topic(
        self, partitions: int = 1, name: str | None = None, config: Mapping[str, str] | None = None
    ) -> str:
        """Makes a topic and returns its name; `name` is the beginning of it, the rest is nobody else's.

        config : Kafka's topic configuration, such as {"max.message.bytes": "100000"}. Old timestamps are kept
        (retention.ms -1) unless it says otherwise.
        """
        topic = f"{name or 'test'}-{uuid.uuid4().hex[:12]}"
        admin = KafkaAdminClient(bootstrap_servers=self.bootstrap)
        try:
            admin.create_topics(
                {topic: {"num_partitions": partitions, "configs": {"retention.ms": "-1", **(config or {})}}},
                wait_for_metadata=True,
            )
        finally:
            admin.close()
        return topic


@dataclass(frozen=True)
class RedisAddress:
    """A Redis for tests; keys and queue names carry `prefix`, since a given server may have other users."""

    url: str
    prefix: str
    owned: LocalRedis | None = None


@cache
def docker_answers() -> bool:
    """True when a Docker engine can run containers here."""
    try:
        import docker

        client = docker.from_env(timeout=3)
        try:
            return bool(client.ping())
        finally:
            client.close()
    except Exception:  # no engine, no socket, no permission: all the same to us
        return False


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaAddress]:
    """A real Kafka for the whole run."""
    given = os.environ.get("NARROWS_TEST_KAFKA")
    if given:
        yield KafkaAddress(given)
        return
    with ExitStack() as stack:
        if docker_answers():
            yield KafkaAddress(stack.enter_context(kafka_container()))
        else:
            local = stack.enter_context(LocalKafka(tmp_path_factory.mktemp("kafka")))
            yield KafkaAddress(local.bootstrap, local)


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisAddress]:
    """A real Redis for the whole run."""
    prefix = f"test-{uuid.uuid4().hex[:12]}"
    given = os.environ.get("NARROWS_TEST_REDIS")
    if given:
        yield RedisAddress(given, prefix)
        return
    with ExitStack() as stack:
        if docker_answers():
            yield RedisAddress(stack.enter_context(redis_container()), prefix)
        else:
            local = stack.enter_context(LocalRedis(tmp_path_factory.mktemp("redis")))
            yield RedisAddress(local.url, prefix, local)


@pytest.fixture
def new_topic(kafka: KafkaAddress) -> Callable[..., str]:
    """`kafka.new_topic`."""
    return kafka.new_topic


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The recorded data sets: NARROWS_DATA, else ../shared/data beside the repository. Skips where there is none."""
    folder = Path(os.environ.get("NARROWS_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no recorded data in {folder}; set NARROWS_DATA")
    return folder


@contextmanager
def kafka_container() -> Iterator[str]:
    """One node of the official image; yields host:port. Its port is the same inside and outside: Kafka tells it."""
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.wait_strategies import LogMessageWaitStrategy

    port = free_port()
    container = DockerContainer(KAFKA_IMAGE)
    container.ports[f"{port}/tcp"] = ("127.0.0.1", port)  # with_bind_ports would listen on every interface
    for name, value in {
        "KAFKA_NODE_ID": "1",
        "KAFKA_PROCESS_ROLES": "broker,controller",
        "KAFKA_LISTENERS": f"PLAINTEXT://:{port},CONTROLLER://:9093",
        "KAFKA_ADVERTISED_LISTENERS": f"PLAINTEXT://127.0.0.1:{port}",
        "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
        "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
        "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
        "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
        "KAFKA_GROUP_MIN_SESSION_TIMEOUT_MS": "1000",
        "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
        "KAFKA_LOG_RETENTION_MS": "-1",
        "KAFKA_LOG_MESSAGE_TIMESTAMP_AFTER_MAX_MS": str(2**63 - 1),
    }.items():
        container = container.with_env(name, value)
    with container.waiting_for(LogMessageWaitStrategy("Kafka Server started")):
        yield f"127.0.0.1:{port}"


@contextmanager
def redis_container() -> Iterator[str]:
    """The official image; yields its URL."""
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.wait_strategies import LogMessageWaitStrategy

    port = free_port()
    container = DockerContainer(REDIS_IMAGE)
    container.ports["6379/tcp"] = ("127.0.0.1", port)
    with container.waiting_for(LogMessageWaitStrategy("Ready to accept connections")):
        yield f"redis://127.0.0.1:{port}/0"
