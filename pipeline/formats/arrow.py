"""Arrow records to columns: a record's value is an Arrow IPC stream of one or many rows, a column a channel.

Invariant: a bad record yields one reason code and costs only itself; it is whole or rejected, so its first bad row's
reason is the record's. Each record is read and validated by itself; what is common to a batch is one vector a column.

Hostile bytes: the frames are measured before Arrow sees them. Rows are counted, bodies that Arrow would have to
decompress are refused (Kafka compresses whole batches), and only the columns that the contract names are loaded, so
nothing is allocated that the record's own bytes don't pay for.
"""

import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.contract import Contract
from pipeline.core.ids import MOST_ROWS
from pipeline.errors import BadInput
from pipeline.formats.readings import LAST_MS, PER_MS, Float, Int, Readings, Reason, Rejected, Rejects, rejects_of
from pipeline.formats.records import LEARNED, is_name, key_name
from pipeline.formats.spec import Format

SCHEMAS = 256  # of a stream's records that are known by their bytes

_SCHEMA, _DICTIONARY, _ROWS = 1, 2, 3  # kinds of messages
_prefix, _members, _int32, _int64 = (struct.Struct(f"<{code}").unpack_from for code in ("iI", "6H", "i", "q"))


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is read of records with one schema. Places are columns of a batch as it is read, -1 where there is none."""

    options: Any
    schema: Any  # where every column is wanted and none has a dictionary: batches are read without a reader of streams
    device: int
    ts: int
    ts_per_ms: tuple[int, int]
    channels: list[tuple[int, int]]  # (column of a batch, place in the contract)
    unknown: list[str]


@dataclass(slots=True)
class _Group:
    """Records of one batch that share a plan. place, count : of each record in the batch, and its rows."""

    plan: _Plan
    batches: list[Any] = field(default_factory=list)
    place: list[int] = field(default_factory=list)
    count: list[int] = field(default_factory=list)


class ArrowDecoder:
    """Many rows a record: columns `device` (else the record's key), `ts` (else its timestamp), and one a channel.

    unknown : records so far that had each unknown column; names beyond LEARNED are counted together under "".
    """

    def __init__(self, contract: Contract, spec: Format) -> None:
        if spec.layout != "wide":
            raise BadInput("format: the encoding arrow has the layout wide alone, a column a channel; use another one")
        self.contract = contract
        self.spec = spec
        self.unknown: Counter[str] = Counter()
        self._place = {spec.fields.get(name, name): place for place, name in enumerate(contract.names)}
        taken = [*self._place, *(name for name in (spec.device, spec.ts) if name is not None)]
        twice = [name for name, count in Counter(taken).items() if count > 1]
        if twice or len(self._place) < len(contract.names):
            raise BadInput(f"format: the column {twice} is named twice; rename one with format.fields")
        self._plans: dict[bytes, _Plan | Reason] = {}

    def decode(
        self, values: Sequence[bytes | None], keys: Sequence[bytes | None] | None, record_ts_ms: Int
    ) -> tuple[Readings, Rejects]:
        """As `WideDecoder.decode`; rows of one record stand together and `index` tells them apart."""
        rejected: dict[int, Reason] = {}
        groups: dict[int, _Group] = {}
        for place, value in enumerate(values):
            try:
                plan, batches = self._read(value)
            except Rejected as error:
                rejected[place] = error.reason
            except UnicodeDecodeError:
                rejected[place] = Reason.BAD_UTF8
            except Exception:  # whatever Arrow says of bytes that are none of its own
                rejected[place] = Reason.MALFORMED
            else:
                group = groups.setdefault(id(plan), _Group(plan))
                group.batches += batches
                group.place.append(place)
                group.count.append(sum(map(len, batches)))
                for name in plan.unknown:
                    self.unknown[name if name in self.unknown or len(self.unknown) < LEARNED else ""] += 1
        parts = [self._rows(group, keys, np.asarray(record_ts_ms, np.int64), rejected) for group in groups.values()]
        return _join(parts, len(self.contract.channels)), rejects_of(rejected)

    def device_of(self, value: bytes | None, key: bytes | None) -> str | None:
        """The first device that a record names, in its value or its key; None where neither can be read.

        Its channels don't matter: all streams of a topic get the same answer.
        """
        name: object = None
        try:
            head, _, rows = _measure(value or b"")
            numbers = pa.ipc.read_schema(pa.py_buffer(value)[:head]).get_all_field_indices(self.spec.device or "")
            if numbers and 0 < rows <= MOST_ROWS:
                options = pa.ipc.IpcReadOptions(included_fields=numbers[-1:], use_threads=False)
                for batch in pa.ipc.open_stream(value, options=options):
                    batch.validate(full=True)
                    if len(batch):
                        name = batch.column(0)[0].as_py()
                        break
        except Exception:  # see `decode`
            name = None
        return name if isinstance(name, str) and is_name(name) else key_name(key)

    def split(self, value: bytes | None, key: bytes | None) -> list[tuple[str | None, bytes | None]]:
        """The record as one of each of its devices, unknown columns included; itself where it has one or can't be read.

        A device without a name in its column has the key's.
        """
        try:
            plan, _ = self._read(value)
            table = pa.ipc.open_stream(value).read_all()
            table.validate(full=True)
            names = _devices(
                None if plan.device < 0 else table.column(table.schema.get_all_field_indices(self.spec.device)[-1]),
                [key], np.zeros(1, np.int64), np.array([len(table)]),
            )
        except Exception:  # see `decode`
            return [(key_name(key), value)]
        found = list(dict.fromkeys(names.tolist()))
        if len(found) == 1:
            return [(found[0], value)]
        starts = np.flatnonzero(np.append(True, names[1:] != names[:-1]))
        ends = np.append(starts[1:], len(names))
        parts: dict[str | None, list[Any]] = {name: [] for name in found}
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            parts[names[start]].append(table.slice(start, end - start))  # there is a type that no filter knows
        return [(name, write_stream(pa.concat_tables(own).combine_chunks())) for name, own in parts.items()]

    # ---------------------------------------------------------------- one record

    def _read(self, value: bytes | None) -> tuple[_Plan, list[Any]]:
        """How the record is laid out, and its batches. Raises Rejected, or whatever Arrow does."""
        if value is None:
            raise Rejected(Reason.TOMBSTONE)
        if len(value) > self.spec.max_bytes:
            raise Rejected(Reason.TOO_LARGE)
        head, frames, rows = _measure(value)
        schema = value[:head]
        plan = self._plans.get(schema)
        if plan is None:
            if len(self._plans) >= SCHEMAS:
                self._plans.clear()
            plan = self._plans[schema] = self._plan(schema)
        if isinstance(plan, Reason):
            raise Rejected(plan)
        if rows > MOST_ROWS:
            raise Rejected(Reason.TOO_MANY_ROWS)
        if rows == 0:
            raise Rejected(Reason.NO_CHANNEL)
        if plan.schema is None:
            batches = list(pa.ipc.open_stream(value, options=plan.options))
        else:
            buffer = pa.py_buffer(value)
            batches = [pa.ipc.read_record_batch(buffer[frame:], plan.schema) for frame in frames]
        for batch in batches:
            batch.validate(full=True)
        return plan, batches

    def _plan(self, schema: bytes) -> "_Plan | Reason":
        """What to read of records with this schema, or why they can't be."""
        found = pa.ipc.read_schema(pa.py_buffer(schema))
        columns = {name: number for number, name in enumerate(found.names)}  # of a name twice, the last: as in JSON
        wanted = [name for name in (self.spec.device, self.spec.ts, *self._place) if name in columns]
        if not any(name in columns for name in self._place):
            return Reason.NO_CHANNEL
        numbers = sorted(columns[name] for name in wanted)
        at = {name: numbers.index(columns[name]) for name in wanted}
        types = {name: found.field(columns[name]).type for name in wanted}
        ts_per_ms = (1, 1)
        for name, kind in types.items():
            if name == self.spec.device:
                right = _is_text(kind.value_type if pa.types.is_dictionary(kind) else kind) or pa.types.is_null(kind)
            elif name == self.spec.ts and pa.types.is_timestamp(kind):
                right, ts_per_ms = True, PER_MS[kind.unit]
            elif name == self.spec.ts:
                right, ts_per_ms = _is_number(kind), PER_MS.get(self.spec.ts_unit, (0, 1))
            else:
                right = _is_number(kind)
            if not right:
                return Reason.WRONG_TYPE
        is_plain = numbers == list(range(len(found))) and not any(map(pa.types.is_dictionary, types.values()))
        return _Plan(
            pa.ipc.IpcReadOptions(included_fields=numbers, use_threads=False), found if is_plain else None,
            at.get(self.spec.device or "", -1) if self.spec.device else -1,
            at.get(self.spec.ts or "", -1) if self.spec.ts else -1, ts_per_ms,
            [(at[name], place) for name, place in self._place.items() if name in at],
            [name for name in columns if name not in at],
        )

    # ---------------------------------------------------------------- the records of a batch

    def _rows(
        self, group: _Group, keys: Sequence[bytes | None] | None, record_ts_ms: Int, rejected: dict[int, Reason]
    ) -> Readings:
        """Rows of records with one schema; the first reason of each record that is refused goes into `rejected`."""
        plan, table = group.plan, pa.Table.from_batches(group.batches)
        place, count = np.array(group.place, np.int64), np.array(group.count, np.int64)
        starts = np.cumsum(count) - count
        kept = np.repeat(place, count)
        index = np.arange(len(kept)) - np.repeat(starts, count)
        values = np.full((len(kept), len(self.contract.channels)), np.nan, np.float32)
        with np.errstate(over="ignore"):
            for column, channel in plan.channels:
                values[:, channel] = _numbers(table.column(column))
        device = _devices(None if plan.device < 0 else table.column(plan.device), keys, place, count)
        now = record_ts_ms[kept]
        ts_ms = now if plan.ts < 0 else _times(table.column(plan.ts), plan.ts_per_ms, now)
        is_bad = np.zeros(len(place), bool)
        for rule, reason in (
            (device == None, Reason.NO_DEVICE),  # noqa: E711  of each element
            ((ts_ms < 0) | (ts_ms > LAST_MS), Reason.BAD_TIME),
            (ts_ms > now + self.contract.max_ahead_ms, Reason.FUTURE),
            (np.isinf(values).any(axis=1), Reason.OVERFLOW),
            (np.isnan(values[:, self.contract.sensors]).all(axis=1), Reason.NO_CHANNEL),
        ):
            if rule.any():
                has = np.logical_or.reduceat(rule, starts)
                rejected.update(dict.fromkeys(place[has & ~is_bad].tolist(), reason))
                is_bad |= has
        if is_bad.any():
            stays = np.repeat(~is_bad, count)
            device, ts_ms, values, kept, index = device[stays], ts_ms[stays], values[stays], kept[stays], index[stays]
        return Readings(device.tolist(), ts_ms, values, kept, index)


def _join(parts: list[Readings], channels: int) -> Readings:
    """Rows of all groups, in the order of the batch."""
    if len(parts) == 1:
        return parts[0]
    if not parts:
        none = np.empty(0, np.int64)
        return Readings([], none, np.empty((0, channels), np.float32), none, none)
    kept = np.concatenate([part.kept for part in parts])
    order = np.argsort(kept, kind="stable")
    device = np.concatenate([np.array(part.device, object) for part in parts])[order].tolist()
    ts_ms, values, index = (
        np.concatenate([getattr(part, name) for part in parts])[order] for name in ("ts_ms", "values", "index")
    )
    return Readings(device, ts_ms, values, kept[order], index)


def _numbers(column: Any) -> Float:
    """(n,) numbers of a column, NaN where null; integers by way of float64, as JSON's."""
    if pa.types.is_null(column.type):
        return np.full(len(column), np.nan, np.float32)
    numbers = column.to_numpy()
    return numbers if numbers.dtype.kind == "f" else numbers.astype(np.float64)


def _times(column: Any, per_ms: tuple[int, int], now: Int) -> Int:
    """(n,) int64 milliseconds, `now` where null; -1 where out of bounds."""
    is_null = column.is_null().to_numpy() if column.null_count else None
    times, over = per_ms
    if pa.types.is_null(column.type):
        return now
    if is_null is not None:
        column = pc.fill_null(column, pa.scalar(0, column.type))
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    raw = column.to_numpy()
    if times == 0:  # a number where only a time will do
        ts_ms = np.full(len(raw), -1, np.int64)
    elif raw.dtype.kind == "f":
        exact = raw.astype(np.float64)
        with np.errstate(over="ignore"):
            exact = np.rint(exact * times) / over
        ts_ms = np.floor(np.where((exact >= 0) & (exact <= LAST_MS), exact, -1)).astype(np.int64)
    else:
        most = (LAST_MS + 1) * over // times + 1
        ts_ms = np.minimum(raw, most).astype(np.int64) if raw.dtype.kind == "u" else np.clip(raw, -over, most)
        ts_ms = ts_ms.astype(np.int64) * times // over
    return ts_ms if is_null is None else np.where(is_null, now, ts_ms)


def _devices(column: Any, keys: Sequence[bytes | None] | None, place: Int, count: Int) -> np.ndarray:
    """(n,) names: of the column, else of the record's key; None where neither has one."""
    names: list[str | None] = []
    code = np.full(int(count.sum()), -1, np.int64)
    if column is not None and not pa.types.is_null(column.type):
        whole = column.unify_dictionaries().combine_chunks()
        coded = whole if pa.types.is_dictionary(column.type) else whole.dictionary_encode()
        names = [name if name is None or is_name(name) else "" for name in coded.dictionary.to_pylist()]
        indices = coded.indices
        code = (pc.fill_null(indices.cast(pa.int64()), -1) if indices.null_count else indices).to_numpy()
        if None in names:
            code = np.where(np.array([name is None for name in names])[code], -1, code)
    named = [name or None for name in names]
    if code.min() < 0:
        own = [None if keys is None else key_name(keys[at]) for at in place.tolist()]
        code = np.where(code < 0, len(named) + np.repeat(np.arange(len(place)), count), code)
        named += own
    pool = np.empty(len(named), object)
    pool[:] = named
    return pool[code]


def _is_text(kind: Any) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_number(kind: Any) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)


def write_stream(rows: Any) -> bytes:
    """A record batch or table as an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write(rows)
    stream: bytes = sink.getvalue().to_pybytes()
    return stream


# -------------------------------------------------------------------- the frames of a stream


def _measure(value: bytes) -> tuple[int, list[int], int]:
    """(bytes of the schema, where each later message begins, rows) of an IPC stream.

    Raises Rejected, or IndexError and struct.error where a place is not in it.
    Source: Arrow columnar format, "IPC Streaming Format", and Message.fbs: a message is four bytes of 0xFF, the length
    of its metadata, the metadata (a flatbuffer), its body. Lengths and kinds are read here; Arrow verifies the rest.
    """
    at, head, rows, end = 0, 0, 0, len(value)
    frames: list[int] = []
    while at < end:
        mark, size = _prefix(value, at)
        if mark != -1 or at + 8 + size > end:
            raise Rejected(Reason.MALFORMED)
        if size == 0:  # the end, as writers mark it
            at += 8
            break
        _, kind_at, header, length = _table(value, at + 8 + _int32(value, at + 8)[0])
        kind = value[kind_at]
        body = _int64(value, length)[0] if length else 0
        begin, at = at, at + 8 + size + body
        if (kind == _SCHEMA) is not (head == 0) or body < 0 or at > end:
            raise Rejected(Reason.MALFORMED)
        if kind == _SCHEMA:
            head = at
            continue
        frames.append(begin)
        if kind == _DICTIONARY:
            header = _table(value, header + _int32(value, header)[0])[1]
        elif kind != _ROWS:
            raise Rejected(Reason.MALFORMED)
        length, _, _, compression = _table(value, header + _int32(value, header)[0])
        count = _int64(value, length)[0] if length else 0
        if count < 0 or compression:
            raise Rejected(Reason.MALFORMED)
        if count > MOST_ROWS:
            raise Rejected(Reason.TOO_MANY_ROWS)
        rows += count if kind == _ROWS else 0
    if at != end or head == 0:
        raise Rejected(Reason.MALFORMED)
    return head, frames, rows


def _table(value: bytes, at: int) -> tuple[int, int, int, int]:
    """Where the first four members of a flatbuffer's table lie; 0 where one is left out."""
    size, _, a, b, c, d = _members(value, at - _int32(value, at)[0])
    return (
        at + a if a and size >= 6 else 0, at + b if b and size >= 8 else 0,
        at + c if c and size >= 10 else 0, at + d if d and size >= 12 else 0,
    )
