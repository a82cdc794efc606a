"""A codec model: what a stream's blocks have in common, learned once, named by every block that needs it.

Bytes: b"NC" | version 1 | zlib of the payload. docs/format.md lists the payload. A model's id is the first 3 bytes of
the sha256 of the payload, as 6 hexadecimal digits; blocks carry those 3 bytes.
"""

import hashlib
import struct
import zlib
from functools import lru_cache

import numpy as np

from pipeline.codec.coder import (
    ESCAPE,
    GENERIC_SCALES,
    GENERIC_TABLES,
    TOTAL,
    Tables,
    generic_table,
    normalise,
    stack,
)
from pipeline.codec.learned import (
    BLANK_FIRST,
    BLANK_FIRST_SHIFT,
    BLANK_GAPS,
    BLANK_OPTIONS,
    BLANK_RUN,
    BLANK_RUN_SHIFT,
    BLANK_SCALES,
    GAP_SYMBOLS,
    PREDICTORS,
    REGRESSION,
    TRAINED,
    Packed,
    Rules,
    pack,
)
from pipeline.codec.wire import BadBlock, Reader, varint

MAGIC = b"NC"
VERSION = 1
ID_BYTES = 3
MOST_CHANNELS = 1 << 12
MOST_ENTRIES = 64
MOST_LAGS = 16
MOST_PAYLOAD = 1 << 26


class CodecModel:
    """Rules and tables of one stream, with the bytes that say the same.

    id           : 6 hexadecimal digits.
    bounds       : (C,) float64 that it was trained for; a negative one is relative.
    typical_bits : bits a value that nineteen of twenty training blocks stayed under; a block above it is compared
                   with pcodec.
    """

    def __init__(
        self, rules: Rules, own_tables: list[np.ndarray], bounds: np.ndarray, typical_bits: float,
    ) -> None:
        self.rules = rules
        self.own_tables = own_tables
        self.bounds = bounds
        self.typical_bits = typical_bits
        self.tables = stack([*format_tables(), *own_tables])
        self.packed = pack(rules)
        self.payload = _payload(self)
        self.id = hashlib.sha256(self.payload).hexdigest()[: 2 * ID_BYTES]

    @property
    def channels(self) -> int:
        """C."""
        return len(self.rules.code)

    def to_bytes(self) -> bytes:
        """The model's file: a bundle keeps it as codec.bin, `narrows.codecs` under its id."""
        return MAGIC + bytes([VERSION]) + zlib.compress(self.payload, 9)

    @classmethod
    def from_bytes(cls, data: bytes) -> "CodecModel":
        """Reads `to_bytes`. Raises BadBlock where it is cut, altered or of a newer version."""
        if len(data) < 4 or data[:2] != MAGIC:
            raise BadBlock("not a codec model: it begins with other bytes than NC")
        if data[2] != VERSION:
            raise BadBlock(f"codec model version {data[2]}; this narrows reads {VERSION}: read it with a newer one")
        inflate = zlib.decompressobj()
        try:
            payload = inflate.decompress(data[3:], MOST_PAYLOAD)
        except zlib.error as error:
            raise BadBlock(f"codec model: {error}: cut or altered") from error
        if not inflate.eof or inflate.unused_data:
            raise BadBlock("codec model: cut, altered or longer than any real one")
        return _parse(Reader(payload))


BLANK_SAME = 21
"""Behind the format's tables, a block without a model has these two: whether a stretch repeats STILL, or another."""


@lru_cache(maxsize=1)
def format_tables() -> tuple[np.ndarray, ...]:
    """The tables that every model begins with: sixteen generic ones, then options, gaps, scales and quantisers."""
    gaps = np.array([24, 16, 12, 10, 8, 7, 6, 5, 4, 3, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 12])
    return (
        *(generic_table(i) for i in range(GENERIC_TABLES)), normalise(np.array([16, 8, 24, 8, 4, 1, 4, 0])),
        normalise(gaps), normalise(np.ones(GENERIC_SCALES)), normalise(np.array([120, 7, 1])),
        normalise(np.array([511, 0, 1])),
    )


@lru_cache(maxsize=1)
def blank_tables() -> Tables:
    """Tables of a block without a model, in the kernels' form."""
    return stack([*format_tables(), normalise(np.array([1, 15])), normalise(np.array([1, 1]))])


@lru_cache(maxsize=256)
def blank_rules(codes: tuple[int, ...]) -> Packed:
    """Rules of a block that names no model but its channels' step codes: nothing learned."""
    c = len(codes)
    zeros = np.zeros(c, np.int64)
    return pack(Rules(
        code=np.array(codes, np.int64), is_lattice=zeros, lattice_step=np.ones(c), lattice_offset=np.zeros(c),
        median=zeros, active=np.zeros(0, np.int64), place=np.full(c, -1), lags=1,
        lag_weight=np.zeros((0, 0), np.int32), now_weight=np.zeros((0, 0), np.int32),
        first_bias=zeros, first_weight=np.zeros((c, c), np.int32), first_table=np.full(c, BLANK_FIRST),
        first_shift=np.full(c, BLANK_FIRST_SHIFT), option_table=np.full(c, BLANK_OPTIONS),
        gap_table=np.full(c, BLANK_GAPS), run_table=np.full(c, BLANK_RUN), run_shift=np.full(c, BLANK_RUN_SHIFT),
        scale_table=BLANK_SCALES, same_table=BLANK_SAME, scale_base=zeros,
        entry_start=np.zeros(c + 1, np.int64), entry_predictor=np.zeros(0, np.int64),
        entry_shift=np.zeros(0, np.int64), entry_table=np.zeros(0, np.int64), step_ms=0,
    ))


def _signed(value: int) -> bytes:
    return varint((value << 1) ^ (value >> 63) if value >= 0 else ((-value) << 1) - 1)


def table_bytes(table: np.ndarray) -> bytes:
    """varint first symbol, varint count, count varints: the stretch that holds every symbol with a frequency."""
    used = np.flatnonzero(table)
    low, high = int(used[0]), int(used[-1])
    return varint(low) + varint(high - low + 1) + b"".join(varint(int(f)) for f in table[low : high + 1])


def _payload(model: CodecModel) -> bytes:
    rules = model.rules
    c_all = len(rules.code)
    out = bytearray(varint(c_all) + _signed(rules.step_ms) + struct.pack("<d", model.typical_bits))
    out += varint(len(model.own_tables)) + b"".join(table_bytes(table) for table in model.own_tables)
    out += varint(int(rules.scale_table)) + varint(int(rules.same_table))
    out += varint(int(rules.lags)) + varint(len(rules.active))
    out += b"".join(varint(int(c)) for c in rules.active)
    out += b"".join(_signed(int(w)) for w in rules.lag_weight.reshape(-1))
    for a in range(len(rules.active)):
        out += b"".join(_signed(int(w)) for w in rules.now_weight[a, :a])
    for c in range(c_all):
        out += struct.pack("<dHB", model.bounds[c], rules.code[c], rules.is_lattice[c])
        if rules.is_lattice[c]:
            out += struct.pack("<dd", rules.lattice_step[c], rules.lattice_offset[c])
        out += _signed(int(rules.median[c])) + _signed(int(rules.first_bias[c]))
        out += b"".join(_signed(int(w)) for w in rules.first_weight[c, :c])
        for field in (
            rules.first_table, rules.first_shift, rules.option_table, rules.gap_table, rules.run_table,
            rules.run_shift, rules.scale_base,
        ):
            out += varint(int(field[c]))
        low, high = int(rules.entry_start[c]), int(rules.entry_start[c + 1])
        out += varint(high - low)
        for entry in range(low, high):
            out += varint(int(rules.entry_predictor[entry])) + varint(int(rules.entry_shift[entry]))
            out += varint(int(rules.entry_table[entry]))
    return bytes(out)


def _take_signed(reader: Reader, bits: int) -> int:
    raw = reader.varint((1 << bits) - 1)
    return raw >> 1 if not raw & 1 else -(raw >> 1) - 1


def _take_table(reader: Reader) -> np.ndarray:
    low = reader.varint(255)
    count = reader.varint(256 - low)
    table = np.zeros(256, np.int32)
    table[low : low + count] = [reader.varint(TOTAL) for _ in range(count)]
    if table.sum() != TOTAL:
        raise BadBlock("codec model: a table's frequencies don't sum to 2**15: altered")
    return table


def _parse(reader: Reader) -> CodecModel:
    """A model from its payload; every index is checked, since the kernels check none."""
    c_all = reader.varint(MOST_CHANNELS)
    step_ms = _take_signed(reader, 63)
    typical_bits = reader.float64()
    own_tables = [_take_table(reader) for _ in range(reader.varint(1 << 16))]
    known = len(format_tables()) + len(own_tables)
    scale_table, same_table, lags = reader.varint(known - 1), reader.varint(known - 2), reader.varint(MOST_LAGS)
    active = np.array([reader.varint(c_all - 1) for _ in range(reader.varint(c_all))], np.int64)
    if (np.diff(active) <= 0).any():
        raise BadBlock("codec model: active channels are not in ascending order: altered")
    a_all = len(active)
    lag_weight = np.array([_take_signed(reader, 24) for _ in range(a_all * lags * a_all)], np.int32)
    now_weight = np.zeros((a_all, a_all), np.int32)
    for a in range(a_all):
        now_weight[a, :a] = [_take_signed(reader, 24) for _ in range(a)]
    place = np.full(c_all, -1, np.int64)
    place[active] = np.arange(a_all)
    bounds, lattice = np.empty(c_all), np.ones((2, c_all))
    lattice[1] = 0
    columns = {name: np.zeros(c_all, np.int64) for name in (
        "code", "is_lattice", "median", "first_bias", "first_table", "first_shift", "option_table", "gap_table",
        "run_table", "run_shift", "scale_base",
    )}
    first_weight = np.zeros((c_all, c_all), np.int32)
    entry_start, entries = np.zeros(c_all + 1, np.int64), []
    for c in range(c_all):
        bounds[c] = reader.float64()
        columns["code"][c] = reader.uint(2)
        columns["is_lattice"][c] = reader.byte()
        if columns["is_lattice"][c]:
            lattice[:, c] = reader.float64(), reader.float64()
        columns["median"][c], columns["first_bias"][c] = _take_signed(reader, 33), _take_signed(reader, 62)
        first_weight[c, :c] = [_take_signed(reader, 24) for _ in range(c)]
        for name, most in (
            ("first_table", known - 1), ("first_shift", 32), ("option_table", known - 1), ("gap_table", known - 1),
            ("run_table", known - 1), ("run_shift", 32), ("scale_base", GENERIC_SCALES - 1),
        ):
            columns[name][c] = reader.varint(most)
        for _ in range(reader.varint(MOST_ENTRIES)):
            entry = (reader.varint(PREDICTORS - 1), reader.varint(32), reader.varint(known - 1))
            if entry[0] == REGRESSION and place[c] < 0:
                raise BadBlock("codec model: a regression for a channel that is not active: altered")
            entries.append(entry)
        entry_start[c + 1] = len(entries)
    if len(reader.rest()):
        raise BadBlock("codec model: bytes are left over: altered")
    entry_columns = np.array(entries, np.int64).reshape(-1, 3).T.copy()
    rules = Rules(
        code=columns["code"], is_lattice=columns["is_lattice"], lattice_step=lattice[0].copy(),
        lattice_offset=lattice[1].copy(), median=columns["median"], active=active, place=place, lags=lags,
        lag_weight=lag_weight.reshape(a_all, lags * a_all), now_weight=now_weight, first_bias=columns["first_bias"],
        first_weight=first_weight, first_table=columns["first_table"], first_shift=columns["first_shift"],
        option_table=columns["option_table"], gap_table=columns["gap_table"], run_table=columns["run_table"],
        run_shift=columns["run_shift"], scale_table=scale_table, same_table=same_table,
        scale_base=columns["scale_base"],
        entry_start=entry_start, entry_predictor=entry_columns[0], entry_shift=entry_columns[1],
        entry_table=entry_columns[2], step_ms=step_ms,
    )
    _check_symbols(rules, own_tables)
    return CodecModel(rules, own_tables, bounds, typical_bits)


def _check_symbols(rules: Rules, own_tables: list[np.ndarray]) -> None:
    """Tables of options, gaps and scales must not give symbols that have no meaning."""
    tables = [*format_tables(), *own_tables]

    def ends_at(table: int, symbols: int) -> bool:
        return len(tables[table]) <= symbols or not tables[table][symbols:].any()

    entries = np.diff(rules.entry_start)
    fine = ends_at(rules.scale_table, GENERIC_SCALES)
    fine &= ends_at(rules.same_table, 2) and ends_at(rules.same_table + 1, 2)
    for c, count in enumerate(entries.tolist()):
        fine &= ends_at(int(rules.option_table[c]), TRAINED + count) and ends_at(int(rules.gap_table[c]), GAP_SYMBOLS)
        fine &= tables[int(rules.first_table[c])][ESCAPE] > 0 and tables[int(rules.run_table[c])][ESCAPE] > 0
        fine &= rules.is_lattice[c] <= 1
    if not fine:
        raise BadBlock("codec model: a table holds symbols that it must not: altered")
