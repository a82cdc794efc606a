"""What decoding gives: columns of what could be read, and a reason code for each record that could not."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int = npt.NDArray[np.int64]
Float = npt.NDArray[np.float32]

LAST_MS = (1 << 42) - 1  # year 2109, the last that rows carry: see TIME_LIMIT_MS in pipeline.core.rows
PER_MS = {"ms": (1, 1), "s": (1000, 1), "us": (1, 1000), "ns": (1, 1_000_000)}  # (times, over) to milliseconds


class Reason(enum.IntEnum):
    """Why a record went to the dead-letter topic. The numbers never change; `code` is what the header says."""

    TOMBSTONE = 1  # no value
    TOO_LARGE = 2  # more bytes than the format's `max_bytes`
    BAD_UTF8 = 3
    BAD_JSON = 4
    TOO_DEEP = 5  # nested beyond what the decoder follows
    NOT_FINITE = 6  # NaN or Infinity written as such, which is not JSON
    OVERFLOW = 7  # a value beyond float32; infinity too, where the encoding has one
    WRONG_TYPE = 8  # a text, a list, a truth value where a number or an object is needed
    BAD_TIME = 9  # a time that can't be read or is not between 1970 and the year 2109
    FUTURE = 10  # further ahead of the record's timestamp than the contract's max_ahead_ms
    NO_DEVICE = 11  # neither the field nor the key names a device, or the name is longer than 256 characters
    NO_CHANNEL = 12  # not one scored channel has a value
    MALFORMED = 13  # not MessagePack, CBOR or an Arrow stream, or one that is cut or followed by more
    TOO_MANY_ROWS = 14  # more rows in one record than their names can tell apart

    @property
    def code(self) -> str:
        """The reason as headers and metrics name it: `bad_json`."""
        return self.name.lower()


class Rejected(Exception):
    """Carries the reason of one record out of the functions that look at it."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.code)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Readings:
    """Rows of a batch, in the order of the batch; n of them could be read.

    device : n names.
    ts_ms  : (n,) int64, the reading's own time.
    values : (n, C) float32 in the contract's channel order, NaN where missing.
    kept   : (n,) int64, place of each row's record in the batch, never decreasing.
    index  : (n,) int64, place of each row in its record; None where a record holds one row.
    """

    device: list[str]
    ts_ms: Int
    values: Float
    kept: Int
    index: Int | None = None


@dataclass(frozen=True, slots=True)
class LongReadings:
    """Single values of a batch, in the order of the batch; n of its records were readable.

    device  : n names.
    ts_ms   : (n,) int64, the reading's own time.
    channel : (n,) int64, place in the contract's channels.
    value   : (n,) float32, NaN where the record says null.
    kept    : (n,) int64, place of each in the batch, increasing.
    """

    device: list[str]
    ts_ms: Int
    channel: Int
    value: Float
    kept: Int


@dataclass(frozen=True, slots=True)
class Rejects:
    """Records for the dead-letter topic.

    index  : (m,) int64, place of each in the batch, increasing.
    reason : (m,) uint8, see Reason.
    """

    index: Int
    reason: npt.NDArray[np.uint8]


def rejects_of(reasons: Mapping[int, Reason]) -> Rejects:
    """Rejects from reasons by place in the batch."""
    places = sorted(reasons)
    return Rejects(np.array(places, np.int64), np.array([reasons[place] for place in places], np.uint8))
