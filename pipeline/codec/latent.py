"""Latent blocks: the autoencoder's latents of a span's windows and nothing else, with the error that they really made.

Not bounded: fifty times smaller and more, for whoever needs the shape of a day and not each value. Layout:
flags (kind 3) | decoder id, 3 bytes | varint n | varint T | varint S | S bytes of largest errors | mean errors, half a
byte each | [timestamps] | a bounded block of the latents (windows x D), without times | check, 3 bytes.
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np

from pipeline.codec.block import (
    CHECK_BYTES,
    HAS_TS,
    LATENT,
    MOST_ROWS,
    Models,
    decode_block,
    encode_blocks,
)
from pipeline.codec.model import ID_BYTES, MOST_CHANNELS, CodecModel
from pipeline.codec.timestamps import LONGEST, put_timestamps, take_timestamps
from pipeline.codec.wire import BadBlock, Reader, crc32c, varint

UNTOLD = 255
"""Code of an error that has no figure."""


class LatentBlock(NamedTuple):
    """A decoded latent block.

    ts_ms : (n,) int64 or None; latents : (W, D) float32, one for each T rows, the last one of the block's last T rows
    decoder : id of the graph that rebuilds rows from latents, 6 hexadecimal digits
    largest, mean : (S,) float64, errors in the channels' units: at least what was made, at most 19 % more (mean: 41 %);
            infinite where latents can't hold the channel (a value is missing or infinite, or the device has no scale)
    """

    ts_ms: np.ndarray | None
    latents: np.ndarray
    decoder: str
    rows: int
    window: int
    largest: np.ndarray
    mean: np.ndarray


class Rebuilder(Protocol):
    """A decoder graph, ready to run: `pipeline.scoring.latents.LatentDecoder`."""

    def decode(self, block: LatentBlock, location: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """(n, S) float32 rows of a latent block. location, scale : (S,) of its device."""
        ...


def window_ends(n: int, window: int) -> np.ndarray:
    """Rows behind the windows of a block: every `window` rows, the last window ends with the block. (W,) int64.

    >>> window_ends(70, 32).tolist()
    [32, 64, 70]
    """
    ends = np.arange(window, n + 1, window)
    return ends if len(ends) and ends[-1] == n else np.r_[ends, n]


def coded_latents(latents: np.ndarray, model: CodecModel) -> tuple[bytes, np.ndarray]:
    """(bounded block of the latents, the latents that a reader gets). The encoder rebuilds from the second."""
    block = encode_blocks([(None, latents)], model.bounds, model)[0]
    return block, decode_block(block, {model.id: model}).values


def encode_latent(
    ts_ms: np.ndarray | None, coded: bytes, rows: int, window: int, decoder: str, error: np.ndarray,
) -> bytes:
    """One latent block.

    coded : of `coded_latents`; rows : n; window : T; decoder : id of the decoder graph.
    error : (n, S) float64, what rebuilding from the coded latents misses, in the channels' units.
    """
    size = np.where(np.isfinite(error), np.abs(error), np.inf)
    largest, mean = size.max(axis=0), size.mean(axis=0)
    codes = _codes_of(largest)
    halves = np.zeros(len(codes) + len(codes) % 2, np.uint8)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where((mean > 0) & (codes < UNTOLD), _sizes_of(codes) / mean, 2.0**8)
    halves[: len(codes)] = np.clip(np.floor(2 * np.log2(np.maximum(ratio, 1))), 0, 15)
    out = bytearray([LATENT | (HAS_TS if ts_ms is not None else 0)])
    out += bytes.fromhex(decoder) + varint(rows) + varint(window) + varint(len(codes)) + codes.tobytes()
    out += (halves[::2] << 4 | halves[1::2]).astype(np.uint8).tobytes()
    if ts_ms is not None:
        section = np.empty(20 + LONGEST * rows, np.uint8)
        out += section[: put_timestamps(section, 0, np.ascontiguousarray(ts_ms, np.int64))].tobytes()
    out += coded
    return bytes(out) + (crc32c(bytes(out)) & 0xFFFFFF).to_bytes(CHECK_BYTES, "little")


def decode_latent(data: bytes, models: Models | Mapping[str, CodecModel] | None) -> LatentBlock:
    """The latents and their stated errors; `pipeline.scoring.latents` rebuilds rows. Raises BadBlock."""
    if len(data) < CHECK_BYTES + 2 or data[0] & 3 != LATENT or data[0] & ~(3 | HAS_TS):
        raise BadBlock("not a latent block of this format version, or cut")
    body = memoryview(data)[:-CHECK_BYTES]
    if crc32c(body) & 0xFFFFFF != int.from_bytes(data[-CHECK_BYTES:], "little"):
        raise BadBlock("the latent block's check fails: cut or altered")
    reader = Reader(body, 1)
    decoder = reader.take(ID_BYTES).hex()
    rows, window, sensors = reader.varint(MOST_ROWS), reader.varint(MOST_ROWS), reader.varint(MOST_CHANNELS)
    if rows == 0 or window == 0:
        raise BadBlock("a latent block without rows")
    largest = _sizes_of(reader.array("u1", sensors))
    packed = reader.array("u1", (sensors + 1) // 2)
    halves = np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)[:sensors]
    ts_ms = None
    if data[0] & HAS_TS:
        ts_ms = np.zeros(rows, np.int64)
        reader.at = take_timestamps(np.frombuffer(bytearray(body), np.uint8), reader.at, ts_ms)
        if reader.at < 0:
            raise BadBlock("the latent block's timestamps are cut or altered")
    latents = decode_block(bytes(reader.rest()), models).values
    if len(latents) != len(window_ends(rows, window)):
        raise BadBlock("a latent block with another count of latents than its rows need: altered")
    return LatentBlock(ts_ms, latents, decoder, rows, window, largest, largest * 2.0 ** (halves / -2.0))


def _codes_of(sizes: np.ndarray) -> np.ndarray:
    """Sizes rounded up to a quarter of an octave: 0 is 0, code c is 2**((c - 128) / 4), 255 infinite. (S,) uint8."""
    with np.errstate(divide="ignore"):
        codes = np.clip(np.ceil(4 * np.log2(sizes)) + 128, 1, UNTOLD)
    return np.where(sizes > 0, codes, 0).astype(np.uint8)


def _sizes_of(codes: np.ndarray) -> np.ndarray:
    sizes = np.where(codes > 0, 2.0 ** ((codes.astype(np.float64) - 128) / 4), 0.0)
    return np.where(codes == UNTOLD, np.inf, sizes)
