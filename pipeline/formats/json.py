"""JSON records."""

import json
from collections.abc import Callable
from typing import Any

import msgspec

from pipeline.formats.readings import Reason


class Json:
    """See `pipeline.formats.records.Encoding`."""

    unread = msgspec.Raw
    errors: tuple[type[Exception], ...] = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

    def decoder(self, kind: Any) -> Callable[[bytes], Any]:
        return msgspec.json.Decoder(kind).decode

    def fields(self, value: bytes) -> dict[str, Any]:
        return msgspec.json.decode(value, type=dict[str, msgspec.Raw])

    def read(self, field: Any) -> object:
        return msgspec.json.decode(field)

    def join(self, fields: dict[str, Any], replaced: dict[str, object]) -> bytes:
        return msgspec.json.encode(fields | replaced)

    def fault(self, value: bytes) -> Reason:
        try:
            text = value.decode()
        except UnicodeDecodeError:
            return Reason.BAD_UTF8
        try:
            tree = json.loads(text)  # the standard library reads NaN and Infinity, which are not JSON
        except RecursionError:
            return Reason.TOO_DEEP
        except ValueError:
            return Reason.BAD_JSON
        return Reason.NOT_FINITE if isinstance(tree, dict) else Reason.WRONG_TYPE
