"""MessagePack records. A NaN is a missing value; a time may be a timestamp of the encoding's own."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec

from pipeline.formats.readings import Reason

_SCALAR = bool | int | float | str | None  # never a list: a few bytes can claim one of four billion items


class MessagePack:
    """See `pipeline.formats.records.Encoding`."""

    unread = msgspec.Raw
    errors: tuple[type[Exception], ...] = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

    def decoder(self, kind: Any) -> Callable[[bytes], Any]:
        return msgspec.msgpack.Decoder(kind).decode

    def fields(self, value: bytes) -> dict[str, Any]:
        return msgspec.msgpack.decode(value, type=dict[str, msgspec.Raw])

    def read(self, field: Any) -> object:
        try:
            return msgspec.msgpack.decode(field, type=_SCALAR)
        except msgspec.ValidationError:
            try:
                return msgspec.msgpack.decode(field, type=datetime)
            except msgspec.ValidationError:
                return ...  # a list, a map, bytes

    def join(self, fields: dict[str, Any], replaced: dict[str, object]) -> bytes:
        return msgspec.msgpack.encode(fields | replaced)

    def fault(self, value: bytes) -> Reason:
        try:
            msgspec.msgpack.decode(value, type=msgspec.Raw)
        except RecursionError:
            return Reason.TOO_DEEP
        except msgspec.DecodeError:
            return Reason.MALFORMED
        try:
            self.fields(value)
        except msgspec.ValidationError:
            return Reason.WRONG_TYPE  # no map, or one whose keys are no texts
        except self.errors:
            pass
        return Reason.BAD_UTF8
