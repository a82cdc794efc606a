"""A file of blocks: the codec model it needs, the blocks by device and time, an index for random access.

Layout (docs/format.md): b"NF" | version 1 | varint length of the header | header, JSON | codec model | frames, one
block each | index | length of the index, 4 bytes | CRC-32C of header, model and index, 4 bytes | b"NI".
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from pipeline.codec.block import Block, decode_block, encode_blocks
from pipeline.codec.frame import pack_frame, unpack_frame
from pipeline.codec.model import CodecModel
from pipeline.codec.summary import Summary, put_summary, summarise, take_summary
from pipeline.codec.wire import BadBlock, Reader, crc32c, varint, zigzag

MAGIC, END, VERSION = b"NF", b"NI", 1
TAIL_BYTES = 10


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What the columns are. bounds as in `encode_block`; model_bytes 0 where blocks need no model."""

    channels: tuple[str, ...]
    bounds: tuple[float, ...]
    devices: tuple[str, ...]
    model_bytes: int = 0


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
    bounds: np.ndarray, model: CodecModel | None = None, *, block_rows: int = 1024,
) -> Header:
    """Writes a file of blocks.

    rows : (index of the device, ts_ms (n,) int64, values (n, C) float32), any n; each is cut into blocks of block_rows.
    """
    held = b"" if model is None else model.to_bytes()
    header = Header(
        channels=tuple(channels), bounds=tuple(np.asarray(bounds, np.float64).tolist()), devices=tuple(devices),
        model_bytes=len(held),
    )
    text = msgspec.json.encode(header)
    lead = MAGIC + bytes([VERSION]) + varint(len(text)) + text + held
    entries: list[Entry] = []
    with path.open("wb") as file:
        file.write(lead)
        offset = len(lead)
        for device, ts_ms, values in rows:
            pieces = [slice(i, i + block_rows) for i in range(0, len(values), block_rows)]
            coded = encode_blocks([(ts_ms[piece], values[piece]) for piece in pieces], bounds, model, thorough=True)
            for piece, block in zip(pieces, coded, strict=True):
                frame, times = pack_frame([block]), ts_ms[piece]
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
            self.blocks_at = start + length + self.header.model_bytes
            file.seek(0)
            lead = file.read(min(self.blocks_at, size))
            file.seek(max(size - TAIL_BYTES, 0))
            tail = file.read(TAIL_BYTES)
            index_bytes = int.from_bytes(tail[:4], "little")
            if tail[8:] != END or self.header.model_bytes < 0 or self.blocks_at + index_bytes + TAIL_BYTES > size:
                raise BadBlock(f"{path}: cut: it does not end with its index")
            file.seek(size - TAIL_BYTES - index_bytes)
            index = file.read(index_bytes)
        if crc32c(lead + index) != int.from_bytes(tail[4:8], "little"):
            raise BadBlock(f"{path}: the CRC-32C of header, model and index fails: altered")
        self.model_bytes = lead[start + length :]
        self.model = CodecModel.from_bytes(self.model_bytes) if self.model_bytes else None
        self.entries = _take_index(Reader(index), self.blocks_at)

    def encoded(self, entry: Entry) -> bytes:
        """One block as it is stored."""
        with self.path.open("rb") as file:
            file.seek(entry.offset)
            return unpack_frame(file.read(entry.size))[0]

    def block(self, entry: Entry) -> Block:
        """One decoded block."""
        models = {} if self.model is None else {self.model.id: self.model}
        return decode_block(self.encoded(entry), models)

    def read(
        self, device: str | None = None, since_ms: int | None = None, until_ms: int | None = None,
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
            ts_ms, values = self.block(entry)
            if ts_ms is None:
                raise BadBlock(f"{self.path}: a block without timestamps: altered")
            chosen = np.ones(len(ts_ms), bool)
            if since_ms is not None:
                chosen &= ts_ms >= since_ms
            if until_ms is not None:
                chosen &= ts_ms < until_ms
            if chosen.any():
                yield name, ts_ms[chosen], values[chosen]


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
