"""`narrows demo` from end to end, faster than usual: every figure of its summary is checked by itself."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_trains_streams_alerts_retrains_and_swaps(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the demo's new model is trained with torch: install the extra `train`")
    command = [
        sys.executable, "-m", "pipeline.cli.main", "demo", "--json", "--speed", "30",
        "--folder", str(tmp_path / "demo"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    facts = json.loads(done.stdout)
    assert facts["scores"] == facts["scores_expected"] > 0
    assert facts["scores_of_two_contents"] == 0
    assert len(facts["scored_by"]) == len(facts["swaps"]) + 1 >= 2
    assert sum(facts["scored_by"].values()) == facts["scores"]
    assert facts["first_anomaly_s"] < 60
    assert 0 < facts["error_share_of_bound"] <= 1
    assert facts["bytes_in_blocks"]["in"] > 5 * facts["bytes_in_blocks"]["out"]
    found = [fault["found"] for fault in facts["faults"]]
    assert len(found) == 21
    assert sum(found) >= 15


def test_a_folder_that_is_not_a_demos_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    command = [sys.executable, "-m", "pipeline.cli.main", "demo", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3
    assert "--folder" in done.stderr
    assert (tmp_path / "precious").exists()
