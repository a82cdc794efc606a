"""Laws of the block format: what goes in comes out within its bound, and no altered block ever gives a wrong value."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.codec import BadBlock, decode_block, encode_block, pack_frame, unpack_frame


def assert_kept(values: np.ndarray, rebuilt: np.ndarray, bounds: np.ndarray) -> None:
    """Every finite value within its channel's bound, every other one (and bound 0) to the bit."""
    same = values.view(np.uint32) == rebuilt.view(np.uint32)
    with np.errstate(invalid="ignore", over="ignore"):
        within = np.abs(rebuilt.astype(np.float64) - values.astype(np.float64)) <= bounds
    finite = np.isfinite(values)
    assert (same | (finite & within & (bounds > 0))).all()


any_float32 = st.one_of(
    st.floats(width=32),
    st.integers(0, 2**32 - 1).map(lambda bits: float(np.array(bits, np.uint32).view(np.float32))),
    st.sampled_from([0.0, -0.0, 1e-42, -200.0, 3.4028234e38, float("inf"), float("-inf"), float("nan")]),
)


@st.composite
def blocks(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Timestamps, values and bounds of one hostile block."""
    n, channels = draw(st.integers(1, 40)), draw(st.integers(1, 5))
    bits = draw(hnp.arrays(np.uint32, (n, channels))) if draw(st.booleans()) else None
    if bits is not None:
        values = bits.view(np.float32)
    elif draw(st.booleans()):
        values = draw(hnp.arrays(np.float32, (n, channels), elements=any_float32))
    else:
        values = np.cumsum(draw(hnp.arrays(np.int16, (n, channels))), axis=0).astype(np.float32) * np.float32(0.01)
    ts_ms = draw(hnp.arrays(np.int64, n, elements=st.integers(-(2**62), 2**62)))
    bounds = draw(hnp.arrays(np.float64, channels, elements=st.sampled_from([0.0, 1e-40, 1e-9, 1e-3, 0.01, 1.0, 1e30])))
    return ts_ms, values, bounds


@given(blocks())
@settings(deadline=None, max_examples=200)
def test_every_value_stays_in_its_bound(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    ts_ms, values, bounds = case
    data = encode_block(ts_ms, values, bounds)
    block = decode_block(data)
    assert block.ts_ms is not None
    assert (block.ts_ms == ts_ms).all()
    assert_kept(values, block.values, bounds)
    assert data == encode_block(ts_ms, values, bounds)


def small_frame() -> bytes:
    """Three blocks: regular, with holes and jitter, of one row."""
    rng = np.random.default_rng(1)
    values = rng.normal(0, 1, (48, 3)).cumsum(0).astype(np.float32)
    holes = values.copy()
    holes[5:9, 1] = np.nan
    ts_ms = 1_700_000_000_000 + 1000 * np.arange(48)
    bounds = np.array([1e-3, 0.0, 1e-2])
    return pack_frame([
        encode_block(ts_ms, values, bounds),
        encode_block(ts_ms + rng.integers(-9, 9, 48), holes, bounds),
        encode_block(ts_ms[:1], values[:1], bounds),
    ])


def test_a_frame_cut_at_any_byte_is_a_clean_error() -> None:
    frame = small_frame()
    for size in range(len(frame)):
        with pytest.raises(BadBlock):
            unpack_frame(frame[:size])


def test_a_block_cut_at_any_byte_is_a_clean_error() -> None:
    for block in unpack_frame(small_frame()):
        for size in range(len(block)):
            with pytest.raises(BadBlock):
                decode_block(block[:size])


def test_a_flipped_bit_in_a_frame_is_a_clean_error() -> None:
    frame = small_frame()
    for bit in range(len(frame) * 8):
        altered = bytearray(frame)
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BadBlock):
            unpack_frame(bytes(altered))
