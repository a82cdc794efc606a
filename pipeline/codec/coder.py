"""Entropy coding in integers: frequency tables that sum to 2**15, and a range coder (rANS) that reads and writes bytes.

rANS as in Duda 2013 and Giesen's public `rans_byte`: state x in [2**23, 2**31); the encoder runs backwards, so that the
decoder reads forwards. Ours: the encoder's first state is 2**23 plus 23 bits of a checksum of the decoded content; the
decoder ends there or the block is refused. The check costs nothing: those bits would be zeros otherwise.

A *value* is coded as symbol (v >> shift) + 127 in a table of 256, then its `shift` low bits as they are; symbol 255 is
the escape, followed by the bit length of zigzag(v) in 6 raw bits and by its bits below the highest one. Both ends work
in integers only.
"""

from typing import NamedTuple

import numpy as np

from pipeline.codec.kernels import inner
from pipeline.codec.wire import zigzag

PRECISION = 15
TOTAL = 1 << PRECISION
LOW = 1 << 23
REACH = 127
"""Symbols 0..254 are -127..127."""
ESCAPE = 255
LENGTH_BITS = 6
COST_UNIT = 64
"""The encoder compares costs in 1/64 bit, as integers, so that its choice is the same everywhere."""

_THETA = (
    1637, 2314, 3269, 4611, 6489, 9090, 12621, 17252, 22989, 29540, 36323, 42688, 48181, 52635, 56091, 58694,
)
"""Ratios of neighbours, in 1/65536, of the generic tables: two-sided geometric, mean size 0.05 * 2**(i/2)."""
GENERIC_TABLES = len(_THETA)
GENERIC_SCALES = 64


def normalise(weights: np.ndarray, keep: np.ndarray | None = None) -> np.ndarray:
    """Integer frequencies that sum to 2**15. (k,) >= 0 -> (k,) int32.

    Each frequency is floor(weight * 2**15 / sum); those marked in `keep` (default: the last one, an escape) get at
    least 1. What is left over goes to (or is taken from) the largest frequency, the first of equals.
    """
    exact = [int(weight) for weight in weights]
    total = sum(exact)
    frequencies = [weight * TOTAL // total for weight in exact]
    kept = [len(exact) - 1] if keep is None else np.flatnonzero(keep).tolist()
    for symbol in kept:
        frequencies[symbol] = max(frequencies[symbol], 1)
    largest = max(range(len(exact)), key=lambda symbol: frequencies[symbol])
    frequencies[largest] += TOTAL - sum(frequencies)
    return np.array(frequencies, np.int32)


def generic_table(i: int) -> np.ndarray:
    """Frequencies of generic table i (0..15): weight of |v| is w[0] = 2**30, w[j] = w[j-1] * theta >> 16; escape 2**15.

    (256,) int32.
    """
    weights = [1 << 30]
    for _ in range(REACH):
        weights.append(weights[-1] * _THETA[i] >> 16)
    return normalise(np.array([*weights[:0:-1], *weights, 1 << 15], dtype=object))


@inner()
def generic_of_scale(scale: int) -> tuple[int, int]:
    """(table, shift) of a generic scale 0..63: two to an octave."""
    if scale < 16:
        return scale, 0
    return 14 + (scale & 1), (scale - 14) >> 1


class Tables(NamedTuple):
    """Frequency tables in the forms that the kernels need; rows are tables, columns symbols, absent symbols have 0.

    frequency (k, 256) int32, start (k, 257) int32, coarse (k, 256) uint8 (symbol of slot i * 128),
    cost (k, 256) int32 in 1/64 bit; a symbol of frequency 0 costs its escape.
    """

    frequency: np.ndarray
    start: np.ndarray
    coarse: np.ndarray
    cost: np.ndarray


def stack(tables: list[np.ndarray]) -> Tables:
    """Kernels' forms of frequency tables of up to 256 symbols each."""
    frequency = np.zeros((len(tables), 256), np.int32)
    for row, table in zip(frequency, tables, strict=True):
        row[: len(table)] = table
    start = np.zeros((len(tables), 257), np.int32)
    np.cumsum(frequency, axis=1, out=start[:, 1:])
    slots = np.arange(256) * (TOTAL // 256)
    coarse = np.stack([np.searchsorted(row[1:], slots, side="right") for row in start]).astype(np.uint8)
    bits = PRECISION - np.log2(np.maximum(frequency, 1))
    cost = np.rint(bits * COST_UNIT).astype(np.int32)
    escape = cost[:, ESCAPE] + (LENGTH_BITS + 7) * COST_UNIT
    cost = np.where(frequency > 0, cost, escape[:, None]).astype(np.int32)
    return Tables(frequency, start, coarse, cost)


@inner()
def push_symbol(ops: np.ndarray, m: int, tables: Tables, table: int, symbol: int) -> int:
    """Queues one symbol. ops : (most, 2) int32 of start and frequency; m : how many are queued."""
    ops[m, 0] = tables.start[table, symbol]
    ops[m, 1] = tables.frequency[table, symbol]
    return m + 1


@inner()
def push_bits(ops: np.ndarray, m: int, value: int, bits: int) -> int:
    """Queues the low `bits` bits of a value as they are, fifteen at a time, lowest first."""
    while bits > 0:
        part = min(bits, 15)
        ops[m, 0] = (value & ((1 << part) - 1)) << (15 - part)
        ops[m, 1] = 1 << (15 - part)
        m += 1
        value >>= part
        bits -= part
    return m


@inner()
def bit_length(value: int) -> int:
    """Bits of a value >= 0; 0 has none."""
    bits = 0
    while value >> bits:
        bits += 1
    return bits


@inner()
def push_escaped(ops: np.ndarray, m: int, value: int) -> int:
    """Queues what follows an escape. |value| < 2**40."""
    coded = zigzag(value)
    bits = bit_length(coded)
    m = push_bits(ops, m, bits, LENGTH_BITS)
    return push_bits(ops, m, coded, bits - 1)


@inner()
def escaped_cost(value: int) -> int:
    """What follows an escape costs this, in 1/64 bit."""
    return (LENGTH_BITS + max(bit_length(zigzag(value)) - 1, 0)) * COST_UNIT


@inner()
def take_escaped(data: np.ndarray, state: np.ndarray) -> int:
    """The value behind an escape."""
    bits = min(take_bits(data, state, LENGTH_BITS), 40)
    coded = take_bits(data, state, bits - 1) | np.int64(1) << (bits - 1) if bits > 0 else 0
    return (coded >> 1) ^ -(coded & 1)


@inner()
def push_values(ops: np.ndarray, m: int, tables: Tables, table: int, shift: int, values: np.ndarray) -> int:
    """Queues values: symbol and low bits, or escape and raw bits. |value| < 2**40."""
    start, frequency = tables.start[table], tables.frequency[table]
    low = (1 << shift) - 1
    for value in values:
        high = value >> shift
        if -REACH <= high <= REACH and frequency[high + REACH] > 0:
            ops[m, 0], ops[m, 1] = start[high + REACH], frequency[high + REACH]
            m += 1
            if shift > 15:
                m = push_bits(ops, m, value, shift)
            elif shift > 0:
                ops[m, 0], ops[m, 1] = (value & low) << (15 - shift), 1 << (15 - shift)
                m += 1
        else:
            ops[m, 0], ops[m, 1] = start[ESCAPE], frequency[ESCAPE]
            m = push_escaped(ops, m + 1, value)
    return m


@inner()
def value_cost(cost: np.ndarray, shift: int, value: int) -> int:
    """What `push_values` costs for one value, in 1/64 bit. cost : (256,), a row of `Tables.cost`."""
    high = value >> shift
    if -REACH <= high <= REACH:
        return cost[high + REACH] + shift * COST_UNIT
    return cost[ESCAPE] + escaped_cost(value)


@inner()
def put_ops(ops: np.ndarray, m: int, check: int, out: np.ndarray, at: int, end: int) -> int:
    """Codes the m queued operations into out[at:end], last one first; the next position, -1 where they don't fit.

    check : 23 bits that the decoder must end with.
    """
    x = np.uint32(LOW) + np.uint32(check)
    write = end
    for i in range(m - 1, -1, -1):
        frequency = np.uint32(ops[i, 1])
        top = np.uint32(((LOW >> PRECISION) << 8) * frequency)
        while x >= top:
            write -= 1
            if write < at + 4:
                return -1
            out[write] = np.uint8(x & np.uint32(255))
            x >>= np.uint32(8)
        x = ((x // frequency) << np.uint32(PRECISION)) + x % frequency + np.uint32(ops[i, 0])
    for i in range(4):
        out[at + i] = np.uint8(x >> np.uint32(8 * i) & np.uint32(255))
    size = end - write
    for i in range(size):
        out[at + 4 + i] = out[write + i]
    return at + 4 + size


@inner()
def take_symbol(data: np.ndarray, state: np.ndarray, tables: Tables, table: int) -> int:
    """The next symbol. state : (2,) int64 of coder state and position; past the data's end zeros are read."""
    x, at = state[0], state[1]
    slot = x & (TOTAL - 1)
    symbol = int(tables.coarse[table, slot >> (PRECISION - 8)])
    while tables.start[table, symbol + 1] <= slot:
        symbol += 1
    x = tables.frequency[table, symbol] * (x >> PRECISION) + slot - tables.start[table, symbol]
    while x < LOW:
        x = x << 8 | (data[at] if at < len(data) else 0)
        at += 1
    state[0], state[1] = x, at
    return symbol


@inner()
def take_bits(data: np.ndarray, state: np.ndarray, bits: int) -> int:
    """The next `bits` raw bits."""
    value, done = 0, 0
    x, at = state[0], state[1]
    while done < bits:
        part = min(bits - done, 15)
        slot = x & (TOTAL - 1)
        value |= (slot >> (15 - part)) << done
        x = (x >> PRECISION << (15 - part)) + (slot & ((1 << (15 - part)) - 1))
        while x < LOW:
            x = x << 8 | (data[at] if at < len(data) else 0)
            at += 1
        done += part
    state[0], state[1] = x, at
    return value


@inner()
def take_values(
    data: np.ndarray, state: np.ndarray, tables: Tables, table: int, shift: int, values: np.ndarray,
) -> None:
    """Fills `values` with the next ones."""
    start, frequency, coarse = tables.start[table], tables.frequency[table], tables.coarse[table]
    for i in range(len(values)):
        x, at = state[0], state[1]
        slot = x & (TOTAL - 1)
        symbol = int(coarse[slot >> (PRECISION - 8)])
        while start[symbol + 1] <= slot:
            symbol += 1
        x = frequency[symbol] * (x >> PRECISION) + slot - start[symbol]
        while x < LOW:
            x = x << 8 | (data[at] if at < len(data) else 0)
            at += 1
        state[0], state[1] = x, at
        if symbol == ESCAPE:
            values[i] = take_escaped(data, state)
        elif shift == 0:
            values[i] = symbol - REACH
        else:
            values[i] = ((symbol - REACH) << shift) + take_bits(data, state, shift)
