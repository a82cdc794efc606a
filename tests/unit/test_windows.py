"""Windows: runs, sliding, filling, trailing."""

import numpy as np

from pipeline.core.windows import fill, run_lengths, sliding, trailing


def test_a_hole_gets_the_last_earlier_value_of_the_same_window_and_channel():
    window = np.array([[[np.nan, 1], [2, np.nan], [np.nan, np.nan], [4, 5]]], dtype=np.float32)
    assert fill(window)[0].tolist() == [[0, 1], [2, 1], [2, 1], [4, 5]]


def test_whole_windows_come_back_untouched_and_uncopied():
    windows = np.ones((3, 4, 2), dtype=np.float32)
    assert fill(windows) is windows


def test_filling_never_changes_its_input():
    windows = np.full((1, 2, 1), np.nan, dtype=np.float32)
    fill(windows)
    assert np.isnan(windows).all()


def test_a_run_starts_anew_at_another_device_and_after_a_long_gap():
    device = np.array([0, 0, 0, 1, 1])
    ts = np.array([0, 1000, 40_000, 0, 30_000])
    assert run_lengths(device, ts, 30_000).tolist() == [1, 2, 1, 1, 2]


def test_each_window_lies_inside_of_one_run():
    values = np.arange(10.0)[:, None]
    run = np.array([1, 2, 3, 4, 1, 2, 3, 1, 2, 3])
    windows, ends = sliding(values, run, 3)
    assert ends.tolist() == [2, 3, 6, 9]
    assert windows[:, :, 0].tolist() == [[0, 1, 2], [1, 2, 3], [4, 5, 6], [7, 8, 9]]


def test_fewer_rows_than_a_window_give_no_window():
    windows, ends = sliding(np.zeros((2, 3)), np.array([1, 2]), 4)
    assert windows.shape == (0, 4, 3)
    assert len(ends) == 0


def test_trailing_rows_before_the_run_are_zero():
    values = np.arange(1.0, 6.0, dtype=np.float32)[:, None]
    blocks = [block for _, block in trailing(values, np.array([1, 2, 0, 1, 2]), 3, chunk=2)]
    rows = np.concatenate(blocks)[:, :, 0]
    assert rows.tolist() == [[0, 0, 1], [0, 1, 2], [0, 0, 0], [0, 0, 4], [0, 4, 5]]
