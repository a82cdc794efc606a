"""A frame carries one or several blocks under one CRC-32C: what goes into a Kafka record or a file.

Layout: b"NB" | version 1 | varint count | count x varint length | the blocks | CRC-32C of all before, 4 bytes.
"""

from collections.abc import Sequence

from pipeline.codec.wire import BadBlock, Reader, crc32c, varint

MAGIC = b"NB"
VERSION = 1
MOST_BLOCKS = 1 << 20


def pack_frame(blocks: Sequence[bytes]) -> bytes:
    """One frame of the blocks, in order."""
    out = bytearray(MAGIC)
    out.append(VERSION)
    out += varint(len(blocks))
    for block in blocks:
        out += varint(len(block))
    out += b"".join(blocks)
    out += crc32c(bytes(out)).to_bytes(4, "little")
    return bytes(out)


def unpack_frame(data: bytes) -> list[bytes]:
    """The blocks of a frame, still encoded. Raises BadBlock where a single bit differs or a byte is missing."""
    if len(data) < 8 or data[:2] != MAGIC:
        raise BadBlock("not a frame of blocks, or cut: it begins with other bytes than NB")
    if data[2] != VERSION:
        raise BadBlock(f"frame version {data[2]}; this narrows reads {VERSION}: read it with a newer one")
    if crc32c(memoryview(data)[:-4]) != int.from_bytes(data[-4:], "little"):
        raise BadBlock("the frame's CRC-32C fails: cut or altered")
    reader = Reader(memoryview(data)[:-4], 3)
    lengths = [reader.varint(len(data)) for _ in range(reader.varint(MOST_BLOCKS))]
    blocks = [bytes(reader.take(length)) for length in lengths]
    if reader.rest():
        raise BadBlock("bytes are left over behind the last block: altered")
    return blocks
