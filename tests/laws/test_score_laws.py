"""Same rows, same score, to the last bit; contributions sum to the score."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.score import Scorer, ewma_weights, residual
from pipeline.scoring.session import CHUNK

MEMBERS, CHANNELS, LENGTH = 3, 8, 129
COUNT = 1000


def make_scorer(groups: int = 1, members: int = MEMBERS, channels: int = CHANNELS, length: int = LENGTH) -> Scorer:
    rng = np.random.default_rng(1)
    shape = (groups, members, 3, channels)
    return Scorer(
        alphas=np.array([1.0, 0.3, 0.1]), length=length, clip=6.0, mean=rng.normal(0, 0.1, shape),
        whiten=rng.normal(0, 1, (*shape, channels)) + np.eye(channels), sd=rng.uniform(0.1, 1, shape),
        member_threshold=rng.uniform(2, 5, (members, 3)), weight=np.full((members, 3), 1 / (3 * members)),
        threshold=1.2,
        shift_mean=np.zeros((groups, channels)), shift_whiten=np.tile(np.eye(channels), (groups, 1, 1)),
        shift_threshold=3.0,
    )


def some_residuals(count: int = COUNT, members: int = MEMBERS, channels: int = CHANNELS) -> np.ndarray:
    rng = np.random.default_rng(2)
    return rng.normal(0, 1.5, (count, LENGTH, members * channels)).astype(np.float32)


def everything(scorer: Scorer, residuals: np.ndarray, device: np.ndarray) -> tuple[np.ndarray, ...]:
    filtered = scorer.filter(residuals)
    score = scorer.score(filtered, device)
    return filtered, score, scorer.shift(filtered, device), scorer.contributions(filtered, score, device)


@pytest.mark.parametrize("groups", [1, 5])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 128, 129, 1000])
def test_any_batch_size_gives_the_same_bits(size, groups):
    scorer, residuals = make_scorer(groups), some_residuals()
    device = np.arange(COUNT) % groups
    whole = everything(scorer, residuals, device)
    stop = min(COUNT, size * 40)
    parts = [
        everything(scorer, residuals[start : min(start + size, stop)], device[start : min(start + size, stop)])
        for start in range(0, stop, size)
    ]
    for together, pieces in zip(whole, zip(*parts, strict=True), strict=True):
        assert np.array_equal(together[:stop], np.concatenate(pieces))


@pytest.mark.parametrize(("members", "channels", "groups"), [(1, 1, 1), (3, 8, 1), (2, 52, 1), (3, 8, 4)])
def test_a_row_scores_the_same_in_all_128_positions(members, channels, groups):
    scorer = make_scorer(groups, members, channels)
    residuals = some_residuals(CHUNK, members, channels)
    row = residuals[5].copy()
    seen = set()
    for place in range(CHUNK):
        moved = residuals.copy()
        moved[place] = row
        score = scorer.score(scorer.filter(moved), np.zeros(CHUNK, dtype=np.int64))
        seen.add(score[place].tobytes())
    assert len(seen) == 1


def test_where_a_row_lies_in_memory_does_not_matter():
    scorer, residuals = make_scorer(), some_residuals(64)
    whole = scorer.filter(residuals)
    room = np.empty(residuals.size + 16, dtype=np.float32)
    for shift in range(16):
        moved = room[shift : shift + residuals.size].reshape(residuals.shape)
        moved[:] = residuals
        assert np.array_equal(scorer.filter(moved), whole)
    ring = np.empty((64 + LENGTH - 1, MEMBERS * CHANNELS), dtype=np.float32)
    ring[:] = np.concatenate([residuals[0, :-1], residuals[:, -1]])
    view = np.lib.stride_tricks.sliding_window_view(ring, LENGTH, axis=0).transpose(0, 2, 1)
    assert np.array_equal(scorer.filter(view), scorer.filter(np.ascontiguousarray(view)))


@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(1e-3, 6), groups=st.sampled_from([1, 3]))
@settings(max_examples=30, deadline=None)
def test_contributions_are_shares_of_the_score(seed, scale, groups):
    scorer = make_scorer(groups)
    rng = np.random.default_rng(seed)
    residuals = rng.normal(0, scale, (9, LENGTH, MEMBERS * CHANNELS)).astype(np.float32)
    device = np.arange(9) % groups
    filtered = scorer.filter(residuals)
    score = scorer.score(filtered, device)
    shares = scorer.contributions(filtered, score, device)
    assert (shares >= 0).all()
    np.testing.assert_allclose(shares.sum(axis=1), score, rtol=1e-5)


def test_a_row_depends_on_its_last_rows_alone():
    scorer, residuals = make_scorer(), some_residuals(3)
    direct = residuals[1].T @ ewma_weights(scorer.alphas, LENGTH).T
    np.testing.assert_allclose(scorer.filter(residuals)[1, :3], direct.T, rtol=1e-4, atol=1e-5)


def test_a_missing_value_adds_nothing_and_a_wild_one_no_more_than_the_clip():
    observed = np.array([[np.nan, 100.0, 1.0]], dtype=np.float32)
    rebuilt = np.zeros((1, 2, 3), dtype=np.float32)
    assert residual(observed, rebuilt, 6.0).tolist() == [[0, 6, 1, 0, 6, 1]]


def test_the_shift_filter_answers_to_a_change_of_level_and_not_to_a_level():
    scorer = make_scorer()
    still = np.full((1, LENGTH, MEMBERS * CHANNELS), 2.0, dtype=np.float32)
    jump = still.copy()
    jump[:, :-25] = 0
    assert scorer.shift(scorer.filter(still))[0] < 1e-4
    np.testing.assert_allclose(scorer.shift(scorer.filter(jump))[0], 2 * np.sqrt(CHANNELS), rtol=1e-5)


def test_arrays_bring_back_the_same_scorer():
    scorer, residuals = make_scorer(2), some_residuals(10)
    again = Scorer.from_arrays(scorer.to_arrays())
    device = np.arange(10) % 2
    for one, other in zip(everything(scorer, residuals, device), everything(again, residuals, device), strict=True):
        assert np.array_equal(one, other)
