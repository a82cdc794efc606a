"""A broker with TLS, SCRAM log-on and rights: the same configuration reaches it, and a refusal says what is missing."""

import shutil

import pytest
from kafka import KafkaAdminClient

from pipeline import topics
from pipeline.config import build_config
from pipeline.errors import Unreachable
from pipeline.local import LocalKafka, LocalRedis
from tests.support.certificates import make_certificates

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")

SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule required;"


@pytest.fixture(scope="module")
def secured(tmp_path_factory):
    """(cluster, path of its authority): users ada (all rights) and bob (none), TLS and SCRAM-SHA-512."""
    folder = tmp_path_factory.mktemp("secured")
    authority, chain, key = make_certificates(folder)
    properties = {
        "listener.security.protocol.map": "CLIENT:SASL_SSL,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "listener.name.client.ssl.keystore.type": "PEM",
        "listener.name.client.ssl.keystore.certificate.chain": chain.read_text().strip().replace("\n", "\\n"),
        "listener.name.client.ssl.keystore.key": key.read_text().strip().replace("\n", "\\n"),
        "listener.name.client.sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "listener.name.client.scram-sha-512.sasl.jaas.config": SCRAM,
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS;User:ada",
    }
    users = [f"SCRAM-SHA-512=[name={name},password={name}-secret]" for name in ("ada", "bob")]
    format_options = [word for user in users for word in ("--add-scram", user)]
    with LocalKafka(folder / "kafka", properties=properties, format_options=format_options) as kafka:
        yield kafka, authority


def settings(secured, folder, user, password):
    """Client settings as a worker's configuration gives them, the password in a file."""
    kafka, authority = secured
    (folder / "password").write_text(password + "\n")
    tree = {"kafka": {
        "bootstrap": kafka.bootstrap, "security_protocol": "SASL_SSL", "sasl_mechanism": "SCRAM-SHA-512",
        "username": user, "password_file": "password", "cafile": str(authority),
    }}
    return build_config(tree, {}, folder).kafka.client_settings()


def test_topics_are_made_and_read_over_tls_with_a_log_on(secured, tmp_path):
    ada = settings(secured, tmp_path, "ada", "ada-secret")
    made = topics.create(ada, ["readings"], partitions=2)
    assert {topic.name for topic in made if topic.made} >= {"readings", "narrows.blocks"}
    assert topics.end_offsets(ada, "readings") == {0: 0, 1: 0}
    assert list(topics.read_topic(ada, "readings")) == []


def test_a_wrong_password_is_told_as_such(secured, tmp_path):
    with pytest.raises(Unreachable, match="refused the log-on"):
        topics.describe(settings(secured, tmp_path, "ada", "guess"), ["readings"])


def test_missing_rights_are_told_as_such(secured, tmp_path):
    with pytest.raises(Unreachable, match="does not allow"):
        topics.create(settings(secured, tmp_path, "bob", "bob-secret"), ["forbidden"])


def test_a_certificate_of_a_stranger_is_refused(secured, tmp_path):
    kafka, _ = secured
    stranger, _, _ = make_certificates(tmp_path)
    with pytest.raises(Unreachable, match=r"no TLS .* check kafka\.cafile"):
        topics.describe(settings((kafka, stranger), tmp_path, "ada", "ada-secret"), ["readings"])


def test_the_inner_listener_stays_open_to_tests(secured):
    admin = KafkaAdminClient(bootstrap_servers=secured[0].nodes[0].internal)
    assert len(admin.describe_cluster()["brokers"]) == 1
    admin.close()


def test_a_redis_password_comes_from_a_file(tmp_path):
    import redis

    with LocalRedis(tmp_path / "redis", password="secret") as server:
        (tmp_path / "password").write_text("secret\n")
        tree = {"redis": {"url": server.url.replace(":secret@", ""), "password_file": "password"}}
        given = build_config(tree, {}, tmp_path).redis
        assert redis.Redis.from_url(given.url.reveal(), password=given.auth).ping()
