"""A file of blocks: the codec model it needs, the blocks by device and time, an index for random access.

Layout (docs/format.md): b"NF" | version 2 | varint length of the header | header, JSON in zlib | codec model | [codec
model of latents | decoder graph, zlib] | frames, one stretch of rows each | index | length of the index, 4 bytes |
CRC-32C of all before the frames and index, 4 bytes | b"NI".
Files of version 1 (header and index as they are, not packed) are read too.
"""

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from pipeline.codec.block import LATENT, MOST_ROWS, MOST_VALUES, Block, decode_block, encode_blocks, kind_of_block
from pipeline.codec.frame import pack_frame, unpack_frame
from pipeline.codec.latent import LatentBlock, Rebuilder, decode_latent
from pipeline.codec.model import CodecModel
from pipeline.codec.summary import Summary, summarise, take_summary
from pipeline.codec.wire import BadBlock, Reader, crc32c, varint

MAGIC, END, VERSION = b"NF", b"NI", 2
PLAIN = 1
"""The version whose header and index are not packed."""
TAIL_BYTES = 10
COLUMNS = 8
"""Numbers of an entry in the index, beside one a channel."""
MOST_UNPACKED = 1 << 30
"""Bytes that a header, an index's numbers or a decoder graph may unpack to."""

Rows = tuple[np.ndarray, np.ndarray]


class Run(NamedTuple):
    """Rows of one device that follow each other: ts_ms (n,) int64, values (n, C) float32.

    is_fine : an episode's, kept at the finer bounds.
    """

    device: int
    ts_ms: np.ndarray
    values: np.ndarray
    is_fine: bool = False


class Frame(NamedTuple):
    """One frame. largest, mean : what it really misses, as shares of the header's bounds (0 where those are 0)."""

    data: bytes
    largest: float
    mean: float


Encode = Callable[[Run, Sequence[Rows]], list[Frame]]


class Latents(msgspec.Struct, frozen=True, kw_only=True):
    """What latent blocks of a file need beside their model and graph.

    sensors : the channels that the graph rebuilds.   location, scale : of each device and sensor; scale null where the
    device has none.
    """

    sensors: tuple[int, ...]
    location: tuple[tuple[float, ...], ...]
    scale: tuple[tuple[float | None, ...], ...]
    model_bytes: int
    graph_bytes: int


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What the columns are. bounds as in `encode_block`; model_bytes 0 where blocks need no model.

    in_episode : bounds of an episode's rows, as a share of `bounds`; None where the writer knew of no episodes.
    latents    : None where no block is latent.
    """

    channels: tuple[str, ...]
    bounds: tuple[float, ...]
    devices: tuple[str, ...]
    in_episode: float | None = None
    model_bytes: int = 0
    latents: Latents | None = None


class Entry(NamedTuple):
    """One block in the index. first_ms and last_ms are its least and largest time.

    is_fine       : holds an episode's rows, at the finer bounds.
    largest, mean : error that it really makes, in thousandths of the header's bounds, rounded up.
    """

    device: int
    offset: int
    size: int
    rows: int
    first_ms: int
    last_ms: int
    is_fine: bool
    largest: int
    mean: int
    summary: Summary


def write_file(
    path: Path, channels: Sequence[str], devices: Sequence[str], runs: Iterable[Run], bounds: np.ndarray,
    model: CodecModel | None = None, *, block_rows: int = 1024, in_episode: float | None = None,
    latents: Latents | None = None, needs: bytes = b"", encode: Encode | None = None,
) -> Header:
    """Writes a file of blocks.

    runs : of any length; each is cut into blocks of block_rows.
    in_episode : bounds of fine runs, as a share of `bounds`; None where no episodes are known.
    encode : a run and its blocks' rows to frames, for latent blocks; default bounded blocks.
    latents, needs : what its latent blocks need: header's part, and their codec model and packed graph (`pack_graph`).
    """
    held, bounds = b"" if model is None else model.to_bytes(), np.asarray(bounds, np.float64)
    header = Header(
        channels=tuple(channels), bounds=tuple(bounds.tolist()), devices=tuple(devices), in_episode=in_episode,
        model_bytes=len(held), latents=latents,
    )
    text = zlib.compress(msgspec.json.encode(header), 9)
    lead = MAGIC + bytes([VERSION]) + varint(len(text)) + text + held + needs

    def bounded(run: Run, blocks: Sequence[Rows]) -> list[Frame]:
        own = bounds if in_episode is None or not run.is_fine else in_episode * bounds
        errors = np.empty((len(blocks), len(bounds), 2))
        coded = encode_blocks(blocks, own, model, thorough=True, errors=errors)
        return [
            Frame(pack_frame([block]), *shares_of(error / [1, len(ts_ms)], bounds))
            for block, error, (ts_ms, _) in zip(coded, errors, blocks, strict=True)
        ]

    encode = encode or bounded
    entries: list[Entry] = []
    with path.open("wb") as file:
        file.write(lead)
        offset = len(lead)
        for run in runs:
            pieces = [
                (run.ts_ms[i : i + block_rows], run.values[i : i + block_rows])
                for i in range(0, len(run.values), block_rows)
            ]
            for (times, values), frame in zip(pieces, encode(run, pieces), strict=True):
                entries.append(Entry(
                    run.device, offset, len(frame.data), len(times), int(times.min()), int(times.max()), run.is_fine,
                    math.ceil(1000 * frame.largest), math.ceil(1000 * frame.mean), summarise(values),
                ))
                file.write(frame.data)
                offset += len(frame.data)
        index = _put_index(entries, header)
        check = crc32c(lead + index)
        file.write(index + len(index).to_bytes(4, "little") + check.to_bytes(4, "little") + END)
    return header


def shares_of(error: np.ndarray, bounds: np.ndarray) -> tuple[float, float]:
    """(largest of all, mean) error as shares of the bounds of channels that have one in their unit.

    error : (C, 2) largest and mean in the channels' units.   bounds : (C,).
    """
    if not (bounds > 0).any():
        return 0.0, 0.0
    share = error[bounds > 0] / bounds[bounds > 0, None]
    return float(share[:, 0].max()), float(share[:, 1].mean())


class BlockFile:
    """An open file of blocks: header, index, and blocks on demand. Raises BadBlock where it is cut or altered."""

    def __init__(self, path: Path) -> None:
        self.path = path
        size = path.stat().st_size
        with path.open("rb") as file:
            lead = file.read(min(size, 1 << 20))
            if lead[:2] != MAGIC:
                raise BadBlock(f"{path}: not a file of blocks: it begins with other bytes than NF")
            if len(lead) < 3 or lead[2] not in (PLAIN, VERSION):
                raise BadBlock(f"{path}: a file of a version above {VERSION}: read it with a newer narrows")
            is_plain = lead[2] == PLAIN
            reader = Reader(lead, 3)
            length = reader.varint(size)
            start = reader.at
            file.seek(start)
            try:
                text = file.read(length)
                self.header = msgspec.json.decode(text if is_plain else _unpack(text), type=Header)
            except (msgspec.MsgspecError, zlib.error) as error:
                raise BadBlock(f"{path}: its header can't be read: cut or altered") from error
            more = self.header.latents
            self.blocks_at = start + length + self.header.model_bytes + (
                0 if more is None else more.model_bytes + more.graph_bytes
            )
            file.seek(0)
            lead = file.read(min(self.blocks_at, size))
            file.seek(max(size - TAIL_BYTES, 0))
            tail = file.read(TAIL_BYTES)
            index_bytes = int.from_bytes(tail[:4], "little")
            is_wrong = self.header.model_bytes < 0 or (more is not None and min(more.model_bytes, more.graph_bytes) < 0)
            if tail[8:] != END or is_wrong or self.blocks_at + index_bytes + TAIL_BYTES > size:
                raise BadBlock(f"{path}: cut: it does not end with its index")
            file.seek(size - TAIL_BYTES - index_bytes)
            index = file.read(index_bytes)
        if crc32c(lead + index) != int.from_bytes(tail[4:8], "little"):
            raise BadBlock(f"{path}: the CRC-32C of header, model and index fails: altered")
        self.model_bytes = lead[start + length : start + length + self.header.model_bytes]
        self.model = CodecModel.from_bytes(self.model_bytes) if self.model_bytes else None
        self._models = {} if self.model is None else {self.model.id: self.model}
        self._packed_graph = b""
        if more is not None:
            at = start + length + self.header.model_bytes
            latent_model = CodecModel.from_bytes(lead[at : at + more.model_bytes])
            self._models[latent_model.id] = latent_model
            self._packed_graph = lead[at + more.model_bytes :]
        take = _take_plain_index if is_plain else _take_index
        self.tells_errors = not is_plain
        self.entries = take(index, self.blocks_at, len(self.header.channels))

    def encoded(self, entry: Entry) -> list[bytes]:
        """The blocks of one frame as they are stored: a bounded one, a latent one, or both."""
        with self.path.open("rb") as file:
            file.seek(entry.offset)
            return unpack_frame(file.read(entry.size))

    @property
    def graph(self) -> bytes:
        """The ONNX graph that rebuilds rows from latents; empty where no block is latent. Raises BadBlock."""
        try:
            return _unpack(self._packed_graph) if self._packed_graph else b""
        except zlib.error as error:
            raise BadBlock(f"{self.path}: its decoder graph can't be read: altered") from error

    def latent(self, entry: Entry) -> LatentBlock | None:
        """The latent block of a frame, with the errors that it states."""
        parts = [part for part in self.encoded(entry) if kind_of_block(part) == LATENT]
        return decode_latent(parts[0], self._models) if parts else None

    def block(self, entry: Entry, decoder: Rebuilder | None = None) -> Block:
        """One decoded frame. decoder : of `graph`, needed where the frame holds latents.

        Sensors whose error the latent block states are rebuilt from it, all other channels are the bounded block's.
        """
        bounded = [decode_block(part, self._models) for part in self.encoded(entry) if kind_of_block(part) != LATENT]
        latent = self.latent(entry)
        if latent is None:
            return bounded[0]
        more = self.header.latents
        if decoder is None or more is None:
            raise BadBlock(f"{self.path}: a latent block needs a decoder")
        scale = [np.nan if one is None else one for one in more.scale[entry.device]]
        rebuilt = decoder.decode(latent, np.array(more.location[entry.device]), np.array(scale))
        ts_ms = bounded[0].ts_ms if bounded else latent.ts_ms
        values = bounded[0].values if bounded else np.full((entry.rows, len(self.header.channels)), np.nan, np.float32)
        if latent.rows != len(values) or rebuilt.shape[1] != len(more.sensors):
            raise BadBlock(f"{self.path}: a latent block of other rows or channels than its frame: altered")
        told = np.isfinite(latent.largest)
        values[:, np.array(more.sensors, np.int64)[told]] = rebuilt[:, told]
        return Block(ts_ms, values)

    def read(
        self, device: str | None = None, since_ms: int | None = None, until_ms: int | None = None,
        decoder: Rebuilder | None = None,
    ) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """(device, ts_ms (n,), values (n, C)) of each block with rows in [since, until); other blocks stay unread.

        Raises BadBlock where the device is not in the file.
        """
        if device is not None and device not in self.header.devices:
            raise BadBlock(f"{self.path}: no device {device}; it holds {', '.join(self.header.devices[:20])}")
        for entry in self.entries:
            name = self.header.devices[entry.device]
            if device is not None and name != device:
                continue
            is_before = since_ms is not None and entry.last_ms < since_ms
            if is_before or (until_ms is not None and entry.first_ms >= until_ms):
                continue
            ts_ms, values = self.block(entry, decoder)
            if ts_ms is None:
                raise BadBlock(f"{self.path}: a block without timestamps: altered")
            chosen = np.ones(len(ts_ms), bool)
            if since_ms is not None:
                chosen &= ts_ms >= since_ms
            if until_ms is not None:
                chosen &= ts_ms < until_ms
            if chosen.any():
                yield name, ts_ms[chosen], values[chosen]


def pack_graph(graph: bytes) -> bytes:
    """A decoder graph as it stands in a file."""
    return zlib.compress(graph, 9)


def _unpack(packed: bytes) -> bytes:
    return zlib.decompressobj().decompress(packed, MOST_UNPACKED)


def _put_index(entries: list[Entry], header: Header) -> bytes:
    """varint length | numbers, zlib | frame of bounded blocks: the summaries' low, then high, then mean.

    Numbers: int64 columns of device, size, rows, first_ms less that of the entry before, last_ms - first_ms, is_fine,
    largest, mean and, per channel, rows - count; of each column the lowest bytes of all entries, then the next. A
    figure is within its channel's bound, NaN where nothing was finite.
    """
    places = np.array([entry[:9] for entry in entries], np.int64).reshape(-1, 9)
    device, _, size, rows, first_ms, last_ms, *told = places.T
    count = np.array([entry.summary.counts for entry in entries], np.int64).reshape(len(entries), -1)
    columns = np.stack([device, size, rows, np.diff(first_ms, prepend=0), last_ms - first_ms, *told, *(rows - count.T)])
    numbers = zlib.compress(_by_byte(columns.astype("<i8").view(np.uint8).reshape(*columns.shape, 8)), 9)
    channels = len(header.channels)
    figures = np.array([entry.summary[1:] for entry in entries], np.float32).reshape(-1, 3, channels)
    most = max(min(MOST_ROWS, MOST_VALUES // max(channels, 1)), 1)
    pieces = [figures[i : i + most, k] for k in range(3) for i in range(0, len(entries), most)]
    blocks = [(None, np.ascontiguousarray(piece)) for piece in pieces]
    return varint(len(numbers)) + numbers + pack_frame(encode_blocks(blocks, np.array(header.bounds), thorough=True))


def _by_byte(columns: np.ndarray) -> bytes:
    """(K, E, 8) bytes of int64, each column's bytes of one weight beside each other; its own inverse on (K, 8, E)."""
    return np.ascontiguousarray(columns.transpose(0, 2, 1)).tobytes()


def _take_index(index: bytes, offset: int, channels: int) -> list[Entry]:
    reader = Reader(index)
    try:
        numbers = np.frombuffer(_unpack(bytes(reader.take(reader.varint()))), np.uint8)
        planes = numbers.reshape(COLUMNS + channels, 8, -1)
    except (zlib.error, ValueError) as error:
        raise BadBlock("the index can't be read: altered") from error
    columns = np.frombuffer(_by_byte(planes), "<i8").reshape(COLUMNS + channels, -1)
    blocks = [decode_block(block, {}).values for block in unpack_frame(bytes(reader.rest()))]
    figures = np.concatenate([*blocks, np.zeros((0, channels), np.float32)])
    if len(figures) != 3 * columns.shape[1]:
        raise BadBlock("an index of other summaries than blocks: altered")
    device, size, rows, first_ms, span, is_fine, largest, mean = columns[:COLUMNS]
    first_ms = first_ms.cumsum()
    offsets, last_ms = offset + size.cumsum() - size, first_ms + span
    figures = figures.reshape(3, -1, channels)
    return [
        Entry(
            int(device[i]), int(offsets[i]), int(size[i]), int(rows[i]), int(first_ms[i]), int(last_ms[i]),
            bool(is_fine[i]), int(largest[i]), int(mean[i]),
            Summary(rows[i] - columns[COLUMNS:, i], figures[0, i], figures[1, i], figures[2, i]),
        )
        for i in range(columns.shape[1])
    ]


def _take_plain_index(index: bytes, offset: int, channels: int) -> list[Entry]:
    """Of version 1: varint count, then each: varint device, size, rows, svarint first, varint last - first, summary.

    It tells no errors: they are 0.
    """
    reader, entries = Reader(index), []
    for _ in range(reader.varint(1 << 32)):
        device, size, rows = reader.varint(), reader.varint(), reader.varint()
        raw = reader.varint((1 << 64) - 1)
        first = raw >> 1 if not raw & 1 else -(raw >> 1) - 1
        last = first + reader.varint((1 << 64) - 1)
        entries.append(Entry(device, offset, size, rows, first, last, False, 0, 0, take_summary(reader)))
        offset += size
    return entries
