"""Every symbol of Faust and aiokafka that narrows replaces or reaches into, why, and what it looked like.

`check` compares the source of each with the pinned versions': raise a pin, run it, read what moved, then take the new
fingerprints over (`python -m pipeline.engine.overrides` prints them).
"""

import hashlib
import importlib
import inspect
from functools import reduce
from typing import NamedTuple

from pipeline.errors import StopWorker


class Symbol(NamedTuple):
    """module:qualified name, first 12 digits of its source's sha256, and why we touch it."""

    place: str
    fingerprint: str
    reason: str


_CONSUMER = "faust.transport.consumer:Consumer"
_DRIVER = "faust.transport.drivers.aiokafka"

SYMBOLS: tuple[Symbol, ...] = (
    Symbol(
        f"{_CONSUMER}.getmany", "4b168d84882a",
        "one message a poll; generation read after the fetch; continuity guard",
    ),
    Symbol(
        "faust.transport.consumer:ThreadDelegateConsumer._getmany", "f9d47aa9010b",
        "partitions of which records are left wait at the broker",
    ),
    Symbol(
        f"{_CONSUMER}.perform_seek", "0e8c130ff4b0",
        "explicit start for every partition; read offset cleared for the replay",
    ),
    Symbol(
        f"{_CONSUMER}._drain_messages", "44a2500309e8",
        "not replaced: drops messages below the read offset, waits for the flow",
    ),
    Symbol(
        f"{_CONSUMER}._wait_next_records", "6218e1969a63",
        "not replaced: called by our getmany",
    ),
    Symbol(
        f"{_CONSUMER}._add_gap", "4df2573ded7c",
        "a batch's offsets are no gap: it would count them as acknowledged",
    ),
    Symbol(
        f"{_CONSUMER}.on_buffer_full", "c8961679e0bc",
        "a full queue holds all partitions back by itself; stock leaves one unread until a message of that one goes",
    ),
    Symbol(
        f"{_CONSUMER}.on_buffer_drop", "4b57e8a418d5",
        "the same",
    ),
    Symbol(
        f"{_CONSUMER}.ack", "5fcf41cf4515",
        "acks mean nothing here; the stock list grows for ever",
    ),
    Symbol(
        f"{_CONSUMER}.commit", "a354437baaa0",
        "commits are the keeper's: offset, mark and digest as one",
    ),
    Symbol(
        f"{_CONSUMER}.force_commit", "cc094614d22c",
        "the same",
    ),
    Symbol(
        f"{_CONSUMER}.on_partitions_revoked", "d04b7ae72c6f",
        "a last commit, then the state goes",
    ),
    Symbol(
        f"{_CONSUMER}.on_stop", "45b1d2210ce2",
        "the last commit says that nothing is in work any more",
    ),
    Symbol(
        "faust.tables.manager:TableManager.on_start", "365dd25fbc0e",
        "without the second that stock waits for tables, of which we have none",
    ),
    Symbol(
        "faust.tables.manager:TableManager._update_channels", "88e3941facc9",
        "not replaced: called by our on_start; says that all tables, none, are there",
    ),
    Symbol(
        f"{_DRIVER}:Consumer._new_consumer_thread", "0870ec53dea7",
        "to put our thread in",
    ),
    Symbol(
        f"{_DRIVER}:AIOKafkaConsumerThread._create_worker_consumer", "c2701bfc3e6f",
        "fetch_max_wait_ms is hard-wired to 1500, and there is no fetch_min_bytes and fetch_max_bytes",
    ),
    Symbol(
        f"{_DRIVER}:AIOKafkaConsumerThread._commit", "932852ce7a23",
        "metadata; a refused commit is no crash",
    ),
    Symbol(
        f"{_DRIVER}:Producer._settings_extra", "a4c7bc41b638",
        "acks=all and idempotence, for which there is no setting",
    ),
    Symbol(
        f"{_DRIVER}:Producer._ensure_producer", "5592a4bbdf25",
        "not replaced: sends whole batches through it",
    ),
    Symbol(
        "aiokafka.consumer.fetcher:FetchResult", "d7db13f06de8",
        "replaced: columns instead of a ConsumerRecord object a record",
    ),
    Symbol(
        "aiokafka.consumer.fetcher:Fetcher._proc_fetch_request", "59bf948fff47",
        "not replaced: makes MemoryRecords, which is replaced to keep a fetch's bytes",
    ),
    Symbol(
        "aiokafka.record.default_records:_DefaultRecordBatchPy", "f63fbb5a8a24",
        "not replaced: the layout and the facts of a batch that `fetch.read_batches` reads",
    ),
    Symbol(
        "aiokafka.conn:AIOKafkaConnection.connect", "b0f9ba7f0cf6",
        "not replaced: its buffer of 64 kB, raised to hold a fetch, else the socket is paused and resumed within each",
    ),
    Symbol(
        "aiokafka.consumer.fetcher:PartitionRecords", "94aa0da0dbec",
        "not replaced: its records are read batch by batch",
    ),
)


def fingerprint(place: str) -> str:
    """First 12 digits of the sha256 of a symbol's source."""
    module, _, name = place.partition(":")
    found = reduce(getattr, name.split("."), importlib.import_module(module))
    if getattr(found, "__module__", "").startswith("pipeline."):
        found = found.__mro__[1]   # our own, already put in its place: look at what it was
    return hashlib.sha256(inspect.getsource(found).encode()).hexdigest()[:12]


def moved() -> list[str]:
    """Symbols whose source is not the one that these overrides were written for."""
    changed = []
    for symbol in SYMBOLS:
        try:
            same = fingerprint(symbol.place) == symbol.fingerprint
        except (AttributeError, ImportError):
            same = False
        if not same:
            changed.append(f"{symbol.place} ({symbol.reason})")
    return changed


def check() -> None:
    """Raises StopWorker naming what moved."""
    changed = moved()
    if changed:
        raise StopWorker(
            "another Faust or aiokafka than the pinned one is installed; narrows overrides "
            + "; ".join(changed) + ". Install faust-streaming==0.15.3 and aiokafka==0.14.0"
        )


if __name__ == "__main__":
    for symbol in SYMBOLS:
        print(f"{fingerprint(symbol.place)}  {symbol.place}")
