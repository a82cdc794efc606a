"""`narrows.state`: what a commit needs and its metadata has no room for, entry by entry, compacted.

Invariant (tests/laws/test_state_topic.py): whoever reads the entries of a commit's epoch and takes of each the newest
version that is not ahead of the commit gets the state as of that commit, whenever writers died, and whatever a writer
that lost the partition still wrote.

Before a commit every changed entry is written with two versions: as of the last acknowledged commit, and as of the one
about to be made; and with one more for each commit between them whose answer never came, which may stand all the same.
An owner writes under an epoch of its own, which its first commit names; entries of older epochs are not read any more,
and are removed after that commit.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import msgspec

from pipeline.errors import StopWorker

VERSION = 1
State = dict[str, Any]
Kind = Literal["verdict", "aside", "silence"]


class Name(NamedTuple):
    """Which entry: the verdict of a lane of a device of a stream, all of a device put aside, or a silent device."""

    stream: str
    device: str
    late: bool = False
    kind: Kind = "verdict"


class _Entry(msgspec.Struct, array_like=True):
    version: int
    states: list[tuple[int, State | None]]  # (commit, state as of it), older first


class _Key(msgspec.Struct, array_like=True):
    topic: str
    partition: int
    epoch: str
    stream: str
    device: str
    late: bool
    kind: Kind = "verdict"


_encode = msgspec.json.Encoder().encode
_entry = msgspec.json.Decoder(_Entry).decode
_key = msgspec.json.Decoder(_Key).decode


def key_of(topic: str, partition: int, epoch: str, name: Name) -> bytes:
    """The record key of an entry."""
    return _encode([topic, partition, epoch, *name])


class Entries:
    """The entries of one partition as one owner writes them. `held` is what the last acknowledged commit says."""

    def __init__(self, topic: str, partition: int, epoch: str, next_offset: int, held: Mapping[Name, State]) -> None:
        self._topic, self._partition, self._epoch = topic, partition, epoch
        self._commit = next_offset
        self._held: dict[Name, State | None] = dict(held)
        self._written: dict[Name, State | None] = {}
        self._tried: dict[Name, dict[int, State | None]] = {}   # commits whose answer never came: they may stand
        self._fresh = True           # nothing of this epoch is written yet
        self._gone: list[Name] = []

    def _key(self, name: Name) -> bytes:
        return key_of(self._topic, self._partition, self._epoch, name)

    def before_commit(self, next_offset: int, changed: Mapping[Name, State | None]) -> list[tuple[bytes, bytes | None]]:
        """(key, value) of what must be delivered before the commit of `next_offset`; value None removes an entry.

        changed : state of every entry that may differ from the last acknowledged commit; None is the state at rest.
        """
        self._written.update(changed)
        names = {**self._held, **self._written} if self._fresh else self._written
        gone = [name for name in self._gone if name not in names]
        records: list[tuple[bytes, bytes | None]] = [(self._key(name), None) for name in gone]
        self._gone = []
        for name in names:
            old = self._held.get(name)
            new = self._written.get(name, old)
            tried = self._tried.setdefault(name, {})
            versions = {self._commit: old, **tried, next_offset: new}
            tried[next_offset] = new
            records.append((self._key(name), _encode([VERSION, sorted(versions.items())])))
        return records

    def acknowledged(self, next_offset: int) -> None:
        """The commit stands."""
        self._held.update(self._written)
        self._gone = [name for name, state in self._written.items() if state is None]
        self._held = {name: state for name, state in self._held.items() if state is not None}
        self._written, self._tried = {}, {}
        self._commit, self._fresh = next_offset, False

    @property
    def pending(self) -> bool:
        """Whether a commit would have something to write."""
        return bool(self._written or self._gone or (self._fresh and self._held))


def read_entries(
    records: Iterable[tuple[bytes, bytes]], topic: str, partition: int, epoch: str, commit: int
) -> tuple[dict[Name, State], list[bytes]]:
    """States as of a commit, and the keys of everything that belongs to the partition (an owner removes it later).

    records : newest value of each key. Raises StopWorker for a newer format.
    """
    states: dict[Name, State] = {}
    keys = []
    for raw_key, raw in records:
        key = _key(raw_key)
        if (key.topic, key.partition) != (topic, partition):
            continue
        keys.append(raw_key)
        if key.epoch != epoch:
            continue
        entry = _entry(raw)
        if entry.version > VERSION:
            raise StopWorker(f"{topic}[{partition}]: its state was written by a newer narrows; update this worker")
        known = [state for at, state in entry.states if at <= commit]
        if known and known[-1] is not None:
            states[Name(key.stream, key.device, key.late, key.kind)] = known[-1]
    return states, keys
