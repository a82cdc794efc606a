"""The configuration tree: what it accepts, what it refuses, and what it never prints."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from pipeline.config import (
    Config,
    Kafka,
    Match,
    RedisUrl,
    Secret,
    build_config,
    field_notes,
    load_config,
    schema,
    to_plain,
)
from pipeline.errors import BadInput

FOLDER = Path("/somewhere")
CONTRACT = {"channels": [{"name": "flow"}, {"name": "current", "role": "context"}]}
PUMP = {"topic": "readings", "contract": CONTRACT}


def build(tree: dict, **environ: str) -> Config:
    return build_config(tree, environ, FOLDER)


def test_five_lines_of_yaml_are_a_stream(tmp_path: Path) -> None:
    (tmp_path / "contract.json").write_text(json.dumps(CONTRACT))
    (tmp_path / "narrows.yaml").write_text(
        "streams:\n  pump:\n    topic: readings\n    contract: contract.json\n    bundle: bundles/pump\n"
    )
    stream = load_config(tmp_path / "narrows.yaml", {}).streams["pump"]
    assert stream.contract.names == ("flow", "current")
    assert stream.bundle == str(tmp_path / "bundles/pump")


def test_a_variable_overrides_the_file_in_its_own_type() -> None:
    config = build(
        {"streams": {"pump": dict(PUMP)}, "worker": {"max_replay": 1}},
        NARROWS_STREAMS__PUMP__TOPIC="123",
        NARROWS_WORKER__COMMIT_INTERVAL_S="2",
        NARROWS_WORKER__MAX_REPLAY="7",
        NARROWS_STREAMS__PUMP__OUTPUTS__SCORES="true",
        NARROWS_STREAMS__PUMP__MATCH__DEVICES="[a, b]",
        NARROWS_KAFKA__STATIC_MEMBER="null",
    )
    stream = config.streams["pump"]
    assert (stream.topic, stream.outputs.scores, stream.match.devices) == ("123", True, ("a", "b"))
    assert (config.worker.commit_interval_s, config.worker.max_replay, config.kafka.static_member) == (2.0, 7, None)


def test_a_stream_name_in_upper_case_meets_its_name_in_the_file() -> None:
    config = build({"streams": {"Pump": dict(PUMP)}}, NARROWS_STREAMS__PUMP__TOPIC="other")
    assert {name: stream.topic for name, stream in config.streams.items()} == {"Pump": "other"}


def test_variables_that_kubernetes_sets_are_no_configuration() -> None:
    assert build({}, NARROWS_WORKER_PORT="tcp://10.0.0.1:80", NARROWS_DATA="/data").worker.metrics_port == 9464


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"streams": {"pump": PUMP | {"topik": "x"}}}, ["streams.pump.topik", "did you mean `topic`"]),
        ({"bootstrap": "x"}, ["bootstrap is unknown", "belongs under kafka.bootstrap"]),
        ({"streams": {"pump": PUMP | {"contract": {"channels": [{"name": "a", "rol": "sensor"}]}}}},
         ["streams.pump.contract.channels[0].rol", "did you mean `role`"]),
        ({"kafka": {"bootstrap": 5}}, ["kafka.bootstrap", "Expected `str`"]),
        ({"worker": {"metrics_port": 70_000}}, ["worker.metrics_port", "65535"]),
        ({"streams": {"pump": {"contract": CONTRACT}}}, ["streams.pump", "`topic`"]),
        ({"streams": {"pump": PUMP | {"contract": "none.yaml"}}}, ["/somewhere/none.yaml", "can't be read"]),
        ({"streams": {"pump": PUMP | {"format": {"fields": {"flo": "x"}}}}}, ["streams.pump", "`flo`"]),
        ({"streams": {"pump": PUMP | {"contract": {"channels": []}}}}, ["streams.pump", "at least one channel"]),
        ({"kafka": {"start": "yesterday"}}, ["kafka.start", "earliest"]),
        ({"kafka": {"sasl_mechanism": "PLAIN"}}, ["SASL_SSL"]),
        ({"kafka": {"security_protocol": "SASL_SSL"}}, ["sasl_mechanism", "username"]),
        ({"redis": {"url": "localhost:6379"}}, ["redis.url", "redis://"]),
    ],
)
def test_what_is_wrong_is_named(tree: dict, words: list[str]) -> None:
    with pytest.raises(BadInput) as caught:
        build(tree)
    for word in words:
        assert word in str(caught.value)


def test_an_unknown_variable_is_refused() -> None:
    with pytest.raises(BadInput, match="did you mean `bootstrap`"):
        build({}, NARROWS_KAFKA__BOOTSTRAPS="x:1")


@pytest.mark.parametrize("protocol", ["PLAINTEXT", "SASL_PLAINTEXT"])
def test_plaintext_to_another_machine_needs_a_word(protocol: str) -> None:
    broker = {
        "bootstrap": "127.0.0.1:1,broker.example:9092", "security_protocol": protocol, "username": "u", "password": "p",
        "sasl_mechanism": "PLAIN" if protocol.startswith("SASL") else None,
    }
    with pytest.raises(BadInput, match="allow_plaintext"):
        build({"kafka": dict(broker)})
    assert build({"kafka": broker | {"allow_plaintext": True}}).kafka.allow_plaintext


@pytest.mark.parametrize("bootstrap", ["127.0.0.1:9092", "localhost:9092", "[::1]:9092"])
def test_loopback_needs_no_word(bootstrap: str) -> None:
    assert build({"kafka": {"bootstrap": bootstrap}}).kafka.bootstrap == bootstrap


def test_no_secret_is_ever_printed() -> None:
    redis = {"url": "redis://user:hunter2@127.0.0.1:1/0", "password": "hunter2"}
    config = build({"kafka": {"password": "hunter2"}, "redis": redis})
    for shown in (repr(config), str(config.redis), json.dumps(to_plain(config)), f"{config.kafka.password}"):
        assert "hunter2" not in shown
    assert config.redis.url.masked() == "redis://user:***@127.0.0.1:1/0"
    assert config.redis.url.reveal() == "redis://user:hunter2@127.0.0.1:1/0"


def test_a_secret_can_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("hunter2\n")
    tree = {
        "kafka": {
            "security_protocol": "SASL_SSL", "sasl_mechanism": "PLAIN", "username": "u", "password_file": "password",
        },
    }
    settings = build_config(tree, {}, tmp_path).kafka.client_settings()
    assert settings["sasl_plain_password"] == "hunter2"
    assert settings["ssl_context"].check_hostname


def test_a_missing_certificate_names_its_key() -> None:
    with pytest.raises(BadInput, match=r"kafka\.cafile"):
        Kafka(security_protocol="SSL", cafile="/none.pem").ssl_context()


def test_the_schema_accepts_what_the_loader_accepts() -> None:
    tree = {"streams": {"pump": PUMP, "fan": {"topic": "fans", "contract": "fan.json"}}, "kafka": {"group": "g"}}
    jsonschema.validate(yaml.safe_load(yaml.safe_dump(tree)), schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"kafka": {"grup": "g"}}, schema())


def test_every_setting_says_what_it_means() -> None:
    parts = [Config, *(type(getattr(Config(), name)) for name in Config.__struct_fields__ if name != "streams")]
    for part in parts:
        assert set(field_notes(part)) == set(part.__struct_fields__), part


def test_secrets_compare_by_text_and_kind() -> None:
    assert Secret("a") == Secret("a") != Secret("b")
    assert Secret("redis://h") != RedisUrl("redis://h")


@pytest.mark.parametrize(
    ("one", "other", "overlaps"),
    [
        ({}, {}, True),
        ({"device_prefix": "pump"}, {}, True),
        ({"device_prefix": "pump"}, {"device_prefix": "pump-7"}, True),
        ({"device_prefix": "pump"}, {"devices": ["pump-7"]}, True),
        ({"devices": ["a", "b"]}, {"devices": ["b"]}, True),
        ({"devices": ["a", "b"]}, {"devices": ["ab"]}, False),
        ({"device_prefix": "pump"}, {"device_prefix": "fan"}, False),
        ({"device_prefix": "pump"}, {"devices": ["fan-1"]}, False),
    ],
)
def test_two_streams_of_one_topic_never_share_a_device(one, other, overlaps):
    assert Match(**one).overlaps(Match(**other)) == Match(**other).overlaps(Match(**one)) == overlaps


def test_streams_that_share_devices_are_told_by_name():
    stream = {"topic": "t", "contract": {"channels": [{"name": "a"}]}}
    with pytest.raises(BadInput, match=r"streams\.one and streams\.two"):
        build_config({"streams": {"one": stream, "two": stream}}, {}, Path())
    build_config({"streams": {"one": stream, "two": {**stream, "topic": "u"}}}, {}, Path())


def test_a_number_with_an_exponent_is_a_number(tmp_path: Path) -> None:
    contract = tmp_path / "contract.json"
    contract.write_text('{"channels": [{"name": "flow", "bound": 1e-05}]}', encoding="utf-8")
    tree = {"streams": {"pump": {"topic": "readings", "contract": str(contract)}}}
    config = build_config(tree, {"NARROWS_WORKER__STALL_S": "1e2"}, tmp_path)
    assert config.streams["pump"].contract.channels[0].bound == 1e-05
    assert config.worker.stall_s == 100.0
