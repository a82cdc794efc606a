"""Timestamps of a block: int64 milliseconds, exactly. Arithmetic wraps at 64 bits, the same way at both ends.

Layout: varint zigzag(first) | form | payload.
  form 0, 1 : varint zigzag(step). The rows follow each other by `step` but for listed ones (form 1): varint count, then
              per listed row varint(gap), varint zigzag(extra): `gap` plain rows lie between, its delta is step + extra.
  form 2 + 3 * k + order, k in 0..40: varint zigzag(step), varint byte count, bits (highest first): for each row but the
              first a Rice code with k low bits of zigzag(residual), of order
              0 (distance from the line first + t * step), 1 (delta - step) or 2 (delta of delta):
              value >> k ones, a zero, k low bits; 40 ones are an escape, 64 raw bits follow.
A block whose rows follow each other by the model's own step has its first timestamp only (a flag of the block says so).
"""

import numpy as np

from pipeline.codec.kernels import inner, kernel
from pipeline.codec.wire import put_varint, take_varint, unzigzag, zigzag

LONGEST = 15
"""No timestamp takes more than this many bytes on average (104 bits escaped, and the lead-in)."""


@inner()
def _residual(ts_ms: np.ndarray, step: int, order: int, t: int) -> int:
    if order == 0:
        return ts_ms[t] - ts_ms[0] - t * step
    if order == 1 or t == 1:
        return ts_ms[t] - ts_ms[t - 1] - step
    return ts_ms[t] - 2 * ts_ms[t - 1] + ts_ms[t - 2]


@inner()
def _rice_bits(ts_ms: np.ndarray, step: int, order: int, k: int) -> np.int64:
    total = np.int64(0)
    for t in range(1, len(ts_ms)):
        high = np.uint64(zigzag(_residual(ts_ms, step, order, t))) >> np.uint64(k)
        total += 104 if high >= np.uint64(40) else np.int64(high) + 1 + k
    return total


@inner()
def _put_rice(out: np.ndarray, at: int, ts_ms: np.ndarray, step: int, order: int, k: int) -> int:
    size = (_rice_bits(ts_ms, step, order, k) + 7) // 8
    at = put_varint(out, at, size)
    out[at : at + size] = 0
    bit = 0
    for t in range(1, len(ts_ms)):
        value = np.uint64(zigzag(_residual(ts_ms, step, order, t)))
        high = value >> np.uint64(k)
        escaped = high >= np.uint64(40)
        ones = 40 if escaped else np.int64(high)
        for _ in range(ones):
            out[at + (bit >> 3)] |= np.uint8(128 >> (bit & 7))
            bit += 1
        if not escaped:
            bit += 1
        for low in range(63 if escaped else k - 1, -1, -1):
            if value >> np.uint64(low) & np.uint64(1):
                out[at + (bit >> 3)] |= np.uint8(128 >> (bit & 7))
            bit += 1
    return at + size


@inner()
def _median_delta(ts_ms: np.ndarray) -> int:
    """Median of at most 63 deltas, evenly spread (numba's own sort takes seconds to compile)."""
    n = len(ts_ms) - 1
    count = min(n, 63)
    deltas = np.empty(count, np.int64)
    for i in range(count):
        t = 1 + i * n // count
        value, at = ts_ms[t] - ts_ms[t - 1], i
        while at > 0 and deltas[at - 1] > value:
            deltas[at] = deltas[at - 1]
            at -= 1
        deltas[at] = value
    return deltas[count // 2]


@kernel()
def put_timestamps(out: np.ndarray, at: int, ts_ms: np.ndarray) -> int:
    """Writes the timestamps of a block, any order, n >= 1."""
    n = len(ts_ms)
    at = put_varint(out, at, zigzag(ts_ms[0]))
    step = ts_ms[1] - ts_ms[0] if n > 1 else 0
    regular = True
    for t in range(2, n):
        if ts_ms[t] - ts_ms[t - 1] != step:
            regular = False
            break
    if regular:
        out[at] = 0
        return put_varint(out, at + 1, zigzag(step))
    step = _median_delta(ts_ms)
    listed, mean = 0, 0.0
    for t in range(1, n):
        extra = ts_ms[t] - ts_ms[t - 1] - step
        if extra != 0:
            listed += 1
            mean += min(abs(float(extra)), 1e12)
    # A listed row costs about its gap's byte and its extra's bytes; a Rice code pays for every row.
    best_order, best_k, best_bits = -1, 0, 8 + listed * (8 + 7 * (1 + np.int64(np.log2(2 * mean / listed + 1) / 7)))
    for order in range(3):
        mean = 0.0
        for t in range(1, n):
            mean += min(abs(float(_residual(ts_ms, step, order, t))), 1e12)
        guess = int(np.log2(mean / (n - 1) + 1.0))
        for k in range(max(guess - 1, 0), min(guess + 2, 40) + 1):
            bits = 16 + _rice_bits(ts_ms, step, order, k)
            if bits < best_bits:
                best_order, best_k, best_bits = order, k, bits
    out[at] = 1 if best_order < 0 else 2 + 3 * best_k + best_order
    at = put_varint(out, at + 1, zigzag(step))
    if best_order >= 0:
        return _put_rice(out, at, ts_ms, step, best_order, best_k)
    at = put_varint(out, at, listed)
    last = 0
    for t in range(1, n):
        extra = ts_ms[t] - ts_ms[t - 1] - step
        if extra != 0:
            at = put_varint(out, at, t - last - 1)
            at = put_varint(out, at, zigzag(extra))
            last = t
    return at


@inner()
def _take_rice(data: np.ndarray, at: int, k: int, out: np.ndarray) -> int:
    """Residuals 1.. of `out`; the next position, or -1 where the bits end early."""
    size, at = take_varint(data, at)
    if at < 0 or size < 0 or size > len(data) - at:
        return -1
    bit, end = 0, size * 8
    for t in range(1, len(out)):
        ones = 0
        while ones < 40:
            if bit >= end:
                return -1
            is_one = data[at + (bit >> 3)] >> (7 - (bit & 7)) & 1
            bit += 1
            if not is_one:
                break
            ones += 1
        low_bits = 64 if ones == 40 else k
        if bit + low_bits > end:
            return -1
        value = np.uint64(0) if ones == 40 else np.uint64(ones)
        for _ in range(low_bits):
            value = value << np.uint64(1) | np.uint64(data[at + (bit >> 3)] >> (7 - (bit & 7)) & 1)
            bit += 1
        out[t] = unzigzag(np.int64(value))
    return at + size


@kernel()
def take_timestamps(data: np.ndarray, at: int, ts_ms: np.ndarray) -> int:
    """Fills ts_ms with what `put_timestamps` wrote. The next position, or -1 where the data is cut or not allowed."""
    n = len(ts_ms)
    first, at = take_varint(data, at)
    if at < 0 or at >= len(data):
        return -1
    form = np.int64(data[at])
    raw, at = take_varint(data, at + 1)
    step = unzigzag(raw)
    ts_ms[0] = unzigzag(first)
    if at < 0:
        return -1
    if form >= 2:
        k, order = (form - 2) // 3, (form - 2) % 3
        if k > 40:
            return -1
        at = _take_rice(data, at, k, ts_ms)
        if at < 0:
            return -1
        for t in range(1, n):
            if order == 0:
                ts_ms[t] += ts_ms[0] + t * step
            elif order == 1 or t == 1:
                ts_ms[t] += ts_ms[t - 1] + step
            else:
                ts_ms[t] += 2 * ts_ms[t - 1] - ts_ms[t - 2]
        return at
    for t in range(1, n):
        ts_ms[t] = step
    if form == 1:
        listed, at = take_varint(data, at)
        if listed < 0 or listed > n:
            return -1
        row = 0
        for _ in range(listed):
            gap, at = take_varint(data, at)
            extra, at = take_varint(data, at)
            if at < 0 or gap < 0 or gap >= n - 1 - row:
                return -1
            row += gap + 1
            ts_ms[row] += unzigzag(extra)
    for t in range(1, n):
        ts_ms[t] += ts_ms[t - 1]
    return at
