"""One stream of a worker, and what it owes to the others of its topic and to the state topic."""

from collections import namedtuple
from dataclasses import replace

import msgspec
import numpy as np

from pipeline.agent import Part
from pipeline.config import Match
from pipeline.core.contract import Channel, Contract
from pipeline.core.records import Records
from pipeline.engine.state_topic import Name
from pipeline.engine.transport import TP
from pipeline.formats import Format
from pipeline.formats.encode import encode_table
from pipeline.line import Line, OutputTopics
from pipeline.sinks import Record, read_anomaly, read_block_label
from tests.support.models import small_contract, small_model

Raw = namedtuple("Raw", "offset timestamp key value")
TOPICS = OutputTopics("scores", "anomalies", "blocks", "features", "dead", "codecs")


def make_line(name: str, contract: Contract, prefix: str | None = None, takes_nameless: bool = True) -> Line:
    line = Line(
        name, "t", contract, Format(), Match(device_prefix=prefix), TOPICS, takes_nameless=takes_nameless,
    )
    line.assign(0, small_model(contract), 0, -1, {})
    return line


def reading(offset: int, device: str, ts: int, values: dict[str, float]) -> Raw:
    return Raw(offset, ts, device.encode(), msgspec.json.encode({"device": device, "ts": ts, "values": values}))


def batch(records: list[Raw], stream_time: int = -1) -> list[Part]:
    fetched = Records.of(records)
    running = np.maximum(np.maximum.accumulate(fetched.timestamp), stream_time)
    return [Part(TP("t", 0), fetched, running, 0)]


def dead_letters(lines: list[Line], records: list[Raw]) -> list[tuple[str, str]]:
    """(stream, reason) of each."""
    outputs: list[Record] = [output for line in lines for output in line.take(batch(records))]
    headers = [dict(output.headers) for output in outputs if output.topic == "dead"]
    return [(each["stream"].decode(), each["reason"].decode()) for each in headers]


def test_streams_of_one_topic_do_not_reject_each_others_records():
    lines = [
        make_line("a", small_contract(2), "a"),
        make_line("b", Contract(channels=(Channel(name="x"),), window=8, memory=30), "b", takes_nameless=False),
    ]
    records = [reading(0, "a1", 1_000, {"c0": 1.0, "c1": 2.0}), reading(1, "b1", 1_000, {"x": 1.0})]
    assert dead_letters(lines, records) == []


def test_an_unreadable_record_of_a_shared_topic_is_one_dead_letter_of_the_stream_that_its_key_names():
    lines = [make_line("a", small_contract(2), "a"), make_line("b", small_contract(2), "b", takes_nameless=False)]
    assert dead_letters(lines, [Raw(0, 1_000, b"b1", b"{")]) == [("b", "bad_json")]
    assert dead_letters(lines, [Raw(1, 1_000, None, b"{")]) == [("a", "bad_json")]
    assert dead_letters(lines, [reading(2, "b1", 1_000, {})]) == [("b", "no_channel")]


def test_an_episode_that_silence_closed_is_told_to_the_state_topic_though_its_device_is_forgotten():
    contract = small_contract(2)
    line = make_line("a", contract)
    line.take(batch([
        reading(step, "one", 1_000 * step, {"c0": 0.0 if step < 20 else 50.0 * (1 + step % 2), "c1": 0.0})
        for step in range(60)
    ]))
    name = Name("a", "one", False)
    opened = line.changed(0)[name]
    assert opened is not None
    assert opened["is_open"]
    line.settled()
    later = 59_000 + contract.silence_ms + 5_000
    for step in range(3):                                 # silent at the first, its slot is given away at the second
        line.take(batch([reading(60 + step, "two", later + step, {"c0": 0.0, "c1": 0.0})], later))
    assert line.changed(0)[name] is None
    line.settled()
    assert line.changed(0) == {}


def test_what_an_eviction_ends_says_so():
    contract = small_contract(2, window=4, memory=10)
    line = Line("a", "t", contract, Format(), Match(), TOPICS, max_devices=1)
    line.assign(0, small_model(contract, threshold=0.01), 0, -1, {})
    rows = [reading(at, "old", 1_000 * at, {"c0": 5.0 * at, "c1": 1.0}) for at in range(8)]
    outputs = line.take(batch([*rows, reading(8, "new", 8_000, {"c0": 1.0, "c1": 1.0})]))
    blocks = [read_block_label(output.headers) for output in outputs if output.topic == "blocks"]
    assert [(label.device, label.rows, label.evicted, label.trigger) for label in blocks][-1][2:] == (True, 8)
    closed = [read_anomaly(output.value or b"") for output in outputs if output.topic == "anomalies"][-1]
    assert (closed.device, closed.state, closed.kind, closed.trigger) == ("old", "closed", "eviction", 8)
    assert line.counts["evicted"] == 1


def test_a_device_in_two_partitions_is_told_once():
    line = make_line("a", small_contract(2))
    line.assign(1, small_model(small_contract(2)), 0, -1, {})
    for turn in range(3):
        for partition, device in ((0, "one"), (1, "one"), (1, "two")):
            [part] = batch([reading(turn, device, 1_000 * turn, {"c0": 1.0})])
            line.take([replace(part, tp=TP("t", partition))])
    assert line.wrong_keys == [("one", 0, 1)]


def test_a_device_that_moved_for_good_is_no_stray_once_silence_has_ended_its_old_state():
    contract = small_contract(2)
    line = make_line("a", contract)
    line.assign(1, small_model(contract), 0, -1, {})
    line.take(batch([reading(0, "one", 0, {"c0": 1.0})]))
    later = contract.silence_ms + 1_000
    for step in range(1, 3):
        line.take(batch([reading(step, "two", later + step, {"c0": 1.0})], 0))
    [part] = batch([reading(0, "one", later, {"c0": 1.0})])
    line.take([replace(part, tp=TP("t", 1))])
    assert line.wrong_keys == []


def test_fields_that_the_contract_does_not_name_are_counted():
    line = make_line("a", small_contract(2))
    line.take(batch([reading(step, "one", 1_000 * step, {"c0": 1.0, "gas": 2.0}) for step in range(3)]))
    assert line.counts["unknown_fields"] == 3


def test_streams_of_one_topic_tell_arrow_records_of_many_rows_apart():
    spec = Format(encoding="arrow")
    lines = [
        Line(name, "t", contract, spec, Match(device_prefix=name), TOPICS, takes_nameless=name == "a")
        for name, contract in (("a", small_contract(2)), ("b", Contract(channels=(Channel(name="x"),), window=8)))
    ]
    for line in lines:
        line.assign(0, small_model(line.contract), 0, -1, {})

    def table(offset: int, devices: list[str], **columns: list[float]) -> Raw:
        values = np.array(list(columns.values()), np.float32).T
        ts = np.full(len(devices), 1_000)
        return Raw(offset, 1_000, b"gateway", encode_table(spec, tuple(columns), devices, ts, values))

    good = [table(0, ["a1", "a2"], c0=[1, 2], c1=[1, 2]), table(1, ["b1", "b2"], x=[1, 2])]
    assert dead_letters(lines, good) == []
    assert dead_letters(lines, [table(2, ["b1", "b2"], x=[1, np.inf])]) == [("b", "overflow")]
    assert lines[0].stream.rows.names == ["a1", "a2"]
    assert lines[1].stream.rows.names == ["b1", "b2"]


def test_a_record_that_kills_is_one_dead_letter_with_its_raw_bytes_and_nobody_looks_at_it():
    lines = [make_line("a", small_contract(2), "a"), make_line("b", small_contract(2), "b", takes_nameless=False)]
    records = [reading(step, "b1", 1_000 * step, {"c0": 1.0, "c1": 2.0}) for step in range(30)]
    one = batch(records)[0]
    one.crashed = frozenset({12})
    before = batch(records)[0]
    before.emit_from, before.crashed = 13, frozenset({12})
    outputs = [output for line in lines for output in line.take([one])]
    dead = [output for output in outputs if output.topic == "dead"]
    assert [(output.value, dict(output.headers)["reason"]) for output in dead] == [(records[12].value, b"crashed")]
    scored = {msgspec.json.decode(output.value)["offset"] for output in outputs if output.topic == "scores"}
    assert scored == {*range(7, 30)} - {12}
    replay = make_line("a", small_contract(2))
    replay.assign(0, small_model(small_contract(2)), 13, -1, {})
    assert not [output for output in replay.take([before]) if output.topic == "dead"]   # delivered long ago


def test_provisional_outputs_are_told_again_only_where_they_grew_and_superseded_under_their_ids():
    line = make_line("a", small_contract(2))
    records = [reading(step, f"d{step % 2}", 1_000 * (step // 2), {"c0": 1.0, "c1": 2.0}) for step in range(40)]
    line.take(batch(records))
    told = [read_block_label(output.headers) for output in line.provisional(0, 40) if output.topic == "blocks"]
    assert {label.device for label in told} == {"d0", "d1"}
    assert not any(label.final for label in told)
    assert line.provisional(0, 40) == []
    line.take(batch([reading(40, "d0", 20_000, {"c0": 1.0, "c1": 2.0})], 19_000))
    again = [read_block_label(output.headers) for output in line.provisional(0, 41) if output.topic == "blocks"]
    assert [label.device for label in again] == ["d0"]
    later = [
        read_block_label(output.headers)
        for output in line.take(batch([reading(41, "d2", 500_000, {"c0": 1.0})], 20_000)) if output.topic == "blocks"
    ]
    assert {label.id for label in later if label.final} >= {label.id for label in again}
