"""Outputs to Kafka records: pure functions, one a topic. The partition is the input's, the key the device.

A record is the same bytes however often it is made.
"""

from datetime import UTC, datetime
from typing import NamedTuple
from urllib.parse import quote

import msgspec

from pipeline.core.contract import Contract
from pipeline.sinks.messages import Anomaly, BlockLabel, DeadLetter, Feature, Headers, Score

ROOM = 1 << 20  # bytes of key and value that a dead letter keeps; its topic takes more, for the headers
KEY_ROOM = 4096  # of these, bytes of a cut key

_json = msgspec.json.Encoder().encode
_msgpack = msgspec.msgpack.Encoder().encode


class Record(NamedTuple):
    """One record to produce. `topic` is the full name."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    headers: Headers


def score_record(topic: str, partition: int, score: Score) -> Record:
    """One result a scored row, as JSON."""
    return Record(topic, partition, score.device.encode(), _json(score), [])


def anomaly_record(topic: str, partition: int, anomaly: Anomaly) -> Record:
    """A CloudEvent 1.0 in binary mode (Kafka protocol binding): attributes as `ce_` headers, the body as JSON."""
    time = datetime.fromtimestamp(anomaly.window_end / 1000, UTC).isoformat(timespec="milliseconds")
    headers = [
        ("ce_specversion", b"1.0"),
        ("ce_id", anomaly.id.encode()),
        ("ce_source", f"/narrows/{quote(anomaly.stream, safe='')}".encode()),
        ("ce_type", f"narrows.anomaly.{anomaly.state}.v{anomaly.version}".encode()),
        ("ce_subject", anomaly.device.encode()),
        ("ce_time", time.replace("+00:00", "Z").encode()),
        ("content-type", b"application/json"),
    ]
    return Record(topic, partition, anomaly.device.encode(), _json(anomaly), headers)


def feature_record(topic: str, partition: int, feature: Feature) -> Record:
    """The latent vector of a span, as JSON."""
    return Record(topic, partition, feature.device.encode(), _json(feature), [])


def block_record(topic: str, partition: int, label: BlockLabel, frame: bytes) -> Record:
    """A block: the codec's frame as value, what it holds in the header `narrows`."""
    return Record(topic, partition, label.device.encode(), frame, [("narrows", _msgpack(label))])


def contract_key(contract: str) -> bytes:
    """Key under which `narrows.codecs` holds a contract; `contract` is its hash, whole or the first 12 digits."""
    return f"contract/{contract[:12]}".encode()


def contract_record(topic: str, contract: Contract) -> Record:
    """What names the columns of a block, for `narrows.codecs`: written before the first block of a contract."""
    return Record(topic, 0, contract_key(contract.hash), _json(contract), [])


def codec_record(topic: str, model_id: str, model: bytes) -> Record:
    """A codec model under its id, for `narrows.codecs`: written before the first block that needs it."""
    return Record(topic, 0, model_id.encode(), model, [])


def dead_letter_record(
    topic: str, letter: DeadLetter, key: bytes | None, value: bytes | None, room: int = ROOM
) -> Record:
    """Key and value as they came; cut, and `is_cut` said, where they are larger than `room` bytes together."""
    if len(key or b"") + len(value or b"") > room:
        key = None if key is None else key[: min(KEY_ROOM, room)]
        value = None if value is None else value[: room - len(key or b"")]
        letter = msgspec.structs.replace(letter, is_cut=True)
    plain = msgspec.structs.asdict(letter)
    headers = [(name, _json(item) if isinstance(item, bool) else str(item).encode()) for name, item in plain.items()]
    return Record(topic, letter.partition, key, value, headers)
