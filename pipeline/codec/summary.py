"""Count, least, largest and mean of each channel of a block: a day's chart needs no block decoded.

Layout: varint C, then for each channel varint count of finite values and, where there are any, float32 least, largest,
mean. Of the values as they went in: the block keeps them within its bounds.
"""

from typing import NamedTuple

import numpy as np

from pipeline.codec.wire import Reader, varint


class Summary(NamedTuple):
    """counts (C,) int64 of finite values; low, high, mean (C,) float32, NaN where there are none."""

    counts: np.ndarray
    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray


def summarise(values: np.ndarray) -> Summary:
    """Of (n, C) float32.

    >>> summarise(np.array([[1, 5], [3, np.nan]], np.float32)).mean.tolist()
    [2.0, 5.0]
    """
    finite = np.isfinite(values)
    count = finite.sum(axis=0)
    none = np.where(count > 0, np.float32(0), np.float32(np.nan))
    exact = np.where(finite, values, 0).astype(np.float64)
    return Summary(
        count, np.where(finite, values, np.float32(np.inf)).min(axis=0) + none,
        np.where(finite, values, np.float32(-np.inf)).max(axis=0) + none,
        (exact.sum(axis=0) / np.maximum(count, 1)).astype(np.float32) + none,
    )


def put_summary(summary: Summary) -> bytes:
    """Bytes of a summary."""
    out = bytearray(varint(len(summary.counts)))
    for c, count in enumerate(summary.counts.tolist()):
        out += varint(count)
        if count:
            out += np.array([summary.low[c], summary.high[c], summary.mean[c]], "<f4").tobytes()
    return bytes(out)


def take_summary(reader: Reader) -> Summary:
    """Reads `put_summary`."""
    channels = reader.varint(1 << 16)
    count, figures = np.zeros(channels, np.int64), np.full((3, channels), np.nan, np.float32)
    for c in range(channels):
        count[c] = reader.varint()
        if count[c]:
            figures[:, c] = reader.array("<f4", 3)
    return Summary(count, figures[0], figures[1], figures[2])
