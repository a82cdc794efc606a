"""Identity of outputs and devices: the same on every host, in every process, after every restart."""

from hashlib import blake2b
from typing import Literal

Kind = Literal[
    "score", "episode", "opened", "updated", "closed", "block", "features", "dead-letter",
    "silence", "silence opened", "silence closed",    # an episode of silence stands for the device's last row
]
Lane = Literal["main", "late"]

LANES: tuple[Lane, Lane] = ("main", "late")

# A row's name is its record's offset; where a record holds many rows, `offset << INDEX_BITS | index`, so that names are
# unique and in the order of the log.
INDEX_BITS = 18
MOST_ROWS = 1 << INDEX_BITS


def output_id(topic: str, partition: int, kind: Kind, lane: Lane, offset: int, index: int = 0) -> str:
    """32 hexadecimal digits that name one output for ever.

    offset : of the scored row, of a block's first row, of the row that opened an episode, of a dead letter's record.
    index  : of that row in its record.
    Never the row's ts or span (a device that returns after silence uses them again), nor the digest, nor a clock.
    """
    place = f"{offset}\0{index}" if index else f"{offset}"
    return blake2b(f"{topic}\0{partition}\0{kind}\0{lane}\0{place}".encode(), digest_size=16).hexdigest()


def device_phase(device: str, span_ms: int) -> int:
    """Milliseconds in [0, span_ms) by which a device's spans are shifted, so that not all of them close at once."""
    return int.from_bytes(blake2b(device.encode(), digest_size=8).digest(), "big") % span_ms
