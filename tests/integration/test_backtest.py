"""`narrows backtest` is the worker's own code: batches never change a result, and every row gets one line."""

import csv
from pathlib import Path

import numpy as np
from typer.testing import CliRunner

from pipeline.cli.main import app
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
