"""Keys and partitions of an input topic: wrong keys are found and put right, more partitions lose nothing."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import yaml
from kafka import KafkaProducer
from typer.testing import CliRunner

from pipeline import topics
from pipeline.cli.main import app
from pipeline.errors import BadInput
from pipeline.formats import Format
from pipeline.formats.encode import encode_table
from pipeline.sinks import read_score
from tests.conftest import KafkaAddress
from tests.support.models import small_contract, write_small_bundle
from tests.support.world import until

START_MS = 1_700_000_000_000
run = CliRunner().invoke


def write_config(folder: Path, kafka: KafkaAddress, topic: str, **stream: Any) -> Path:
    path = folder / "narrows.yaml"
    path.write_text(yaml.safe_dump({
        "kafka": {"bootstrap": kafka.bootstrap, "group": f"{topic}-group", "topic_prefix": f"{topic}."},
        "registry": {"path": str(folder / "registry")}, "worker": {"metrics_port": 0, "commit_interval_s": 0.3},
        "redis": {"url": "redis://127.0.0.1:1"}, "streams": {"pump": {"topic": topic, **stream}},
    }), encoding="utf-8")
    return path


@contextmanager
def producing(kafka: KafkaAddress) -> Iterator[KafkaProducer]:
    producer = KafkaProducer(bootstrap_servers=kafka.bootstrap, acks="all", linger_ms=5)
    try:
        yield producer
        producer.flush()
    finally:
        producer.close()


def body(device: str, ts: int, value: float) -> bytes:
    return json.dumps({"device": device, "ts": ts, "values": {"c0": value, "c1": -value}}).encode()


def keys_found(path: Path) -> dict[str, Any]:
    told = run(app, ["doctor", "--config", str(path), "--json"])
    [finding] = [one for one in json.loads(told.stdout)["findings"] if one["name"] == "keys of pump"]
    return finding


def test_a_topic_with_wrong_keys_is_found_and_copied_under_right_ones(
    kafka: KafkaAddress, new_topic: Callable[..., str], tmp_path: Path
) -> None:
    source = new_topic(partitions=3, name="wrong")
    contract = msgspec.to_builtins(small_contract(2))
    path = write_config(tmp_path, kafka, source, contract=contract)
    with producing(kafka) as producer:
        for i in range(40):
            value = body(f"d{i % 4}", START_MS + i, float(i)) if i != 20 else b"{"
            key = None if i == 20 else f"row-{i}".encode()
            producer.send(source, value, key, headers=[("n", str(i).encode())], timestamp_ms=START_MS + i)
    found = keys_found(path)
    assert not found["ok"]
    assert found["code"] == 0
    assert "4 devices" in found["detail"]

    target = f"{source}-right"
    done = run(app, ["topics", "rekey", source, target, "--partitions", "2", "--config", str(path), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"read": 40, "written": 40, "devices": 4, "keyless": 1}
    held = list(topics.read_topic(kafka.bootstrap, target))
    assert len(held) == 40
    for device in ("d0", "d1", "d2", "d3"):
        mine = [(place, record) for place, record in held if record.key == device.encode()]
        assert len({place for place, _ in mine}) == 1
        numbers = [int(dict(record.headers)["n"]) for _, record in mine]
        assert numbers == [i for i in range(40) if f"d{i % 4}" == device and i != 20]
        assert [record.ts_ms - START_MS for _, record in mine] == numbers
        assert [record.value for _, record in mine] == [body(device, START_MS + i, float(i)) for i in numbers]
    assert keys_found(write_config(tmp_path, kafka, target, contract=contract))["ok"]
    again = run(app, ["topics", "rekey", source, target, "--config", str(path)])
    assert isinstance(again.exception, BadInput)


def test_an_arrow_record_of_several_devices_is_split_by_rekey(
    kafka: KafkaAddress, new_topic: Callable[..., str], tmp_path: Path
) -> None:
    source = new_topic(partitions=2, name="gateways")
    path = write_config(tmp_path, kafka, source, contract=msgspec.to_builtins(small_contract(2)))
    spec = Format(encoding="arrow", device="id")
    with producing(kafka) as producer:
        for i in range(5):
            value = encode_table(
                spec, ("c0", "c1"), ["a", "b", "a"], START_MS + 10 * i + np.arange(3), np.full((3, 2), i, np.float32)
            )
            producer.send(source, value, f"gateway-{i}".encode(), timestamp_ms=START_MS + 10 * i)
    options = ["--encoding", "arrow", "--device-field", "id", "--config", str(path), "--json"]
    done = run(app, ["topics", "rekey", source, f"{source}-right", *options])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"read": 5, "written": 10, "devices": 2, "keyless": 0}
    keys = Counter(record.key for _, record in topics.read_topic(kafka.bootstrap, f"{source}-right"))
    assert keys == {b"a": 5, b"b": 5}


def test_more_partitions_lose_no_record_and_devices_that_move_begin_cold(
    kafka: KafkaAddress, new_topic: Callable[..., str], tmp_path: Path
) -> None:
    contract = small_contract(2)
    bundle = write_small_bundle(tmp_path / "bundle", contract, threshold=50.0)
    topic = new_topic(partitions=2, name="grown")
    path = write_config(
        tmp_path, kafka, topic, contract=msgspec.to_builtins(contract), bundle=str(bundle.folder),
        outputs={"scores": True, "blocks": False, "features": False},
    )
    topics.create(kafka.bootstrap, [topic], f"{topic}.")
    devices, half = [f"d{i}" for i in range(12)], 20
    places: list[dict[str, int]] = []

    def send(first: int) -> None:
        found = {}
        with producing(kafka) as producer:
            for i in range(first, first + half):
                for device in devices:
                    sent = producer.send(topic, body(device, START_MS + 1000 * i, 1.0), device.encode(),
                                         timestamp_ms=START_MS + 1000 * i)
                    found[device] = sent
        places.append({device: sent.get(timeout=30).partition for device, sent in found.items()})

    def scores() -> Counter[tuple[str, int]]:
        found = [
            (read_score(record.value or b"").device, place)
            for place, record in topics.read_topic(kafka.bootstrap, f"{topic}.narrows.scores")
        ]
        return Counter(found)

    def work_until(wanted: Counter[tuple[str, int]]) -> None:
        log = (tmp_path / "worker.log").open("ab")
        worker = subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli.main", "worker", "--config", str(path)], stdout=log, stderr=log,
            env=dict(os.environ), cwd=Path(__file__).parents[2],
        )
        try:
            until(lambda: scores() >= wanted, 120, "the scores")
        finally:
            worker.send_signal(signal.SIGTERM)
            worker.wait(30)
            log.close()
        assert worker.returncode == 0
        assert scores() == wanted

    cold = half - contract.window + 1
    send(0)
    wanted = Counter({(device, places[0][device]): cold for device in devices})
    work_until(wanted)
    done = run(app, ["topics", "grow", "--partitions", "5", "--config", str(path), "--json"])
    assert done.exit_code == 0, done.output
    assert {one["name"].removeprefix(topic): one["made"] for one in json.loads(done.stdout)}[""] is True
    assert topics.partitions_of(kafka.bootstrap, topic) == topics.partitions_of(
        kafka.bootstrap, f"{topic}.narrows.anomalies"
    ) == 5
    send(half)
    moved = [device for device in devices if places[0][device] != places[1][device]]
    assert moved
    assert len(moved) < len(devices)
    for device in devices:
        wanted[device, places[1][device]] += cold if device in moved else half
    work_until(wanted)
    assert list(topics.read_topic(kafka.bootstrap, f"{topic}.narrows.dead-letters")) == []
    fewer = run(app, ["topics", "grow", "--partitions", "3", "--config", str(path)])
    assert isinstance(fewer.exception, BadInput)
