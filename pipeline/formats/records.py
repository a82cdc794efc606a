"""Records of one reading each to columns: each value decoded by itself, each batch's columns made at once.

Invariant: a bad record yields one reason code and never changes what its neighbours decode to. Values are never
joined before decoding: three invalid JSON records joined can make three valid ones.

JSON, MessagePack and CBOR are told apart by an `Encoding` alone, so their rules can't drift apart.

The common case is one list comprehension in one `try`; the first value that raises sends the batch to a loop that
decodes value by value, and a value that still raises is looked at in full to name its reason. The typed decoder
forbids unknown fields, so that they are counted without looking for them: a name met for the first time is added to
the type as raw bytes, and records with it are then as quick as others.

What a fetch holds of wide JSON goes first to `json_rows`, compiled, which reads plain records and leaves the rest.
"""

import math
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import compress
from operator import attrgetter
from typing import Annotated, Any, Protocol, Union

import msgspec
import numpy as np
import numpy.typing as npt

from pipeline.core.contract import Contract
from pipeline.core.records import Names, Records
from pipeline.errors import BadInput
from pipeline.formats.cbor import Cbor
from pipeline.formats.json import Json
from pipeline.formats.json_rows import BODY, DEVICE, NUMBER, SKIP, TIME, RowReader
from pipeline.formats.msgpack import MessagePack
from pipeline.formats.readings import (
    LAST_MS,
    PER_MS,
    ByValue,
    Float,
    Int,
    LongReadings,
    Readings,
    Reason,
    Rejected,
    Rejects,
    rejects_of,
)
from pipeline.formats.spec import Format

NAME_LENGTH = 256  # characters of the longest device name
LEARNED = 64  # unknown field names that are followed; records with others decode the slow way
DOUBT = 64  # batches that the compiled reader is spared after one of which it could read less than half

_NAN = math.nan
_NAME = Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_LENGTH)]


class Encoding(Protocol):
    """How the bytes of one record become an object.

    unread : type of a field that is stepped over.
    errors : what `decoder`, `fields` and `read` raise on bytes that are not of the encoding.
    """

    unread: Any
    errors: tuple[type[Exception], ...]

    def decoder(self, kind: Any) -> Callable[[bytes], Any]:
        """Bytes to an object of the msgspec type. It raises msgspec.ValidationError where they are of another one."""
        ...

    def fields(self, value: bytes) -> dict[str, Any]:
        """The record's own fields, unread."""
        ...

    def read(self, field: Any) -> object:
        """An unread field's number, text, time, truth value or null; anything else is some other object."""
        ...

    def join(self, fields: dict[str, Any], replaced: dict[str, object]) -> bytes:
        """The record again, some of its fields replaced."""
        ...

    def fault(self, value: bytes) -> Reason:
        """What is wrong with bytes that are no object of the encoding."""
        ...


ENCODINGS: dict[str, Encoding] = {"json": Json(), "msgpack": MessagePack(), "cbor": Cbor()}


class _Shape:
    """The typed decoder of one stream, and the names that it has learned to step over.

    Every record becomes an object with `device`, `ts` and `body`; `body` holds the values in `numbers` order. Where
    the values lie flat, the object is its own body.
    """

    def __init__(
        self, encoding: Encoding, spec: Format, numbers: Sequence[tuple[str, Any]], nested: str | None
    ) -> None:
        self.encoding = encoding
        self.spec = spec
        self.nested = nested
        self.numbers = list(numbers)
        self.extra: dict[bool, list[str]] = {True: [], False: []}  # inside the body, beside it
        self.build()

    def build(self) -> None:
        """Makes the types again, with what was learned."""
        spec = self.spec
        time: Any = Annotated[int, msgspec.Meta(ge=0, le=2**62)] if spec.ts_unit in ("ms", "us", "ns") else float
        time = datetime if spec.ts_unit == "iso" else time
        names: dict[str, str] = {}
        head: list[tuple[str, Any, Any]] = []
        for attribute, field, kind in (("device", spec.device, _NAME), ("ts", spec.ts, time)):
            if field is not None:
                names[attribute] = field
                head.append((attribute, kind | None, None))
        body: list[tuple[str, Any, Any]] = []
        for place, (field, kind) in enumerate(self.numbers):
            names[f"c{place}"] = field
            body.append((f"c{place}", kind, _NAN if kind == float | None else None))
        for inside, fields in self.extra.items():
            for place, field in enumerate(fields):
                names[f"x{int(inside)}_{place}"] = field
        raw: Any = Union[self.encoding.unread, msgspec.UnsetType]  # noqa: UP007  of Any too, which `|` does not take
        beyond = [(f"x0_{place}", raw, msgspec.UNSET) for place in range(len(self.extra[False]))]
        within = [(f"x1_{place}", raw, msgspec.UNSET) for place in range(len(self.extra[True]))]
        self.width = len(body)

        def make(fields: list[tuple[str, Any, Any]], strict: bool) -> Any:
            rename = {attribute: names[attribute] for attribute, _, _ in fields if attribute in names}
            return msgspec.defstruct("Record", fields, rename=rename, gc=False, forbid_unknown_fields=strict)

        def whole(strict: bool) -> Any:
            if self.nested is None:
                return make([*body, *head, *beyond], strict)
            names["body"] = self.nested
            inner = make([*body, *within], strict)
            return make([("body", inner | None, None), *head, *beyond], strict)

        self.strict: Callable[[bytes], Any] = self.encoding.decoder(whole(True))
        self.loose: Callable[[bytes], Any] = self.encoding.decoder(whole(False))

    def learn(self, error: msgspec.ValidationError) -> str | None:
        """The unknown field that the error names, after adding it to the types; "" where it can't be added.

        None for an error of another kind.
        """
        found = str(error).removeprefix("Object contains unknown field `")
        if found == str(error):
            return None
        name, inside, _ = found.rpartition("` - at `$")
        fields = self.extra[bool(inside)]
        name = name or found.removesuffix("`")
        plain = name.isprintable() and '"' not in name and "\\" not in name
        if not plain or name in fields or sum(map(len, self.extra.values())) >= LEARNED:
            return ""
        fields.append(name)
        self.build()
        return name


class RecordDecoder(ByValue):
    """Common to both layouts: from values to decoded objects, device names and times.

    unknown : records so far that had each unknown field; names beyond LEARNED are counted together under "".
    """

    def __init__(self, contract: Contract, spec: Format) -> None:
        self.encoding = encoding = ENCODINGS[spec.encoding]
        self.contract = contract
        self.spec = spec
        self.unknown: Counter[str] = Counter()
        numbers: list[tuple[str, Any]]
        if spec.layout == "wide":
            numbers = [(spec.fields.get(name, name), float | None) for name in contract.names]
        else:
            numbers = [(spec.channel, str | None), (spec.value, float | None)]
        self._nested = spec.values if spec.layout == "wide" else None
        taken = Counter(field for field, _ in numbers)
        if self._nested is None:
            taken.update(field for field in (spec.device, spec.ts) if field is not None)
        twice = [field for field, count in taken.items() if count > 1]
        if twice:
            raise BadInput(f"format: the field `{twice[0]}` is named twice; rename one with format.fields")
        try:
            self._shape = _Shape(encoding, spec, numbers, self._nested)
        except ValueError as error:
            raise BadInput(f"format: a field's name has a quote, backslash or control character: {error}") from error

    def _objects(self, values: Sequence[bytes | None], rejected: dict[int, Reason]) -> tuple[list[Any], Int]:
        """Decoded objects and their places; what can't be decoded goes into `rejected`."""
        try:
            if max(map(len, values), default=0) <= self.spec.max_bytes:  # type: ignore[arg-type]
                decode = self._shape.strict
                return [decode(value) for value in values], np.arange(len(values))  # type: ignore[arg-type]
        except Exception:  # noqa: S110  one bad value among many: the loop below finds it and names its reason
            pass
        rows: list[Any] = []
        kept: list[int] = []
        for place, value in enumerate(values):
            try:
                rows.append(self._one(value))
                kept.append(place)
            except Rejected as error:
                rejected[place] = error.reason
        return rows, np.array(kept, np.int64)

    def _one(self, value: bytes | None) -> Any:
        """One value the careful way. Raises Rejected."""
        if value is None:
            raise Rejected(Reason.TOMBSTONE)
        if len(value) > self.spec.max_bytes:
            raise Rejected(Reason.TOO_LARGE)
        mended = False
        decode = self._shape.strict
        while True:
            try:
                return decode(value)
            except msgspec.ValidationError as error:
                found = self._shape.learn(error)
                if found is None and not mended:
                    value, mended = self._mend(value), True
                elif found is None:
                    out_of_range = str(error).startswith("Number out of range")
                    raise Rejected(Reason.OVERFLOW if out_of_range else Reason.WRONG_TYPE) from error
                elif found == "":
                    self.unknown[""] += 1
                    decode = self._shape.loose
                else:
                    decode = self._shape.strict
            except self.encoding.errors as error:
                raise Rejected(self.encoding.fault(value)) from error

    def _mend(self, value: bytes) -> bytes:
        """A record that can be read but is not of the type, with its time in the type's form. Raises Rejected."""
        encoding, spec = self.encoding, self.spec
        try:
            fields = encoding.fields(value)
        except encoding.errors as error:
            raise Rejected(encoding.fault(value)) from error
        replaced: dict[str, object] = {}
        if spec.device in fields and self._named(fields[spec.device]) == "":
            raise Rejected(Reason.NO_DEVICE)
        if spec.ts in fields:
            try:
                ts = encoding.read(fields[spec.ts])
            except encoding.errors as error:  # a number that no float64 holds
                raise Rejected(Reason.BAD_TIME) from error
            if ts is not None:
                replaced[spec.ts] = _time_in(spec.ts_unit, _any_time_ms(ts, spec.ts_unit))
        return encoding.join(fields, replaced)

    def _named(self, field: Any) -> str | None:
        """The name that an unread field holds, "" for a text that is none, None for anything else."""
        try:
            name = self.encoding.read(field)
        except self.encoding.errors:
            return None
        return None if not isinstance(name, str) else name if is_name(name) else ""

    def device_of(self, value: bytes | None, key: bytes | None) -> str | None:
        """The device that a record names, in its value or its key; None where neither can be read."""
        try:
            fields = self.encoding.fields(value or b"")
        except self.encoding.errors:
            return key_name(key)
        return (self.spec.device in fields and self._named(fields[self.spec.device])) or key_name(key)

    def _count_unknown(self, rows: list[Any]) -> None:
        for inside, fields in self._shape.extra.items():
            for place, field in enumerate(fields):
                attribute = f"x{int(inside)}_{place}"
                bodies = filter(None, map(attrgetter("body"), rows)) if inside else rows
                seen = sum(getattr(body, attribute, msgspec.UNSET) is not msgspec.UNSET for body in bodies)
                self.unknown[field] += seen

    def _devices(self, rows: list[Any], kept: Int, keys: Sequence[bytes | None] | None) -> list[str | None]:
        """Names from the field, else from the key; None where neither has one."""
        if self.spec.device is None:
            names: list[str | None] = [None] * len(rows)
        else:
            names = [row.device for row in rows]
        if None in names and keys is not None:
            named = zip(names, kept.tolist(), strict=True)
            names = [key_name(keys[place]) if name is None else name for name, place in named]
        return names

    def _times(self, rows: list[Any], kept: Int, record_ts_ms: Int) -> Int:
        """(n,) int64 milliseconds; -1 where out of bounds."""
        if self.spec.ts is None or not rows:
            return np.asarray(record_ts_ms, np.int64)[kept]
        raw = [row.ts for row in rows]
        missing = np.array([ts is None for ts in raw]) if None in raw else None
        if missing is not None:
            fill: Any = datetime.fromtimestamp(0, UTC) if self.spec.ts_unit == "iso" else 0
            raw = [fill if ts is None else ts for ts in raw]
        ts_ms: Int
        if self.spec.ts_unit == "iso":
            ts_ms = np.array([_datetime_ms(moment) for moment in raw], np.int64)
        elif self.spec.ts_unit == "s":
            seconds = np.array(raw, np.float64)
            seconds[~((seconds >= 0) & (seconds * 1000 <= LAST_MS))] = -1
            ts_ms = np.rint(seconds * 1000).astype(np.int64)
        else:
            times, over = PER_MS[self.spec.ts_unit]
            ts_ms = np.array(raw, np.int64) * times // over
        if missing is not None:
            ts_ms[missing] = np.asarray(record_ts_ms, np.int64)[kept][missing]
        return ts_ms

    def _refuse(
        self, n: int, nameless: list[bool] | None, ts_ms: Int, kept: Int, record_ts_ms: Int,
        more: list[tuple[Any, Reason]], rejected: dict[int, Reason],
    ) -> npt.NDArray[np.bool_] | None:
        """Which rows stay, None where all do; the first reason of each other row goes into `rejected`."""
        ahead = ts_ms > np.asarray(record_ts_ms, np.int64)[kept] + self.contract.max_ahead_ms
        rules = [((ts_ms < 0) | (ts_ms > LAST_MS), Reason.BAD_TIME), (ahead, Reason.FUTURE), *more]
        if nameless is not None:
            rules.insert(0, (np.array(nameless), Reason.NO_DEVICE))
        bad = np.zeros(n, bool)
        for rule, reason in rules:
            for place in kept[rule & ~bad].tolist():
                rejected[place] = reason
            bad |= rule
        return ~bad if bad.any() else None


class WideDecoder(RecordDecoder):
    """One row a record: `{"device": "pump-7", "ts": 1700000000000, "values": {"flow": 1.5}}`."""

    def __init__(self, contract: Contract, spec: Format) -> None:
        super().__init__(contract, spec)
        self._reader: RowReader | None = None
        self._extra: list[tuple[str, bool]] = []     # unknown fields that the reader steps over
        self._doubt = 0
        self._has_reader = spec.encoding == "json" and spec.device is not None and spec.ts_unit in ("ms", "us", "ns")

    def decode_records(self, records: Records) -> tuple[Readings, Rejects]:
        """As `decode`, of fetched records: those that the compiled reader can't read are decoded one by one."""
        if self._doubt or not self._has_reader:
            self._doubt = max(0, self._doubt - 1)
            return super().decode_records(records)
        read, names, raw_ts, columns, skipped = self._row_reader().read(self._small_enough(records))
        for (name, _), count in zip(self._extra, skipped.tolist(), strict=True):
            self.unknown[name] += count
        plain, rest = np.flatnonzero(read), np.flatnonzero(~read)
        rejected: dict[int, Reason] = {}
        times, over = PER_MS[self.spec.ts_unit]
        ts_ms = np.where(raw_ts >= 0, raw_ts * times // over, records.timestamp)
        if len(rest):
            names, ts_ms, columns = names.take(plain), ts_ms[plain], columns[plain]
            self._doubt = DOUBT if 2 * len(rest) > len(read) else 0
        nothing = np.isnan(columns[:, self.contract.sensors]).all(axis=1)
        stays = self._refuse(
            len(plain), None, ts_ms, plain, records.timestamp, [(nothing, Reason.NO_CHANNEL)], rejected
        )
        if stays is not None:
            names, ts_ms, columns, plain = names.take(np.flatnonzero(stays)), ts_ms[stays], columns[stays], plain[stays]
        readings = Readings(names, ts_ms, columns, plain)
        if not len(rest):
            return readings, rejects_of(rejected)
        left = records.take(rest)
        others, refused = self.decode(left.values(), left.keys(), left.timestamp)
        places = zip(rest[refused.index].tolist(), refused.reason.tolist(), strict=True)
        rejected |= {place: Reason(reason) for place, reason in places}
        return _merge(readings, others, rest), rejects_of(rejected)

    def _row_reader(self) -> RowReader:
        extra = [(name, inside) for inside, fields in self._shape.extra.items() for name in fields]
        if self._reader is None or extra != self._extra:
            nested = self._nested is not None
            fields = [(field, NUMBER, nested) for field, _ in self._shape.numbers]
            heads = ((self.spec.device, DEVICE), (self.spec.ts, TIME), (self._nested, BODY))
            fields += [(field, what, False) for field, what in heads if field is not None]
            fields += [(name, SKIP, inside) for name, inside in extra]
            self._reader, self._extra = RowReader(fields, self._shape.width), extra
        return self._reader

    def _small_enough(self, records: Records) -> Records:
        """With values beyond `max_bytes` taken out: they are left to who names their reason."""
        size = records.value[:, 1] - records.value[:, 0]
        return records.without(np.flatnonzero(size > self.spec.max_bytes))

    def decode(
        self, values: Sequence[bytes | None], keys: Sequence[bytes | None] | None, record_ts_ms: Int
    ) -> tuple[Readings, Rejects]:
        """See `ByValue.decode`."""
        rejected: dict[int, Reason] = {}
        rows, kept = self._objects(values, rejected)
        self._count_unknown(rows)
        columns = self._columns(rows)
        names = self._devices(rows, kept, keys)
        ts_ms = self._times(rows, kept, record_ts_ms)
        more = [
            (np.isinf(columns).any(axis=1), Reason.OVERFLOW),
            (np.isnan(columns[:, self.contract.sensors]).all(axis=1), Reason.NO_CHANNEL),
        ]
        nameless = [name is None for name in names] if None in names else None
        stays = self._refuse(len(names), nameless, ts_ms, kept, record_ts_ms, more, rejected)
        if stays is not None:
            names, ts_ms, columns, kept = list(compress(names, stays)), ts_ms[stays], columns[stays], kept[stays]
        return Readings(names, ts_ms, columns, kept), rejects_of(rejected)  # type: ignore[arg-type]

    def _columns(self, rows: list[Any]) -> Float:
        """(n, C) float32; null is NaN, a value beyond float32 is infinite."""
        width = self._shape.width
        pack = struct.Struct(f"{width}f").pack
        astuple = msgspec.structs.astuple
        try:
            if self._nested is not None and not self._shape.extra[True]:
                packed = b"".join([pack(*astuple(row.body)) for row in rows])
            elif self._nested is not None:
                packed = b"".join([pack(*astuple(row.body)[:width]) for row in rows])
            else:
                packed = b"".join([pack(*astuple(row)[:width]) for row in rows])
            return np.frombuffer(packed, np.float32).reshape(-1, width)
        except (struct.error, OverflowError, TypeError):  # a null, a value beyond float32, no `values` at all
            empty = (None,) * width
            bodies = rows if self._nested is None else [row.body for row in rows]
            tuples = [empty if body is None else astuple(body)[:width] for body in bodies]
            exact = np.array(tuples, np.float64).reshape(-1, width)
            with np.errstate(over="ignore"):
                return exact.astype(np.float32)


class LongDecoder(RecordDecoder):
    """One channel a record: `{"device": "pump-7", "ts": 1700000000000, "channel": "flow", "value": 1.5}`."""

    def __init__(self, contract: Contract, spec: Format) -> None:
        super().__init__(contract, spec)
        self._place = {spec.fields.get(name, name): place for place, name in enumerate(contract.names)}

    def decode(
        self, values: Sequence[bytes | None], keys: Sequence[bytes | None] | None, record_ts_ms: Int
    ) -> tuple[LongReadings, Rejects]:
        """As `WideDecoder.decode`, one value a record; joining them to rows is the work of `pipeline.core.rows`."""
        rejected: dict[int, Reason] = {}
        rows, kept = self._objects(values, rejected)
        self._count_unknown(rows)
        channel = np.array([self._place.get(row.c0, -1) for row in rows], np.int64)
        with np.errstate(over="ignore"):
            value = np.array([row.c1 for row in rows], np.float64).astype(np.float32)
        names = self._devices(rows, kept, keys)
        ts_ms = self._times(rows, kept, record_ts_ms)
        more = [(np.isinf(value), Reason.OVERFLOW), (channel < 0, Reason.NO_CHANNEL)]
        nameless = [name is None for name in names] if None in names else None
        stays = self._refuse(len(names), nameless, ts_ms, kept, record_ts_ms, more, rejected)
        if stays is not None:
            names = list(compress(names, stays))
            ts_ms, channel, value, kept = ts_ms[stays], channel[stays], value[stays], kept[stays]
        return LongReadings(names, ts_ms, channel, value, kept), rejects_of(rejected)  # type: ignore[arg-type]


def _merge(plain: Readings, others: Readings, places: Int) -> Readings:
    """Both in the order of the batch. places : (m,) where those of the other decoding stand in the batch."""
    assert isinstance(plain.device, Names)
    kept = np.concatenate([plain.kept, places[others.kept]])
    order = np.argsort(kept)
    known = len(plain.device.names)
    names = Names(
        [*plain.device.names, *others.device],
        np.concatenate([plain.device.which, np.arange(known, known + len(others.device))])[order],
    )
    return Readings(
        names, np.concatenate([plain.ts_ms, others.ts_ms])[order], np.concatenate([plain.values, others.values])[order],
        kept[order],
    )


def key_name(key: bytes | None) -> str | None:
    """The device that a record's key names."""
    if key is None:
        return None
    try:
        name = key.decode()
    except UnicodeDecodeError:
        return None
    return name if is_name(name) else None


def _datetime_ms(moment: datetime) -> int:
    return round((moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def is_name(text: str) -> bool:
    """Whether a device may be called so."""
    return 0 < len(text) <= NAME_LENGTH


def _any_time_ms(ts: object, unit: str) -> int:
    """Milliseconds of a time in any form that can be told. Raises Rejected."""
    if isinstance(ts, datetime):
        ts = ts.isoformat()
    if isinstance(ts, str):
        try:
            return _datetime_ms(datetime.fromisoformat(ts))
        except (ValueError, OverflowError, OSError) as error:
            raise Rejected(Reason.BAD_TIME) from error
    if isinstance(ts, bool) or not isinstance(ts, (int, float)):
        raise Rejected(Reason.WRONG_TYPE)
    times, over = PER_MS.get(unit, (0, 1))
    try:
        ts_ms = round(ts * times) // over
    except (OverflowError, ValueError) as error:
        raise Rejected(Reason.BAD_TIME) from error
    if times == 0 or not 0 <= ts_ms <= LAST_MS:
        raise Rejected(Reason.BAD_TIME)
    return ts_ms


def _time_in(unit: str, ts_ms: int) -> object:
    """A time in milliseconds as the typed decoder wants it."""
    if unit == "iso":
        return datetime.fromtimestamp(ts_ms / 1000, UTC)
    times, over = PER_MS[unit]
    return ts_ms / times if unit == "s" else ts_ms * over
