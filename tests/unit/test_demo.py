"""The demo's view and its bookkeeping, without servers."""

import io
import json
from dataclasses import replace
from importlib.resources import files
from typing import Any

import msgspec
import numpy as np
import pytest
from rich.console import Console

from pipeline.cli.demo import MARKER, Fleet, _clear
from pipeline.cli.demo_view import Facts, Job, Lines, picture, sparks, summary
from pipeline.dashboard.watch import Episode, Line, Snapshot, StreamView, Swap
from pipeline.errors import BadInput

NOW = 1_700_000_000_000
EPISODE = Episode(
    "e", "cache-07", "opened", "high", 3.0, 4.5, 1.5, NOW, NOW + 20_000, [("clients", 2.0, "above")], "a" * 64
)
VIEW = StreamView(
    name="fleet", topic="t", rate=288.0, rates=[0.0, 100.0, 288.0], lag=12, records=1000, devices=24,
    bytes_in=2_000_000, bytes_out=100_000, rows_out=900, rows_compared=900, error_share=0.998, error_mean=0.0004,
    digest="b" * 64,
    swaps=[Swap(NOW, "a" * 64), Swap(NOW + 1, "b" * 64)], open=[EPISODE], open_count=1, recent=[EPISODE],
    counts={"opened": 1}, dead_letters={"bad_json": 2}, line=Line("cache-07", "clients", "", [NOW], [1.0]),
    is_sampled=False,
)


def facts(**changes: Any) -> Facts:
    one = Facts("http://127.0.0.1:1/", 12.0, 9.5, 24, 1000)
    one.take(Snapshot(NOW, [VIEW]), 30.0, 1000, 200_000, Job("started", "training", 0.5, "", "", {}))
    one.scores = one.scores_expected = 256
    one.faults = [("cache-07", "connection leak", True), ("cache-08", "no expiry", False)]
    for name, value in changes.items():
        setattr(one, name, value)
    return one


def text(shown: Any) -> str:
    console = Console(file=io.StringIO(), width=120, force_terminal=False)
    console.print(shown)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_picture_shows_what_the_stream_does() -> None:
    shown = text(picture(facts(), VIEW, None))
    for word in ("288 records/s", "12 behind", "2.0 MB in, 100.0 kB out, 20.0 ×", "of the bound", "aaaaaaaa → bbbbbbbb",
                 "started: training", "high", "cache-07", "clients ↑", "3.0 ×", "2 bad_json", "http://127.0.0.1:1/"):
        assert word in shown


def test_the_summary_says_what_was_lost_and_found() -> None:
    shown = text(summary(facts()))
    assert "none lost, none twice" in shown
    assert "1 of 2 that were made on purpose" in shown
    assert "6 missing" in text(summary(facts(scores=250)))


@pytest.mark.parametrize(
    ("changes", "is_good"),
    [({}, True), ({"scores": 255}, False), ({"scores_twice": 1}, False), ({"swaps": []}, False),
     ({"first_anomaly_s": None}, False), ({"scores": 0, "is_interrupted": True}, True)],
)
def test_the_demo_is_good_only_where_everything_was_shown(changes: dict[str, Any], is_good: bool) -> None:
    assert facts(**changes).is_good == is_good
    assert json.loads(msgspec.json.encode(facts(**changes).to_plain()))["ok"] == is_good


def test_lines_tell_each_thing_once() -> None:
    out = io.StringIO()
    lines = Lines(Console(file=out, width=200))
    one = facts()
    for _ in range(3):
        lines.show(one, Snapshot(NOW, [VIEW]))
    closed = msgspec.structs.replace(EPISODE, state="closed")
    one.take(Snapshot(NOW, [msgspec.structs.replace(VIEW, open=[], recent=[closed, EPISODE])]), 31.0, 1001, 1, None)
    lines.show(one, Snapshot(NOW, [VIEW]))
    shown = out.getvalue()
    assert [shown.count(word) for word in ("opened: cache-07", "closed: cache-07", "swap: ", "retraining: ")] == [1] * 4


def test_an_episode_belongs_to_a_fault_of_its_device_and_time() -> None:
    one = facts()
    assert one.has_episode("cache-07", NOW - 1000, NOW)
    assert not one.has_episode("cache-08", NOW - 1000, NOW)
    assert not one.has_episode("cache-07", NOW + 20_001, NOW + 30_000)


def test_sparks_are_as_high_as_their_values() -> None:
    assert sparks([0.0, 50.0, 100.0]) == "▁▅█"
    assert sparks([]) == sparks([0.0]) == ""


def test_only_a_demos_own_folder_is_cleared(tmp_path: Any) -> None:
    mine = tmp_path / "mine"
    _clear(mine)
    (mine / "old").touch()
    _clear(mine)
    assert [path.name for path in mine.iterdir()] == [MARKER]
    (tmp_path / "other").mkdir()
    (tmp_path / "other/precious").touch()
    with pytest.raises(BadInput, match="--folder"):
        _clear(tmp_path / "other")
    assert (tmp_path / "other/precious").exists()


def test_the_shipped_recording_is_whole() -> None:
    from pipeline.cli.demo import _read_fleet

    history, live, fleet = _read_fleet()
    assert isinstance(fleet, Fleet)
    assert len(history.devices) == 24
    assert set(fleet.units) == set(live.channels)
    for table in (history, live):
        assert np.isfinite(table.values).all()
        assert not table.reason.any()
    for place in range(24):
        steps = np.diff(live.ts_ms[live.device == place])
        assert (steps == 1000).all()
    assert min(fault.begin_s for fault in fleet.faults) >= fleet.quiet_s
    assert {fault.device for fault in fleet.faults} <= set(history.devices)
    licence = files("pipeline.cli").joinpath("fleet/README.md").read_text()
    assert "Apache-2.0" in licence
    assert replace(live).channels == live.channels
