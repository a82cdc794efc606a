"""Learns a codec model from recorded rows, with numpy alone, in seconds.

Steps: a lattice or step per channel; a regression of each channel's delta on the last rows' deltas and on those of the
earlier channels of the same row (least absolute error by reweighted least squares); tables of what then is left,
several per channel since a sensor has calm and busy stretches; and how often each way of coding is chosen.
Float arithmetic stands here alone: what comes out are integers.
"""

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.codec.coder import (
    ESCAPE,
    GENERIC_SCALES,
    GENERIC_TABLES,
    LENGTH_BITS,
    PRECISION,
    REACH,
    Tables,
    normalise,
    stack,
)
from pipeline.codec.kernels import kernel
from pipeline.codec.lattice import find_lattice
from pipeline.codec.learned import (
    BLANK_GAPS,
    BLANK_RUN,
    BLANK_RUN_SHIFT,
    CLIP,
    GAP_END,
    GAP_SYMBOLS,
    GENERIC,
    PLACE,
    PREDICTORS,
    REGRESSION,
    RUNS,
    STILL,
    TRAINED,
    Packed,
    Rules,
    _deltas,
    choose_option,
    gap_symbol,
    manner_of,
    pack,
    residuals,
    scale_of,
)
from pipeline.codec.model import CodecModel, format_tables, table_bytes
from pipeline.codec.quantise import code_of_bound, code_of_relative, out_of_bound, to_integers, to_values

MOST_ROWS = 20_000
MOST_ACTIVE = 24
MOST_FIT_ROWS = 8192
MOST_WEIGHT = (1 << 22) - 1
CLUSTERS = 4
MOST_TRAINED = 8
LEAST_SHARE = 0.002
"""A trained entry must save this share of its channel's bits."""
ZLIB_BYTES = 8
"""What zlib adds to bytes that are packed alone."""
_OPTION_WEIGHTS = np.array([16, 8, 24, 8, 4, 4, 4, 8])


def train_codec(
    values_by_device: Sequence[np.ndarray], bounds: np.ndarray, *, step_ms: int = 0, block_rows: int = 64,
    most_rows: int = MOST_ROWS, served_rows: int | None = None,
) -> CodecModel:
    """A codec model of a stream.

    values_by_device : (N_d, C) float32 each, rows in time order, NaN where missing.
    bounds           : (C,) float64 as in `encode_block`.
    step_ms          : nominal time between rows, so that regular timestamps cost one number; 0 where there is none.
    most_rows        : of all devices together; the newest of each are taken.
    served_rows      : rows that the model is for, where they are known (a file's): what saves fewer bits on them than
                       its own bytes is left out. None: a stream without end.
    """
    segments = _newest([np.asarray(values, np.float32) for values in values_by_device], most_rows)
    bounds = np.asarray(bounds, np.float64)
    if not segments:
        raise ValueError("no device has two rows: a codec model needs some data")
    steps = _Steps.of(segments, bounds)
    integers = [steps.integers(segment) for segment in segments]              # (C, N_d) int64 each
    blocks = [
        np.ascontiguousarray(k[:, i : i + block_rows])
        for k in integers for i in range(0, max(k.shape[1] - block_rows, 0) + 1, max(block_rows // 2, 1))
        if k.shape[1] >= 2
    ]
    learned = _with_entries(_draft(steps, integers, step_ms), blocks, bounds, served_rows)
    if served_rows is None:
        return learned.model
    without = _with_entries(_draft(steps, integers, step_ms, most_active=0), blocks, bounds, served_rows)
    return min((learned, without), key=lambda one: 8 * len(one.model.to_bytes()) + one.bits * served_rows).model


def _newest(segments: list[np.ndarray], most_rows: int) -> list[np.ndarray]:
    segments = [segment for segment in segments if len(segment) >= 2]
    total = sum(map(len, segments))
    if total <= most_rows:
        return segments
    return [segment[-max(int(len(segment) * most_rows / total), 2):] for segment in segments]


class _Steps(NamedTuple):
    """How each channel becomes integers. code (C,) int64; lattice (C, 3): is one, pitch, offset; bounds (C,)."""

    code: np.ndarray
    lattice: np.ndarray
    bounds: np.ndarray

    @classmethod
    def of(cls, segments: list[np.ndarray], bounds: np.ndarray) -> "_Steps":
        rows = np.concatenate(segments)
        code, lattice = np.zeros(len(bounds), np.int64), np.tile([0.0, 1.0, 0.0], (len(bounds), 1))
        for c, bound in enumerate(bounds.tolist()):
            finite = rows[np.isfinite(rows[:, c]), c]
            if bound < 0:
                code[c] = code_of_relative(-bound)
                continue
            # Twice the largest training value: a stream grows, and half a bit of the float is cheap.
            code[c] = code_of_bound(bound, 2.0 * float(np.abs(finite).max(initial=0.0)))
            found = find_lattice(finite, bound if code[c] else 0.0)
            if found is not None:
                lattice[c] = 1.0, *found
        return cls(code, lattice, bounds)

    def integers(self, segment: np.ndarray) -> np.ndarray:
        """(N, C) float32 -> (C, N) int64; what a rule can't keep holds the value before it."""
        k = np.zeros((segment.shape[1], len(segment)), np.int64)
        for c, (is_lattice, pitch, offset) in enumerate(self.lattice.tolist()):
            column = np.ascontiguousarray(segment[:, c])
            if is_lattice:
                with np.errstate(invalid="ignore", over="ignore"):
                    scaled = np.rint((column.astype(np.float64) - offset) / pitch)
                    k[c] = np.where(np.abs(scaled) < CLIP, scaled, 0).astype(np.int64)
                    rebuilt = (k[c] * pitch + offset).astype(np.float32)
            else:
                k[c] = to_integers(column, int(self.code[c]))
                rebuilt = to_values(k[c], int(self.code[c]))
            bound = float(self.bounds[c])
            bad = out_of_bound(column, rebuilt, abs(bound), relative=bound < 0)
            good = np.flatnonzero(~bad)
            if len(good):
                k[c] = k[c][good[np.maximum(np.searchsorted(good, np.arange(len(column)), side="right") - 1, 0)]]
        return k


def _draft(
    steps: _Steps, integers: list[np.ndarray], step_ms: int, most_active: int = MOST_ACTIVE,
) -> tuple[Rules, list[np.ndarray]]:
    """Rules without trained entries, and the tables that they own so far."""
    c_all = len(steps.code)
    everything = np.concatenate(integers, axis=1)
    median = np.median(everything, axis=1).astype(np.int64)
    active = _active(integers, most_active)
    lags, lag_weight, now_weight = _regression(integers, active)
    first_bias, first_weight = _first_row(everything, median)
    tables: list[np.ndarray] = []
    columns = {name: np.zeros(c_all, np.int64) for name in (
        "first_table", "first_shift", "option_table", "gap_table", "run_table", "run_shift", "scale_base",
    )}

    def own(table: np.ndarray) -> int:
        tables.append(table)
        return len(format_tables()) + len(tables) - 1

    sample = everything[:, :: max(everything.shape[1] // 4096, 1)]
    for c in range(c_all):
        guess = (first_bias[c] + 32768 + first_weight[c, :c].astype(np.int64) @ sample[:c]) >> 16
        left = sample[c] - guess
        columns["first_shift"][c] = _shift_of(left)
        columns["first_table"][c] = own(_table(_counts(left[None], int(columns["first_shift"][c]))[0], 24.0, 1.6))
        deltas = np.concatenate([np.diff(k[c]) for k in integers])
        changes = deltas[deltas != 0]
        columns["run_shift"][c] = _shift_of(changes)
        columns["run_table"][c] = own(_table(_counts(changes[None], int(columns["run_shift"][c]))[0], 8.0, 2.0))
        columns["gap_table"][c] = own(_gap_table([np.diff(k[c]) for k in integers]))
        columns["scale_base"][c] = scale_of(float(np.abs(deltas).mean())) if len(deltas) else 0
        columns["option_table"][c] = own(normalise(_OPTION_WEIGHTS))
    place = np.full(c_all, -1, np.int64)
    place[active] = np.arange(len(active))
    distance = np.minimum(np.arange(GENERIC_SCALES), GENERIC_SCALES - np.arange(GENERIC_SCALES))
    same_table = own(normalise(np.array([1, 15])))
    own(normalise(np.array([1, 1])))
    scale_table = own(normalise(1000 * np.exp(-distance / 2.5) + 5, np.ones(GENERIC_SCALES, bool)))
    rules = Rules(
        code=steps.code, is_lattice=steps.lattice[:, 0].astype(np.int64), lattice_step=steps.lattice[:, 1].copy(),
        lattice_offset=steps.lattice[:, 2].copy(), median=median, active=active, place=place, lags=lags,
        lag_weight=lag_weight, now_weight=now_weight, first_bias=first_bias, first_weight=first_weight,
        scale_table=scale_table, same_table=same_table, entry_start=np.zeros(c_all + 1, np.int64),
        entry_predictor=np.zeros(0, np.int64), entry_shift=np.zeros(0, np.int64), entry_table=np.zeros(0, np.int64),
        step_ms=step_ms, **columns,
    )
    return rules, tables


def _active(integers: list[np.ndarray], most: int) -> np.ndarray:
    """Channels worth a regression: they change in a tenth of the rows; the busiest of them. (A,) int64."""
    deltas = np.concatenate([np.diff(k, axis=1) for k in integers], axis=1)
    changing = (deltas != 0).mean(axis=1)
    size = np.log1p(np.abs(deltas).mean(axis=1))
    order = np.argsort(-size, kind="stable")[:most]
    return np.sort(order[changing[order] > 0.1]).astype(np.int64)


def _regression(integers: list[np.ndarray], active: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    """(lags, lag weights (A, lags * A), weights of the same row (A, A)), both Q16 int32."""
    a_all = len(active)
    lags = 4 if a_all < 20 else 2
    lag_weight, now_weight = np.zeros((a_all, lags * a_all), np.int32), np.zeros((a_all, a_all), np.int32)
    if a_all == 0:
        return 1, np.zeros((0, 0), np.int32), now_weight
    past, now = [], []
    for k in integers:
        deltas = np.diff(k[active], axis=1).T.astype(np.float64)                          # (N-1, A)
        padded = np.concatenate([np.zeros((lags, a_all)), deltas])
        past.append(np.concatenate([padded[i : i + len(deltas)] for i in range(lags)], axis=1))   # oldest lag first
        now.append(deltas)
    rows, targets = np.concatenate(past), np.concatenate(now)
    chosen = slice(None, None, max(len(rows) // MOST_FIT_ROWS, 1))
    rows, targets = rows[chosen], targets[chosen]
    for a in range(a_all):
        weights = _least_absolute(np.concatenate([rows, targets[:, :a]], axis=1), targets[:, a])
        fixed = np.clip(np.rint(weights * 65536), -MOST_WEIGHT, MOST_WEIGHT).astype(np.int32)
        lag_weight[a], now_weight[a, :a] = fixed[: lags * a_all], fixed[lags * a_all :]
    return lags, lag_weight, now_weight


def _least_absolute(rows: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Weights of least absolute error, ridge-damped, by five reweighted least squares. rows (n, f), target (n,)."""
    spread, size = rows.std(axis=0) + 1e-9, target.std() + 1e-9
    scaled, goal = rows / spread, target / size
    weight = np.ones(len(goal))
    solution = np.zeros(rows.shape[1])
    for _ in range(5):
        weighted = (scaled * weight[:, None]).T
        solution = np.linalg.solve(weighted @ scaled + 3.0 * np.eye(rows.shape[1]), weighted @ goal)
        error = np.abs(goal - scaled @ solution)
        weight = 1 / np.maximum(error, 0.05 * np.median(error) + 1e-3)
        weight /= weight.mean()
    return solution / spread * size


def _first_row(everything: np.ndarray, median: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(bias (C,) int64, weights (C, C) int32) in Q16 that guess a row's channel from its earlier channels."""
    c_all = len(median)
    bias, weights = median << 16, np.zeros((c_all, c_all), np.int32)
    sample = everything[:, :: max(everything.shape[1] // 4096, 1)].T.astype(np.float64)    # (n, C)
    useful = np.flatnonzero(sample.std(axis=0) > 1e-6)[:MOST_ACTIVE]
    for c in range(c_all):
        before = useful[useful < c]
        plain = np.abs(sample[:, c] - median[c])
        if len(before) == 0 or plain.mean() < 0.5:
            continue
        centre = np.median(sample[:, before], axis=0)
        found = _least_absolute(sample[:, before] - centre, sample[:, c] - median[c])
        fixed = np.clip(np.rint(found * 65536), -MOST_WEIGHT, MOST_WEIGHT)
        offset = median[c] - (fixed / 65536) @ centre
        error = np.abs(sample[:, c] - offset - sample[:, before] @ (fixed / 65536))
        if error.mean() < 0.9 * plain.mean():
            weights[c, before], bias[c] = fixed.astype(np.int32), int(np.rint(offset * 65536))
    return bias, weights


def _shift_of(values: np.ndarray) -> int:
    """Low bits to leave uncoded, so that the mean size falls under 24."""
    size = float(np.abs(values).mean()) if values.size else 0.0
    return max(int(np.floor(np.log2(size / 12))), 0) if size > 12 else 0


def _counts(values: np.ndarray, shift: int) -> np.ndarray:
    """Histograms of symbols. (B, n) int64 -> (B, 256) float64."""
    high = values >> shift
    symbol = np.where(np.abs(high) <= REACH, high + REACH, ESCAPE)
    flat = symbol + 256 * np.arange(len(values))[:, None]
    return np.bincount(flat.ravel(), minlength=256 * len(values)).reshape(-1, 256).astype(np.float64)


def _table(counts: np.ndarray, prior_weight: float, widen: float = 1.0) -> np.ndarray:
    """Frequencies from counts and a heavy-tailed prior of the same mean size (times `widen`). (256,) int32."""
    axis = np.abs(np.arange(-REACH, REACH + 1))
    total = counts[:ESCAPE].sum()
    size = float((counts[:ESCAPE] * axis).sum() / max(total, 1.0))
    prior = np.r_[1 / (1 + (axis / (widen * size + 0.05)) ** 2.2), 0.0]
    prior[ESCAPE] = 1e-3 * prior.sum()
    mixed = (counts + prior_weight * prior / prior.sum()) / (counts.sum() + prior_weight)
    return normalise(np.rint(mixed * 2**40))


def _bits(table: np.ndarray, shift: int) -> np.ndarray:
    """Bits of each symbol's value, an escape's own included. (256,) float64."""
    bits = PRECISION - np.log2(np.maximum(table, 1)) + shift
    bits = np.where(table > 0, bits, bits[ESCAPE] + LENGTH_BITS + 7)
    bits[ESCAPE] += LENGTH_BITS + 8
    return bits


def _price(table: np.ndarray) -> float:
    """Bits that a table takes in a packed model, about."""
    return 8.0 * (len(zlib.compress(table_bytes(table), 9)) - ZLIB_BYTES)


def _gap_table(deltas: list[np.ndarray], block_rows: int = 64) -> np.ndarray:
    """Frequencies of run lengths between changes, and of the end of the block. (24,) int32."""
    counts = np.full(GAP_SYMBOLS, 0.05)
    counts[GAP_SYMBOLS - 3 : GAP_END] = 0.0
    for row in deltas:
        changes = np.flatnonzero(row)
        for gap in (np.diff(changes, prepend=-1) - 1).tolist():
            counts[gap_symbol(gap)] += 1
        counts[GAP_END] += max(len(row) / block_rows, 1)
    return normalise(np.rint(counts * 2**20), counts > 0)


@kernel()
def _all_residuals(k: np.ndarray, rules: Packed, out: np.ndarray) -> None:
    """Residuals of every predictor for one block. k (C, n) -> out (C, PREDICTORS, n)."""
    quantiser = np.zeros(k.shape[0], np.int64)
    deltas = _deltas(k, quantiser, rules, 0)
    for c in range(k.shape[0]):
        residuals(k, c, 0, rules, 0, deltas, out[c])


@kernel()
def _choices(
    left: np.ndarray, rules: Packed, tables: Tables, option: np.ndarray, scale: np.ndarray, cost: np.ndarray,
) -> None:
    """What the encoder would choose. left (B, C, PREDICTORS, n) -> option, scale, cost (B, C)."""
    for b in range(left.shape[0]):
        for c in range(left.shape[1]):
            predictors = PREDICTORS if rules.channel[c, PLACE] >= 0 else REGRESSION
            option[b, c], scale[b, c], cost[b, c] = choose_option(
                left[b, c], 1, left.shape[3], predictors, manner_of(c, 0, rules, 0), rules, tables,
            )


class _Learned(NamedTuple):
    """A model, and the bits that it takes for a training row."""

    model: CodecModel
    bits: float


def _with_entries(
    draft: tuple[Rules, list[np.ndarray]], blocks: list[np.ndarray], bounds: np.ndarray, served_rows: int | None,
) -> _Learned:
    """Adds trained entries, and fits how often each option and scale is chosen."""
    rules, own_tables = draft
    own_tables = list(own_tables)
    rows = max(k.shape[1] for k in blocks)
    blocks = [k for k in blocks if k.shape[1] == rows]
    served = np.inf if served_rows is None else served_rows / (rows * len(blocks))
    left = np.zeros((len(blocks), len(rules.code), PREDICTORS, rows), np.int64)
    for k, out in zip(blocks, left, strict=True):
        _all_residuals(k, pack(rules), out)
    shape = left.shape[:2]
    option, scale, cost = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    _choices(left, pack(rules), stack([*format_tables(), *own_tables]), option, scale, cost)
    starts, entries = [0], []
    for c in range(shape[1]):
        found = _chosen_entries(left[:, c], cost[:, c] / 64, int(rules.place[c]) >= 0, served)
        for predictor, shift, table in found:
            own_tables.append(table)
            entries.append((predictor, shift, len(format_tables()) + len(own_tables) - 1))
        starts.append(len(entries))
    columns = np.array(entries, np.int64).reshape(-1, 3).T.copy()
    rules = rules._replace(
        entry_start=np.array(starts, np.int64), entry_predictor=columns[0], entry_shift=columns[1],
        entry_table=columns[2],
    )
    for c in range(shape[1]):
        options = np.r_[_OPTION_WEIGHTS, np.full(starts[c + 1] - starts[c], 16)]
        own_tables[rules.option_table[c] - len(format_tables())] = normalise(options)
    for _ in range(2):
        _choices(left, pack(rules), stack([*format_tables(), *own_tables]), option, scale, cost)
        _fit_priors(rules, own_tables, option, scale)
    if served_rows is not None:
        rules, own_tables = _lean(rules, own_tables, blocks, option, served)
    _choices(left, pack(rules), stack([*format_tables(), *own_tables]), option, scale, cost)
    head_bits = 8 * 12
    bits = (cost.sum(axis=1) / 64 + 10 * shape[1] + head_bits) / (rows * shape[1])
    model = CodecModel(rules, own_tables, bounds, float(np.quantile(bits, 0.95)))
    return _Learned(model, float(bits.mean()) * shape[1])


def _lean(
    rules: Rules, own_tables: list[np.ndarray], blocks: list[np.ndarray], option: np.ndarray, served: float,
) -> tuple[Rules, list[np.ndarray]]:
    """Without the tables of first values and runs that save less than they take, and those that nothing names.

    option : (B, C) as chosen.   served : blocks that the model is for, per block of these.
    """
    first = len(format_tables())
    rows = np.concatenate(blocks, axis=1)
    for c, option_of in enumerate(option.T):
        guess = (rules.first_bias[c] + 32768 + rules.first_weight[c, :c].astype(np.int64) @ rows[:c]) >> 16
        shift = int(rules.first_shift[c])
        share = _counts((rows[c] - guess)[None], shift)[0] / rows.shape[1]
        cost = [float(share @ _bits(table, shift)) for table in format_tables()[:GENERIC_TABLES]]
        own = own_tables[rules.first_table[c] - first]
        if served * len(blocks) * (min(cost) - float(share @ _bits(own, shift))) < _price(own):
            rules.first_table[c] = int(np.argmin(cost))
        if not (option_of == RUNS).any():
            rules.gap_table[c], rules.run_table[c], rules.run_shift[c] = BLANK_GAPS, BLANK_RUN, BLANK_RUN_SHIFT
    named = [rules.first_table, rules.option_table, rules.gap_table, rules.run_table, rules.entry_table]
    used = np.unique(np.concatenate([*named, [rules.scale_table, rules.same_table, rules.same_table + 1]]))
    used = used[used >= first]
    place = np.arange(first + len(own_tables))
    place[used] = first + np.arange(len(used))
    for column in named:
        column[:] = place[column]
    rules = rules._replace(scale_table=int(place[rules.scale_table]), same_table=int(place[rules.same_table]))
    return rules, [own_tables[i - first] for i in used.tolist()]


def _fit_priors(rules: Rules, own_tables: list[np.ndarray], option: np.ndarray, scale: np.ndarray) -> None:
    """Tables of options and scales from what was chosen. option, scale (B, C). In place."""
    base, first = rules.scale_base, len(format_tables())
    distance = np.minimum(np.arange(GENERIC_SCALES), GENERIC_SCALES - np.arange(GENERIC_SCALES))
    scales = 3 * np.exp(-distance / 2.5) + 0.02
    overall = np.bincount(option.ravel(), minlength=TRAINED)[:TRAINED] / option.size
    for c in range(option.shape[1]):
        generic = (option[:, c] >= GENERIC) & (option[:, c] < TRAINED)
        if generic.any():
            base[c] = int(np.median(scale[generic, c]))
        np.add.at(scales, (scale[generic, c] - base[c]) % GENERIC_SCALES, 1)
        count = TRAINED + int(rules.entry_start[c + 1] - rules.entry_start[c])
        weights = np.bincount(option[:, c], minlength=count) + 0.25
        weights[:TRAINED] += 2 * overall
        if rules.place[c] < 0:
            weights[GENERIC + REGRESSION] = 0.0
        own_tables[rules.option_table[c] - first] = normalise(np.rint(weights * 2**20), weights > 0)
    # Blocks overlap by half: the stretch that follows block b begins with block b + 2.
    before, after = option[:-2], option[2:]
    for i, chosen in enumerate((before == STILL, before != STILL)):
        same = float((after[chosen] == before[chosen]).sum())
        weights = np.array([chosen.sum() - same + 1.0, same + 1.0])
        own_tables[rules.same_table - first + i] = normalise(np.rint(weights * 2**20), np.ones(2, bool))
    own_tables[rules.scale_table - first] = normalise(np.rint(scales * 2**20), np.ones(GENERIC_SCALES, bool))


def _chosen_entries(
    left: np.ndarray, cost: np.ndarray, has_regression: bool, served: float,
) -> list[tuple[int, int, np.ndarray]]:
    """The (predictor, shift, table) that save most, one after the other. left (B, PREDICTORS, n), cost (B,) in bits.

    served : blocks that the model is for, per block of these; infinite where tables cost nothing.
    """
    if cost.sum() < 64 or not left[:, 0].any():
        return []
    pool, costs = [], []
    for predictor in range(PREDICTORS if has_regression else REGRESSION):
        values = left[:, predictor, 1:]
        shift = _shift_of(values)
        counts = _counts(values, shift)
        for table in [_table(counts.sum(axis=0), 10.0), *_clusters(counts)]:
            pool.append((predictor, shift, table))
            costs.append(counts @ _bits(table, shift) + 2.0)
    prices = np.array([_price(table) / served if np.isfinite(served) else 0.0 for _, _, table in pool])
    chosen: list[tuple[int, int, np.ndarray]] = []
    now, candidates = cost.copy(), np.array(costs)
    while len(chosen) < MOST_TRAINED:
        saved = np.maximum(now - candidates, 0).sum(axis=1) - prices
        best = int(np.argmax(saved))
        if saved[best] < LEAST_SHARE * now.sum() or saved[best] < 32:
            break
        chosen.append(pool[best])
        now = np.minimum(now, candidates[best])
    return chosen


def _clusters(counts: np.ndarray) -> list[np.ndarray]:
    """Tables of blocks that look alike: k-means in bits, begun from blocks ordered by mean size. counts (B, 256)."""
    axis = np.abs(np.arange(-REACH, REACH + 1))
    size = (counts[:, :ESCAPE] @ axis) / np.maximum(counts[:, :ESCAPE].sum(axis=1), 1) + 1000.0 * counts[:, ESCAPE]
    member = np.empty(len(counts), np.int64)
    member[np.argsort(size, kind="stable")] = np.arange(len(counts)) * CLUSTERS // len(counts)
    tables: list[np.ndarray] = []
    for _ in range(6):
        tables = [_table(counts[member == i].sum(axis=0), 20.0) for i in range(CLUSTERS) if (member == i).any()]
        bits = np.array([PRECISION - np.log2(np.maximum(table, 0.02)) for table in tables])
        member = np.argmin(counts @ bits.T, axis=1)
    return tables


