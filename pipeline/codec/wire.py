"""Bytes of the block format: varints, the checksum, and readers that never read past their end.

Little endian throughout. docs/format.md describes every byte; this file is its lowest layer. Functions that take
(out, at) write into a uint8 array at a position and return the next position; those that take (data, at) return
(value, next position), and a negative position once something was cut or not allowed.
"""

import struct

import numpy as np

from pipeline.codec.kernels import inner, kernel
from pipeline.errors import BadRecord


class BadBlock(BadRecord):
    """A block, frame or codec model that is cut, altered, of a newer format, or whose model is not at hand."""

    exit_code = 3


def varint(value: int) -> bytes:
    """LEB128 of a value >= 0: seven bits a byte, lowest first, the top bit says that more follow.

    >>> varint(300).hex()
    'ac02'
    """
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


@inner()
def put_varint(out: np.ndarray, at: int, value: int) -> int:
    """LEB128 of the 64 bits of an integer, read as unsigned."""
    left = np.uint64(value)
    while left >= np.uint64(0x80):
        out[at] = np.uint8(left & np.uint64(0x7F)) | np.uint8(0x80)
        left >>= np.uint64(7)
        at += 1
    out[at] = np.uint8(left)
    return at + 1


@inner()
def take_varint(data: np.ndarray, at: int) -> tuple[np.int64 | int, int]:
    """(value as int64, next position); position -1 where the data ends or ten bytes don't suffice."""
    if at < 0:
        return 0, -1
    value = np.uint64(0)
    for shift in range(0, 70, 7):
        if at >= len(data):
            return 0, -1
        byte = data[at]
        at += 1
        value |= np.uint64(byte & 0x7F) << np.uint64(shift)
        if byte < 0x80:
            return np.int64(value), at
    return 0, -1


@inner()
def zigzag(value: int) -> int:
    """0, -1, 1, -2, ... as 0, 1, 2, 3, ... in the 64 bits of an integer."""
    return (value << 1) ^ (value >> 63)


@inner()
def unzigzag(value: int) -> np.int64:
    """Inverse of `zigzag`."""
    return np.int64(np.uint64(value) >> np.uint64(1)) ^ -(value & 1)


class Reader:
    """Reads forward through bytes; whatever would pass the end raises BadBlock."""

    def __init__(self, data: bytes | memoryview, at: int = 0) -> None:
        self.data = memoryview(data)
        self.at = at

    def take(self, size: int) -> memoryview:
        """The next `size` bytes."""
        end = self.at + size
        if size < 0 or end > len(self.data):
            raise BadBlock(f"cut: {size} bytes wanted at {self.at} of {len(self.data)}")
        piece = self.data[self.at : end]
        self.at = end
        return piece

    def rest(self) -> memoryview:
        """Everything that is left."""
        return self.take(len(self.data) - self.at)

    def byte(self) -> int:
        """One byte as an integer."""
        return self.take(1)[0]

    def uint(self, size: int) -> int:
        """An unsigned integer of `size` bytes."""
        return int.from_bytes(self.take(size), "little")

    def float64(self) -> float:
        """One IEEE double."""
        return struct.unpack("<d", self.take(8))[0]

    def varint(self, most: int = (1 << 63) - 1) -> int:
        """A LEB128 integer of at most `most`; a larger one, or one longer than ten bytes, raises."""
        value = 0
        for shift in range(0, 70, 7):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value > most:
                    raise BadBlock(f"a count of {value} where at most {most} is allowed: altered, or not a block")
                return value
        raise BadBlock("a varint that never ends: altered, or not a block")

    def array(self, dtype: str, count: int) -> np.ndarray:
        """`count` numbers of a little-endian dtype, copied."""
        return np.frombuffer(self.take(count * np.dtype(dtype).itemsize), dtype).copy()


def _castagnoli_tables() -> np.ndarray:
    """Eight tables of 256: bytes eaten eight at a time (Kounavis and Berry 2005). (8, 256) uint32."""
    tables = np.zeros((8, 256), np.uint32)
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        tables[0, byte] = value
    for k in range(1, 8):
        tables[k] = (tables[k - 1] >> 8) ^ tables[0, tables[k - 1] & 0xFF]
    return tables


CRC_TABLES = _castagnoli_tables()


@kernel()
def crc32c_of(data: np.ndarray) -> np.uint32:
    """CRC-32C of a uint8 array."""
    tables = CRC_TABLES
    crc = np.uint32(0xFFFFFFFF)
    n = len(data)
    i = 0
    while i + 8 <= n:
        low = crc ^ (
            np.uint32(data[i]) | np.uint32(data[i + 1]) << np.uint32(8) | np.uint32(data[i + 2]) << np.uint32(16)
            | np.uint32(data[i + 3]) << np.uint32(24)
        )
        crc = (
            tables[7, low & 255] ^ tables[6, low >> 8 & 255] ^ tables[5, low >> 16 & 255] ^ tables[4, low >> 24]
            ^ tables[3, data[i + 4]] ^ tables[2, data[i + 5]] ^ tables[1, data[i + 6]] ^ tables[0, data[i + 7]]
        )
        i += 8
    while i < n:
        crc = np.uint32(crc >> 8) ^ tables[0, (crc ^ data[i]) & 255]
        i += 1
    return crc ^ np.uint32(0xFFFFFFFF)


def crc32c(data: bytes | memoryview) -> int:
    """CRC-32C (Castagnoli, RFC 3720 appendix B.4) of the bytes.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    return int(crc32c_of(np.frombuffer(bytearray(data), np.uint8)))
