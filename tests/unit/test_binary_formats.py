"""MessagePack and CBOR records: what is theirs alone. That they mean what JSON means: tests/laws/test_encodings.py."""

from datetime import UTC, datetime
from typing import Any

import cbor2
import msgspec
import numpy as np
import pytest

from pipeline.core.contract import Channel, Contract
from pipeline.formats import Format, Reason, make_decoder

NOW = 1_700_000_000_000
CONTRACT = Contract(channels=(Channel(name="flow"), Channel(name="heat")))
MOMENT = datetime.fromtimestamp(NOW / 1000, UTC)
DUMPS = {"msgpack": msgspec.msgpack.encode, "cbor": cbor2.dumps}
TREE = {"device": "pump-7", "ts": NOW, "values": {"flow": 1.5, "heat": 2}}
HEAD = b"\xa3\x66device\x61p\x62ts\xf6\x66values\xa1\x64flow"   # of a CBOR record, up to the value of its channel


def outcome(encoding: str, values: list[bytes], **spec: Any) -> list[Any]:
    """For each record its reason, or device, time and values."""
    decoder = make_decoder(CONTRACT, Format(encoding=encoding, **spec))  # type: ignore[arg-type]
    readings, rejects = decoder.decode(values, [b"key"] * len(values), np.full(len(values), NOW))
    found: dict[int, Any] = {
        place: (readings.device[row], int(readings.ts_ms[row]), readings.values[row].tolist())
        for row, place in enumerate(readings.kept.tolist())
    }
    found |= {place: Reason(code) for place, code in zip(rejects.index.tolist(), rejects.reason.tolist(), strict=True)}
    return [found[place] for place in range(len(values))]


def record(encoding: str, **changes: Any) -> bytes:
    return DUMPS[encoding](TREE | changes)


@pytest.mark.parametrize("encoding", ["msgpack", "cbor"])
@pytest.mark.parametrize("unit", ["ms", "s", "ns", "iso"])
def test_a_time_may_be_the_encodings_own(encoding: str, unit: str) -> None:
    [found] = outcome(encoding, [record(encoding, ts=MOMENT)], ts_unit=unit)
    assert found == ("pump-7", NOW, [1.5, 2.0])


@pytest.mark.parametrize("encoding", ["msgpack", "cbor"])
def test_what_json_cannot_say(encoding: str) -> None:
    values = [
        record(encoding, values={"flow": float("nan"), "heat": 2.5}),
        record(encoding, values={"flow": float("inf"), "heat": 2.5}),
        record(encoding, values={"flow": b"1.5"}),
        record(encoding, device=b"pump-7"),
        DUMPS[encoding]({1: "a", "device": "p"}),
        record(encoding) + b"\x00",
        record(encoding) * 2,
        record(encoding)[:-1],
        b"",
    ]
    first, *others = outcome(encoding, values)
    assert first[:2] == ("pump-7", NOW)
    assert np.isnan(first[2][0])
    keyed = Reason.WRONG_TYPE if encoding == "msgpack" else Reason.MALFORMED   # cbor2 refuses such keys by itself
    assert others == [
        Reason.OVERFLOW, Reason.WRONG_TYPE, Reason.WRONG_TYPE, keyed, *[Reason.MALFORMED] * 4,
    ]


HOSTILE = {
    "msgpack": [
        (b"\xdf\xff\xff\xff\xff", Reason.MALFORMED), (b"\xdd\xff\xff\xff\xff", Reason.MALFORMED),
        (b"\x81\xa6device\xdd\xff\xff\xff\xff", Reason.MALFORMED),
        (b"\x81\xa2ts\xdd\xff\xff\xff\xff", Reason.MALFORMED),
        (b"\x81\xa1x" * 60_000, Reason.TOO_DEEP), (b"\x91" * 100_000, Reason.TOO_DEEP),
        (b"\x81\xa6device\xa1\xff", Reason.BAD_UTF8), (b"\x81\xa1\xff\x01", Reason.BAD_UTF8),
        (b"\xc1", Reason.MALFORMED),
        (b"\x01", Reason.WRONG_TYPE), (b"\x90", Reason.WRONG_TYPE),
    ],
    "cbor": [
        (b"\xbb" + b"\xff" * 8, Reason.MALFORMED), (b"\x9b\x00\x00\x00\x10\x00\x00\x00\x00", Reason.MALFORMED),
        (b"\x5b\x00\x00\x00\x10\x00\x00\x00\x00", Reason.MALFORMED), (b"\xa1\x61x" * 60_000, Reason.TOO_DEEP),
        (b"\x9f" * 100_000, Reason.TOO_DEEP), (b"\xa1\x66device\x61\xff", Reason.BAD_UTF8),
        (b"\x01", Reason.WRONG_TYPE), (b"\x80", Reason.WRONG_TYPE), (b"\xff", Reason.MALFORMED),
        (HEAD + b"\xc2\x49\x01" + b"\x00" * 8, Reason.WRONG_TYPE),          # a big number
        (HEAD + b"\xc4\x82\x1a\x05\xf5\xe1\x00\x01", Reason.WRONG_TYPE),    # 1e100000000
        (HEAD + b"\xd8\x1c\x81\xd8\x1d\x00", Reason.WRONG_TYPE),            # a list that holds itself
        (HEAD + b"\xf7", Reason.NO_CHANNEL),                                # undefined
    ],
}


@pytest.mark.parametrize("encoding", ["msgpack", "cbor"])
def test_hostile_bytes_have_a_reason(encoding: str) -> None:
    found = outcome(encoding, [value for value, _ in HOSTILE[encoding]])
    assert found == [reason for _, reason in HOSTILE[encoding]]


def test_cbor_of_any_length_form_is_read() -> None:
    plain = cbor2.dumps(TREE)
    values = [
        b"\xd9\xd9\xf7" + plain, cbor2.dumps(TREE, indefinite_containers=True),
        plain.replace(b"\x66device", b"\x7f\x63dev\x63ice\xff"), cbor2.dumps(TREE | {"more": cbor2.CBORTag(35, "a+")}),
        HEAD + b"\xf9\x3e\x00", HEAD[:1].replace(b"\xa3", b"\xa4") + HEAD[1:] + b"\x01\x61x\xc1\xfb\x7e" + b"\xff" * 7,
    ]
    whole, part = ("pump-7", NOW, [1.5, 2.0]), ("p", NOW, [1.5, None])
    found = outcome("cbor", values)
    assert found[:4] == [whole] * 4
    assert [one[2][0] for one in found[4:5]] == [part[2][0]]
    assert found[5] is Reason.MALFORMED    # a time that no calendar holds


def test_of_a_name_that_comes_twice_the_last_value_counts_in_every_encoding() -> None:
    msgpack = b"\x82\xa6device\xa1p\xa6values\x82\xa4flow\x01\xa4flow\x02"
    cbor = b"\xa2\x66device\x61p\x66values\xa2\x64flow\x01\x64flow\x02"
    json = b'{"device":"p","values":{"flow":1,"flow":2}}'
    for encoding, value in (("msgpack", msgpack), ("cbor", cbor), ("json", json)):
        [found] = outcome(encoding, [value])
        assert found[2][0] == 2
