"""Rows to records, as the decoder of the same format reads them: what `narrows replay` publishes."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import cbor2
import msgspec
import numpy as np
import pyarrow as pa

from pipeline.formats.arrow import write_stream
from pipeline.formats.readings import PER_MS, Float, Int
from pipeline.formats.spec import Format

_DUMPS: dict[str, Callable[[Any], bytes]] = {
    "json": msgspec.json.Encoder().encode, "msgpack": msgspec.msgpack.Encoder().encode, "cbor": cbor2.dumps,
}


def encode_rows(
    spec: Format, channels: Sequence[str], device: Sequence[str], ts_ms: Int, values: Float
) -> list[list[bytes]]:
    """The records of each row: one where the layout is wide, one a channel where it is long. NaN is left out.

    spec : of any encoding but arrow, whose records hold tables: see `encode_table`.
    channels : C names.   device : n names.   ts_ms : (n,) int64.   values : (n, C) float32.
    A decoder of `spec` gives the same float32 values back.
    """
    fields = [spec.fields.get(name, name) for name in channels]
    encode = _DUMPS[spec.encoding]
    shortest = values.astype("U32").astype(np.float64)  # 0.1, not 0.10000000149011612: the same float32, fewer bytes
    records: list[list[bytes]] = []
    for name, time, row in zip(device, ts_ms.tolist(), shortest.tolist(), strict=True):
        head: dict[str, Any] = {} if spec.device is None else {spec.device: name}
        if spec.ts is not None:
            head[spec.ts] = _time(spec.ts_unit, time)
        known = [(field, value) for field, value in zip(fields, row, strict=True) if value == value]
        if spec.layout == "long":
            records.append([encode({**head, spec.channel: field, spec.value: value}) for field, value in known])
        else:
            records.append([encode({**head, spec.values: dict(known)} if spec.values else {**head, **dict(known)})])
    return records


class Encoded(NamedTuple):
    """Records that go out together. last : place of their newest row; rows : how many; ts_ms : the records' time."""

    last: int
    rows: int
    ts_ms: int
    values: list[bytes]


def encode_records(
    spec: Format, channels: Sequence[str], device: Sequence[str], ts_ms: Int, values: Float, rows_a_record: int = 1
) -> list[Encoded]:
    """Rows as records in the order of their last rows; arguments as in `encode_rows`.

    rows_a_record : most rows of an Arrow record, all of one device; other encodings have one.
    """
    if spec.encoding != "arrow":
        encoded = encode_rows(spec, channels, device, ts_ms, values)
        return [Encoded(row, 1, int(ts_ms[row]), records) for row, records in enumerate(encoded)]
    number: dict[str, int] = {}
    owner = np.array([number.setdefault(name, len(number)) for name in device])
    order = np.argsort(owner, kind="stable")
    found = []
    for own in np.split(order, np.flatnonzero(np.diff(owner[order])) + 1):
        for first in range(0, len(own), rows_a_record):
            rows = own[first:first + rows_a_record]
            names = [device[rows[0]]] * len(rows)
            value = encode_table(spec, channels, names, ts_ms[rows], values[rows])
            found.append(Encoded(int(rows[-1]), len(rows), int(ts_ms[rows].max()), [value]))
    return sorted(found)


def encode_table(
    spec: Format, channels: Sequence[str], device: Sequence[str], ts_ms: Int, values: Float
) -> bytes:
    """One Arrow record of all these rows; arguments as in `encode_rows`. NaN is null."""
    columns: dict[str, Any] = {} if spec.device is None else {spec.device: pa.array(device, pa.string())}
    if spec.ts is not None and spec.ts_unit == "iso":
        columns[spec.ts] = pa.array(ts_ms, pa.timestamp("ms", "UTC"))
    elif spec.ts is not None:
        times, over = PER_MS[spec.ts_unit]
        columns[spec.ts] = pa.array(ts_ms * over if times == 1 else ts_ms / times)
    for name, column in zip(channels, np.ascontiguousarray(values.T), strict=True):
        columns[spec.fields.get(name, name)] = pa.array(column, from_pandas=True)
    return write_stream(pa.record_batch(columns))


def _time(unit: str, ts_ms: int) -> object:
    if unit == "iso":
        return datetime.fromtimestamp(ts_ms / 1000, UTC).isoformat(timespec="milliseconds")
    times, over = PER_MS[unit]
    return ts_ms / times if times > 1 else ts_ms * over
