"""Rows of a stream out of its topic, between fixed offsets, read and decoded as the worker does.

No group, no commit: whoever trains is invisible to the stream. The same ranges give the same table as long as retention
keeps the records.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice

import numpy as np

from pipeline.config import Stream
from pipeline.core.contract import Contract
from pipeline.core.join import Joined, Joiner
from pipeline.core.rows import Clock
from pipeline.errors import BadInput
from pipeline.formats import Decoder, Format, LongReadings, Readings, make_decoder
from pipeline.formats.files import Table
from pipeline.topics.client import Settings
from pipeline.topics.reader import Record, read_range

BATCH = 10_000   # records decoded at once

Ranges = Mapping[int, tuple[int, int]]
"""Partition -> (first offset, offset after the last)."""


def as_json(ranges: Ranges) -> dict[str, list[int]]:
    """Ranges as a manifest holds them."""
    return {str(partition): list(span) for partition, span in ranges.items()}


def read_table(
    settings: Settings, topic: str, ranges: Ranges, contract: Contract, spec: Format, *,
    matches: Callable[[str], bool] | None = None, progress: Callable[[float], None] | None = None,
) -> Table:
    """All rows of the ranges, partition by partition in log order; what can't be decoded is left out, as in the stream.

    matches  : whether a device belongs to the stream.
    progress : called with the share read so far.
    Raises BadInput when retention has taken the first records, Unreachable, TryAgain.
    """
    blocks = list(read_blocks(settings, topic, ranges, contract, spec, matches=matches, progress=progress))
    names = tuple(dict.fromkeys(name for block in blocks for name in block.devices))
    place = {name: index for index, name in enumerate(names)}
    device = np.concatenate([np.array([place[name] for name in one.devices], np.int64)[one.device] for one in blocks])
    return Table(
        devices=names, device=device, ts_ms=np.concatenate([block.ts_ms for block in blocks]), channels=contract.names,
        values=np.concatenate([block.values for block in blocks]), reason=np.zeros(len(device), np.uint8),
    )


def read_blocks(
    settings: Settings, topic: str, ranges: Ranges, contract: Contract, spec: Format, *,
    matches: Callable[[str], bool] | None = None, progress: Callable[[float], None] | None = None,
) -> Iterator[Table]:
    """The rows of `read_table`, a batch of records at a time: topics that need not fit into memory. Raises as it does.
    """
    decoder = make_decoder(contract, spec)
    joiner = Joiner(contract) if spec.layout == "long" or contract.resample else None
    wanted = max(1, sum(end - start for start, end in ranges.values()))
    done = rows_told = 0
    for partition, (start, end) in sorted(ranges.items()):
        records = read_range(settings, topic, partition, start, end)
        stream_time = -1
        while batch := list(islice(records, BATCH)):
            rows, stream_time = _rows(batch, decoder, joiner, partition, stream_time)
            names, device = np.unique(np.array(rows.device, dtype=np.str_), return_inverse=True)
            block = Table(
                devices=tuple(names.tolist()), device=device.astype(np.int64), ts_ms=rows.ts_ms,
                channels=contract.names, values=rows.values, reason=np.zeros(len(device), np.uint8))
            if matches is not None and len(block):
                block = block.take(np.array([matches(name) for name in block.devices])[block.device])
            rows_told += len(block)
            yield block
            if progress is not None:
                progress((done + batch[-1].offset + 1 - start) / wanted)
        done += end - start
    if not rows_told:
        raise BadInput(
            f"topic {topic}: no record of {dict(ranges)} is a row of the stream; check its format and match"
        )


def _rows(
    batch: list[Record], decoder: Decoder, joiner: Joiner | None, partition: int, stream_time: int,
) -> tuple[Readings | Joined, int]:
    """Rows that these records complete, and stream time after them."""
    stamps = np.array([record.ts_ms for record in batch], np.int64)
    readings, _ = decoder.decode([record.value for record in batch], [record.key for record in batch], stamps)
    if joiner is None:
        assert isinstance(readings, Readings)
        return readings, stream_time
    offsets = np.array([record.offset for record in batch], np.int64)
    clock = Clock(partition, offsets, np.maximum(np.maximum.accumulate(stamps), stream_time))
    joined = joiner.push(
        readings.device, readings.ts_ms, readings.channel if isinstance(readings, LongReadings) else None,
        readings.value if isinstance(readings, LongReadings) else readings.values, offsets[readings.kept],
        offsets[readings.kept], clock.stream_time[readings.kept], clock,
    )
    return joined, int(clock.stream_time[-1])


def matches_of(stream: Stream) -> Callable[[str], bool] | None:
    """Whether a device belongs to the stream; None where all do."""
    return None if stream.match.takes_all else stream.match.takes


def main_lane(table: Table) -> Table:
    """The table without rows that are not newer than their device's newest: the stream scores those in a lane apart."""
    order = np.argsort(table.device, kind="stable")
    keep = np.zeros(len(table), bool)
    for rows in np.split(order, np.flatnonzero(np.diff(table.device[order])) + 1):
        newest = np.maximum.accumulate(table.ts_ms[rows])
        keep[rows] = np.concatenate([np.ones(min(1, len(rows)), bool), table.ts_ms[rows][1:] > newest[:-1]])
    return table.take(keep)
