"""Identity of outputs and devices: the same on every host, in every process, after every restart."""

from hashlib import blake2b
from typing import Literal

Kind = Literal["score", "episode", "opened", "updated", "closed", "block", "features", "dead-letter"]
Lane = Literal["main", "late"]

LANES: tuple[Lane, Lane] = ("main", "late")


def output_id(topic: str, partition: int, kind: Kind, lane: Lane, offset: int) -> str:
    """32 hexadecimal digits that name one output for ever.

    offset : of the scored row, of a block's first row, of the row that opened an episode, of a dead letter's record.
    Never the row's ts or span (a device that returns after silence uses them again), nor the digest, nor a clock.
    """
    return blake2b(f"{topic}\0{partition}\0{kind}\0{lane}\0{offset}".encode(), digest_size=16).hexdigest()


def device_phase(device: str, span_ms: int) -> int:
    """Milliseconds in [0, span_ms) by which a device's spans are shifted, so that not all of them close at once."""
    return int.from_bytes(blake2b(device.encode(), digest_size=8).digest(), "big") % span_ms
