"""CBOR records (RFC 8949). A NaN or `undefined` is a missing value; a time may have tag 0 or 1.

No other tag means anything here: a tagged number or object is of the wrong type, and ignored in a field that nobody
reads. So no record can make the decoder build what it names: a pattern, a big number, a shared or circular list.
"""

import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import cbor2
import msgspec

from pipeline.formats.readings import Reason

DEPTH = 64                               # containers in containers
_ITSELF = b"\xd9\xd9\xf7"                # a tag that says "this is CBOR"
_END = b"\x50" + secrets.token_bytes(16)  # read behind each record: nothing else may stand there


class _Tagged:
    """Something that has a tag."""


class _Tags(dict[int, Any]):
    """What each tag makes of its content; the library's own meanings are all replaced."""

    def __missing__(self, tag: int) -> Callable[[object, bool], object]:
        return _tagged


def _tagged(content: object, immutable: bool) -> object:
    return _Tagged()


def _text(content: object, immutable: bool) -> object:
    return content if isinstance(content, str) else _Tagged()


def _moment(content: object, immutable: bool) -> object:
    if isinstance(content, bool) or not isinstance(content, int | float):
        return _Tagged()
    return datetime.fromtimestamp(content, UTC)


_TAGS = _Tags({0: _text, 1: _moment})


class Cbor:
    """See `pipeline.formats.records.Encoding`."""

    unread = Any
    errors: tuple[type[Exception], ...] = (cbor2.CBORDecodeError, msgspec.DecodeError, RecursionError)

    def decoder(self, kind: Any) -> Callable[[bytes], Any]:
        convert = msgspec.convert
        return lambda value: convert(_read(value), kind)

    def fields(self, value: bytes) -> dict[str, Any]:
        return msgspec.convert(_read(value), dict[str, Any])

    def read(self, field: Any) -> object:
        return None if field is cbor2.undefined else field

    def join(self, fields: dict[str, Any], replaced: dict[str, object]) -> bytes:
        return cbor2.dumps(_defined(fields | replaced))

    def fault(self, value: bytes) -> Reason:
        try:
            _read(value)
        except cbor2.CBORDecodeError as error:
            if "nesting depth" in str(error):
                return Reason.TOO_DEEP
            return Reason.BAD_UTF8 if isinstance(error.__cause__, UnicodeDecodeError) else Reason.MALFORMED
        return Reason.WRONG_TYPE


def _read(value: bytes) -> object:
    """The one object that the bytes hold. Raises cbor2.CBORDecodeError, where more follows it too."""
    pair = cbor2.loads(
        b"\x82" + value.removeprefix(_ITSELF) + _END, semantic_decoders=_TAGS, max_depth=DEPTH,
        strict_hashable_types=True,
    )
    if pair[1] != _END[1:]:
        raise cbor2.CBORDecodeError("more follows the object")
    return pair[0]


def _defined(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree as far as a record's fields reach: undefined is null, what has a tag is a list, so of the wrong type."""
    plain = {}
    for name, item in tree.items():
        if item is cbor2.undefined:
            item = None
        elif isinstance(item, _Tagged):
            item = []
        elif isinstance(item, dict):
            item = _defined(item)
        plain[name] = item
    return plain
