"""Maintenance windows: which rows lie in one, what is known of them where, and that an alert in one is not raised."""

import json
import logging

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from bench import detection_kinds as kinds
from pipeline.cli.backtest import run_backtest
from pipeline.cli.main import app
from pipeline.core.maintenance import Plan, Plans, Window, Windows
from pipeline.errors import BadInput
from pipeline.topics.maintenance import take_records
from pipeline.topics.reader import Record

NAMES = ["line3-a", "line3-b", "line4-a"]


def window(name: str = "w", device: str = "*", begin: int = 0, end: int = 100, stream: str = "pump") -> Window:
    return Window(id=name, stream=stream, device=device, begin_ms=begin, end_ms=end)


def covered(windows: list[Window], rows: list[tuple[int, int]]) -> list[bool]:
    slot, ts = (np.array(column) for column in zip(*rows, strict=True))
    return Windows(windows).cover(NAMES, slot, ts).tolist()


def test_a_window_holds_the_rows_of_its_devices_by_their_own_time():
    assert covered([window(begin=10, end=20)], [(0, 9), (1, 10), (2, 19), (0, 20)]) == [False, True, True, False]
    assert covered([window(device="line3-*")], [(0, 5), (1, 5), (2, 5)]) == [True, True, False]
    assert covered([window(device="line4-a"), window(device="line3-[b]")], [(0, 5), (1, 5), (2, 5)]) == [
        False, True, True
    ]
    assert covered([], [(0, 5)]) == [False]


def test_time_is_counted_anew_from_the_end_of_a_window_that_it_meets():
    windows = Windows([window(begin=50, end=100, device="line3-*"), window("v", begin=90, end=130, device="line3-a")])
    assert windows.until("line4-a", 40, 30) == 70
    assert windows.until("line3-b", 40, 30) == 130
    assert windows.until("line3-a", 40, 30) == 160
    assert windows.until("line3-a", 0, 30) == 30, "due before the window begins"


def test_a_plan_is_what_the_records_below_an_offset_say():
    plans = Plans()
    plans.take(0, "a", window("a", end=50))
    plans.take(1, "b", window("b", stream="fan"))
    plans.take(2, "a", window("a", end=80))
    plans.take(4, "b", None)
    assert [one.end_ms for one in plans.as_of(1).windows] == [50]
    assert [one.id for one in plans.as_of(3).windows] == ["b", "a"]
    assert plans.wanted() == Plan(5, (window("a", end=80),))
    assert plans.wanted().of("pump")
    assert not plans.wanted().of("fan")


def test_what_is_no_window_is_stepped_over_and_a_newer_one_is_refused(caplog):
    plans = Plans()
    records = [b"no json", b'{"version":1,"id":"x"}', msgspec.json.encode(window("a")),
               b'{"version":1,"id":"z","stream":"s","begin_ms":9,"end_ms":3}']
    with caplog.at_level(logging.WARNING):
        take_records(plans, [Record(at, 0, b"k", value, ()) for at, value in enumerate(records)])
    assert [one.id for one in plans.wanted().windows] == ["a"]
    assert len(caplog.records) == 3
    with pytest.raises(BadInput, match="update it"):
        take_records(plans, [Record(9, 0, b"k", b'{"version":2,"id":"x"}', ())])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return kinds.make_suite_bundle(tmp_path_factory.mktemp("suite") / "bundle")


def faults(bundle, windows: Windows = Windows(), batch_rows: int = 5000):
    """The suite's machine faults, from row 700 to the end: scores, events as (device, kind, ms)."""
    table, faulty = kinds.suite_table("machine")
    scores, alarms = run_backtest(bundle, table, batch_rows, windows=windows)
    return scores, [(name, one.event.kind, one.ts_ms) for name, _, one in alarms], table, faulty


def at(row: int) -> int:
    return 1000 * row


def test_rows_in_a_window_are_scored_to_the_same_bits_and_raise_no_alert(bundle):
    plain, told, table, faulty = faults(bundle)
    assert {name for name, kind, _ in told if kind == "opened"} == set(faulty)
    windows = Windows([window(device="d[0-3]", begin=at(690), end=at(2000))])
    for batch_rows in (70, 5000):
        scores, quiet, *_ = faults(bundle, windows, batch_rows)
        assert {name for name, *_ in quiet} == {"d4", "d5", "d6", "d7"}
        np.testing.assert_array_equal(scores.score, plain.score)
        inside = np.isin(table.device, range(4)) & (table.ts_ms >= at(690))
        assert (scores.reason[inside] == "maintenance").all()
        assert not scores.is_anomaly[inside].any()
        np.testing.assert_array_equal(scores.is_anomaly[~inside], plain.is_anomaly[~inside])


def test_a_fault_that_outlasts_its_window_is_raised_after_it(bundle):
    _, told, _, faulty = faults(bundle, Windows([window(begin=at(690), end=at(720))]))
    opened = {name: ms for name, kind, ms in told if kind == "opened"}
    assert opened.keys() == set(faulty)
    assert all(at(720) < ms <= at(720 + kinds.CONTRACT.memory + 10) for ms in opened.values())


def test_an_episode_that_is_open_when_a_window_begins_ends_there(bundle):
    _, told, _, faulty = faults(bundle, Windows([window(begin=at(760), end=at(2000))]))
    assert {(name, ms) for name, kind, ms in told if kind == "closed"} == {(name, at(760)) for name in faulty}


def test_a_device_that_is_switched_off_in_a_window_is_silent_from_its_end_on(bundle):
    table, faulty = kinds.suite_table("silence")          # they stop at row 700
    def told(*windows: Window) -> dict[str, int]:
        _, alarms = run_backtest(bundle, table, 5000, windows=Windows(windows), silence_ms=90_000)
        return {name: one.ts_ms for name, _, one in alarms}

    assert told() == dict.fromkeys(faulty, at(790))
    assert told(window(begin=at(690), end=at(750))) == dict.fromkeys(faulty, at(841))
    assert told(window(begin=at(690), end=at(2000))) == {}


def test_windows_of_a_file_hold_in_a_backtest(bundle, tmp_path):
    table, _ = kinds.suite_table("machine")
    rows = table.device == 0
    lines = ["ts,device," + ",".join(table.channels)]
    lines += [f"{ts},d0," + ",".join(map(repr, values)) for ts, values in zip(
        table.ts_ms[rows].tolist(), table.values[rows].tolist(), strict=True)]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "windows.json").write_bytes(msgspec.json.encode([window(begin=at(690), end=at(2000))]))
    common = ["backtest", str(tmp_path / "rows.csv"), "--bundle", str(bundle.folder), "--device-column", "device",
              "--out", str(tmp_path / "out.csv"), "--time-unit", "ms", "--json"]
    plain = CliRunner().invoke(app, common)
    quiet = CliRunner().invoke(app, [*common, "--maintenance", str(tmp_path / "windows.json")])
    assert json.loads(plain.output)["episodes"] == 1, plain.output
    assert json.loads(quiet.output)["episodes"] == 0, quiet.output
    assert ",maintenance\n" in (tmp_path / "out.csv").read_text().replace('"', "")


def test_windows_are_declared_ended_and_taken_back_by_command(kafka, tmp_path):
    from pipeline.config import load_config
    from pipeline.topics import TOPICS, create

    path = tmp_path / "narrows.yaml"
    path.write_text(
        f"kafka: {{bootstrap: '{kafka.bootstrap}', topic_prefix: 'mw{tmp_path.name}.'}}\n"
        "streams: {pump: {topic: readings, contract: {channels: [{name: a}]}}}\n"
    )
    tree = load_config(path)
    create(tree.kafka.client_settings(), [], tree.kafka.topic_prefix, outputs=[TOPICS["maintenance"]])

    def call(*arguments: str) -> object:
        done = CliRunner().invoke(app, ["maintenance", *arguments, "--config", str(path), "--json"])
        assert done.exit_code == 0, (done.output, done.exception)
        return json.loads(done.output)

    first = call("add", "pump", "--device", "line3-*", "--from", "2026-01-31T08:00", "--to", "2026-01-31T12:00")[0]
    assert (first["begin_ms"], first["end_ms"]) == (1769846400000, 1769860800000)
    second = call("add", "pump", "--from", "1000", "--to", "2000", "--note", "filters")[0]
    assert [one["id"] for one in call("list")] == [second["id"], first["id"]]
    assert call("end", first["id"], "--at", "2026-01-31T09:00")[0]["end_ms"] == 1769850000000
    assert call("cancel", second["id"])["cancelled"]
    assert [(one["id"], one["end_ms"]) for one in call("list", "--stream", "pump")] == [(first["id"], 1769850000000)]
    for wrong, why in ((["add", "fan", "--to", "9"], "no stream"), (["cancel", "x"], "no maintenance window"),
                       (["add", "pump", "--from", "9", "--to", "3"], "ends before")):
        done = CliRunner().invoke(app, ["maintenance", *wrong, "--config", str(path)])
        assert why in str(done.exception)
