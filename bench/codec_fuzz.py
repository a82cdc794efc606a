"""Hostile arrays and altered bytes by the hundred thousand.

    python -m bench.codec_fuzz [--count N] [--seed S] [--docs]

Arrays: denormals, huge ranges, NaN payloads, infinities, constants, sentinels, bounds under one ulp, with and without a
codec model; every value is compared with its bound. Alterations: bits flipped, bytes cut, doubled, overwritten, in
frames and in bare blocks; each must be refused, or decode to the very same values (a bare block has a check of 23 or 24
bits alone: those that slip through are counted). Exit 1 where a value is out of bound or a frame lies.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from bench.results import Measurement, write_into
from pipeline.codec import BadBlock, CodecModel, decode_block, encode_blocks, pack_frame, unpack_frame
from pipeline.codec.train import train_codec

PAGE = Path("docs/compression.md")
CHANNELS = 3
WRONG = ("arrays OUT OF BOUND", "frames that LIED")


def hostile(rng: np.random.Generator) -> np.ndarray:
    """(n, 3) float32 of some unpleasant kind."""
    n = int(rng.integers(1, 90))
    kind = int(rng.integers(0, 9))
    walk = rng.normal(0, 1, (n, CHANNELS)).cumsum(axis=0)
    if kind == 0:
        return rng.integers(0, 2**32, (n, CHANNELS), dtype=np.uint32).view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        values = {
            1: walk * 1e-42, 2: walk * 10.0 ** rng.integers(-38, 38), 3: np.full((n, CHANNELS), rng.normal()),
            4: np.where(rng.random((n, CHANNELS)) < 0.2, -200.0, walk), 5: np.round(walk, 2),
            6: np.where(rng.random((n, CHANNELS)) < 0.1, np.nan, walk),
            7: np.exp(rng.normal(0, 30, (n, CHANNELS))), 8: walk,
        }[kind].astype(np.float32)
    for _ in range(int(rng.integers(0, 3))):
        values.view(np.uint32)[rng.integers(0, n), rng.integers(0, CHANNELS)] = rng.choice(
            [0x7F800000, 0xFF800000, 0x7FC00001, 0xFFFFFFFF, 0x80000000, 1, 0x7F7FFFFF]
        )
    return values


def is_kept(values: np.ndarray, rebuilt: np.ndarray, bounds: np.ndarray) -> bool:
    """Every finite value within its bound (negative: relative), every other one to the bit."""
    same = values.view(np.uint32) == rebuilt.view(np.uint32)
    with np.errstate(invalid="ignore", over="ignore"):
        exact = values.astype(np.float64)
        most = np.where(bounds < 0, -bounds * np.abs(exact), bounds)
        within = (np.abs(rebuilt.astype(np.float64) - exact) <= most) & (bounds != 0)
    return bool((same | (np.isfinite(values) & within)).all())


def alter(data: bytes, rng: np.random.Generator) -> bytes:
    """The same bytes, altered in one of six ways."""
    out, kind = bytearray(data), int(rng.integers(0, 6))
    at = int(rng.integers(0, len(out)))
    if kind == 0:
        out[at] ^= 1 << int(rng.integers(0, 8))
    elif kind == 1:
        del out[at:]
    elif kind == 2:
        out[at:at] = out[: int(rng.integers(1, 9))]
    elif kind == 3:
        out[at : at + 4] = rng.bytes(min(4, len(out) - at))
    elif kind == 4:
        del out[at : at + int(rng.integers(1, 5))]
    else:
        for _ in range(int(rng.integers(2, 9))):
            out[int(rng.integers(0, len(out)))] = int(rng.integers(0, 256))
    return bytes(out)


def main() -> int:
    """Runs both; prints the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--docs", action="store_true", help="write the counts into docs/compression.md")
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    rows = rng.normal(0, 1, (2000, CHANNELS)).cumsum(axis=0).astype(np.float32)
    model = train_codec([np.round(rows, 2)], np.array([1e-3, 1e-2, 0.1]), step_ms=1000)
    counts: Counter[str] = Counter()
    pool: list[bytes] = []
    for number in range(arguments.count):
        _one_array(number, model, rng, counts, pool)
    while counts["alterations of frames"] < arguments.count:
        _one_alteration(pool, model, rng, counts)
    for name, count in sorted(counts.items()):
        print(f"{name}: {count}")
    if arguments.docs:
        write_into(PAGE, [
            Measurement(name, counts[name], "", "lower", 0 if name in WRONG else None)
            for name in sorted({*counts, *WRONG})
        ], "bench.codec_fuzz")
    return 1 if any(counts[name] for name in WRONG) else 0


def _one_array(
    number: int, model: CodecModel, rng: np.random.Generator, counts: Counter[str], pool: list[bytes],
) -> None:
    values, models = hostile(rng), {model.id: model}
    bounds = rng.choice([0.0, 1e-45, 1e-9, 1e-3, 1e-2, 0.1, 1.0, 1e30, -1e-3, -1e-7], CHANNELS)
    ts_ms = rng.integers(-(2**62), 2**62, len(values)) if number % 3 == 0 else 1000 * np.arange(len(values))
    data = encode_blocks([(ts_ms, values)], bounds, model if number % 2 else None)[0]
    block = decode_block(data, models)
    assert block.ts_ms is not None
    fine = is_kept(values, block.values, bounds) and bool((block.ts_ms == ts_ms).all())
    counts["arrays kept" if fine else "arrays OUT OF BOUND"] += 1
    if number < 500:
        pool.append(data)


def _one_alteration(pool: list[bytes], model: CodecModel, rng: np.random.Generator, counts: Counter[str]) -> None:
    chosen = [pool[i] for i in rng.integers(0, len(pool), 2)]
    models = {model.id: model}
    frame = alter(pack_frame(chosen), rng)
    counts["alterations of frames"] += 1
    try:
        counts["frames that LIED" if unpack_frame(frame) != chosen else "frames that decode to the same"] += 1
    except BadBlock:
        counts["frames refused"] += 1
    block = alter(chosen[0], rng)
    counts["alterations of bare blocks"] += 1
    try:
        found, true = decode_block(block, models), decode_block(chosen[0], models)
        same = all(
            a is b is None or (a is not None and b is not None and a.tobytes() == b.tobytes())
            for a, b in zip(found, true, strict=True)
        )
        counts["bare blocks that decode to the same" if same else "bare blocks that slip through"] += 1
    except BadBlock:
        counts["bare blocks refused"] += 1


if __name__ == "__main__":
    sys.exit(main())
