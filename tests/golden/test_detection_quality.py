"""The figures of detection on the pump test bed, through the backtest's path; skipped where the data are absent."""

import pytest

from bench.detection import bench_skab, bench_tep
from bench.detection_data import data_folder


@pytest.fixture(scope="module")
def folder():
    if not (data_folder() / "skab").is_dir():
        pytest.skip(f"no labelled series in {data_folder()}: set NARROWS_DATA")
    return data_folder()


@pytest.mark.parametrize("bench", [bench_skab, bench_tep])
def test_the_linear_ensemble_reaches_the_goals_without_a_label(bench, folder, tmp_path):
    assert [one.name for one in bench(folder, tmp_path, True) if one.is_missed] == []


def test_it_beats_the_plain_scorer_and_always_alarm(folder, tmp_path):
    found = {one.name: one.value for one in bench_skab(folder, tmp_path, True)}
    for rival in ("SKAB plain scorer: F1", "SKAB always alarm: F1"):
        assert found["SKAB light: F1"] > found[rival] + 0.1
    assert found["SKAB light: mean VUS-PR"] > found["SKAB plain scorer: mean VUS-PR"] + 0.05
