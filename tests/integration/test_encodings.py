"""The same rows in every encoding, through one worker: the same scores, and alerts that score again."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import yaml
from typer.testing import CliRunner

from pipeline import topics
from pipeline.cli.main import app
from pipeline.registry.store import Registry
from pipeline.sinks import read_anomaly, read_score
from tests.support.models import small_contract, write_small_bundle
from tests.support.world import until

ENCODINGS = ("json", "msgpack", "cbor", "arrow")
ROWS, DEVICES = 60, ("one", "two", "five")
START_MS = 1_700_000_000_000


def test_the_same_rows_score_alike_in_every_encoding(kafka: Any, tmp_path: Path) -> None:
    contract = small_contract(2, allowance_ms=60_000)   # beyond the 25 s that an Arrow record gathers
    write_small_bundle(tmp_path / "bundle", contract, threshold=0.7)
    registry = Registry(tmp_path / "registry")
    for encoding in ENCODINGS:
        registry.promote(encoding, registry.publish(encoding, tmp_path / "bundle"), now_ms=1)
    names = {encoding: kafka.new_topic(2, encoding) for encoding in ENCODINGS}
    prefix = f"{names['json']}."
    path = tmp_path / "narrows.yaml"
    path.write_text(yaml.safe_dump({
        "kafka": {"bootstrap": kafka.bootstrap, "group": f"{prefix}group", "topic_prefix": prefix},
        "registry": {"path": str(tmp_path / "registry")}, "worker": {"metrics_port": 0, "commit_interval_s": 0.3},
        "streams": {encoding: {
            "topic": topic, "contract": msgspec.to_builtins(contract),
            "format": {"encoding": encoding}, "outputs": {"scores": True},
        } for encoding, topic in names.items()},
    }), encoding="utf-8")
    topics.create(kafka.bootstrap, list(names.values()), prefix)
    rng = np.random.default_rng(3)
    file = tmp_path / "rows.csv"
    file.write_text("\n".join(["device,ts,c0,c1", *(
        f"{device},{START_MS + 1000 * i},{rng.normal() + 20 * (i > 40):.3f},{rng.normal():.3f}"
        for i in range(ROWS) for device in DEVICES
    ), ""]))
    run = CliRunner().invoke
    records = {}
    for encoding, topic in names.items():
        done = run(app, [
            "replay", str(file), "--topic", topic, "--device-column", "device", "--rate", "0", "--rows-a-record", "25",
            "--encoding", encoding, "--config", str(path), "--json",
        ])
        assert done.exit_code == 0, done.output
        records[encoding] = json.loads(done.stdout)["records"]
    assert records == dict.fromkeys(ENCODINGS, ROWS * len(DEVICES)) | {"arrow": 3 * len(DEVICES)}

    def scores() -> dict[str, set[tuple[Any, ...]]]:
        found: dict[str, set[tuple[Any, ...]]] = {encoding: set() for encoding in ENCODINGS}
        for _, record in topics.read_topic(kafka.bootstrap, f"{prefix}narrows.scores"):
            one = read_score(record.value or b"")
            found[one.stream].add((one.device, one.lane, one.ts, one.score, one.is_anomaly))
        return found

    log = (tmp_path / "worker.log").open("wb")
    worker = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli.main", "worker", "--config", str(path)], stdout=log, stderr=log,
        env=dict(os.environ), cwd=Path(__file__).parents[2],
    )
    wanted = (ROWS - contract.window + 1) * len(DEVICES)
    try:
        until(lambda: all(len(own) >= wanted for own in scores().values()), 120, "the scores of all encodings")
    finally:
        worker.send_signal(signal.SIGTERM)
        worker.wait(30)
        log.close()
    assert worker.returncode == 0
    assert list(topics.read_topic(kafka.bootstrap, f"{prefix}narrows.dead-letters")) == []
    found = scores()
    assert all(found[encoding] == found["json"] for encoding in ENCODINGS)

    alerts = [
        read_anomaly(record.value or b"")
        for _, record in topics.read_topic(kafka.bootstrap, f"{prefix}narrows.anomalies")
    ]
    within = [alert for alert in alerts if alert.stream == "arrow" and alert.index and alert.contributions]
    assert within, "no alert of a row that is not the first of its record"
    told = run(app, ["explain", within[0].id, "--config", str(path), "--json"])
    assert told.exit_code == 0, told.output
    assert json.loads(told.output)["same"]
