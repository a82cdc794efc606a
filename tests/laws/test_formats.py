"""Laws of decoding: what a value decodes to depends on that value alone, and numbers come out as they went in."""

import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.contract import Channel, Contract
from pipeline.core.records import Names, Records
from pipeline.formats import Format, LongDecoder, WideDecoder

NOW = 1_700_000_000_000
CONTRACT = Contract(channels=(Channel(name="a"), Channel(name="b")))

number = st.none() | st.integers(-(10**40), 10**40) | st.floats(width=32, allow_nan=False, allow_infinity=False)
anything = st.recursive(
    st.none() | st.booleans() | number | st.text(max_size=5) | st.just(float("inf")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
fields = st.sampled_from(["device", "ts", "values", "channel", "value", "a", "b", "x", 'q"'])
likely = st.fixed_dictionaries(
    {"device": st.just("d"), "ts": st.just(NOW), "values": st.fixed_dictionaries({"a": number, "b": number})},
    optional={"x": anything},
)
value = st.none() | st.binary(max_size=12) | st.builds(
    lambda tree: json.dumps(tree).encode(), likely | st.dictionaries(fields, anything, max_size=4) | anything
)


@given(st.lists(value, max_size=12), st.sampled_from(["wide", "flat", "long"]))
@settings(max_examples=300, deadline=None)
def test_a_value_decodes_alike_alone_and_among_others(values: list[bytes | None], layout: str) -> None:
    def decoder() -> WideDecoder | LongDecoder:
        if layout == "long":
            return LongDecoder(CONTRACT, Format(layout="long"))
        return WideDecoder(CONTRACT, Format(values=None if layout == "flat" else "values"))

    def flat(values: list[bytes | None], reader: WideDecoder | LongDecoder) -> list[tuple]:
        readings, rejects = reader.decode(values, [b"key"] * len(values), np.full(len(values), NOW))
        found: dict[int, tuple] = {}
        for row, place in enumerate(readings.kept.tolist()):
            column = readings.values[row] if isinstance(reader, WideDecoder) else readings.value[row]
            more = None if isinstance(reader, WideDecoder) else int(readings.channel[row])
            found[place] = (readings.device[row], int(readings.ts_ms[row]), column.tobytes(), more)
        for place, reason in zip(rejects.index.tolist(), rejects.reason.tolist(), strict=True):
            assert place not in found
            found[place] = (reason,)
        return [found[place] for place in range(len(values))]

    together = flat(values, decoder())
    assert together == [flat([value], decoder())[0] for value in values]


def mostly(usual: st.SearchStrategy[str], odd: list[str]) -> st.SearchStrategy[str]:
    return st.integers(0, 9).flatmap(lambda turn: usual if turn else st.sampled_from(odd))


digits = st.integers(0, 10**21).map(str)
plain_number = st.builds(
    "{}{}{}{}".format, st.sampled_from(["", "-"]), digits, st.just("") | digits.map(".{}".format),
    st.just("") | st.builds("{}{}".format, st.sampled_from(["e", "E-", "e+"]), st.integers(0, 330)),
)
short_number = st.floats(-1e4, 1e4).map(lambda number: f"{number:.4g}")
FILL = {
    "value": mostly(
        short_number | plain_number | st.floats(allow_nan=False, allow_infinity=False).map(repr) | st.just("null"),
        ["true", '"1"', "01", "1.", ".5", "+1", "-", "1e", "[]", "NaN", "-0", "0e5", "16777217", "3.4028236e38"],
    ),
    "device": mostly(
        st.sampled_from(["d", "pump-7", "x" * 256]), ["", "p\u00fcmp", "x" * 257, 'q\\"', "\\u0061"]
    ).map('"{}"'.format),
    "time": mostly(
        st.sampled_from([str(NOW), str(NOW - 1)]),
        ["null", "-5", "1e3", "0", "99999999999999999999", f"{NOW}.0"],
    ),
}
blank = st.sampled_from(["", " ", "\n\t", " \r"])


@st.composite
def layout(draw: st.DrawFn, nested: bool) -> list[str]:
    """A wide row as text in pieces, fields in any order, with blanks and fields that nobody knows.

    What stands for itself comes in turn with what a row fills in: the name of the strategy that does.
    """
    def member(name: str, kind: str) -> str:
        return f'{draw(blank)}"{name}"{draw(blank)}:{draw(blank)}\0{kind}\0{draw(blank)}'

    names = draw(mostly(st.sampled_from(["ab", "ba", "a"]), ["", "aba", "ay", "yyb"]))
    body = [member(name, "value") for name in names]
    head = [member("device", "device"), member("ts", "time")]
    head += [member("x", "value") for _ in range(draw(st.integers(0, 1)))]
    if nested:
        head.append(f'"values":{draw(blank)}{{{",".join(body)}{draw(blank)}}}{draw(blank)}')
    else:
        head += body
    behind = draw(mostly(st.sampled_from(["", " "]), ["x", "}"]))
    return (draw(blank) + "{" + ",".join(draw(st.permutations(head))) + "}" + behind).split("\0")


@st.composite
def written_rows(draw: st.DrawFn, nested: bool) -> list[bytes]:
    """Rows of one layout: they differ in their values, and now and then in where they end."""
    pieces = draw(layout(nested))
    rows = []
    for _ in range(draw(st.integers(1, 6))):
        text = "".join(draw(FILL[piece]) if place % 2 else piece for place, piece in enumerate(pieces))
        cut = draw(st.integers(0, len(text)))
        rows.append((text if draw(st.integers(0, 9)) else text[:cut]).encode())
    return rows


@given(st.data(), st.booleans())
@settings(max_examples=200, deadline=None)
def test_a_fetch_decodes_as_its_values_do(data: st.DataObject, nested: bool) -> None:
    drawn = data.draw(st.lists(written_rows(nested) | value.map(lambda one: [one]), max_size=4))
    values = [value for group in drawn for value in group]
    spec = Format(values="values" if nested else None, max_bytes=400)
    times = data.draw(st.lists(st.sampled_from([NOW, 0, NOW - 10**9]), min_size=len(values), max_size=len(values)))
    fetched = Records.of((at, time, b"key", value) for at, (time, value) in enumerate(zip(times, values, strict=True)))
    one, other = WideDecoder(CONTRACT, spec), WideDecoder(CONTRACT, spec)
    for _ in range(2):                      # the second time unknown names are known
        quick, quick_rejects = one.decode_records(fetched)
        slow, slow_rejects = other.decode(values, [b"key"] * len(values), np.array(times, np.int64))
        assert list(quick.device) == list(slow.device)
        assert quick.ts_ms.tolist() == slow.ts_ms.tolist()
        assert quick.kept.tolist() == slow.kept.tolist()
        assert np.array_equal(quick.values.view(np.int32) & ~nan_bits(quick.values),
                              slow.values.view(np.int32) & ~nan_bits(slow.values))
        assert quick_rejects.index.tolist() == slow_rejects.index.tolist()
        assert quick_rejects.reason.tolist() == slow_rejects.reason.tolist()
        assert +one.unknown == +other.unknown
        one._doubt = 0


def nan_bits(values: np.ndarray) -> np.ndarray:
    """All ones where missing: one NaN is as good as another."""
    return np.where(np.isnan(values), np.int32(-1), np.int32(0))


def test_known_names_cost_no_object_and_are_told_apart() -> None:
    decoder = WideDecoder(CONTRACT, Format())
    for turn in range(3):
        names = [f"device-{i % 700}-{turn}" for i in range(3000)]
        rows = [f'{{"device":"{name}","ts":{NOW},"values":{{"a":1}}}}'.encode() for name in names]
        readings, _ = decoder.decode_records(Records.of((i, NOW, None, row) for i, row in enumerate(rows)))
        assert list(readings.device) == names
        assert isinstance(readings.device, Names)


@given(st.lists(st.tuples(*[st.floats(width=32, allow_nan=False, allow_infinity=False)] * 2), min_size=1, max_size=20))
def test_float32_values_come_out_as_they_went_in(rows: list[tuple[float, float]]) -> None:
    values = [
        json.dumps({"device": "d", "ts": NOW, "values": dict(zip("ab", row, strict=True))}).encode() for row in rows
    ]
    readings, _ = WideDecoder(CONTRACT, Format()).decode(values, None, np.full(len(rows), NOW))
    assert readings.values.tobytes() == np.array(rows, np.float32).tobytes()
