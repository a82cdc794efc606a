"""Scaling: what a device, a fleet and an odd channel get."""

import numpy as np
import pytest

from pipeline.core.scaling import Scaling, fit
from pipeline.errors import BadInput


def two_devices() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    values = np.vstack([rng.normal([10, 5], [1, 2], (500, 2)), rng.normal([20, 5], [3, 2], (500, 2))])
    return values, np.repeat([0, 1], 500)


def test_each_device_is_scaled_by_its_own_rows_and_a_stranger_by_the_fleet():
    values, device = two_devices()
    scaling = fit(values, device, ["b", "a"])
    assert scaling.devices == ("a", "b")
    index = scaling.index(["b", "a", "never seen"])
    assert index.tolist() == [1, 0, 2]
    scaled = scaling.apply(np.array([[10.0, 5], [20, 5], [15, 5]], dtype=np.float32), index)
    assert np.abs(scaled).max() < 0.2
    assert scaling.scale[2, 0] > 5   # the fleet's scale holds the spread between devices


def test_missing_values_stay_missing_and_wild_ones_are_clipped():
    scaling = Scaling((), np.zeros((1, 2)), np.ones((1, 2)))
    scaled = scaling.apply(np.array([[np.nan, 1e30]], dtype=np.float32), np.array([0]))
    assert np.isnan(scaled[0, 0])
    assert scaled[0, 1] == 10


def test_a_channel_that_stood_still_everywhere_gets_a_finite_scale():
    values = np.column_stack([np.full(100, 7.0), np.arange(100.0)])
    scaling = fit(values, np.zeros(100, dtype=int), ["a"])
    assert np.isfinite(scaling.scale).all()
    assert scaling.scale[0, 0] == 1


def test_a_channel_taken_out_is_missing_for_that_device_alone():
    scaling = Scaling(("a",), np.zeros((2, 1)), np.array([[np.nan], [1.0]]))
    scaled = scaling.apply(np.array([[2.0], [2.0]], dtype=np.float32), np.array([0, 1]))
    assert np.isnan(scaled[0, 0])
    assert scaled[1, 0] == 2


def test_arrays_bring_back_the_same_scaling():
    values, device = two_devices()
    scaling = fit(values, device, ["a", "b"])
    again = Scaling.from_arrays(scaling.to_arrays())
    assert again.devices == scaling.devices
    assert np.array_equal(again.location, scaling.location)
    assert np.array_equal(again.scale, scaling.scale)


def test_a_scale_of_zero_is_refused():
    with pytest.raises(BadInput, match="positive"):
        Scaling((), np.zeros((1, 1)), np.zeros((1, 1)))
