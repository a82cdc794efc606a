"""What each output topic promises."""

import socket

import pytest
from kafka.errors import KafkaTimeoutError

from pipeline.local.server import free_port
from pipeline.topics import TOPICS, client
from pipeline.topics.client import ours


def test_names_carry_the_prefix_and_the_project():
    assert TOPICS["anomalies"].full_name("site-1.") == "site-1.narrows.anomalies"


@pytest.mark.parametrize("name", ["state", "models", "codecs"])
def test_what_old_records_need_is_never_deleted(name):
    config = TOPICS[name].config
    assert config["cleanup.policy"] == "compact"
    assert "retention.ms" not in config


@pytest.mark.parametrize("name", ["scores", "anomalies", "blocks", "features", "dead-letters"])
def test_age_of_an_output_counts_from_its_arrival_not_from_the_reading(name):
    assert TOPICS[name].config["message.timestamp.type"] == "LogAppendTime"


def test_a_dead_letter_holds_the_largest_record_of_a_default_topic():
    assert TOPICS["dead-letters"].message_bytes > 1_048_588


def test_a_silent_broker_is_told_with_its_address_and_a_remedy():
    where = f"127.0.0.1:{free_port()},127.0.0.1:{free_port()}"
    error = ours(ConnectionRefusedError("no"), {"bootstrap_servers": where.split(",")})
    assert f"no Kafka answers at {where}" in str(error)
    assert "narrows local up" in str(error)
    assert error.exit_code == 4


def test_something_that_does_not_speak_kafka_is_told_as_such(monkeypatch):
    monkeypatch.setattr(client, "PROBE_TIMEOUT_MS", 200)
    with socket.create_server(("127.0.0.1", 0)) as server:
        where = f"127.0.0.1:{server.getsockname()[1]}"
        error = ours(KafkaTimeoutError("Unable to bootstrap"), where)
    assert "does not answer as Kafka over PLAINTEXT" in str(error)
