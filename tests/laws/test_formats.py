"""Laws of decoding: what a value decodes to depends on that value alone, and numbers come out as they went in."""

import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.contract import Channel, Contract
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


@given(st.lists(st.tuples(*[st.floats(width=32, allow_nan=False, allow_infinity=False)] * 2), min_size=1, max_size=20))
def test_float32_values_come_out_as_they_went_in(rows: list[tuple[float, float]]) -> None:
    values = [
        json.dumps({"device": "d", "ts": NOW, "values": dict(zip("ab", row, strict=True))}).encode() for row in rows
    ]
    readings, _ = WideDecoder(CONTRACT, Format()).decode(values, None, np.full(len(rows), NOW))
    assert readings.values.tobytes() == np.array(rows, np.float32).tobytes()
