"""A window's outputs never depend on what else is in the batch."""

import numpy as np
import pytest

from pipeline.core.contract import Channel, Contract
from pipeline.errors import BadBundle, BadInput
from pipeline.scoring.session import Session, differing_positions
from training.baselines import fit_baseline

CONTRACT = Contract(channels=(*(Channel(name=n) for n in "abcdefg"), Channel(name="set", role="context")), window=32)


def windows(count: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 32, 8)).astype(np.float32)


@pytest.fixture(scope="module", params=["raw", "pca", "var"])
def session(request) -> Session:
    return Session(fit_baseline(request.param, windows(400), CONTRACT))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 128, 129, 1000])
def test_any_batch_size_gives_the_same_bits(session, size):
    x = windows(1000)
    whole = session.run(x)
    stop = min(1000, 20 * size)
    parts = [session.run(x[start : min(start + size, stop)]) for start in range(0, stop, size)]
    assert np.array_equal(whole.newest[:stop], np.concatenate([part.newest for part in parts]))
    assert np.array_equal(whole.latent[:stop], np.concatenate([part.latent for part in parts]))


def test_a_window_gets_the_same_bits_in_all_128_positions(session):
    x = windows(129)
    assert differing_positions(session, x[0], x[1:]) == []


def test_no_window_gives_empty_outputs_of_the_right_shape(session):
    passed = session.run(windows(0))
    assert passed.newest.shape == (0, 1, 7)
    assert len(passed.latent) == 0


def test_windows_of_another_shape_are_refused(session):
    with pytest.raises(BadInput, match="takes"):
        session.run(np.zeros((1, 31, 8), dtype=np.float32))


def test_a_file_that_is_no_model_is_a_bad_bundle():
    with pytest.raises(BadBundle, match="make or fetch"):
        Session(b"not an onnx file")
