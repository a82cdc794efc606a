"""A file of blocks: the codec model it needs, the blocks by device and time, an index for random access.

Layout (docs/format.md): b"NF" | version 1 | varint length of the header | header, JSON | codec model | [codec model of
latents | decoder graph, zlib] | frames, one stretch of rows each | index | length of the index, 4 bytes | CRC-32C of
all before the frames and index, 4 bytes | b"NI".
"""

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from pipeline.codec.block import LATENT, Block, decode_block, encode_blocks, kind_of_block
from pipeline.codec.frame import pack_frame, unpack_frame
from pipeline.codec.latent import LatentBlock, Rebuilder, decode_latent
from pipeline.codec.model import CodecModel
from pipeline.codec.summary import Summary, put_summary, summarise, take_summary
from pipeline.codec.wire import BadBlock, Reader, crc32c, varint, zigzag

MAGIC, END, VERSION = b"NF", b"NI", 1
TAIL_BYTES = 10
MOST_GRAPH = 1 << 30
"""Bytes that a decoder graph may unpack to."""

Rows = tuple[np.ndarray, np.ndarray]
Encode = Callable[[int, Sequence[Rows]], list[bytes]]


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

    latents : None where no block is latent.
    """

    channels: tuple[str, ...]
    bounds: tuple[float, ...]
    devices: tuple[str, ...]
    model_bytes: int = 0
    latents: Latents | None = None


class Entry(NamedTuple):
    """One block in the index. first_ms and last_ms are its least and largest time."""

    device: int
    offset: int
    size: int
    rows: int
    first_ms: int
    last_ms: int
    summary: Summary


def write_file(
    path: Path, channels: Sequence[str], devices: Sequence[str], rows: Iterable[tuple[int, np.ndarray, np.ndarray]],
    bounds: np.ndarray, model: CodecModel | None = None, *, block_rows: int = 1024, latents: Latents | None = None,
    needs: bytes = b"", encode: Encode | None = None,
) -> Header:
    """Writes a file of blocks.

    rows : (index of the device, ts_ms (n,) int64, values (n, C) float32), any n; each is cut into blocks of block_rows.
    encode : index of the device and its blocks' rows to frames, for latent blocks; default bounded blocks.
    latents, needs : what its latent blocks need: header's part, and their codec model and packed graph (`pack_graph`).
    """
    held = b"" if model is None else model.to_bytes()
    header = Header(
        channels=tuple(channels), bounds=tuple(np.asarray(bounds, np.float64).tolist()), devices=tuple(devices),
        model_bytes=len(held), latents=latents,
    )
    text = msgspec.json.encode(header)
    lead = MAGIC + bytes([VERSION]) + varint(len(text)) + text + held + needs

    def bounded(device: int, blocks: Sequence[Rows]) -> list[bytes]:
        return [pack_frame([block]) for block in encode_blocks(blocks, bounds, model, thorough=True)]

    encode = encode or bounded
    entries: list[Entry] = []
    with path.open("wb") as file:
        file.write(lead)
        offset = len(lead)
        for device, ts_ms, values in rows:
            pieces = [slice(i, i + block_rows) for i in range(0, len(values), block_rows)]
            frames = encode(device, [(ts_ms[piece], values[piece]) for piece in pieces])
            for piece, frame in zip(pieces, frames, strict=True):
                times = ts_ms[piece]
                entries.append(Entry(
                    device, offset, len(frame), len(times), int(times.min()), int(times.max()),
                    summarise(values[piece]),
                ))
                file.write(frame)
                offset += len(frame)
        index = _put_index(entries)
        check = crc32c(lead + index)
        file.write(index + len(index).to_bytes(4, "little") + check.to_bytes(4, "little") + END)
    return header


class BlockFile:
    """An open file of blocks: header, index, and blocks on demand. Raises BadBlock where it is cut or altered."""

    def __init__(self, path: Path) -> None:
        self.path = path
        size = path.stat().st_size
        with path.open("rb") as file:
            lead = file.read(min(size, 1 << 20))
            if lead[:2] != MAGIC:
                raise BadBlock(f"{path}: not a file of blocks: it begins with other bytes than NF")
            if len(lead) < 3 or lead[2] != VERSION:
                raise BadBlock(f"{path}: a file of another version than {VERSION}: read it with a newer narrows")
            reader = Reader(lead, 3)
            length = reader.varint(size)
            start = reader.at
            file.seek(start)
            try:
                self.header = msgspec.json.decode(file.read(length), type=Header)
            except msgspec.MsgspecError as error:
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
        self.entries = _take_index(Reader(index), self.blocks_at)

    def encoded(self, entry: Entry) -> list[bytes]:
        """The blocks of one frame as they are stored: a bounded one, a latent one, or both."""
        with self.path.open("rb") as file:
            file.seek(entry.offset)
            return unpack_frame(file.read(entry.size))

    @property
    def graph(self) -> bytes:
        """The ONNX graph that rebuilds rows from latents; empty where no block is latent. Raises BadBlock."""
        try:
            return zlib.decompressobj().decompress(self._packed_graph, MOST_GRAPH) if self._packed_graph else b""
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


def _put_index(entries: list[Entry]) -> bytes:
    """varint count, then each: varint device, size, rows, svarint first_ms, varint last - first, summary."""
    out = bytearray(varint(len(entries)))
    for entry in entries:
        out += varint(entry.device) + varint(entry.size) + varint(entry.rows)
        out += varint(int(zigzag.py_func(entry.first_ms)) & (1 << 64) - 1) + varint(entry.last_ms - entry.first_ms)
        out += put_summary(entry.summary)
    return bytes(out)


def _take_index(reader: Reader, offset: int) -> list[Entry]:
    entries = []
    for _ in range(reader.varint(1 << 32)):
        device, size, rows = reader.varint(), reader.varint(), reader.varint()
        raw = reader.varint((1 << 64) - 1)
        first = raw >> 1 if not raw & 1 else -(raw >> 1) - 1
        last = first + reader.varint((1 << 64) - 1)
        entries.append(Entry(device, offset, size, rows, first, last, take_summary(reader)))
        offset += size
    return entries
