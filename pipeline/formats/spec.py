"""How the bytes of a stream's records are laid out: the `format` part of a stream's configuration."""

from typing import Annotated, Literal, cast, get_args

import msgspec

from pipeline.errors import BadInput

Encoding = Literal["json", "msgpack", "cbor", "arrow"]
Layout = Literal["wide", "long"]
TimeUnit = Literal["ms", "s", "us", "ns", "iso"]


class Format(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Layout and field names of the records of a stream.

    encoding  : of a record's value; `arrow` is an Arrow IPC stream of one or many rows, the others hold one reading.
    layout    : `wide` has one row a record, `long` one channel a record.
    device    : field with the device's name; null takes the record's key, as a record without the field does.
    ts        : field with the reading's own time; null takes the record's timestamp, as one without the field does.
    ts_unit   : `ms`, `s`, `us`, `ns` since 1970, or `iso` (ISO 8601; without an offset it is UTC).
    values    : wide: field that holds the channels; null where they lie flat beside device and ts (`arrow`: always).
    channel   : long: field with the channel's name.
    value     : long: field with the channel's value.
    max_bytes : a longer record goes to the dead-letter topic undecoded.
    fields    : a channel's name in the records, where it is not the contract's: {contract name: record's name}.
    """

    encoding: Encoding = "json"
    layout: Layout = "wide"
    device: str | None = "device"
    ts: str | None = "ts"
    ts_unit: TimeUnit = "ms"
    values: str | None = "values"
    channel: str = "channel"
    value: str = "value"
    max_bytes: Annotated[int, msgspec.Meta(ge=1)] = 262_144
    fields: dict[str, str] = {}


def read_encoding(text: str) -> Encoding:
    """The encoding that an option names. Raises BadInput."""
    if text not in get_args(Encoding):
        raise BadInput(f"there is no encoding {text}: give one of {', '.join(get_args(Encoding))}")
    return cast(Encoding, text)
