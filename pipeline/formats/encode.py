"""Rows to JSON records, as the decoder of the same format reads them: what `narrows replay` publishes."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np

from pipeline.formats.readings import Float, Int
from pipeline.formats.spec import Format


def encode_rows(
    spec: Format, channels: Sequence[str], device: Sequence[str], ts_ms: Int, values: Float
) -> list[list[bytes]]:
    """The records of each row: one where the layout is wide, one a channel where it is long. NaN is left out.

    channels : C names.   device : n names.   ts_ms : (n,) int64.   values : (n, C) float32.
    A decoder of `spec` gives the same float32 values back.
    """
    fields = [spec.fields.get(name, name) for name in channels]
    encode = msgspec.json.Encoder().encode
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


def _time(unit: str, ts_ms: int) -> object:
    if unit == "iso":
        return datetime.fromtimestamp(ts_ms / 1000, UTC).isoformat(timespec="milliseconds")
    if unit == "s":
        return ts_ms / 1000
    return ts_ms * {"ms": 1, "us": 1000, "ns": 1_000_000}[unit]
