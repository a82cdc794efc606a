"""A training run that is killed at any moment goes on with --resume and ends with the weights of one that was not."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from pipeline.registry.bundle import load_bundle

EPOCHS = 12


def command(folder: Path, out: str, *more: str) -> list[str]:
    return [sys.executable, "-m", "pipeline.cli.main", "train", str(folder / "rows.csv"), "--out", str(folder / out),
            "--epochs", str(EPOCHS), "--set", "patience=99", "--set", "linear_path=false", "--set", "dropout=0.1",
            "--window", "16", "--memory", "40", "--no-report", "--accept-shift", *more]


def test_a_run_killed_after_a_checkpoint_ends_with_the_same_weights(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    steps = np.arange(4000)
    lines = ["ts,a,b"] + [f"{1_700_000_000 + step},{np.sin(step / 9) + noise:.4f},{np.cos(step / 7):.4f}"
                          for step, noise in zip(steps, 0.1 * rng.normal(size=4000), strict=True)]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    subprocess.run(command(tmp_path, "whole"), check=True, capture_output=True, timeout=240)

    checkpoint = tmp_path / "killed.checkpoint"
    run = subprocess.Popen(command(tmp_path, "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.wait(timeout=30)
    assert checkpoint.exists()
    assert not (tmp_path / "killed").exists()

    subprocess.run(command(tmp_path, "killed", "--resume"), check=True, capture_output=True, timeout=240)
    whole, resumed = load_bundle(tmp_path / "whole"), load_bundle(tmp_path / "killed")
    assert resumed.weights == whole.weights
    assert resumed.manifest.training["epochs"] == EPOCHS
    assert not checkpoint.exists()
