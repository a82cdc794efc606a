"""Writes the golden files of a format version, once: `python -m tests.golden.make_blocks`; never for an old version.

NAME.nb is a frame, NAME.expected what it must decode to (per block: n, C as uint32, 1 or 0 for times, n of them, then
n * C float32 bits, row by row), model.nc the codec model that some of them name.
"""

from pathlib import Path

import numpy as np

from pipeline.codec import Block, CodecModel, decode_block, encode_block, encode_blocks, pack_frame, unpack_frame
from pipeline.codec.block import _blank_identity, _float_block, _pcodec_block, _raw_block
from pipeline.codec.train import train_codec

FOLDER = Path(__file__).parent / "v1"
STEP_MS = 1000


def expected_bytes(blocks: list[Block]) -> bytes:
    """What a decoder must make of a frame."""
    out = bytearray()
    for ts_ms, values in blocks:
        out += np.array(values.shape, "<u4").tobytes() + bytes([ts_ms is not None])
        out += b"" if ts_ms is None else ts_ms.astype("<i8").tobytes()
        out += np.ascontiguousarray(values, "<f4").tobytes()
    return bytes(out)


def recording(rows: int, seed: int) -> np.ndarray:
    """Six channels: two that move together, a slow sine, two decimals, a flag, white noise. (rows, 6) float32."""
    rng = np.random.default_rng(seed)
    walk = rng.normal(0, 1, rows).cumsum()
    flag = (np.arange(rows) // 97 % 2).astype(float)
    return np.stack([
        walk, 0.5 * walk + rng.normal(0, 0.1, rows), 20 + np.sin(np.arange(rows) / 30),
        np.round(rng.normal(5, 1, rows), 2), flag, rng.normal(100, 3, rows),
    ], axis=1).astype(np.float32)


def frames() -> tuple[CodecModel, dict[str, bytes]]:
    """The model and every golden frame."""
    bounds = np.array([1e-2, 1e-2, 1e-4, 1e-3, 1e-3, 1e-1])
    model = train_codec([recording(3000, 1)], bounds, step_ms=STEP_MS)
    x = recording(400, 2)
    rng = np.random.default_rng(3)
    ts_ms = 1_700_000_000_000 + STEP_MS * np.arange(400)
    holes = x.copy()
    holes[rng.random(x.shape) < 0.1] = np.nan
    holes[7, 2], holes[8, 2] = np.inf, -np.inf
    holes.view(np.uint32)[9, 3] = 0xFFC12345
    wild = x.copy()
    wild[:, 3] *= np.float32(1.2345)                 # leaves its lattice
    wild[:, 0] *= np.float32(1e20)                   # leaves its integers
    jitter = ts_ms + rng.integers(-40, 40, 400)
    leaps = ts_ms.copy()
    leaps[100:] += 3_600_000
    noise = rng.normal(0, 1, (64, 6)).astype(np.float32)
    blank = _blank_identity(x[:64], bounds)
    return model, {
        "learned": pack_frame(encode_blocks([(ts_ms[i : i + 64], x[i : i + 64]) for i in (0, 64, 200)], bounds, model)),
        "stretches": pack_frame([encode_block(ts_ms, x, bounds, model)]),
        "exceptions": pack_frame(encode_blocks([(ts_ms[:99], holes[:99])], bounds, model)),
        "off-rule": pack_frame([encode_block(ts_ms[:64], wild[:64], bounds, model)]),
        "tightened": pack_frame([encode_block(ts_ms[:64], x[:64], bounds / 10, model)]),
        "lossless": pack_frame([encode_block(ts_ms[:64], x[:64], np.zeros(6), model)]),
        "times": pack_frame([encode_block(t[:150], x[:150], bounds) for t in (jitter, leaps, jitter.cumsum())]),
        "no-model": pack_frame([encode_block(None, x[:n], bounds) for n in (1, 2, 3, 70)]),
        "relative": pack_frame([encode_block(ts_ms[:50], x[:50], np.full(6, -1e-3))]),
        "pcodec": pack_frame([
            _pcodec_block(ts_ms[:64], x[:64], bounds, blank), _pcodec_block(None, wild[:64], np.zeros(6), blank),
            _pcodec_block(None, noise, bounds, _blank_identity(noise, bounds)),
        ]),
        "raw": pack_frame([_raw_block(ts_ms[:5], holes[:5]), _float_block(ts_ms[:64], x[:64])]),
    }


def main() -> None:
    """Writes the folder."""
    FOLDER.mkdir(exist_ok=True)
    model, made = frames()
    (FOLDER / "model.nc").write_bytes(model.to_bytes())
    for name, frame in made.items():
        blocks = [decode_block(block, {model.id: model}) for block in unpack_frame(frame)]
        (FOLDER / f"{name}.nb").write_bytes(frame)
        (FOLDER / f"{name}.expected").write_bytes(expected_bytes(blocks))


if __name__ == "__main__":
    main()
