"""`narrows backtest` is the worker's own code: batches never change a result, every row gets one line.

And a live worker says the same to the last bit.
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline import topics
from pipeline.cli import files
from pipeline.cli.backtest import judge
from pipeline.cli.main import app
from pipeline.core.contract import Contract
from pipeline.errors import BadInput
from pipeline.formats.files import FileOptions, Table, read_blocks, read_tables
from pipeline.sinks import read_anomaly, read_score
from tests.support.models import small_contract, write_small_bundle
from tests.support.oracle import Record
from tests.support.world import World, until


def write_rows(path: Path, rows: int) -> None:
    rng = np.random.default_rng(3)
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["ts", "device", "c0", "c1", "c2"])
        for i in range(rows):
            values = rng.normal(0, 4 if 200 < i < 260 else 1, 3).round(4).tolist()
            if i % 50 == 7:
                values[1] = ""
            out.writerow([1_700_000_000_000 + 1000 * (i // 2), f"d{i % 2}", *values])
        out.writerow([1_700_000_000_000 + 1000 * (rows // 2), "d0", "", "", ""])


def test_batches_never_change_a_result(tmp_path: Path) -> None:
    write_small_bundle(tmp_path / "bundle", small_contract(), threshold=0.8)
    write_rows(tmp_path / "rows.csv", 600)
    written = []
    for batch in (1, 7, 100_000):
        out, episodes = tmp_path / f"s{batch}.csv", tmp_path / f"e{batch}.jsonl"
        result = CliRunner().invoke(app, [
            "backtest", str(tmp_path / "rows.csv"), "--bundle", str(tmp_path / "bundle"), "--out", str(out),
            "--batch-rows", str(batch), "--device-column", "device", "--contributions", "--episodes", str(episodes),
        ])
        assert result.exit_code == 0, result.output
        written.append((out.read_bytes(), episodes.read_bytes()))
    assert written[0] == written[1] == written[2]
    lines = list(csv.DictReader(written[0][0].decode().splitlines()))
    assert len(lines) == 601
    assert lines[-1]["reason"] == "no_channel"
    assert [line["reason"] for line in lines[:14]] == ["warming"] * 14
    scored = [line for line in lines if line["score"]]
    assert len(scored) == 586
    assert any(line["is_anomaly"] == "1" for line in scored)
    for line in scored:
        total = sum(float(line[f"c:c{i}"]) for i in range(3))
        assert abs(total - float(line["score"])) <= 1e-5 * max(1.0, float(line["score"]))


START_MS = 1_700_000_000_000
SILENCE_S = 15.0


def make_records(rows: int) -> list[Record]:
    """Three devices in turn, one row a second each: missing values, a fault in each, and one that stops sending."""
    rng = np.random.default_rng(3)
    records = []
    for i in range(rows):
        device, second = i % 3, i // 3
        if device == 2 and second > rows // 6:
            continue
        values = rng.normal(0, 4 if 30 < second < 50 else 1, 3).astype(np.float32)
        if i % 50 == 7:
            values[1] = np.nan
        ts = START_MS + 1000 * second
        records.append(Record(len(records), ts, f"d{device}", ts, values))
    return records


def small_world_of(folder: Path, bootstrap: str, **stream: Any) -> World:
    contract: Contract = small_contract()
    return World(
        folder, bootstrap, contract, [write_small_bundle(folder / "bundle", contract, threshold=0.8)], partitions=1,
        stream=stream,
    )


def declare(world: World, *arguments: str) -> list[dict[str, Any]]:
    done = CliRunner().invoke(app, ["maintenance", *arguments, "--config", str(world.path), "--json"])
    assert done.exit_code == 0, (done.output, done.exception)
    windows: list[dict[str, Any]] = json.loads(done.output)
    return windows


def test_a_live_worker_says_what_a_backtest_says_to_the_last_bit(kafka: Any, tmp_path: Path) -> None:
    """Scores, verdicts and episodes, those of silence and maintenance included."""
    world = small_world_of(tmp_path / "world", kafka.bootstrap, silence_s=SILENCE_S)
    windows = declare(world, "add", "pump", "--device", "d1", "--from", str(START_MS), "--to", str(START_MS + 60_000))
    (tmp_path / "windows.json").write_bytes(msgspec.json.encode(windows))
    records = make_records(600)
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["ts", "device", "c0", "c1", "c2"])
        for record in records:
            assert record.values is not None
            numbers = ["" if value != value else repr(value) for value in record.values.astype(float).tolist()]
            out.writerow([record.ts, record.device, *numbers])
    told = []
    for batch in (1, 100_000):
        scores, episodes = tmp_path / f"s{batch}.csv", tmp_path / f"e{batch}.jsonl"
        done = CliRunner().invoke(app, [
            "backtest", str(tmp_path / "rows.csv"), "--bundle", str(tmp_path / "world" / "bundle"),
            "--device-column", "device", "--batch-rows", str(batch), "--silence-s", str(SILENCE_S),
            "--maintenance", str(tmp_path / "windows.json"), "--out", str(scores), "--episodes", str(episodes),
        ])
        assert done.exit_code == 0, (done.output, done.exception)
        told.append((scores.read_bytes(), episodes.read_bytes()))
    assert told[0] == told[1]
    try:
        world.produce([records])
        child = world.start()
        world.wait()
        assert world.stop(child) == 0
        lines = list(csv.DictReader(told[0][0].decode().splitlines()))
        wanted = {
            row: (line["device"], np.float32(line["score"]).tobytes(), line["is_anomaly"] == "1",
                  line["changepoint"] == "1", line["reason"] == "maintenance")
            for row, line in enumerate(lines) if line["score"]
        }
        read = [read_score(record.value or b"") for record in in_topic(world, "scores")]
        found = {
            one.offset: (one.device, np.float32(one.score).tobytes(), one.is_anomaly, one.is_change,
                         one.is_muted is True)
            for one in read
        }
        assert found == wanted
        assert sum(anomalous for _, _, anomalous, *_ in found.values()) > 20
        assert sum(muted for *_, muted in found.values()) > 20
        events = [json.loads(line) for line in told[0][1].decode().splitlines()]
        assert sorted(
            (one.trigger, one.device, one.state, one.kind, one.window_start, one.window_end, one.score, one.peak)
            for one in (read_anomaly(record.value or b"") for record in in_topic(world, "anomalies")) if one.final
        ) == sorted(
            (one["row"], one["device"], one["state"], one["kind"], one["window_start"], one["window_end"],
             one["score"], one["peak"]) for one in events
        )
        assert {("d2", "opened", "silence")} <= {(one["device"], one["state"], one["kind"]) for one in events}
        assert not [one for one in events if one["device"] == "d1" and one["window_start"] < START_MS + 60_000]
    finally:
        world.close()


def in_topic(world: World, name: str) -> list[topics.Record]:
    return [record for _, record in topics.read_topic(world.bootstrap, f"{world.prefix}narrows.{name}")]


def test_a_window_declared_while_a_worker_runs_holds_from_one_record_on_whoever_goes_on(
    kafka: Any, tmp_path: Path
) -> None:
    world = small_world_of(tmp_path / "world", kafka.bootstrap)
    rng, second = np.random.default_rng(1), 0

    def send(count: int) -> None:
        nonlocal second
        rows = []
        for _ in range(count):
            second += 1
            ts = START_MS + 1000 * second
            rows += [Record(0, ts, name, ts, rng.normal(0, 1, 3).astype(np.float32)) for name in ("d0", "d1")]
        world.produce([rows])

    def muted() -> list[bool]:
        """Of each scored row of d1, by its place in the log."""
        found = {score.offset: score for score in map(read, in_topic(world, "scores")) if score.device == "d1"}
        return [found[offset].is_muted is True for offset in sorted(found)]

    def read(record: topics.Record) -> Any:
        return read_score(record.value or b"")

    def moves_on() -> bool:
        send(5)
        return any(muted())

    try:
        child = world.start("one")
        send(40)
        world.wait()
        assert not any(muted())
        declare(world, "add", "pump", "--device", "d1", "--from", str(START_MS), "--to", str(START_MS + 10**9))
        until(moves_on, 60, "a row in the window")
        world.kill(child)
        send(40)
        child = world.start("one")
        world.wait()
        assert world.stop(child) == 0
        (one,) = world.read()
        assert one.conflicts == 0
        known = muted()
        assert known[known.index(True):] == [True] * (len(known) - known.index(True))
        assert not any(score.is_muted is True for score in map(read, in_topic(world, "scores")) if score.device == "d0")
    finally:
        world.close()


def small_blocks(paths: list[Path], options: FileOptions, _: int = 0) -> Iterator[Table]:
    return read_blocks(paths, options, block_bytes=1 << 10)


@pytest.mark.parametrize("contract", [small_contract(), small_contract(resample=True, step_ms=2000)],
                         ids=["as they come", "resampled"])
def test_blocks_of_reading_never_change_a_result(
    contract: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_small_bundle(tmp_path / "bundle", contract, threshold=0.8)
    write_rows(tmp_path / "rows.csv", 600)

    def whole(paths: list[Path], options: FileOptions, _: int) -> Iterator[Table]:
        return iter([read_tables(paths, options)])

    written = []
    for reader in (whole, small_blocks):
        monkeypatch.setattr(files, "read_blocks", reader)
        out, episodes = tmp_path / "scores.csv", tmp_path / "episodes.jsonl"
        result = CliRunner().invoke(app, [
            "backtest", str(tmp_path / "rows.csv"), "--bundle", str(tmp_path / "bundle"), "--out", str(out),
            "--batch-rows", "97", "--device-column", "device", "--contributions", "--episodes", str(episodes), "--json",
        ])
        assert result.exit_code == 0, result.output
        written.append((out.read_bytes(), episodes.read_bytes(), result.stdout))
    assert written[0] == written[1]
    assert len(written[0][1])


@pytest.mark.parametrize("resample", [False, True])
def test_a_block_is_given_before_all_are_read(resample: bool, tmp_path: Path) -> None:
    contract = small_contract(resample=resample)
    bundle = write_small_bundle(tmp_path / "bundle", contract)
    write_rows(tmp_path / "rows.csv", 2000)
    taken = 0

    def counted() -> Iterator[Table]:
        nonlocal taken
        for block in small_blocks([tmp_path / "rows.csv"], FileOptions(device_column="device")):
            taken += 1
            yield block

    ahead = [taken - place for place, _ in enumerate(judge(bundle, counted(), 5000), start=1)]
    assert taken > 20
    assert max(ahead) <= (1 if resample else 0)


def test_a_file_that_cannot_be_read_to_its_end_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_small_bundle(tmp_path / "bundle", small_contract())
    write_rows(tmp_path / "rows.csv", 600)
    with (tmp_path / "rows.csv").open("a") as file:
        file.write("1800000000000,d0,1,many,2\n")
    monkeypatch.setattr(files, "read_blocks", small_blocks)
    result = CliRunner().invoke(app, [
        "backtest", str(tmp_path / "rows.csv"), "--bundle", str(tmp_path / "bundle"), "--device-column", "device",
        "--out", str(tmp_path / "scores.csv"),
    ])
    assert isinstance(result.exception, BadInput)
    assert not (tmp_path / "scores.csv").exists()


def test_rows_counted_from_the_end_are_scored_too(tmp_path: Path) -> None:
    write_small_bundle(tmp_path / "bundle", small_contract())
    write_rows(tmp_path / "rows.csv", 600)
    written = []
    for rows in ("401:", "-200:"):
        result = CliRunner().invoke(app, [
            "backtest", str(tmp_path / "rows.csv"), "--bundle", str(tmp_path / "bundle"), "--device-column", "device",
            "--out", str(tmp_path / "scores.csv"), "--rows", rows,
        ])
        assert result.exit_code == 0, result.output
        written.append((tmp_path / "scores.csv").read_bytes())
    assert written[0] == written[1]
