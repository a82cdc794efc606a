"""What is learned from: odd stretches, label columns, windows by index, blocks of time, the example sets, 8 bits."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import BadInput
from pipeline.formats.files import Table
from training import contamination, data, examples
from training.windows import Windows, fold_by_time


def table_of(rows: int = 1200) -> Table:
    rng = np.random.default_rng(0)
    steps = np.arange(rows) / 20
    values = np.column_stack([np.sin(steps), np.cos(steps)]) + 0.2 * rng.normal(size=(rows, 2))
    return Table(devices=("pump",), device=np.zeros(rows, np.int64), ts_ms=1_700_000_000_000 + 1000 * np.arange(rows),
                 channels=("a", "b"), values=values.astype(np.float32), reason=np.zeros(rows, np.uint8))


def moved(table: Table, rows: slice, by: float = 12.0) -> Table:
    values = table.values.copy()
    values[rows, 1] += by
    return replace(table, values=values)


def odd_of(table: Table) -> contamination.Oddness:
    contract = data.derive_contract(table)
    return contamination.find(contract, table.devices, table.device, table.values)


def test_rows_of_one_kind_are_not_odd() -> None:
    assert not odd_of(table_of()).rows.any()


def test_a_stretch_that_comes_once_is_found_with_its_channel_and_left_out_up_to_a_fifth_of_the_rows() -> None:
    odd = odd_of(moved(table_of(), slice(600, 900)))
    assert odd.rows[640:860].all()
    assert not odd.rows[:560].any()
    assert odd.devices[0][2] == "b"
    contamination.check(odd_of(moved(table_of(), slice(600, 700))))
    with pytest.raises(BadInput, match=r"most in b.*--trim"):
        contamination.check(odd)


def test_where_most_rows_are_odd_the_data_are_refused_all_the_same() -> None:
    assert odd_of(moved(table_of(), slice(300, 1200))).is_contaminated


def test_a_state_that_comes_back_is_a_regime() -> None:
    table = table_of()
    for start in (100, 400, 700, 1000):
        table = moved(table, slice(start, start + 100))
    assert not odd_of(table).rows.any()


def test_the_files_own_label_column_is_believed() -> None:
    table = replace(table_of(), labels={"anomaly": np.r_[np.zeros(1000), np.ones(200)]})
    with pytest.raises(BadInput, match="--label-column anomaly"):
        contamination.check_labels(contamination.labelled_shares(table))
    contamination.check_labels(contamination.labelled_shares(replace(table, labels={"load": np.ones(1200)})))


@settings(max_examples=30, deadline=None)
@given(st.integers(40, 300), st.integers(2, 12), st.integers(2, 5))
def test_no_row_is_in_the_windows_of_both_sides_of_a_fold(rows: int, length: int, folds: int) -> None:
    windows = Windows(np.zeros((rows, 1), np.float32), np.arange(length - 1, rows), length, np.array([0]))
    parts = fold_by_time(windows, windows.ends, folds, purge=length - 1)
    judged = np.concatenate([held_out.ends for _, held_out in parts])
    assert len(set(judged.tolist())) == len(judged)
    for learn, held_out in parts:
        covered = [set((one.ends[:, None] - np.arange(length)).ravel().tolist()) for one in (learn, held_out)]
        assert not covered[0] & covered[1]


def test_windows_gathered_by_index_are_the_rows_before_their_end() -> None:
    rows = np.arange(40, dtype=np.float32).reshape(20, 2)
    windows = Windows(rows, np.array([4, 9, 19]), 5, np.array([0, 1]))
    np.testing.assert_array_equal(windows.raw(np.array([1]))[0], rows[5:10])
    assert len(windows.thinned(2)) == 2


def test_the_digits_are_one_window_each_and_carry_their_class() -> None:
    example = examples.digits()
    assert len(example.table.devices) == 1797
    assert example.contract.window == 8
    assert example.table.values.max() == 16
    assert set(np.unique(example.table.labels["class"])) == set(range(10))


def test_the_tones_are_the_same_at_every_call_and_louder_where_a_note_sounds() -> None:
    one, again = examples.tones(count=12), examples.tones(count=12)
    np.testing.assert_array_equal(one.table.values, again.table.values)
    silence = examples.spectrogram(np.zeros(32 * examples.STEP + examples.FRAME))
    assert one.table.values.mean() > silence.mean() + 1
    assert silence.shape == one.table.values.reshape(12, -1, 24).shape[1:]
