"""Blocks: n samples of all C channels of one device, readable on their own, each value within its bound.

Layout (docs/format.md has every byte):
  flags | identity | varint n | [halvings] | [timestamps] | [exceptions] | body | [check, 3 bytes]
flags: bits 0-1 kind (0 raw, 1 pcodec, 2 learned, 3 latent), 2 names a model, 3 has timestamps, 4 has exceptions,
5 is tightened, 6 timestamps follow the model's step.
identity: the model's id (3 bytes), or varint C and, but for raw, C step codes of 2 bytes.
The encoder proves each block: it decodes its own integers in float64 arithmetic and keeps what fails as an exception.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from pcodec import ChunkConfig, DeltaSpec
from pcodec.standalone import simple_compress, simple_decompress_into

from pipeline.codec.coder import Tables
from pipeline.codec.kernels import inner, kernel
from pipeline.codec.learned import (
    BITS,
    Packed,
    put_body,
    put_exceptions,
    quantise_channel,
    take_body,
    take_exceptions,
    to_columns,
)
from pipeline.codec.model import ID_BYTES, MOST_CHANNELS, CodecModel, blank_rules, blank_tables
from pipeline.codec.quantise import code_of_bound, code_of_relative
from pipeline.codec.timestamps import LONGEST, put_timestamps, take_timestamps
from pipeline.codec.wire import BadBlock, Reader, crc32c, put_varint, varint, zigzag

RAW, PCODEC, LEARNED, LATENT = range(4)
KINDS = ("raw", "pcodec", "learned", "latent")
NAMES_MODEL, HAS_TS, HAS_EXCEPTIONS, IS_TIGHTENED, PLAIN_TS = 4, 8, 16, 32, 64
CHECK_BYTES = 3
MOST_ROWS = 1 << 16
MOST_VALUES = 1 << 22
"""Caps on what a block may claim, so that an altered one can't ask for the machine's memory (16 MiB of values)."""
MOST_HALVINGS = 15
LONG_ROWS = 256
DENSE_BITS = 2.0
FAR_BITS = 1.5

_PCO_LEAD = b"pco!\x03"
"""What pcodec's standalone files begin with; left out of a block where they do."""
_AUTO, _PLAIN = ChunkConfig(), ChunkConfig(delta_spec=DeltaSpec.no_op())
Models = Mapping[str, CodecModel] | Callable[[str], CodecModel | None]


class Block(NamedTuple):
    """A decoded block. ts_ms : (n,) int64 or None where it was coded without; values : (n, C) float32."""

    ts_ms: np.ndarray | None
    values: np.ndarray


class _Identity(NamedTuple):
    """Which rules a block follows and how it says so."""

    flag: int
    data: bytes
    rules: Packed
    tables: Tables
    halvings: int


def encode_block(
    ts_ms: np.ndarray | None, values: np.ndarray, bounds: np.ndarray, model: CodecModel | None = None,
) -> bytes:
    """One block, every finite value within its channel's bound, every other one to the bit.

    ts_ms  : (n,) int64 milliseconds in any order, or None for a block without timestamps.
    values : (n, C) float32.
    bounds : (C,) float64. Positive: largest absolute error. 0: lossless. Negative: largest error as a share of the
             value's own size (-0.001 keeps three digits). Tighter than the model's bounds is kept too.
    model  : the stream's codec model; None codes with nothing learned.
    Returns the smallest of the candidates. The same input gives the same bytes.
    """
    return encode_blocks([(ts_ms, values)], bounds, model)[0]


def encode_blocks(
    blocks: Sequence[tuple[np.ndarray | None, np.ndarray]], bounds: np.ndarray, model: CodecModel | None = None,
    *, thorough: bool = False, errors: np.ndarray | None = None,
) -> list[bytes]:
    """`encode_block` for many (ts_ms, values) at once, which is faster and gives the same bytes.

    thorough : compare every block with pcodec, not only the doubtful ones.
    errors   : (B, C, 2) float64 to fill with what each block really misses: largest and sum of the finite values'.
    """
    bounds = np.ascontiguousarray(bounds, np.float64)
    for _, values in blocks:
        n, channels = values.shape
        if not (0 < n <= MOST_ROWS and 0 < channels <= MOST_CHANNELS and n * channels <= MOST_VALUES):
            raise ValueError(f"a block of {n} x {channels} values; at most {MOST_ROWS} rows and {MOST_VALUES} values")
        if channels != len(bounds) or (model is not None and channels != model.channels):
            raise ValueError(f"a block of {channels} channels, but bounds or model of another count")
    if not blocks:
        return []
    if errors is None:
        errors = np.empty((len(blocks), len(bounds), 2))
    if model is not None:
        identity = _model_identity(model, bounds.tobytes())
        coded = _run_batch(blocks, bounds, identity, errors)
    else:
        identity = None
        coded = [
            _run_batch([block], bounds, _blank_identity(block[1], bounds), errors[i : i + 1])[0]
            for i, block in enumerate(blocks)
        ]
    thorough = thorough or not bounds.all()
    for i, (ts_ms, values) in enumerate(blocks):
        if thorough or _is_doubtful(len(coded[i]), values.shape, model):
            own = identity or _blank_identity(values, bounds)
            coded[i] = min(coded[i], _pcodec_block(ts_ms, values, bounds, own), key=len)
            if not bounds.any():
                coded[i] = min(coded[i], _float_block(ts_ms, values), key=len)
        if len(coded[i]) > values.nbytes:
            coded[i] = min(coded[i], _raw_block(ts_ms, values), key=len)
        if kind_of_block(coded[i]) == RAW:
            errors[i] = 0
    return coded


def _is_doubtful(size: int, shape: tuple[int, ...], model: CodecModel | None) -> bool:
    """Whether pcodec might do better: long blocks (lossless ones too), and those far larger than the training blocks.

    So are streams of flags: where a value costs under DENSE_BITS, pcodec's runs over many channels can win. Measured
    over the recorded series (`python -m bench.codec`): on all other blocks pcodec never won, and it doubles the time.
    """
    bits = size * 8 / (shape[0] * shape[1])
    if shape[0] >= LONG_ROWS:
        return True
    if model is None:
        return bits < DENSE_BITS
    return model.typical_bits < DENSE_BITS or bits > FAR_BITS * model.typical_bits


def decode_block(data: bytes, models: Models | None = None) -> Block:
    """The block's timestamps and values.

    models : codec models by id, or a function from an id to its model or None; needed where the block names one.
    Raises BadBlock for anything that is not a whole, unaltered block, or whose model is not at hand.
    """
    reader = Reader(data)
    flags = reader.byte()
    kind = flags & 3
    if flags >= 128 or kind == LATENT:
        raise BadBlock(f"block flags {flags} are not of a bounded block of this format version: use a newer narrows")
    if kind != LEARNED:
        check = int.from_bytes(data[-CHECK_BYTES:], "little")
        if len(data) < CHECK_BYTES + 2 or crc32c(reader.data[:-CHECK_BYTES]) & 0xFFFFFF != check:
            raise BadBlock("the block's check fails: cut or altered")
        reader.data = reader.data[:-CHECK_BYTES]
    if kind == RAW:
        channels = reader.varint(MOST_CHANNELS)
    else:
        rules, tables = _take_identity(reader, flags, models)
        channels = len(rules.channel)
    n = reader.varint(MOST_ROWS)
    if n == 0 or channels == 0 or n * channels > MOST_VALUES:
        raise BadBlock(f"a block of {n} x {channels} values is not allowed")
    halvings = reader.byte() if flags & IS_TIGHTENED else 0
    if halvings > MOST_HALVINGS:
        raise BadBlock(f"a block tightened {halvings} times is not allowed")
    bytes_in = _writable(reader.data)
    ts_ms = _take_ts(reader, bytes_in, flags, n, 0 if kind == RAW else rules.step_ms)
    if kind == RAW:
        return Block(ts_ms, np.ascontiguousarray(_take_floats(reader, channels * n).reshape(channels, n).T))
    exceptions = reader.at
    if flags & HAS_EXCEPTIONS:
        reader.at = take_exceptions(bytes_in, reader.at, np.empty((0, 0), np.float32))
        if reader.at < 0:
            raise BadBlock("the block's exceptions are cut or altered")
    quantiser = np.zeros(channels, np.int64)
    if kind == LEARNED:
        k = np.zeros((channels, n), np.int64)
        if not take_body(bytes_in, reader.at, rules, tables, halvings, k, quantiser):
            raise BadBlock("the block's check fails: cut, altered, or not of this codec model")
    else:
        k = _take_pcodec(reader, quantiser, channels, n)
    columns = np.empty((channels, n), np.float32)
    to_columns(k, quantiser, rules, halvings, columns)
    if flags & HAS_EXCEPTIONS and take_exceptions(bytes_in, exceptions, columns) < 0:
        raise BadBlock("the block's exceptions reach past its end: altered")
    return Block(ts_ms, np.ascontiguousarray(columns.T))


def model_of_block(data: bytes) -> str | None:
    """The id of the codec model that a block names, None where it needs none. Raises BadBlock when cut."""
    reader = Reader(data)
    return reader.take(ID_BYTES).hex() if reader.byte() & NAMES_MODEL else None


def kind_of_block(data: bytes) -> int:
    """RAW, PCODEC, LEARNED or LATENT; the block itself is not checked."""
    return Reader(data).byte() & 3


def warm_up() -> None:
    """Compiles (or loads from the cache) every kernel: call it at start, before the first record waits for it."""
    values = np.zeros((3, 2), np.float32)
    values[1] = np.nan, 1.0
    for bounds in (np.zeros(2), np.full(2, 1e-3)):
        decode_block(encode_block(np.array([0, 1, 5]), values, bounds))


@kernel()
def _prepare(
    columns: np.ndarray, ts_ms: np.ndarray, bounds: np.ndarray, rules: Packed, flags: int, identity: np.ndarray,
    halvings: int, out: np.ndarray, k: np.ndarray, quantiser: np.ndarray, error: np.ndarray,
) -> int:
    """Everything before the body. ts_ms is empty for a block without. Fills k (C, n), quantiser (C,), error (C, 2)."""
    channels, n = columns.shape
    bad = np.zeros((channels, n), np.uint8)
    rebuilt = np.empty(n, np.float32)
    any_bad = 0
    for c in range(channels):
        quantiser[c] = quantise_channel(columns[c], c, bounds[c], rules, halvings, k[c], bad[c], rebuilt)
        largest, total = 0.0, 0.0
        for t in range(n):
            any_bad |= bad[c, t]
            if not bad[c, t] and quantiser[c] != BITS:
                miss = abs(np.float64(rebuilt[t]) - np.float64(columns[c, t]))
                largest, total = max(largest, miss), total + miss
        error[c, 0], error[c, 1] = largest, total
    has_ts = len(ts_ms) > 0
    plain = has_ts and rules.step_ms > 0
    if plain:
        for t in range(1, n):
            if ts_ms[t] - ts_ms[t - 1] != rules.step_ms:
                plain = False
                break
    out[0] = flags | (HAS_TS if has_ts else 0) | (PLAIN_TS if plain else 0) | (HAS_EXCEPTIONS if any_bad else 0)
    if halvings > 0:
        out[0] |= IS_TIGHTENED
    at = 1 + len(identity)
    out[1:at] = identity
    at = put_varint(out, at, n)
    if halvings > 0:
        out[at] = halvings
        at += 1
    if plain:
        at = put_varint(out, at, zigzag(ts_ms[0]))
    elif has_ts:
        at = put_timestamps(out, at, ts_ms)
    if any_bad:
        at = put_exceptions(columns, bad, out, at)
    return at


@kernel()
def _encode_batch(
    values: np.ndarray, ts_ms: np.ndarray, starts: np.ndarray, bounds: np.ndarray, rules: Packed, tables: Tables,
    flags: int, identity: np.ndarray, halvings: int, out: np.ndarray, ends: np.ndarray, errors: np.ndarray,
) -> None:
    """Learned blocks of rows starts[i]:starts[i+1], one behind the other in `out`; ends : (B,) where each ends."""
    channels = values.shape[1]
    at = 0
    for i in range(len(ends)):
        low, high = starts[i], starts[i + 1]
        n = high - low
        columns = np.empty((channels, n), np.float32)
        for t in range(n):
            for c in range(channels):
                columns[c, t] = values[low + t, c]
        k = np.empty((channels, n), np.int64)
        quantiser = np.empty(channels, np.int64)
        size = _room(n, channels, len(identity))
        block = out[at : at + size]
        block_ts = ts_ms[low:high] if len(ts_ms) else ts_ms
        head = _prepare(columns, block_ts, bounds, rules, flags, identity, halvings, block, k, quantiser, errors[i])
        at += put_body(k, quantiser, rules, tables, halvings, block, head)
        ends[i] = at


@inner()
def _room(n: int, channels: int, identity: int) -> int:
    """Bytes that no block of this shape outgrows: 8 a value escaped, 13 an exception, 15 a timestamp."""
    return 64 + identity + n * LONGEST + channels * (n * (8 + 13) + 16)


def _run_batch(
    blocks: Sequence[tuple[np.ndarray | None, np.ndarray]], bounds: np.ndarray, identity: _Identity,
    errors: np.ndarray,
) -> list[bytes]:
    """Learned blocks of any count; those with and without timestamps may be mixed. errors : (B, C, 2) to fill."""
    with_ts = [ts_ms is not None for ts_ms, _ in blocks]
    if len(set(with_ts)) > 1:
        return [_run_batch([block], bounds, identity, errors[i : i + 1])[0] for i, block in enumerate(blocks)]
    lengths = [len(values) for _, values in blocks]
    starts = np.zeros(len(blocks) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    values = np.concatenate([values for _, values in blocks]) if len(blocks) > 1 else blocks[0][1]
    ts_ms = np.concatenate([ts_ms for ts_ms, _ in blocks if ts_ms is not None]) if with_ts[0] else np.zeros(0, np.int64)
    channels = values.shape[1]
    out = np.empty(int(sum(_room.py_func(n, channels, len(identity.data)) for n in lengths)), np.uint8)
    ends = np.empty(len(blocks), np.int64)
    _encode_batch(
        np.ascontiguousarray(values, np.float32), np.ascontiguousarray(ts_ms, np.int64), starts, bounds, identity.rules,
        identity.tables, LEARNED | identity.flag, _writable(identity.data), identity.halvings, out, ends, errors,
    )
    data, edges = out[: ends[-1]].tobytes(), ends.tolist()
    return [data[low:high] for low, high in zip([0, *edges[:-1]], edges, strict=True)]


def _writable(data: bytes | memoryview) -> np.ndarray:
    """Bytes as a uint8 array of the one type that the kernels are compiled for."""
    return np.frombuffer(bytearray(data), np.uint8)


@lru_cache(maxsize=64)
def _model_identity(model: CodecModel, bounds_bytes: bytes) -> _Identity:
    """A model's rules, tightened by as many halvings as the bounds (float64) ask for."""
    bounds = np.frombuffer(bounds_bytes)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(bounds != 0, np.abs(model.bounds) / np.abs(bounds), 1.0)
    tighter = float(np.max(np.where(np.isfinite(ratio), ratio, 1.0), initial=1.0))
    halvings = min(int(np.ceil(np.log2(tighter) - 1e-9)), MOST_HALVINGS) if tighter > 1 else 0
    return _Identity(NAMES_MODEL, bytes.fromhex(model.id), model.packed, model.tables, halvings)


def _blank_identity(values: np.ndarray, bounds: np.ndarray) -> _Identity:
    """Step codes from the bounds and the block's own largest values."""
    codes = tuple(
        code_of_bound(bound, largest) if bound >= 0 else code_of_relative(-bound)
        for bound, largest in zip(bounds.tolist(), _largest(values).tolist(), strict=True)
    )
    data = varint(len(codes)) + np.array(codes, "<u2").tobytes()
    return _Identity(0, data, blank_rules(codes), blank_tables(), 0)


def _take_identity(reader: Reader, flags: int, models: Models | None) -> tuple[Packed, Tables]:
    if not flags & NAMES_MODEL:
        codes = reader.array("<u2", reader.varint(MOST_CHANNELS))
        return blank_rules(tuple(codes.tolist())), blank_tables()
    name = reader.take(ID_BYTES).hex()
    model = None
    if models is not None:
        model = models(name) if callable(models) else models.get(name)
    if model is None:
        raise BadBlock(f"the block needs codec model {name}: get it from the bundle or from narrows.codecs")
    return model.packed, model.tables


def _take_ts(reader: Reader, bytes_in: np.ndarray, flags: int, n: int, step_ms: int) -> np.ndarray | None:
    if not flags & HAS_TS:
        return None
    ts_ms = np.zeros(n, np.int64)
    if flags & PLAIN_TS:
        first = reader.varint((1 << 64) - 1)
        first = first >> 1 if not first & 1 else -(first >> 1) - 1
        return np.int64(first) + np.arange(n) * np.int64(step_ms)
    reader.at = take_timestamps(bytes_in, reader.at, ts_ms)
    if reader.at < 0:
        raise BadBlock("the block's timestamps are cut or altered")
    return ts_ms


@kernel()
def _largest(values: np.ndarray) -> np.ndarray:
    """Largest size of each channel's finite values. (n, C) float32 -> (C,) float32."""
    largest = np.zeros(values.shape[1], np.float32)
    for t in range(values.shape[0]):
        for c in range(values.shape[1]):
            size = abs(values[t, c])
            if np.isfinite(size) and size > largest[c]:
                largest[c] = size
    return largest


def _seal(out: bytearray) -> bytes:
    out += (crc32c(bytes(out)) & 0xFFFFFF).to_bytes(CHECK_BYTES, "little")
    return bytes(out)


def _float_head(ts_ms: np.ndarray | None, shape: tuple[int, ...]) -> bytearray:
    """Head of a raw block: no rules, the timestamps in their own words."""
    n, channels = shape
    out = bytearray([RAW | (HAS_TS if ts_ms is not None else 0)]) + varint(channels) + varint(n)
    if ts_ms is not None:
        section = np.empty(20 + LONGEST * n, np.uint8)
        out += section[: put_timestamps(section, 0, np.ascontiguousarray(ts_ms, np.int64))].tobytes()
    return out


def _raw_block(ts_ms: np.ndarray | None, values: np.ndarray) -> bytes:
    """Every bit as it is (form 0): what no other candidate can be larger than."""
    return _seal(_float_head(ts_ms, values.shape) + b"\0" + np.ascontiguousarray(values.T, "<f4").tobytes())


def _float_block(ts_ms: np.ndarray | None, values: np.ndarray) -> bytes:
    """Every bit, through pcodec's own float modes (form 1), which see decimals and quantised floats."""
    packed = bytes(simple_compress(np.ascontiguousarray(values.T, np.float32).reshape(-1), _AUTO))
    return _seal(_float_head(ts_ms, values.shape) + _without_lead(1, 2, b"", packed))


def _pcodec_block(ts_ms: np.ndarray | None, values: np.ndarray, bounds: np.ndarray, identity: _Identity) -> bytes:
    """The same integers, or their deltas, coded by pcodec: a standalone file of 32 or 64 bit integers.

    Body: byte (1 wide, 2 has quantisers, 4 as they are, 8 with its lead) | [C quantisers] | pcodec file: all first
    integers, then all deltas; with 4 the integers channel by channel, whose deltas pcodec chooses itself.
    """
    n, channels = values.shape
    k, quantiser = np.empty((channels, n), np.int64), np.empty(channels, np.int64)
    room = np.empty(_room.py_func(n, channels, len(identity.data)), np.uint8)
    head = _prepare(
        np.ascontiguousarray(values.T, np.float32),
        np.zeros(0, np.int64) if ts_ms is None else np.ascontiguousarray(ts_ms, np.int64), bounds, identity.rules,
        PCODEC | identity.flag, _writable(identity.data), identity.halvings, room, k, quantiser,
        np.empty((channels, 2)),
    )
    deltas = np.concatenate([k[:, 0], np.diff(k, axis=1).reshape(-1)])
    is_wide = int(np.abs(deltas).max()) >= 1 << 31
    dtype = np.int64 if is_wide else np.int32
    plain = bytes(simple_compress(deltas.astype(dtype), _PLAIN))
    as_they_are = bytes(simple_compress(k.reshape(-1).astype(dtype), _AUTO))
    packed = min(plain, as_they_are, key=len)
    form = is_wide | (2 if quantiser.any() else 0) | (4 if packed is as_they_are else 0)
    quantisers = quantiser.astype(np.uint8).tobytes() if quantiser.any() else b""
    return _seal(bytearray(room[:head].tobytes()) + _without_lead(form, 8, quantisers, packed))


def _without_lead(form: int, with_lead: int, before: bytes, packed: bytes) -> bytes:
    """A body: its form, what stands before the pcodec file, and that file without its lead if it has the usual one."""
    if packed.startswith(_PCO_LEAD):
        return bytes([form]) + before + packed[len(_PCO_LEAD) :]
    return bytes([form | with_lead]) + before + packed


def _unpack(payload: memoryview, numbers: np.ndarray, *, has_lead: bool) -> None:
    """Fills `numbers` from a pcodec file of exactly as many."""
    try:
        progress = simple_decompress_into((b"" if has_lead else _PCO_LEAD) + bytes(payload), numbers)
    except Exception as error:
        raise BadBlock(f"pcodec payload: {error}") from error
    if progress.n_processed != len(numbers) or not progress.finished:
        raise BadBlock(f"pcodec payload holds another count than the {len(numbers)} values of the block")


def _take_floats(reader: Reader, count: int) -> np.ndarray:
    """Body of a raw block. (count,) float32."""
    form = reader.byte()
    if form in (1, 3):
        floats = np.empty(count, np.float32)
        _unpack(reader.rest(), floats, has_lead=form == 3)
        return floats
    if form != 0 or len(reader.data) - reader.at != 4 * count:
        raise BadBlock("the body of a raw block has another length than its values: altered")
    return reader.array("<f4", count)


def _take_pcodec(reader: Reader, quantiser: np.ndarray, channels: int, n: int) -> np.ndarray:
    form = reader.byte()
    if form > 15:
        raise BadBlock(f"pcodec body form {form} is not of this format version")
    if form & 2:
        quantiser[:] = reader.array("u1", channels)
    deltas = np.empty(channels * n, np.int64 if form & 1 else np.int32)
    _unpack(reader.rest(), deltas, has_lead=bool(form & 8))
    if form & 4:
        return deltas.reshape(channels, n).astype(np.int64)
    k = np.empty((channels, n), np.int64)
    k[:, 0] = deltas[:channels]
    k[:, 1:] = deltas[channels:].reshape(channels, n - 1)
    return np.cumsum(k, axis=1)
