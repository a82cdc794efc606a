"""Laws of the encodings beside JSON: they mean what JSON means, and no bytes raise or cost a neighbour anything."""

import math
from typing import Any

import cbor2
import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.contract import Channel, Contract
from pipeline.formats import Format, LongReadings, Reason, make_decoder
from pipeline.formats.cbor import Cbor
from pipeline.formats.encode import encode_records, encode_table

NOW = 1_700_000_000_000
CONTRACT = Contract(channels=(Channel(name="a"), Channel(name="b"), Channel(name="c", role="context")))
DUMPS = {"json": msgspec.json.encode, "msgpack": msgspec.msgpack.encode, "cbor": cbor2.dumps}

number = st.none() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
anything = st.recursive(
    st.none() | st.booleans() | number | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
times = st.none() | st.sampled_from([NOW, float(NOW), -1, 2**63, 1e300, "2023-11-14T22:13:20Z", "noon", NOW * 2, True])
likely = st.fixed_dictionaries(
    {"device": st.sampled_from(["d", "", "x" * 257, None, 5]), "ts": times},
    optional={
        "values": st.fixed_dictionaries({"a": number, "b": number}, optional={"c": number, "q": anything}),
        "a": number, "b": number, "x": anything, "channel": st.sampled_from(["a", "b", "q", None]), "value": number,
    },
)
tree = likely | st.dictionaries(st.sampled_from(["device", "ts", "values", "a"]), anything, max_size=4) | anything
odd = st.none() | st.binary(max_size=40)


def outcome(spec: Format, values: list[bytes | None]) -> list[Any]:
    """For each record its reason, or its rows."""
    decoder = make_decoder(CONTRACT, spec)
    readings, rejects = decoder.decode(values, [b"key"] * len(values), np.full(len(values), NOW))
    found: list[Any] = [[] for _ in values]
    for row, place in enumerate(readings.kept.tolist()):
        if isinstance(readings, LongReadings):
            own = (int(readings.channel[row]), readings.value[row].tobytes())
        else:
            own = (readings.values[row].tobytes(),)
        found[place].append((readings.device[row], int(readings.ts_ms[row]), *own))
    for place, reason in zip(rejects.index.tolist(), rejects.reason.tolist(), strict=True):
        assert found[place] == []
        found[place] = Reason(reason)
    return found


@pytest.mark.parametrize("encoding", ["msgpack", "cbor"])
@given(st.lists(tree, max_size=6), st.sampled_from(["wide", "flat", "long"]), st.sampled_from(["ms", "s", "ns", "iso"]))
@settings(max_examples=120, deadline=None)
def test_an_encoding_means_what_json_means(encoding: str, trees: list[Any], layout: str, unit: str) -> None:
    shape: Any = {"layout": "long"} if layout == "long" else {"values": None if layout == "flat" else "values"}
    expected = outcome(Format(ts_unit=unit, **shape), [DUMPS["json"](one) for one in trees])
    found = outcome(Format(ts_unit=unit, encoding=encoding, **shape), [DUMPS[encoding](one) for one in trees])
    assert found == expected


def bytes_like(encoding: str) -> st.SearchStrategy[bytes | None]:
    """Good records, records that are cut or altered at a place, and noise."""
    if encoding == "arrow":
        good = st.builds(
            lambda n, width: encode_table(
                Format(), ("a", "b", "c")[:width], ["d"] * n, NOW + np.arange(n),
                np.arange(n * width, dtype=np.float32).reshape(n, width),
            ), st.integers(1, 4), st.integers(1, 3),
        )
    else:
        good = st.builds(DUMPS[encoding], tree)

    def altered(value: bytes, at: int, byte: int) -> bytes:
        at %= max(1, len(value))
        return value[:at] + bytes([byte]) + value[at + 1:]

    place, byte = st.integers(0, 2000), st.integers(0, 255)
    return odd | good | st.builds(altered, good, place, byte) | st.builds(lambda value, at: value[:at], good, place)


@pytest.mark.parametrize("encoding", ["msgpack", "cbor", "arrow"])
@given(data=st.data())
@settings(max_examples=120, deadline=None)
def test_bytes_decode_alike_alone_and_among_others_and_never_raise(encoding: str, data: st.DataObject) -> None:
    values = data.draw(st.lists(bytes_like(encoding), max_size=8))
    spec = Format(encoding=encoding)
    assert outcome(spec, values) == [outcome(spec, [value])[0] for value in values]
    decoder = make_decoder(CONTRACT, spec)
    for value in values:
        assert isinstance(decoder.device_of(value, b"key"), str)


float32 = st.floats(width=32, allow_infinity=False)


@pytest.mark.parametrize("encoding", ["json", "msgpack", "cbor", "arrow"])
@given(
    rows=st.lists(st.tuples(st.integers(0, 2**42 - 1), float32, float32, float32), min_size=1, max_size=8),
    unit=st.sampled_from(["ms", "s", "us", "ns", "iso"]), nested=st.sampled_from(["values", None]),
)
@settings(max_examples=60, deadline=None)
def test_a_decoder_gives_back_what_was_encoded(
    encoding: str, rows: list[tuple[float, ...]], unit: str, nested: str | None
) -> None:
    rows = [row for row in rows if not all(map(math.isnan, row[1:3]))] or [(0, 1.0, 2.0, 3.0)]
    spec = Format(encoding=encoding, ts_unit=unit, values=nested, fields={"b": "zed"})  # type: ignore[arg-type]
    ts_ms = np.array([row[0] for row in rows], np.int64)
    numbers = np.array([row[1:] for row in rows], np.float32)
    names = [f"d{i}" for i in range(len(rows))]
    decoder = make_decoder(CONTRACT, spec)
    encoded = [one.values[0] for one in encode_records(spec, CONTRACT.names, names, ts_ms, numbers)]
    batches = [encoded] if encoding != "arrow" else [
        encoded, [encode_table(spec, CONTRACT.names, names, ts_ms, numbers)]
    ]
    for batch in batches:
        readings, rejects = decoder.decode(batch, None, ts_ms if len(batch) > 1 else np.array([ts_ms.max()]))
        assert len(rejects.index) == 0
        assert readings.device == names
        assert readings.ts_ms.tolist() == ts_ms.tolist()
        assert not isinstance(readings, LongReadings)
        np.testing.assert_array_equal(readings.values, numbers)


column = st.lists(
    st.none() | st.floats(allow_nan=False) | st.integers(-(2**60), 2**60).map(float), min_size=3, max_size=3
)


@given(column, column, st.lists(st.sampled_from(["d", "e", "", None]), min_size=3, max_size=3), st.lists(
    st.sampled_from([NOW, NOW + 5, None, -1, 2**45, NOW + 10**9]), min_size=3, max_size=3
))
@settings(max_examples=120, deadline=None)
def test_a_record_of_many_rows_has_json_s_rows_or_the_reason_of_one_of_them(
    a: list[float | None], b: list[float | None], device: list[str | None], ts: list[int | None]
) -> None:
    """Infinity has no JSON: it stands for a number that float32 does not hold."""
    def plain(value: float | None) -> float | None:
        return 1e39 if value is not None and math.isinf(value) else value

    rows = [
        {"device": device[i], "ts": ts[i], "values": {"a": plain(a[i]), "b": plain(b[i])}} for i in range(3)
    ]
    expected = outcome(Format(), [DUMPS["json"](row) for row in rows])
    batch = pa.record_batch({
        "device": pa.array(device, pa.string()), "ts": pa.array(ts, pa.int64()),
        "a": pa.array(a, pa.float64()), "b": pa.array(b, pa.float64()),
    })
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch[:1])
        writer.write_batch(batch[1:])
    [found] = outcome(Format(encoding="arrow"), [sink.getvalue().to_pybytes()])
    reasons = {one for one in expected if isinstance(one, Reason)}
    if reasons:
        assert found in reasons
    else:
        assert found == [one for [one] in expected]


def test_no_cbor_tag_builds_an_object() -> None:
    contents = [b"\x01", b"\x63a+*", b"\x82\x01\x02", b"\xa1\x61a\x01", b"\x42ab", b"\xfb\x7f\xef" + b"\xff" * 6]
    read = Cbor()
    for tag in [*range(1200), 43000, *range(55790, 55810), *range(65530, 65540), 2**32, 2**63]:
        for content in contents:
            head = cbor2.dumps(cbor2.CBORTag(tag, 0))[:-1]
            try:
                field = read.fields(b"\xa1\x61x" + head + content)["x"]
            except read.errors:
                continue
            assert type(field).__name__ in ("_Tagged", "str", "datetime"), tag
            assert type(field).__name__ == "_Tagged" or tag in (0, 1), tag
