"""Outputs as Kafka records: what a consumer finds, and what a reader refuses."""

import json

import msgspec
import pytest

from pipeline.core.contract import Channel, Contract, parse_contract
from pipeline.errors import BadInput
from pipeline.sinks import (
    Anomaly,
    BlockLabel,
    DeadLetter,
    Feature,
    Score,
    SeenOnce,
    anomaly_record,
    block_record,
    contract_key,
    contract_record,
    dead_letter_record,
    feature_record,
    read_anomaly,
    read_block_label,
    read_dead_letter,
    read_feature,
    read_score,
    score_record,
)

ANOMALY = Anomaly(
    id="e1", episode_id="e0", stream="pump line", device="pump-7", state="opened", window_start=1_700_000_000_000,
    window_end=1_700_000_003_250, score=2.5, peak=3.0, threshold=1.0, severity="medium",
    contributions={"flow": 2.0, "heat": 0.5}, directions={"flow": "below"}, observed={"flow": 0.5, "heat": None},
    expected={"flow": 1.5}, digest="d" * 64, trigger=17,
)
SCORE = Score(
    id="s1", stream="pump", device="pump-7", offset=5, ts=1, score=0.5, threshold=1.0, is_anomaly=False, digest="d"
)
FEATURE = Feature(
    id="f1", stream="pump", device="pump-7", start=1, end=2, latent=[0.5, -1.0], space="v1", digest="d", trigger=9
)
LABEL = BlockLabel(1, "b1", "pump", "pump-7", "late", 3, 1, 2, 64, "d", 9)
LETTER = DeadLetter(
    id="x1", stream="pump", reason="bad_json", topic="readings", partition=2, offset=77, timestamp=5, key_bytes=6,
    value_bytes=3,
)


def test_an_anomaly_is_a_cloud_event_in_binary_mode() -> None:
    record = anomaly_record("narrows.anomalies", 3, ANOMALY)
    headers = dict(record.headers)
    assert (record.topic, record.partition, record.key) == ("narrows.anomalies", 3, b"pump-7")
    assert headers["ce_specversion"] == b"1.0"
    assert headers["ce_id"] == b"e1"
    assert headers["ce_source"] == b"/narrows/pump%20line"
    assert headers["ce_type"] == b"narrows.anomaly.opened.v1"
    assert headers["ce_time"] == b"2023-11-14T22:13:23.250Z"
    assert headers["content-type"] == b"application/json"
    body = json.loads(record.value or b"")
    assert sum(body["contributions"].values()) == body["score"]
    assert read_anomaly(record.value or b"") == ANOMALY


def test_what_is_written_is_read_back() -> None:
    assert read_score(score_record("t", 0, SCORE).value or b"") == SCORE
    assert read_feature(feature_record("t", 0, FEATURE).value or b"") == FEATURE
    block = block_record("t", 0, LABEL, b"frame")
    assert (block.value, block.key) == (b"frame", b"pump-7")
    assert read_block_label(block.headers) == LABEL


def test_a_contract_is_found_by_what_a_block_says() -> None:
    contract = Contract(channels=(Channel(name="flow"),))
    record = contract_record("narrows.codecs", contract)
    assert record.key == contract_key(contract.hash) == contract_key(contract.hash[:12])
    assert parse_contract(json.loads(record.value or b"")).hash == contract.hash


def test_the_same_output_is_the_same_bytes() -> None:
    assert anomaly_record("t", 0, ANOMALY) == anomaly_record("t", 0, ANOMALY)
    assert block_record("t", 0, LABEL, b"x") == block_record("t", 0, LABEL, b"x")


@pytest.mark.parametrize(
    ("key", "value"), [(b"pump-7", b"{\xff"), (None, None), (b"", b""), (b"k", b"\x00" * 1000)]
)
def test_a_dead_letter_carries_key_and_value_unchanged(key: bytes | None, value: bytes | None) -> None:
    record = dead_letter_record("narrows.dead-letters", LETTER, key, value)
    assert (record.key, record.value, record.partition) == (key, value, 2)
    headers = dict(record.headers)
    found = [headers[name] for name in ("reason", "topic", "partition", "offset")]
    assert found == [b"bad_json", b"readings", b"2", b"77"]
    assert read_dead_letter(record.headers) == LETTER


@pytest.mark.parametrize(("key_bytes", "value_bytes"), [(6, 2_000_000), (2_000_000, 6), (2_000_000, 2_000_000)])
def test_a_dead_letter_that_is_too_large_is_cut_and_says_so(key_bytes: int, value_bytes: int) -> None:
    letter = msgspec.structs.replace(LETTER, key_bytes=key_bytes, value_bytes=value_bytes)
    record = dead_letter_record("t", letter, b"k" * key_bytes, b"v" * value_bytes, room=100_000)
    assert len(record.key or b"") + len(record.value or b"") <= 100_000
    found = read_dead_letter(record.headers)
    assert (found.is_cut, found.key_bytes, found.value_bytes) == (True, key_bytes, value_bytes)


def test_a_newer_version_is_refused_even_where_its_fields_are_strange() -> None:
    newer = json.dumps({"version": 2, "id": 5}).encode()
    for read in (read_score, read_anomaly, read_feature):
        with pytest.raises(BadInput, match="version 2"):
            read(newer)
    with pytest.raises(BadInput, match="version 2"):
        read_block_label([("narrows", msgspec.msgpack.encode([2, {"all": "new"}]))])
    newer_letter = msgspec.structs.replace(LETTER, version=2)
    with pytest.raises(BadInput, match="version 2"):
        read_dead_letter(dead_letter_record("t", newer_letter, None, None).headers)


@pytest.mark.parametrize("value", [b"", b"{}", b"[]", b"\xff", b'{"version":"x"}'])
def test_what_narrows_did_not_write_is_refused(value: bytes) -> None:
    for read in (read_score, read_anomaly, read_feature):
        with pytest.raises(BadInput, match="not written by narrows"):
            read(value)
    with pytest.raises(BadInput, match="not written by narrows"):
        read_block_label([("narrows", value)])
    with pytest.raises(BadInput, match="not written by narrows"):
        read_block_label([])
    with pytest.raises(BadInput, match="not written by narrows"):
        read_dead_letter([("reason", value)])


def test_a_later_field_does_not_break_this_version() -> None:
    body = json.loads(msgspec.json.encode(SCORE)) | {"later": 1}
    assert read_score(json.dumps(body).encode()) == SCORE
    grown = [*msgspec.to_builtins(LABEL), "later"]
    assert read_block_label([("narrows", msgspec.msgpack.encode(grown))]) == LABEL


def test_each_id_is_seen_once_and_final_wins_over_provisional() -> None:
    seen = SeenOnce()
    outputs = [("a", True), ("b", False), ("a", True), ("b", True), ("b", False)]
    assert [seen.is_new(name, final) for name, final in outputs] == [True, True, False, True, False]


def test_memory_of_ids_is_bounded() -> None:
    seen = SeenOnce(capacity=2)
    assert [seen.is_new(name) for name in "abcb"] == [True, True, True, False]
    assert seen.is_new("a")
