"""The learned block as compiled kernels: integers, prediction, options, entropy coding. No float after quantising.

Invariant: the decoder repeats every integer of the encoder, from the same rules, in the same order; the coder's last
state is a checksum of those integers and of the bytes before them, so other rules or other bytes are refused.

Each channel follows its own rule (lattice or step), its plain step, or float bits (the *quantiser*, 0 to 2). Its
rows after the first are cut into stretches of 64 (the last takes up to 95); per stretch one *option* says how they
are coded:
  0 STILL    every row equals the one before         1 RUNS   runs of unchanged rows (flags, held values)
  2..7       generic table at a sent scale, predictor option - 2
  8..        the model's trained entries: (predictor, shift, table)
Predictors: 0 previous, 1 straight line, 2 damped line, 3 the model's median, 4 running average, 5 fixed-point
regression on earlier deltas of the active channels and on deltas of the same row of earlier channels. Each
prediction is clipped to 32 bits. A channel that left its own rule is coded with the tables that the format defines.
"""

import math
from typing import NamedTuple

import numpy as np

from pipeline.codec.coder import (
    COST_UNIT,
    ESCAPE,
    GENERIC_SCALES,
    LOW,
    REACH,
    Tables,
    escaped_cost,
    generic_of_scale,
    push_bits,
    push_symbol,
    push_values,
    put_ops,
    take_bits,
    take_symbol,
    take_values,
    value_cost,
)
from pipeline.codec.kernels import inner, kernel
from pipeline.codec.wire import crc32c_of, put_varint, take_varint

OWN, PLAIN, BITS = range(3)
STILL, RUNS, GENERIC, TRAINED = 0, 1, 2, 8
PREVIOUS, LINE, DAMPED, MEDIAN, AVERAGE, REGRESSION = range(6)
PREDICTORS = 6
STRETCH = 64
BLANK_OPTIONS, BLANK_GAPS, BLANK_SCALES, LATTICE_QUANTISERS, PLAIN_QUANTISERS = range(16, 21)
"""Tables that the format defines, after the sixteen generic ones."""
BLANK_FIRST, BLANK_FIRST_SHIFT, BLANK_RUN, BLANK_RUN_SHIFT = 14, 8, 10, 2
GAP_SYMBOLS = 24
GAP_END = 23
CLIP = 1 << 31
CANONICAL_NAN = 0x7FC00000


class Rules(NamedTuple):
    """A codec model in the form of the kernels. C channels, A active ones (those that the regression sees).

    code (C,) step codes; is_lattice (C,) 0 or 1, with lattice_step and lattice_offset (C,) float64
    median (C,); active (A,) channels, ascending; place (C,) index in active or -1
    lag_weight (A, lags * A) Q16, oldest lag first; now_weight (A, A) Q16, only earlier channels
    first_bias (C,) Q16, first_weight (C, C) Q16, first_table, first_shift (C,): the first row
    option_table, gap_table, run_table, run_shift (C,); scale_table, same_table; scale_base (C,)
    same_table is that of a stretch after one of option STILL, the next one that after any other
    entry_start (C + 1,), entry_predictor, entry_shift, entry_table (E,): trained entries, by channel
    step_ms: nominal step of the timestamps
    Tables 0..15 are the generic ones, 16..20 the format's own, the model's follow.
    """

    code: np.ndarray
    is_lattice: np.ndarray
    lattice_step: np.ndarray
    lattice_offset: np.ndarray
    median: np.ndarray
    active: np.ndarray
    place: np.ndarray
    lags: int
    lag_weight: np.ndarray
    now_weight: np.ndarray
    first_bias: np.ndarray
    first_weight: np.ndarray
    first_table: np.ndarray
    first_shift: np.ndarray
    option_table: np.ndarray
    gap_table: np.ndarray
    run_table: np.ndarray
    run_shift: np.ndarray
    scale_table: int
    same_table: int
    scale_base: np.ndarray
    entry_start: np.ndarray
    entry_predictor: np.ndarray
    entry_shift: np.ndarray
    entry_table: np.ndarray
    step_ms: int


(
    CODE, IS_LATTICE, MEDIAN_OF, PLACE, FIRST_BIAS, FIRST_TABLE, FIRST_SHIFT, OPTION_TABLE, GAP_TABLE, RUN_TABLE,
    RUN_SHIFT, SCALE_BASE, ENTRY_LOW, ENTRY_HIGH,
) = range(14)


class Packed(NamedTuple):
    """`Rules` in few arrays, since every array of an argument costs compile and call time.

    channel (C, 14) int64, columns CODE to ENTRY_HIGH; lattice (C, 2): step and offset; entry (E, 3): predictor, shift,
    table. The rest as in `Rules`.
    """

    channel: np.ndarray
    lattice: np.ndarray
    active: np.ndarray
    lag_weight: np.ndarray
    now_weight: np.ndarray
    first_weight: np.ndarray
    entry: np.ndarray
    lags: int
    scale_table: int
    same_table: int
    step_ms: int


def pack(rules: Rules) -> Packed:
    """The kernels' form of rules."""
    channel = (
        rules.code, rules.is_lattice, rules.median, rules.place, rules.first_bias, rules.first_table, rules.first_shift,
        rules.option_table, rules.gap_table, rules.run_table, rules.run_shift, rules.scale_base, rules.entry_start[:-1],
        rules.entry_start[1:],
    )
    return Packed(
        np.stack(channel, axis=1).astype(np.int64), np.stack([rules.lattice_step, rules.lattice_offset], axis=1),
        rules.active, rules.lag_weight, rules.now_weight, rules.first_weight,
        np.stack([rules.entry_predictor, rules.entry_shift, rules.entry_table], axis=1),
        rules.lags, rules.scale_table, rules.same_table, rules.step_ms,
    )


@inner()
def clip(value: int) -> int:
    """Into the range of a channel's integers."""
    return min(max(value, -CLIP), CLIP - 1)


@inner()
def tighten(code: int, halvings: int) -> int:
    """As `quantise.tighten`."""
    if code < 128:
        return max(code - 4 * halvings, 0)
    return code - (halvings << 7) if code >> 7 > halvings else 0


@inner()
def _step(code: int) -> float:
    return math.ldexp(128.0 + (code & 127), (code >> 7) - 263)


@inner()
def _to_integers(column: np.ndarray, code: int, step: float, offset: float, k: np.ndarray) -> None:
    """As `quantise.to_integers`; what has no integer gives CLIP. column : (n,) float32 -> k (n,) int64."""
    n = len(column)
    if code < 128:
        bits = column.view(np.int32)
        width = ((4 + code % 4) << (code // 4)) // 4
        for t in range(n):
            ordered = np.int64(bits[t] ^ ((bits[t] >> np.int32(31)) & np.int32(0x7FFFFFFF)))
            k[t] = (ordered + width // 2) // width
        return
    for t in range(n):
        scaled = np.rint((np.float64(column[t]) - offset) / step)
        k[t] = np.int64(scaled) if -CLIP <= scaled < CLIP else CLIP


@inner()
def _to_values(k: np.ndarray, code: int, step: float, offset: float, column: np.ndarray) -> None:
    """As `quantise.to_values`. k (n,) int64 -> column : (n,) float32."""
    n = len(k)
    if code < 128:
        bits = column.view(np.int32)
        width = ((4 + code % 4) << (code // 4)) // 4
        for t in range(n):
            ordered = np.int32(clip(k[t] * width))
            bits[t] = ordered ^ ((ordered >> np.int32(31)) & np.int32(0x7FFFFFFF))
        return
    for t in range(n):
        column[t] = np.float32(np.float64(k[t]) * step + offset)


@inner()
def _mark_bad(column: np.ndarray, rebuilt: np.ndarray, k: np.ndarray, bound: float, bad: np.ndarray) -> int:
    """Marks what the rebuilt values don't keep; how many of those are finite values. A bound < 0 is relative."""
    finite = 0
    bits, rebuilt_bits = column.view(np.uint32), rebuilt.view(np.uint32)
    for t in range(len(column)):
        exact = np.float64(column[t])
        if not np.isfinite(exact):
            bad[t] = 1
            continue
        error = abs(np.float64(rebuilt[t]) - exact)
        most = bound if bound >= 0 else -bound * abs(exact)
        kept = k[t] != CLIP and (bits[t] == rebuilt_bits[t] or (bound != 0 and error <= most))
        bad[t] = 0 if kept else 1
        finite += bad[t]
    return finite


@inner()
def _hold(k: np.ndarray, bad: np.ndarray, otherwise: int) -> None:
    """A bad slot takes the good integer before it, at the start the first good one, else `otherwise`."""
    last = otherwise
    for t in range(len(k)):
        if not bad[t]:
            last = k[t]
            break
    for t in range(len(k)):
        if bad[t]:
            k[t] = last
        last = k[t]


@inner()
def quantise_channel(
    column: np.ndarray, c: int, bound: float, rules: Packed, halvings: int, k: np.ndarray, bad: np.ndarray,
    rebuilt: np.ndarray,
) -> int:
    """Integers of one channel that keep its bound, exceptions marked. Returns the quantiser.

    A rule is taken where at most one in sixteen finite values (or one) must become an exception.
    """
    n = len(column)
    allowed = max(1, n // 16)
    code = rules.channel[c, CODE] if rules.channel[c, IS_LATTICE] else tighten(rules.channel[c, CODE], halvings)
    step = rules.lattice[c, 0] if rules.channel[c, IS_LATTICE] else (_step(code) if code >= 128 else 1.0)
    offset = rules.lattice[c, 1] if rules.channel[c, IS_LATTICE] else 0.0
    _to_integers(column, 128 if rules.channel[c, IS_LATTICE] else code, step, offset, k)
    _to_values(k, 128 if rules.channel[c, IS_LATTICE] else code, step, offset, rebuilt)
    if _mark_bad(column, rebuilt, k, bound, bad) <= allowed:
        _hold(k, bad, rules.channel[c, MEDIAN_OF] << (0 if rules.channel[c, IS_LATTICE] else halvings))
        return OWN
    code = tighten(rules.channel[c, CODE], halvings)
    if rules.channel[c, IS_LATTICE] and code >= 128:
        _to_integers(column, code, _step(code), 0.0, k)
        _to_values(k, code, _step(code), 0.0, rebuilt)
        if _mark_bad(column, rebuilt, k, bound, bad) <= allowed:
            _hold(k, bad, 0)
            return PLAIN
    _to_integers(column, 0, 1.0, 0.0, k)
    for t in range(n):
        bad[t] = 0 if np.isfinite(column[t]) else 1
    _hold(k, bad, 0)
    return BITS


@inner()
def put_exceptions(columns: np.ndarray, bad: np.ndarray, out: np.ndarray, at: int) -> int:
    """Runs of equal bits in channel-major order: varint count, then each: gap, length * 2 + is canonical NaN, [bits].

    columns, bad : (C, n).
    """
    flat, flags = columns.reshape(-1).view(np.uint32), bad.reshape(-1)
    runs = 0
    for i in range(len(flat)):
        if flags[i] and (i == 0 or not flags[i - 1] or flat[i] != flat[i - 1]):
            runs += 1
    at = put_varint(out, at, runs)
    i, end = 0, 0
    while i < len(flat):
        if not flags[i]:
            i += 1
            continue
        start = i
        while i < len(flat) and flags[i] and flat[i] == flat[start]:
            i += 1
        at = put_varint(out, at, start - end)
        canonical = flat[start] == np.uint32(CANONICAL_NAN)
        at = put_varint(out, at, (i - start) * 2 + canonical)
        if not canonical:
            for byte in range(4):
                out[at] = np.uint8(flat[start] >> np.uint32(8 * byte) & np.uint32(255))
                at += 1
        end = i
    return at


@kernel()
def take_exceptions(data: np.ndarray, at: int, columns: np.ndarray) -> int:
    """Writes the exceptions' bits over columns (C, n) float32; pass an empty one to skip. Next position or -1."""
    flat = columns.reshape(-1).view(np.uint32)
    most = 1 << 25
    runs, at = take_varint(data, at)
    if at < 0 or runs < 0 or runs > most:
        return -1
    end = 0
    for _ in range(runs):
        gap, at = take_varint(data, at)
        length, at = take_varint(data, at)
        if at < 0 or gap < 0 or length < 0 or gap > most or length > 2 * most:
            return -1
        bits = np.uint32(CANONICAL_NAN)
        if not length & 1:
            if at + 4 > len(data):
                return -1
            bits = np.uint32(0)
            for byte in range(4):
                bits |= np.uint32(data[at + byte]) << np.uint32(8 * byte)
            at += 4
        start, end = end + gap, end + gap + (length >> 1)
        if len(flat):
            if end > len(flat):
                return -1
            flat[start:end] = bits
    return at


@inner()
def _base(k: int, c: int, quantiser: int, rules: Packed, halvings: int) -> int:
    """A channel's integer in the units that the model was trained in; its median where the block left its own rule."""
    if quantiser != OWN:
        return rules.channel[c, MEDIAN_OF]
    return k if rules.channel[c, IS_LATTICE] else k >> halvings


@inner()
def first_prediction(k: np.ndarray, c: int, quantiser: np.ndarray, rules: Packed, halvings: int) -> int:
    """Prediction of channel c's first integer from the earlier channels of the first row. k : (C, n)."""
    total = rules.channel[c, FIRST_BIAS] + 32768
    for e in range(c):
        weight = np.int64(rules.first_weight[c, e])
        if weight != 0:
            total += weight * _base(k[e, 0], e, quantiser[e], rules, halvings)
    return clip((total >> 16) << (0 if rules.channel[c, IS_LATTICE] else halvings))


@inner()
def _deltas(k: np.ndarray, quantiser: np.ndarray, rules: Packed, halvings: int) -> np.ndarray:
    """Deltas of the active channels in the model's units, 0 at row 0. (A, n) int32."""
    n = k.shape[1]
    deltas = np.zeros((len(rules.active), n), np.int32)
    for a in range(len(rules.active)):
        c = rules.active[a]
        if quantiser[c] == OWN:
            shift = 0 if rules.channel[c, IS_LATTICE] else halvings
            for t in range(1, n):
                deltas[a, t] = np.int32(clip((k[c, t] >> shift) - (k[c, t - 1] >> shift)))
    return deltas


@inner()
def _regress(deltas: np.ndarray, a: int, rules: Packed, total: np.ndarray) -> None:
    """Weighted sums, Q16, for every row of active channel a. total : (n,) int64."""
    active, n = deltas.shape
    total[:] = 32768
    for lag in range(1, rules.lags + 1):
        for e in range(active):
            weight = np.int64(rules.lag_weight[a, (rules.lags - lag) * active + e])
            if weight != 0:
                for t in range(lag, n):
                    total[t] += weight * np.int64(deltas[e, t - lag])
    for e in range(a):
        weight = np.int64(rules.now_weight[a, e])
        if weight != 0:
            for t in range(1, n):
                total[t] += weight * np.int64(deltas[e, t])


@inner()
def average_rate(t: int) -> int:
    """Shift by which row t enters the running average: half, a quarter, then an eighth."""
    if t < 2:
        return 1
    return 2 if t < 6 else 3


@inner()
def residuals(
    k: np.ndarray, c: int, quantiser: int, rules: Packed, halvings: int, deltas: np.ndarray, r: np.ndarray,
) -> int:
    """Residuals of all predictors of a channel, rows 1 on; how many predictors there are. r : (PREDICTORS, n)."""
    n = k.shape[1]
    shift = 0 if rules.channel[c, IS_LATTICE] else halvings
    median = rules.channel[c, MEDIAN_OF] << shift
    average = k[c, 0] << 8
    for t in range(1, n):
        before = k[c, t - 1]
        change = before - k[c, t - 2] if t > 1 else 0
        r[PREVIOUS, t] = k[c, t] - before
        r[LINE, t] = k[c, t] - clip(before + change)
        r[DAMPED, t] = k[c, t] - clip(before - ((change + 1) >> 1))
        r[MEDIAN, t] = k[c, t] - clip(median)
        r[AVERAGE, t] = k[c, t] - ((average + 128) >> 8)
        average += ((k[c, t] << 8) - average) >> average_rate(t)
    if quantiser != OWN or rules.channel[c, PLACE] < 0:
        return REGRESSION
    total = np.empty(n, np.int64)
    _regress(deltas, rules.channel[c, PLACE], rules, total)
    for t in range(1, n):
        r[REGRESSION, t] = k[c, t] - clip(k[c, t - 1] + ((total[t] >> 16) << shift))
    return PREDICTORS


@kernel()
def scale_of(size: float) -> int:
    """The generic scale nearest to a mean size of residuals."""
    if size <= 0.05:
        return 0
    return min(int(np.rint(2.0 * np.log2(size * 20.0))), GENERIC_SCALES - 1)


@inner()
def coded_cost(cost: np.ndarray, shift: int, r: np.ndarray, low: int, high: int) -> np.int64:
    """Cost of residuals r[low:high] in 1/64 bit. cost : (256,), a row of `Tables.cost`."""
    total, escaped = np.int64(high - low) * shift * COST_UNIT, 0
    for t in range(low, high):
        symbol = (r[t] >> shift) + REACH
        within = 0 <= symbol < ESCAPE
        total += cost[symbol if within else ESCAPE]
        escaped += not within
    if escaped > 0:
        for t in range(low, high):
            if not 0 <= (r[t] >> shift) + REACH < ESCAPE:
                total += escaped_cost(r[t]) - shift * COST_UNIT
    return total


@kernel()
def gap_symbol(gap: int) -> int:
    """floor(log2(gap + 1))."""
    symbol = 0
    while (gap + 1) >> (symbol + 1):
        symbol += 1
    return symbol


class Manner(NamedTuple):
    """Tables and shifts by which one channel of a block is coded, after its quantiser."""

    first_table: int
    first_shift: int
    option_table: int
    gap_table: int
    run_table: int
    run_shift: int
    scale_table: int
    scale_base: int
    entry_low: int
    entry_high: int
    extra: int


@inner()
def manner_of(c: int, quantiser: int, rules: Packed, halvings: int) -> Manner:
    """The model's tables for a channel of its own rule, the format's for one that left it."""
    if quantiser != OWN:
        return Manner(
            BLANK_FIRST, BLANK_FIRST_SHIFT, BLANK_OPTIONS, BLANK_GAPS, BLANK_RUN, BLANK_RUN_SHIFT, BLANK_SCALES,
            0, 0, 0, 0,
        )
    extra = 0 if rules.channel[c, IS_LATTICE] else halvings
    own = rules.channel[c]
    return Manner(
        own[FIRST_TABLE], own[FIRST_SHIFT] + extra, own[OPTION_TABLE], own[GAP_TABLE], own[RUN_TABLE],
        own[RUN_SHIFT] + extra, rules.scale_table, own[SCALE_BASE], own[ENTRY_LOW], own[ENTRY_HIGH], extra,
    )


@inner()
def runs_cost(gaps: np.ndarray, values: np.ndarray, shift: int, r: np.ndarray, low: int, high: int) -> int:
    """Cost of option RUNS for deltas r[low:high], in 1/64 bit. gaps, values : (256,), rows of `Tables.cost`."""
    cost, last = gaps[GAP_END], low - 1
    for t in range(low, high):
        if r[t] != 0:
            symbol = gap_symbol(t - last - 1)
            cost += gaps[symbol] + symbol * COST_UNIT + value_cost(values, shift, r[t])
            last = t
    return cost


@inner()
def scale_symbol(scale: int, base: int) -> int:
    """Scales are coded as their distance from the channel's usual one, around the circle of 64."""
    return (scale - base) & (GENERIC_SCALES - 1)


@inner()
def _body_cost(
    r: np.ndarray, low: int, high: int, option: int, scale: int, manner: Manner, rules: Packed, tables: Tables,
) -> int:
    """Cost of the residuals of rows low to high under an option, without the option itself, in 1/64 bit."""
    cost = tables.cost
    if option == STILL:
        return 0
    if option == RUNS:
        return runs_cost(cost[manner.gap_table], cost[manner.run_table], manner.run_shift, r[PREVIOUS], low, high)
    if option < TRAINED:
        table, shift = generic_of_scale(scale)
        return coded_cost(cost[table], shift, r[option - GENERIC], low, high)
    entry = manner.entry_low + option - TRAINED
    shift = rules.entry[entry, 1] + manner.extra
    return coded_cost(cost[rules.entry[entry, 2]], shift, r[rules.entry[entry, 0]], low, high)


@inner()
def _best_generic(
    r: np.ndarray, low: int, high: int, predictors: int, manner: Manner, cost: np.ndarray,
) -> tuple[int, int, int]:
    """(option, scale, cost): the predictor of least residuals at the best of the scales around their mean size."""
    least, predictor = np.int64(-1), 0
    for p in range(predictors):
        size = np.int64(0)
        for t in range(low, high):
            size += abs(r[p, t])
        if least < 0 or size < least:
            least, predictor = size, p
    middle = scale_of(least / (high - low))
    best_scale, best_cost = 0, np.int64(1) << 60
    for scale in range(max(middle - 1, 0), min(middle + 1, GENERIC_SCALES - 1) + 1):
        table, shift = generic_of_scale(scale)
        now = np.int64(cost[manner.scale_table, scale_symbol(scale, manner.scale_base)])
        now += coded_cost(cost[table], shift, r[predictor], low, high)
        if now < best_cost:
            best_scale, best_cost = scale, now
    return GENERIC + predictor, best_scale, best_cost + cost[manner.option_table, GENERIC + predictor]


@inner()
def choose_option(
    r: np.ndarray, low: int, high: int, predictors: int, manner: Manner, rules: Packed, tables: Tables,
) -> tuple[int, int, int]:
    """(option, generic scale, cost in 1/64 bit): the cheapest way to code rows low to high. r : (PREDICTORS, n)."""
    cost = tables.cost
    options = cost[manner.option_table]
    changed = 0
    for t in range(low, high):
        changed += r[PREVIOUS, t] != 0
    if changed == 0:
        return STILL, 0, options[STILL]
    best, best_scale, best_cost = _best_generic(r, low, high, predictors, manner, cost)
    if 2 * changed < high - low:
        now = runs_cost(cost[manner.gap_table], cost[manner.run_table], manner.run_shift, r[PREVIOUS], low, high)
        if now + options[RUNS] < best_cost:
            best, best_scale, best_cost = RUNS, 0, now + options[RUNS]
    for entry in range(manner.entry_low, manner.entry_high):
        p, shift = rules.entry[entry, 0], rules.entry[entry, 1] + manner.extra
        if p < predictors:
            option = TRAINED + entry - manner.entry_low
            now = options[option] + coded_cost(cost[rules.entry[entry, 2]], shift, r[p], low, high)
            if now < best_cost:
                best, best_cost = option, now
    return best, best_scale, best_cost


@inner()
def stretches_of(n: int) -> int:
    """How many stretches the rows after the first are cut into; at least one where there are two rows."""
    return 0 if n < 2 else max(1, (n - 1 + STRETCH // 2) // STRETCH)


@inner()
def stretch_end(i: int, stretches: int, n: int) -> int:
    """The row behind stretch i."""
    return n if i == stretches - 1 else 1 + (i + 1) * STRETCH


@inner()
def _push_stretch(
    ops: np.ndarray, m: int, r: np.ndarray, low: int, high: int, option: int, scale: int, manner: Manner, rules: Packed,
    tables: Tables,
) -> int:
    """Queues the residuals of rows low to high. r : (PREDICTORS, n)."""
    if option == STILL:
        return m
    if option == RUNS:
        last = low - 1
        for t in range(low, high):
            if r[PREVIOUS, t] != 0:
                gap = t - last - 1
                symbol = gap_symbol(gap)
                m = push_symbol(ops, m, tables, manner.gap_table, symbol)
                m = push_bits(ops, m, gap + 1 - (1 << symbol), symbol)
                m = push_values(ops, m, tables, manner.run_table, manner.run_shift, r[PREVIOUS][t : t + 1])
                last = t
        return push_symbol(ops, m, tables, manner.gap_table, GAP_END)
    if option < TRAINED:
        table, shift = generic_of_scale(scale)
        return push_values(ops, m, tables, table, shift, r[option - GENERIC][low:high])
    entry = manner.entry_low + option - TRAINED
    shift = rules.entry[entry, 1] + manner.extra
    return push_values(ops, m, tables, rules.entry[entry, 2], shift, r[rules.entry[entry, 0]][low:high])


@inner()
def _push_channel(
    ops: np.ndarray, m: int, k: np.ndarray, c: int, quantiser: np.ndarray, rules: Packed, tables: Tables, halvings: int,
    deltas: np.ndarray, r: np.ndarray,
) -> int:
    """Queues one channel: quantiser, first integer, then per stretch: [same], option, [scale], residuals."""
    n = k.shape[1]
    predictors = residuals(k, c, quantiser[c], rules, halvings, deltas, r)
    manner = manner_of(c, quantiser[c], rules, halvings)
    quantisers = LATTICE_QUANTISERS if rules.channel[c, IS_LATTICE] else PLAIN_QUANTISERS
    m = push_symbol(ops, m, tables, quantisers, quantiser[c])
    r[PREVIOUS, 0] = k[c, 0] - (first_prediction(k, c, quantiser, rules, halvings) if quantiser[c] == OWN else 0)
    m = push_values(ops, m, tables, manner.first_table, manner.first_shift, r[PREVIOUS][:1])
    stretches, low, last, last_scale = stretches_of(n), 1, -1, 0
    for i in range(stretches):
        high = stretch_end(i, stretches, n)
        option, scale, cost = choose_option(r, low, high, predictors, manner, rules, tables)
        same_table = rules.same_table + (0 if last == STILL else 1)
        if i > 0:
            again = tables.cost[same_table, 1] + _body_cost(r, low, high, last, last_scale, manner, rules, tables)
            is_same = (last != STILL or option == STILL) and again <= cost + tables.cost[same_table, 0]
            m = push_symbol(ops, m, tables, same_table, 1 if is_same else 0)
            if is_same:
                option, scale = last, last_scale
        else:
            is_same = False
        if not is_same:
            m = push_symbol(ops, m, tables, manner.option_table, option)
            if GENERIC <= option < TRAINED:
                m = push_symbol(ops, m, tables, manner.scale_table, scale_symbol(scale, manner.scale_base))
        m = _push_stretch(ops, m, r, low, high, option, scale, manner, rules, tables)
        low, last, last_scale = high, option, scale
    return m


@inner()
def _mix(check: int, k: np.ndarray) -> np.int64:
    """Checksum of a channel's integers, folded into 32 bits. k : (n,)."""
    h = np.uint64(check)
    for t in range(len(k)):
        h = (h ^ np.uint64(k[t] & 0xFFFFFFFF)) * np.uint64(2654435761) & np.uint64(0xFFFFFFFF)
        h ^= h >> np.uint64(15)
    return np.int64(h)


@inner()
def put_body(
    k: np.ndarray, quantiser: np.ndarray, rules: Packed, tables: Tables, halvings: int, out: np.ndarray, at: int,
) -> int:
    """Codes the integers k (C, n) behind the at bytes already in out; the next position, -1 where they don't fit."""
    channels, n = k.shape
    ops = np.empty((channels * (5 * n + 8), 2), np.int32)
    r = np.zeros((PREDICTORS, n), np.int64)
    deltas = _deltas(k, quantiser, rules, halvings)
    check = np.int64(crc32c_of(out[:at]))
    m = 0
    for c in range(channels):
        m = _push_channel(ops, m, k, c, quantiser, rules, tables, halvings, deltas, r)
        check = _mix(check, k[c])
    return put_ops(ops, m, check >> 9, out, at, len(out))


@inner()
def _take_runs(data: np.ndarray, state: np.ndarray, manner: Manner, tables: Tables, r: np.ndarray) -> bool:
    """Deltas of a stretch; False where they are altered. r : (rows,) zeros."""
    t = -1
    while True:
        symbol = take_symbol(data, state, tables, manner.gap_table)
        if symbol == GAP_END:
            return True
        if symbol > 20 or state[1] > len(data):
            return False
        t += take_bits(data, state, symbol) + (1 << symbol)
        if t >= len(r):
            return False
        take_values(data, state, tables, manner.run_table, manner.run_shift, r[t : t + 1])


@inner()
def _take_channel(
    data: np.ndarray, state: np.ndarray, k: np.ndarray, c: int, quantiser: np.ndarray, rules: Packed, tables: Tables,
    halvings: int, r: np.ndarray, predictor: np.ndarray,
) -> bool:
    """Reads what `_push_channel` queued: the first integer into k, residuals into r (n,), predictors (stretches,)."""
    n = k.shape[1]
    quantisers = LATTICE_QUANTISERS if rules.channel[c, IS_LATTICE] else PLAIN_QUANTISERS
    symbol = take_symbol(data, state, tables, quantisers)
    quantiser[c] = symbol
    manner = manner_of(c, symbol, rules, halvings)
    take_values(data, state, tables, manner.first_table, manner.first_shift, r[:1])
    k[c, 0] = clip((first_prediction(k, c, quantiser, rules, halvings) if symbol == OWN else 0) + r[0])
    stretches, low, option, scale = len(predictor), 1, 0, 0
    for i in range(stretches):
        high = stretch_end(i, stretches, n)
        same_table = rules.same_table + (0 if option == STILL else 1)
        if i == 0 or take_symbol(data, state, tables, same_table) == 0:
            option = take_symbol(data, state, tables, manner.option_table)
            if GENERIC <= option < TRAINED:
                scale = take_symbol(data, state, tables, manner.scale_table)
                scale = (scale + manner.scale_base) & (GENERIC_SCALES - 1)
        if option == RUNS:
            if not _take_runs(data, state, manner, tables, r[low:high]):
                return False
        elif option != STILL:
            if option < TRAINED:
                predictor[i] = option - GENERIC
                table, shift = generic_of_scale(scale)
            else:
                entry = manner.entry_low + option - TRAINED
                predictor[i], table = rules.entry[entry, 0], rules.entry[entry, 2]
                shift = rules.entry[entry, 1] + manner.extra
            if predictor[i] == REGRESSION and (rules.channel[c, PLACE] < 0 or symbol != OWN):
                return False
            take_values(data, state, tables, table, shift, r[low:high])
        if state[1] > len(data):
            return False
        low = high
    return True


@inner()
def _rebuild(
    k: np.ndarray, r: np.ndarray, predictor: np.ndarray, quantiser: np.ndarray, rules: Packed, halvings: int,
) -> None:
    """Integers from their first row and the residuals, row by row. k, r : (C, n); predictor : (C, stretches)."""
    channels, n = k.shape
    active, lags = len(rules.active), rules.lags
    deltas = np.zeros((n + lags, active), np.int32)          # row t of the block is row t + lags here
    average = k[:, 0] << 8
    for t in range(1, n):
        past = deltas[t : t + lags].reshape(-1)              # oldest first
        i = min((t - 1) // STRETCH, predictor.shape[1] - 1)
        for c in range(channels):
            before = k[c, t - 1]
            change = before - k[c, t - 2] if t > 1 else 0
            shift = 0 if rules.channel[c, IS_LATTICE] else halvings
            p, a = predictor[c, i], rules.channel[c, PLACE]
            if p == PREVIOUS:
                guess = before
            elif p == LINE:
                guess = before + change
            elif p == DAMPED:
                guess = before - ((change + 1) >> 1)
            elif p == MEDIAN:
                guess = rules.channel[c, MEDIAN_OF] << shift
            elif p == AVERAGE:
                guess = (average[c] + 128) >> 8
            else:
                total = np.int64(32768)
                weights = rules.lag_weight[a]
                for j in range(len(past)):
                    total += np.int64(weights[j]) * np.int64(past[j])
                for e in range(a):
                    total += np.int64(rules.now_weight[a, e]) * np.int64(deltas[t + lags, e])
                guess = before + ((total >> 16) << shift)
            k[c, t] = clip(clip(guess) + r[c, t])
            average[c] += ((k[c, t] << 8) - average[c]) >> average_rate(t)
            if a >= 0 and quantiser[c] == OWN:
                deltas[t + lags, a] = np.int32(clip((k[c, t] >> shift) - (before >> shift)))


@kernel()
def take_body(
    data: np.ndarray, at: int, rules: Packed, tables: Tables, halvings: int, k: np.ndarray, quantiser: np.ndarray,
) -> bool:
    """Decodes what `put_body` wrote at data[at:] into k (C, n) and quantiser (C,). False where the block is altered."""
    channels, n = k.shape
    if at + 4 > len(data):
        return False
    state = np.zeros(2, np.int64)
    for byte in range(4):
        state[0] |= np.int64(data[at + byte]) << (8 * byte)
    state[1] = at + 4
    if state[0] < LOW or state[0] >= LOW << 8:
        return False
    r = np.zeros((channels, n), np.int64)
    predictor = np.zeros((channels, stretches_of(n)), np.int64)
    for c in range(channels):
        if not _take_channel(data, state, k, c, quantiser, rules, tables, halvings, r[c], predictor[c]):
            return False
    _rebuild(k, r, predictor, quantiser, rules, halvings)
    check = np.int64(crc32c_of(data[:at]))
    for c in range(channels):
        check = _mix(check, k[c])
    return state[1] == len(data) and state[0] == LOW + (check >> 9)


@kernel()
def to_columns(k: np.ndarray, quantiser: np.ndarray, rules: Packed, halvings: int, columns: np.ndarray) -> None:
    """Integers (C, n) to float32 values (C, n)."""
    for c in range(k.shape[0]):
        if quantiser[c] == BITS:
            _to_values(k[c], 0, 1.0, 0.0, columns[c])
        elif quantiser[c] == OWN and rules.channel[c, IS_LATTICE]:
            _to_values(k[c], 128, rules.lattice[c, 0], rules.lattice[c, 1], columns[c])
        else:
            code = tighten(rules.channel[c, CODE], halvings)
            _to_values(k[c], code, _step(code) if code >= 128 else 1.0, 0.0, columns[c])
