"""What `narrows evaluate` measures: events and ranges device by device, alert rates, delays, baselines beside them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline.cli.main import app
from pipeline.core.contract import Channel, Contract
from pipeline.core.episode import EpisodeEvent
from pipeline.errors import BadInput
from pipeline.formats.files import FileOptions, read_tables
from tests.support.models import small_contract, write_small_bundle
from training import evaluate
from training.evaluate import WEEK_MS, Scored, any_label, measure, score_laid, score_table, to_lines
from training.make_baseline import make_baseline_bundle
from training.prepare import prepare
from training.spool import spool

CONTRACT = Contract(channels=(Channel(name="a"),), window=8, memory=40)
ROWS = 200


@pytest.fixture
def scored() -> Scored:
    """Two devices; one alert at the end of the first, where nothing is, and one three rows late in the other."""
    device, ts_ms = np.repeat([0, 1], ROWS), np.tile(np.arange(ROWS) * 1000, 2)
    values = np.random.default_rng(0).normal(size=(2 * ROWS, 1))
    prepared = prepare(CONTRACT, ["p", "q"], device, ts_ms, values)
    called = np.zeros(2 * ROWS, bool)
    called[[ROWS - 2, ROWS - 1]] = True
    called[ROWS + 53 : ROWS + 60] = True
    opened = [EpisodeEvent("opened", slot, 0, 0, 0, 0, 0, 1.0, 0, 1.0, "low") for slot in (0, 1)]
    return Scored(prepared, np.arange(2 * ROWS), called.astype(np.float32) + 0.1, np.zeros((2 * ROWS, 1)),
                  np.zeros((2 * ROWS, 1)), called, opened, 0.5)


def test_an_alert_at_a_devices_last_rows_touches_no_event_of_the_next_device(scored: Scored) -> None:
    label = np.zeros(2 * ROWS, np.float32)
    label[ROWS : ROWS + 10] = label[ROWS + 50 : ROWS + 60] = 1
    figures = measure(scored.judged, label)
    assert figures["false_alerts"] == 1
    assert figures["events_found_share"] == 0.5
    assert figures["event_f1"] == pytest.approx(2 / (2 + 1 + 1))
    assert figures["median_delay_s"] == 3.0
    normal_weeks = (2 * ROWS - 20) * 1000 / WEEK_MS
    assert figures["false_alerts_per_normal_device_week"] == pytest.approx(1 / normal_weeks)
    assert figures["alerts_per_device_week"] == pytest.approx(2 / (2 * ROWS * 1000 / WEEK_MS))


def test_all_figures_that_are_asked_for_are_there_and_none_is_point_adjusted(scored: Scored) -> None:
    label = np.zeros(2 * ROWS, np.float32)
    label[ROWS + 50 : ROWS + 60] = 1
    figures = measure(scored.judged, label)
    assert {"vus_pr", "event_f1", "range_f1", "far_percent", "mar_percent", "alerts_per_device_week", "median_delay_s",
            "always_alarm_f1", "zscore_vus_pr"} <= figures.keys()
    assert not [name for name in figures if "adjust" in name]
    blind = measure(replace(scored.judged, score=np.random.default_rng(1).random(2 * ROWS).astype(np.float32)), label)
    assert figures["vus_pr"] > 0.5 > blind["vus_pr"]


def test_without_an_anomalous_row_rates_are_told_and_nothing_that_needs_one(scored: Scored) -> None:
    figures = measure(scored.judged, np.zeros(2 * ROWS, np.float32))
    assert figures["far_percent"] == pytest.approx(100 * 9 / (2 * ROWS))
    assert "vus_pr" not in figures


def write_rows(path: Path, rows: int) -> None:
    """Three devices in turn, one with a gap; missing values, an unknown label, an anomalous stretch."""
    values = np.random.default_rng(5).normal(size=(rows, 3)).round(3)
    values[rows // 2 : rows // 2 + 40] += 3
    lines = ["ts,device,c0,c1,c2,bad"]
    for row, (a, b, c) in enumerate(values):
        ts = 1_700_000_000_000 + 1000 * (row // 3) + 60_000 * (row > rows // 3 and row % 3 == 1)
        bad = "" if row % 41 == 0 else int(rows // 2 <= row < rows // 2 + 40)
        lines.append(f"{ts},d{row % 3},{a},{'' if row % 17 == 0 else b},{c},{bad}")
    path.write_text("\n".join(lines))


def test_rows_on_disk_score_and_measure_as_in_memory_to_the_last_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_small_bundle(tmp_path / "bundle", small_contract(), threshold=0.8)
    write_rows(tmp_path / "rows.csv", 900)
    table = read_tables([tmp_path / "rows.csv"], FileOptions(device_column="device", label_columns=("bad",)))
    scored = score_table(bundle, table)
    wanted = measure(scored.judged, any_label(table, ("bad",))[scored.order])
    monkeypatch.setattr(evaluate, "SCORED_ROWS", 37)
    with spool([table.take(slice(at, at + 100)) for at in range(0, 900, 100)], tmp_path / "s", ("bad",)) as laid:
        judged = score_laid(bundle, laid)
        assert judged.score.tobytes() == scored.score.tobytes()
        assert judged.is_anomaly.tobytes() == scored.is_anomaly.tobytes()
        assert measure(judged, laid.labels()) == wanted
    assert wanted["episodes"] > 0


def test_evaluate_and_report_take_more_rows_than_fit(tmp_path: Path) -> None:
    write_small_bundle(tmp_path / "bundle", small_contract(), threshold=0.8)
    write_rows(tmp_path / "rows.csv", 3000)
    told = []
    for memory in (1, 1000):
        done = CliRunner().invoke(app, [
            "evaluate", str(tmp_path / "rows.csv"), "--bundle", str(tmp_path / "bundle"), "--device-column", "device",
            "--label-column", "bad", "--pictures", str(tmp_path / "pictures"), "--memory-mb", str(memory), "--json"])
        assert done.exit_code == 0, done.output
        assert ("figures are of all" in done.stderr) == (memory == 1)
        told.append(json.loads(done.stdout))
        assert (tmp_path / "pictures" / "index.html").exists()
    assert told[0] == told[1]
    assert told[0]["rows"] == 3000


def test_an_example_is_judged_by_its_name_and_has_no_labels(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    from training import examples

    made = examples.digits()
    prepared = prepare(made.contract, made.table.devices, made.table.device, made.table.ts_ms, made.table.values)
    make_baseline_bundle(prepared, tmp_path / "bundle", "pca", refuse=False)
    done = CliRunner().invoke(app, ["evaluate", "digits", "--bundle", str(tmp_path / "bundle"), "--json"])
    assert json.loads(done.stdout)["scored_rows"] == 1797
    done = CliRunner().invoke(
        app, ["evaluate", "digits", "--bundle", str(tmp_path / "bundle"), "--label-column", "class"])
    assert isinstance(done.exception, BadInput)
    assert "--label-column" in str(done.exception)


def test_figures_for_people_print_counts_in_full_and_say_what_they_are() -> None:
    assert to_lines({"rows": 11764.0, "mar_percent": 17.048, "weeks": 0.0}) == [
        "rows         11,764", "mar_percent  17.05   of anomalous rows are missed", "weeks        0"]
