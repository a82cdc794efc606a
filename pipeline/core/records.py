"""Fetched records as columns: one buffer, and where each record's key and value lie in it.

A Python object a record costs more than decoding it, so the worker makes none: bytes are cut out where they are asked
for, which is for records that nothing quicker can read, and for dead letters.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Int = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Records:
    """Records of one partition, in log order.

    raw       : the bytes that keys and values lie in.
    offset    : (n,) int64, increasing.   timestamp : (n,) int64 ms, the records' own.
    key, value : (n, 2) int64, [start, stop) in `raw`; start is -1 where there is none.
    """

    raw: bytes
    offset: Int
    timestamp: Int
    key: Int
    value: Int

    @classmethod
    def of(cls, records: Iterable[tuple[int, int, bytes | None, bytes | None]]) -> "Records":
        """From (offset, timestamp, key, value) each."""
        listed = list(records)
        pieces = [piece for record in listed for piece in record[2:]]
        size = np.array([0 if piece is None else len(piece) for piece in pieces], np.int64)
        stop = np.cumsum(size)
        start = np.where([piece is None for piece in pieces], -1, stop - size) if pieces else stop
        where = np.stack([start, stop], axis=1).reshape(-1, 2, 2)    # (n, key | value, start | stop)
        return cls(
            b"".join(piece for piece in pieces if piece is not None),
            np.array([record[0] for record in listed], np.int64), np.array([record[1] for record in listed], np.int64),
            np.ascontiguousarray(where[:, 0]), np.ascontiguousarray(where[:, 1]),
        )

    def __len__(self) -> int:
        return len(self.offset)

    def take(self, index: Int | slice) -> "Records":
        """Some of them, over the same buffer."""
        return Records(self.raw, self.offset[index], self.timestamp[index], self.key[index], self.value[index])

    def since(self, offset: int) -> "Records":
        """Those at or beyond an offset."""
        if not len(self) or self.offset[0] >= offset:
            return self
        return self.take(slice(int(np.searchsorted(self.offset, offset)), None))

    def before(self, offset: int) -> "Records":
        """Those below an offset."""
        return self.take(slice(None, int(np.searchsorted(self.offset, offset))))

    def without(self, places: Int | Sequence[int]) -> "Records":
        """The same records, the values of some of them gone."""
        if not len(places):
            return self
        value = self.value.copy()
        value[places, 0] = -1
        return Records(self.raw, self.offset, self.timestamp, self.key, value)

    def key_at(self, place: int) -> bytes | None:
        return self._cut(self.key[place])

    def value_at(self, place: int) -> bytes | None:
        return self._cut(self.value[place])

    def keys(self) -> list[bytes | None]:
        return self._cut_all(self.key)

    def values(self) -> list[bytes | None]:
        return self._cut_all(self.value)

    @property
    def value_bytes(self) -> int:
        """Bytes of all values."""
        there = self.value[:, 0] >= 0
        return int((self.value[there, 1] - self.value[there, 0]).sum())

    def _cut(self, where: Int) -> bytes | None:
        start, stop = where.tolist()
        return None if start < 0 else self.raw[start:stop]

    def _cut_all(self, where: Int) -> list[bytes | None]:
        raw = self.raw
        return [None if start < 0 else raw[start:stop] for start, stop in where.tolist()]


class Names(Sequence[str]):
    """n device names of which many are the same, each kept once: name i is `names[which[i]]`."""

    __slots__ = ("names", "which")

    def __init__(self, names: Sequence[str], which: Int) -> None:
        self.names = names
        self.which = which

    def __len__(self) -> int:
        return len(self.which)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return Names(self.names, self.which[place])
        return self.names[self.which[place]]

    def __iter__(self) -> Iterator[str]:
        return map(self.names.__getitem__, self.which.tolist())

    def take(self, index: Int) -> "Names":
        return Names(self.names, self.which[index])

    def used(self) -> tuple[list[str], Int]:
        """The names that occur, and for each of the n which of them it is."""
        there = np.zeros(len(self.names), bool)
        there[self.which] = True
        used = np.flatnonzero(there)
        place = np.empty(len(self.names), np.int64)
        place[used] = np.arange(len(used))
        return [self.names[i] for i in used.tolist()], place[self.which]


def take_names(names: Sequence[str], index: Int) -> Sequence[str]:
    """Some of n names."""
    return names.take(index) if isinstance(names, Names) else [names[place] for place in index.tolist()]
