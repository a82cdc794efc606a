"""The embedded Kafka and Redis: what they promise to tests and to a machine without Docker."""

import os
import signal
import subprocess
import sys
import textwrap

import psutil
import pytest
import redis as redis_client
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError

from pipeline.errors import BadInput
from pipeline.local import LocalKafka, LocalRedis, supervisor
from tests.support.waiting import gone, until


def send(bootstrap: str, topic: str, *values: bytes, partition: int = 0, timestamp_ms: int | None = None) -> None:
    """Sends and waits for the acknowledgement of all in-sync replicas."""
    producer = KafkaProducer(bootstrap_servers=bootstrap, acks="all")
    for value in values:
        producer.send(topic, value, key=b"key", partition=partition, timestamp_ms=timestamp_ms).get(30)
    producer.close()


def read(bootstrap: str, topic: str, count: int, partition: int = 0) -> list:
    """The first `count` records of a partition."""
    consumer = KafkaConsumer(bootstrap_servers=bootstrap)
    place = TopicPartition(topic, partition)
    consumer.assign([place])
    consumer.seek_to_beginning(place)
    records: list = []
    assert until(lambda: records.extend(consumer.poll(500).get(place, [])) or len(records) >= count, 30)
    consumer.close()
    return records


def create(bootstrap: str, topic: str, copies: int = 1) -> None:
    """Makes a topic of one partition."""
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    admin.create_topics({topic: {"num_partitions": 1, "replication_factor": copies}}, wait_for_metadata=True)
    admin.close()


def test_a_record_with_an_old_timestamp_is_there_after_it_was_sent(kafka, new_topic):
    topic = new_topic(partitions=2)
    send(kafka.bootstrap, topic, b"value", partition=1, timestamp_ms=1_000)
    [record] = read(kafka.bootstrap, topic, 1, partition=1)
    assert (record.key, record.value, record.timestamp) == (b"key", b"value", 1_000)


def test_a_topic_is_never_made_by_accident(kafka):
    producer = KafkaProducer(bootstrap_servers=kafka.bootstrap, max_block_ms=1500)
    with pytest.raises(KafkaError):
        producer.send("never-made", b"value").get(5)
    producer.close()
    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    assert "never-made" not in admin.list_topics()
    admin.close()


def test_a_broker_keeps_records_address_and_identity_over_kill_and_restart(tmp_path):
    with LocalKafka(tmp_path, properties={"broker.session.timeout.ms": "2000"}) as kafka:
        address, identity = kafka.bootstrap, kafka.cluster_id
        create(address, "kept")
        send(address, "kept", b"1")
        kafka.nodes[0].kill()
        assert not kafka.running
        kafka.nodes[0].start()
        send(address, "kept", b"2")
    with LocalKafka(tmp_path) as kafka:
        assert (kafka.bootstrap, kafka.cluster_id) == (address, identity)
        assert [record.value for record in read(address, "kept", 2)] == [b"1", b"2"]


def test_a_cluster_of_another_size_is_refused(tmp_path):
    (tmp_path / "cluster.json").write_text('{"id": "x", "ports": [{}, {}, {}]}')
    with pytest.raises(BadInput, match="3 nodes, not 1"):
        LocalKafka(tmp_path).start()


def test_three_nodes_lose_no_acknowledged_record_when_the_leader_is_killed(tmp_path):
    with LocalKafka(tmp_path, nodes=3, heap_mb=256) as kafka:
        create(kafka.bootstrap, "kept", copies=3)
        send(kafka.bootstrap, "kept", b"1")
        admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
        leader = admin.describe_topics(["kept"])[0]["partitions"][0]["leader_id"]
        admin.close()
        kafka.nodes[leader - 1].kill()
        send(kafka.bootstrap, "kept", b"2")
        assert [record.value for record in read(kafka.bootstrap, "kept", 2)] == [b"1", b"2"]


def test_extra_properties_make_clients_log_on(tmp_path):
    module = "org.apache.kafka.common.security.plain.PlainLoginModule required user_ada='lovelace' user_bob='x';"
    properties = {
        "listener.security.protocol.map": "CLIENT:SASL_PLAINTEXT,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "listener.name.client.sasl.enabled.mechanisms": "PLAIN",
        "listener.name.client.plain.sasl.jaas.config": module,
    }
    with LocalKafka(tmp_path, properties=properties) as kafka:
        sasl = {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN", "sasl_plain_username": "ada"}
        admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap, sasl_plain_password="lovelace", **sasl)
        assert len(admin.describe_cluster()["brokers"]) == 1
        admin.close()
        with pytest.raises(KafkaError):
            KafkaAdminClient(
                bootstrap_servers=kafka.bootstrap, sasl_plain_password="wrong", bootstrap_timeout_ms=2000, **sasl
            )


def test_redis_keeps_its_keys_over_a_restart_and_asks_for_its_password(tmp_path):
    with LocalRedis(tmp_path, password="secret") as server:
        redis_client.Redis.from_url(server.url).set("key", "value")
    with LocalRedis(tmp_path, password="secret") as server:
        assert redis_client.Redis.from_url(server.url).get("key") == b"value"
        with pytest.raises(redis_client.AuthenticationError):
            redis_client.Redis.from_url(server.url.replace(":secret@", "")).get("key")


def test_no_server_outlives_a_parent_killed_with_sigkill(tmp_path):
    code = f"""
        from pathlib import Path
        from pipeline.local import LocalKafka, LocalRedis
        with LocalRedis(Path({str(tmp_path / "r")!r})) as redis, LocalKafka(Path({str(tmp_path / "k")!r})) as kafka:
            print(redis.server.pid, kafka.nodes[0].server.pid, flush=True)
            import time; time.sleep(600)
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    pids = [int(word) for word in parent.stdout.readline().split()]
    keepers = [psutil.Process(pid).ppid() for pid in pids]
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert len(pids) == 2
    assert until(lambda: all(gone(pid) for pid in [*pids, *keepers]), 30)


def test_local_up_outlives_its_command_and_local_down_ends_it(tmp_path):
    command = [sys.executable, "-c", "from pipeline.cli.local import app; app()"]
    up = subprocess.run([*command, "up", "--folder", str(tmp_path)], capture_output=True, text=True, check=True)
    state = supervisor.status(tmp_path)
    assert up.stdout.splitlines() == [
        f"export NARROWS_KAFKA__BOOTSTRAP={state.kafka}", f"export NARROWS_REDIS__URL={state.redis}"
    ]
    assert supervisor.up(tmp_path) == state
    assert redis_client.Redis.from_url(state.redis).ping()
    children = psutil.Process(state.pid).children(recursive=True)
    assert supervisor.down(tmp_path)
    assert not supervisor.down(tmp_path)
    assert supervisor.status(tmp_path) is None
    assert all(gone(child.pid) for child in children)


def test_killing_the_supervisor_ends_its_servers_and_frees_the_folder(tmp_path):
    state = supervisor.up(tmp_path)
    children = psutil.Process(state.pid).children(recursive=True)
    os.kill(state.pid, signal.SIGKILL)
    assert until(lambda: supervisor.status(tmp_path) is None)
    assert until(lambda: all(gone(child.pid) for child in children), 30)
    assert len(children) == 4
