"""What the topics say right now: one consumer without a group over input and output topics, and a snapshot of it.

The page and the terminal of `narrows demo` show the same snapshot. It commits nothing and nobody waits for it; where it
falls behind the input it skips ahead and says so. The reconstruction error is real: each block is decoded and compared
with the readings that were seen on the input topic.
"""

import asyncio
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from pipeline.codec import BadBlock
from pipeline.core.contract import Contract
from pipeline.errors import BadInput, NarrowsError
from pipeline.formats import Decoder, Format, Readings, make_decoder
from pipeline.sinks import Anomaly, BlockLabel, SeenOnce, read_anomaly, read_block_label, read_dead_letter, read_feature
from pipeline.sinks.blocks import BlockReader

BACK = 2_000  # records of anomalies and dead letters that are read from before the start, per partition
KEPT_ROWS = 600  # readings kept of a device, for the chart and for the error of blocks
KEPT_DEVICES = 2_000  # devices of which readings are kept
MOST_OPEN = 50  # open episodes that a snapshot lists
HISTORY_S = 180
DRAWN = 240  # readings of the chart
MOST_WAITING = 5_000  # blocks that wait to be decoded; further ones are left out of the comparison
BEHIND = 200_000  # records; a longer backlog of the input is skipped


class Episode(msgspec.Struct, frozen=True):
    """An episode as its newest event tells it.

    channels : those that contribute most, largest first: name, share, direction.   kind : machine, stuck, ...
    """

    id: str
    device: str
    state: str
    severity: str
    score: float
    peak: float
    threshold: float
    start: int
    end: int
    channels: list[tuple[str, float, str]]
    digest: str
    kind: str = ""


class Swap(msgspec.Struct, frozen=True):
    """The first output of a digest. at_ms: wall clock."""

    at_ms: int
    digest: str


class Line(msgspec.Struct, frozen=True):
    """A device's channel over time, for the chart. ts: ms; begin, end: the episode's, if one is open."""

    device: str
    channel: str
    unit: str
    ts: list[int]
    values: list[float | None]
    begin: int | None = None
    end: int | None = None


class StreamView(msgspec.Struct, frozen=True):
    """One stream.

    rate, rates  : input records a second now, and over the last minutes (one a second).
    lag          : records behind, None where the group has no commit yet.
    devices      : seen since the start.
    bytes_in     : of the input's values whose rows lie in decoded blocks; bytes_out : of those blocks, header included.
    error_share  : largest error of a stored value as a share of its channel's bound; None while nothing was compared,
                   and for channels that are stored to the bit.
    error_mean   : mean absolute error as a share of each channel's range seen, over all channels.
    """

    name: str
    topic: str
    rate: float
    rates: list[float]
    lag: int | None
    records: int
    devices: int
    bytes_in: int
    bytes_out: int
    rows_out: int
    rows_compared: int
    error_share: float | None
    error_mean: float | None
    digest: str | None
    swaps: list[Swap]
    open: list[Episode]
    open_count: int
    recent: list[Episode]
    counts: dict[str, int]
    dead_letters: dict[str, int]
    line: Line | None
    is_sampled: bool


class Snapshot(msgspec.Struct, frozen=True):
    """Everything at one moment. fault: why there is nothing new, if so."""

    at_ms: int
    streams: list[StreamView]
    fault: str | None = None


class Watched(msgspec.Struct, frozen=True):
    """What the watch needs to know of a stream."""

    name: str
    topic: str
    contract: Contract
    format: Format


@dataclass
class _Kept:
    """Readings of one device: ring of times and rows."""

    ts: deque[int]
    row: deque[np.ndarray]
    sizes: deque[float]

    def find(self, ts_ms: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """Places in `ts_ms` that are kept, their rows, and the bytes that they had on the input."""
        at = {ts: place for place, ts in enumerate(self.ts)}
        places = [place for place, ts in enumerate(ts_ms.tolist()) if ts in at]
        rows = [self.row[at[int(ts_ms[place])]] for place in places]
        size = sum(self.sizes[at[int(ts_ms[place])]] for place in places)
        return np.array(places, np.int64), np.array(rows, np.float32), size


@dataclass
class _Stream:
    """Running state of one stream."""

    watched: Watched
    decoder: Decoder
    kept: "OrderedDict[str, _Kept]" = field(default_factory=OrderedDict)
    seen: SeenOnce = field(default_factory=SeenOnce)
    devices: set[str] = field(default_factory=set)
    episodes: dict[str, Episode] = field(default_factory=dict)
    recent: deque[Episode] = field(default_factory=lambda: deque(maxlen=30))
    counts: Counter[str] = field(default_factory=Counter)
    dead: Counter[str] = field(default_factory=Counter)
    swaps: list[Swap] = field(default_factory=list)
    digests: set[str] = field(default_factory=set)
    rates: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY_S))
    records: int = 0
    bytes_in: float = 0
    bytes_out: int = 0
    rows_out: int = 0
    rows_compared: int = 0
    error_share: float | None = None
    error_sum: np.ndarray | None = None
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    lag: int | None = None
    ends: int | None = None
    is_sampled: bool = False


class Watch:
    """Follows the topics of a broker. `run` until cancelled; `snapshot` at any time, from any thread.

    settings : keyword arguments of an aiokafka client.
    topics   : full names of the output topics by short name: anomalies, blocks, features, dead-letters.
    group    : of the workers, for the lag.
    """

    def __init__(
        self, settings: Mapping[str, Any], streams: Sequence[Watched], topics: Mapping[str, str], group: str,
        reader: BlockReader,
    ) -> None:
        self._settings = dict(settings)
        self._streams = {one.name: _Stream(one, make_decoder(one.contract, one.format)) for one in streams}
        self._topics = dict(topics)
        self._short = {name: short for short, name in topics.items()}
        self._group = group
        self._reader = reader
        self._snapshot = Snapshot(0, [])
        self._fault: str | None = "starting"
        self._blocks: asyncio.Queue[tuple[_Stream, BlockLabel, bytes, int]] = asyncio.Queue(MOST_WAITING)

    def snapshot(self) -> Snapshot:
        """The newest state, at most a second old."""
        return self._snapshot

    async def run(self) -> None:
        """Follows the topics until cancelled; a broker that goes away is waited for."""
        decoding = asyncio.create_task(self._decode_blocks())
        try:
            while True:
                try:
                    await self._follow()
                except (KafkaError, OSError) as error:
                    self._fault = f"Kafka does not answer: {error}"
                    self._publish()
                    await asyncio.sleep(1)
        finally:
            decoding.cancel()

    async def _decode_blocks(self) -> None:
        """Off the loop, and not waited for: the first block compiles its decoder, and a codec model may be fetched."""
        while True:
            stream, label, frame, size = await self._blocks.get()
            try:
                ts_ms, values = await asyncio.to_thread(self._reader.rows, label, frame)
            except (BadBlock, NarrowsError):
                stream.counts["unreadable blocks"] += 1
            else:
                _compare(stream, label.device, ts_ms, values, size)

    async def _follow(self) -> None:
        names = dict.fromkeys([*(one.watched.topic for one in self._streams.values()), *self._topics.values()])
        consumer = AIOKafkaConsumer(
            *names, **self._settings, group_id=None, enable_auto_commit=False, auto_offset_reset="latest",
            fetch_max_wait_ms=200, max_partition_fetch_bytes=4 << 20,
        )
        admin = AIOKafkaAdminClient(**self._settings)
        try:
            await consumer.start()
            await admin.start()
            await self._seek(consumer)
            self._fault = None
            beat = asyncio.create_task(self._beat(consumer, admin))
            try:
                while not beat.done():
                    for place, records in (await consumer.getmany(timeout_ms=200, max_records=20_000)).items():
                        self._take(place, records)
                await beat
            finally:
                beat.cancel()
        finally:
            await consumer.stop()
            await admin.close()

    async def _seek(self, consumer: AIOKafkaConsumer) -> None:
        places = list(consumer.assignment())
        ends = await consumer.end_offsets(places)
        begins = await consumer.beginning_offsets(places)
        for place in places:
            back = BACK if self._short.get(place.topic) in ("anomalies", "dead-letters") else 0
            consumer.seek(place, max(begins[place], ends[place] - back))

    async def _beat(self, consumer: AIOKafkaConsumer, admin: AIOKafkaAdminClient) -> None:
        """Once a second: rates, lag, and the snapshot."""
        inputs = {one.watched.topic for one in self._streams.values()}
        places = [place for place in consumer.assignment() if place.topic in inputs]
        before = time.monotonic()
        while True:
            await asyncio.sleep(1)
            ends = await consumer.end_offsets(places)
            try:
                committed = await admin.list_consumer_group_offsets(self._group)
            except KafkaError:  # no such group yet
                committed = {}
            now = time.monotonic()
            for stream in self._streams.values():
                mine = [place for place in places if place.topic == stream.watched.topic]
                end = sum(ends[place] for place in mine)
                if stream.ends is not None:
                    stream.rates.append(max(0.0, (end - stream.ends) / (now - before)))
                stream.ends = end
                known = [(ends[place], committed[place].offset) for place in mine if place in committed]
                stream.lag = sum(max(0, last - next_) for last, next_ in known if next_ >= 0) if known else None
                for place in mine:
                    if ends[place] - await consumer.position(place) > BEHIND:
                        stream.is_sampled = True
                        consumer.seek(place, ends[place])
            before = now
            self._publish()

    def _take(self, place: TopicPartition, records: list[ConsumerRecord]) -> None:
        short = self._short.get(place.topic)
        if short is None:
            for stream in self._streams.values():
                if stream.watched.topic == place.topic:
                    _take_readings(stream, records)
        for record in records if short is not None else ():
            try:
                self._take_output(short or "", record)
            except BadInput:  # another program's record, or a newer version's
                continue

    def _take_output(self, short: str, record: ConsumerRecord) -> None:
        if short == "anomalies":
            anomaly = read_anomaly(record.value or b"")
            stream = self._streams.get(anomaly.stream)
            if stream is not None and stream.seen.is_new(anomaly.id, anomaly.final):
                _take_anomaly(stream, anomaly)
        elif short == "blocks":
            label = read_block_label(record.headers)
            stream = self._streams.get(label.stream)
            if stream is not None and stream.seen.is_new(label.id, label.final):
                stream.counts["blocks"] += 1
                _note_digest(stream, label.digest)
                frame = record.value or b""
                size = len(frame) + sum(len(name) + len(value) for name, value in record.headers)
                try:
                    self._blocks.put_nowait((stream, label, frame, size))
                except asyncio.QueueFull:
                    stream.is_sampled = True
        elif short == "features":
            feature = read_feature(record.value or b"")
            stream = self._streams.get(feature.stream)
            if stream is not None and stream.seen.is_new(feature.id, feature.final):
                stream.counts["features"] += 1
                _note_digest(stream, feature.digest)
        elif short == "dead-letters":
            letter = read_dead_letter(record.headers)
            stream = self._streams.get(letter.stream)
            if stream is not None and stream.seen.is_new(letter.id):
                stream.dead[letter.reason] += 1

    def _publish(self) -> None:
        self._snapshot = Snapshot(
            round(time.time() * 1000), [_view(stream) for stream in self._streams.values()], self._fault
        )


def _take_readings(stream: _Stream, records: list[ConsumerRecord]) -> None:
    stream.records += len(records)
    times = np.array([record.timestamp for record in records], np.int64)
    readings, _ = stream.decoder.decode([record.value for record in records], [record.key for record in records], times)
    stream.devices.update(readings.device)
    if not isinstance(readings, Readings):
        return
    values, sharing = readings.values, np.bincount(readings.kept, minlength=1)
    with np.errstate(all="ignore"):
        if len(values):
            low, high = np.fmin.reduce(values), np.fmax.reduce(values)
            stream.low = low if stream.low is None else np.fmin(stream.low, low)
            stream.high = high if stream.high is None else np.fmax(stream.high, high)
    rows = zip(readings.device, readings.ts_ms.tolist(), values, readings.kept.tolist(), strict=True)
    for device, ts_ms, row, place in rows:
        kept = stream.kept.get(device)
        if kept is None:
            kept = stream.kept[device] = _Kept(*(deque(maxlen=KEPT_ROWS) for _ in range(3)))
            if len(stream.kept) > KEPT_DEVICES:
                stream.kept.popitem(last=False)
        kept.ts.append(ts_ms)
        kept.row.append(row)
        kept.sizes.append(len(records[place].value or b"") / int(sharing[place]))


def _take_anomaly(stream: _Stream, anomaly: Anomaly) -> None:
    stream.counts[anomaly.state] += 1
    _note_digest(stream, anomaly.digest)
    largest = sorted(anomaly.contributions.items(), key=lambda pair: -pair[1])[:3]
    before = stream.episodes.get(anomaly.episode_id)
    channels = [(name, share, anomaly.directions.get(name, "")) for name, share in largest if share > 0]
    if before is not None and (anomaly.state == "closed" or not channels):
        channels = before.channels  # what is left at the end tells nothing of what it was
    episode = Episode(
        anomaly.episode_id, anomaly.device, anomaly.state, anomaly.severity, anomaly.score, anomaly.peak,
        anomaly.threshold, anomaly.window_start, anomaly.window_end, channels, anomaly.digest,
        before.kind if before is not None and anomaly.state == "closed" else anomaly.kind,
    )
    if anomaly.state == "closed":
        stream.episodes.pop(anomaly.episode_id, None)
    else:
        stream.episodes[anomaly.episode_id] = episode
    if anomaly.state != "updated":
        stream.recent.appendleft(episode)


def _note_digest(stream: _Stream, digest: str) -> None:
    if digest not in stream.digests:
        stream.digests.add(digest)
        stream.swaps.append(Swap(round(time.time() * 1000), digest))


def _compare(stream: _Stream, device: str, ts_ms: np.ndarray, values: np.ndarray, size: int) -> None:
    """Adds a block to the bytes and to the error, as far as its readings were seen."""
    kept = stream.kept.get(device)
    if kept is None:
        return
    places, rows, bytes_in = kept.find(ts_ms)
    if len(places) < len(ts_ms):  # it began before we did: its share of the block's bytes is not known
        return
    stream.bytes_in += bytes_in
    stream.bytes_out += size
    stream.rows_out += len(ts_ms)
    with np.errstate(all="ignore"):
        error = np.abs(values[places].astype(np.float64) - rows)
        error[np.isnan(rows) & np.isnan(values[places])] = 0
        bounds = stream.watched.contract.bounds
        bounded = bounds > 0
        if bounded.any():
            share = float(np.nanmax(error[:, bounded] / bounds[bounded], initial=0.0))
            stream.error_share = max(stream.error_share or 0.0, share)
    total = np.nansum(error, axis=0)
    stream.error_sum = total if stream.error_sum is None else stream.error_sum + total
    stream.rows_compared += len(places)


def _view(stream: _Stream) -> StreamView:
    mean = None
    if stream.error_sum is not None and stream.low is not None and stream.high is not None:
        width = (stream.high - stream.low).astype(np.float64)
        real = width > 0
        if real.any() and stream.rows_compared:
            mean = float((stream.error_sum[real] / stream.rows_compared / width[real]).mean())
    newest = sorted(stream.episodes.values(), key=lambda episode: -episode.peak / max(episode.threshold, 1e-9))
    rates = list(stream.rates)
    return StreamView(
        name=stream.watched.name, topic=stream.watched.topic, rate=sum(rates[-3:]) / len(rates[-3:]) if rates else 0.0,
        rates=[round(rate, 1) for rate in rates], lag=stream.lag, records=stream.records, devices=len(stream.devices),
        bytes_in=round(stream.bytes_in), bytes_out=stream.bytes_out, rows_out=stream.rows_out,
        rows_compared=stream.rows_compared, error_share=stream.error_share, error_mean=mean,
        digest=stream.swaps[-1].digest if stream.swaps else None, swaps=list(stream.swaps), open=newest[:MOST_OPEN],
        open_count=len(newest), recent=list(stream.recent), counts=dict(stream.counts), dead_letters=dict(stream.dead),
        line=_line(stream, newest), is_sampled=stream.is_sampled,
    )


def _line(stream: _Stream, newest: list[Episode]) -> Line | None:
    """The channel to draw: the worst open episode's first one, else the first channel of any device."""
    names = stream.watched.contract.names
    episode = next((one for one in newest if one.channels and one.device in stream.kept), None)
    if episode is not None:
        device, channel = episode.device, episode.channels[0][0]
    elif stream.kept:
        device = next(iter(stream.kept))
        channel = names[int(stream.watched.contract.sensors[0])]
    else:
        return None
    kept, place = stream.kept[device], names.index(channel)
    points = sorted((ts_ms, float(row[place])) for ts_ms, row in zip(kept.ts, kept.row, strict=True))[-DRAWN:]
    return Line(
        device, channel, stream.watched.contract.channels[place].unit, [ts_ms for ts_ms, _ in points],
        [None if value != value else round(value, 6) for _, value in points],
        None if episode is None else episode.start, None if episode is None else episode.end,
    )
