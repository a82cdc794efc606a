"""Outputs to Kafka records: pure functions, one a topic. The partition is the input's, the key the device.

A record is the same bytes however often it is made.
"""

import zlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import NamedTuple
from urllib.parse import quote

import msgspec

from pipeline.core.contract import Contract
from pipeline.errors import BadInput
from pipeline.sinks.messages import Anomaly, BlockLabel, DeadLetter, Feature, Headers, Score

ROOM = 1 << 20  # bytes of key and value that a dead letter keeps; its topic takes more, for the headers
PART_BYTES = 512 << 10  # of what is larger than a record may be, in one
MOST_BYTES = 1 << 30      # that such parts may unpack to
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


def block_record(
    topic: str, partition: int, label: BlockLabel, frame: bytes, summary: bytes | None = None
) -> Record:
    """A block: the codec's frame as value, what it holds in the header `narrows`, its summary in `summary`."""
    headers = [("narrows", _msgpack(label))]
    if summary is not None:
        headers.append(("summary", summary))
    return Record(topic, partition, label.device.encode(), frame, headers)


def contract_key(contract: str) -> bytes:
    """Key under which `narrows.codecs` holds a contract; `contract` is its hash, whole or the first 12 digits."""
    return f"contract/{contract[:12]}".encode()


def contract_record(topic: str, contract: Contract) -> Record:
    """What names the columns of a block, for `narrows.codecs`: written before the first block of a contract."""
    return Record(topic, 0, contract_key(contract.hash), _json(contract), [])


def codec_record(topic: str, model_id: str, model: bytes) -> Record:
    """A codec model under its id, for `narrows.codecs`: written before the first block that needs it."""
    return Record(topic, 0, model_id.encode(), model, [])


def whole_records(topic: str, kind: str, name: str, data: bytes) -> list[Record]:
    """Bytes that may be larger than a record, for `narrows.codecs`: compressed, in parts `kind/name/number/of`.

    kind : `decoder`, an ONNX graph by its id; `scaling`, a bundle's scaling.npz by the digest's first 12 digits.
    """
    packed = zlib.compress(data, 6)
    parts = [packed[at : at + PART_BYTES] for at in range(0, len(packed), PART_BYTES)]
    return [
        Record(topic, 0, f"{kind}/{name}/{number}/{len(parts)}".encode(), part, [])
        for number, part in enumerate(parts)
    ]


def find_whole(held: Mapping[bytes, bytes], kind: str, name: str) -> bytes | None:
    """What `whole_records` wrote, from the newest value of each key; None where a part is missing."""
    places = {key: key.split(b"/") for key in held if key.startswith(f"{kind}/{name}/".encode())}
    counts = {int(place[3]) for place in places.values()}
    for count in counts:
        keys = [f"{kind}/{name}/{number}/{count}".encode() for number in range(count)]
        if all(key in held for key in keys):
            try:
                return zlib.decompressobj().decompress(b"".join(held[key] for key in keys), MOST_BYTES)
            except zlib.error as error:
                raise BadInput(f"narrows.codecs: {kind} {name} is altered: {error}") from error
    return None


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
