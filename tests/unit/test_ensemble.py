"""Members in one graph say what they say alone; the memory measures distance to what it kept."""

import numpy as np
import pytest

from pipeline.core.contract import Channel, Contract
from pipeline.scoring.session import Session, differing_positions
from training.baselines import fit_baseline
from training.ensemble import assemble, fit_memory, merge, spread
from training.prepare import FIT, prepare

CONTRACT = Contract(channels=(*(Channel(name=n) for n in "abc"), Channel(name="set", role="context")), window=16)


@pytest.fixture(scope="module")
def ready():
    values = np.random.default_rng(0).normal(size=(900, 4)).cumsum(axis=0) * 0.1
    values += np.random.default_rng(1).normal(size=values.shape)
    return prepare(CONTRACT, ["d"], np.zeros(900, dtype=int), np.arange(900) * 1000, values, drift_sd=np.inf)


def test_each_member_says_in_the_ensemble_what_it_says_alone(ready):
    windows = ready.windows(FIT)
    alone = {kind: fit_baseline(kind, windows, CONTRACT) for kind in ("pca", "var", "raw")}
    together = Session(merge(list(alone.items()), CONTRACT, swing="var"))
    x = windows[:40]
    passed = together.run(x)
    assert passed.newest.shape == (40, 4, 3)
    for place, content in enumerate(alone.values()):
        np.testing.assert_allclose(passed.newest[:, place], Session(content).run(x).newest[:, 0], atol=1e-5)
    np.testing.assert_allclose(passed.latent, Session(alone["pca"]).run(x).latent, atol=1e-5)
    np.testing.assert_allclose(together.rebuild(x), Session(alone["pca"]).rebuild(x), atol=1e-5)


def test_the_swing_members_residual_is_the_size_of_the_vars(ready):
    content, members = assemble(ready)
    x = ready.windows(FIT)[:40]
    newest = Session(content).run(x).newest
    observed = x[:, -1, :3]
    var, swing = members.index("var"), members.index("swing")
    np.testing.assert_allclose(observed - newest[:, swing], np.abs(observed - newest[:, var]), atol=1e-5)


def test_the_memory_finds_its_own_windows_at_no_distance_and_others_at_theirs(ready):
    windows = ready.windows(FIT)
    kept = windows[::7][:, :, :3]
    session = Session(fit_memory(kept, CONTRACT, 16))
    at_home = windows[::7][:, -1, :3] - session.run(windows[::7]).newest[:, 0]
    assert np.abs(at_home).max() < 0.02
    far = windows[:5] + np.float32(4)
    distance = far[:, -1, :3] - session.run(far).newest[:, 0]
    assert (distance > 1).all()


def test_the_full_profile_holds_a_memory_and_keeps_bits_whatever_the_position(ready):
    content, members = assemble(ready, profile="full")
    assert members == ("var", "raw", "memory16", "swing")
    x = np.random.default_rng(0).normal(size=(129, 16, 4)).astype(np.float32)
    assert differing_positions(Session(content), x[0], x[1:]) == []


def test_thinned_streams_get_the_body_alone():
    contract = Contract(channels=CONTRACT.channels, window=16, hop=4)
    values = np.random.default_rng(0).normal(size=(400, 4))
    ready = prepare(contract, ["d"], np.zeros(400, dtype=int), np.arange(400) * 1000, values)
    assert assemble(ready)[1] == ("var",)


def test_spread_points_are_far_apart():
    points = np.concatenate([np.zeros((50, 2)), np.ones((1, 2)) * 9, np.ones((1, 2)) * -9])
    assert spread(points, 3).tolist() == [0, 50, 51]


def test_the_default_profile_keeps_a_memory_where_few_channels_are_scored_and_the_light_one_never(ready):
    many = Contract(channels=tuple(Channel(name=f"c{i}") for i in range(6)), window=16, memory=60)
    values = np.random.default_rng(0).normal(size=(400, 6))
    wide = prepare(many, ["d"], np.zeros(400, dtype=int), np.arange(400) * 1000, values)
    assert "memory16" in assemble(ready)[1]
    assert "memory16" not in assemble(ready, profile="light")[1]
    assert "memory16" not in assemble(wide)[1]
