"""`narrows backtest` is the worker's own code: batches never change a result, and every row gets one line."""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline.cli import files
from pipeline.cli.backtest import judge
from pipeline.cli.main import app
from pipeline.core.contract import Contract
from pipeline.errors import BadInput
from pipeline.formats.files import FileOptions, Table, read_blocks, read_tables
from tests.support.models import small_contract, write_small_bundle


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
