"""A broker with TLS, SCRAM log-on and rights: the same configuration reaches it, and a refusal says what is missing."""

import shutil
import time

import pytest
import yaml
from kafka import KafkaAdminClient
from kafka.admin import ACL, ACLOperation, ACLPermissionType, ResourcePattern, ResourceType

from pipeline import topics
from pipeline.app import check_broker
from pipeline.config import build_config, load_config
from pipeline.errors import Unreachable
from pipeline.local import LocalKafka, LocalRedis
from tests.support.certificates import make_certificates
from tests.support.world import small_world

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")

SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule required;"


@pytest.fixture(scope="module")
def secured(tmp_path_factory):
    """(cluster, path of its authority): users ada (all rights), bob (none), carol (as a test says), TLS, SCRAM."""
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
    users = [f"SCRAM-SHA-512=[name={name},password={name}-secret]" for name in ("ada", "bob", "carol")]
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


LACKING = [
    (ResourceType.TOPIC, "readings", ACLOperation.READ, r"topic \S+readings: .*grant READ"),
    (ResourceType.TOPIC, "narrows.blocks", ACLOperation.WRITE, r"topic \S+narrows.blocks: .*grant WRITE"),
    (ResourceType.TOPIC, "narrows.state", ACLOperation.READ, r"topic \S+narrows.state: .*grant READ"),
    (ResourceType.TOPIC, "narrows.maintenance", ACLOperation.READ, r"topic \S+narrows.maintenance: .*grant READ"),
    (ResourceType.GROUP, "group", ACLOperation.READ, r"group \S+group: .*grant READ"),
]


def rights_of_a_worker(world):
    """What docs/topics.md lists, as ACLs."""
    def acl(kind, name, operation):
        return ACL("User:carol", "*", operation, ACLPermissionType.ALLOW, ResourcePattern(kind, name))

    outputs = [topic.full_name(world.prefix) for topic in topics.TOPICS.values()]
    return [
        *(acl(ResourceType.TOPIC, world.topic, operation) for operation in (
            ACLOperation.READ, ACLOperation.DESCRIBE, ACLOperation.DESCRIBE_CONFIGS
        )),
        acl(ResourceType.GROUP, world.group, ACLOperation.READ),
        *(acl(ResourceType.TOPIC, name, operation) for name in outputs for operation in (
            ACLOperation.READ, ACLOperation.WRITE, ACLOperation.DESCRIBE, ACLOperation.DESCRIBE_CONFIGS
        )),
    ]


def test_a_worker_needs_the_rights_that_are_listed_and_no_others(secured, tmp_path):
    kafka, authority = secured
    inner = kafka.nodes[0].internal
    world = small_world(tmp_path / "world", inner, 3, records=300)
    (tmp_path / "password").write_text("carol-secret\n")
    world.config["kafka"] |= {
        "bootstrap": kafka.bootstrap, "security_protocol": "SASL_SSL", "sasl_mechanism": "SCRAM-SHA-512",
        "username": "carol", "password_file": str(tmp_path / "password"), "cafile": str(authority),
    }
    world.path.write_text(yaml.safe_dump(world.config))
    admin = KafkaAdminClient(bootstrap_servers=inner)
    try:
        rights = rights_of_a_worker(world)
        admin.create_acls(rights)
        for kind, name, operation, told in LACKING:
            gone = [
                acl for acl in rights
                if acl.resource_pattern.resource_type == kind and acl.resource_pattern.resource_name.endswith(name)
                and acl.operation == operation
            ]
            assert len(gone) == 1
            admin.delete_acls(gone)
            with pytest.raises(Unreachable, match=told):
                until_refused(world, told)
            admin.create_acls(gone)
        assert world.committed() == {}
        child = world.start()
        world.wait()
        assert world.stop(child) == 0
        world.check()
    finally:
        admin.close()
        world.close()


def until_refused(world, told):
    """The start check, again while the broker does not know of the change of rights yet."""
    deadline = time.monotonic() + 20
    config = load_config(world.path, {})
    while time.monotonic() < deadline:
        check_broker(config)
        time.sleep(0.1)
    raise AssertionError(f"nothing was refused: {told}")


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
