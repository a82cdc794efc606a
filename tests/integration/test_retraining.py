"""From a topic to a new champion, with the commands that a person types, on a real Kafka and a real Redis."""

import os
import subprocess
import sys
import uuid
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import yaml
from kafka import KafkaProducer

from pipeline.core.contract import Channel, Contract
from pipeline.formats.files import Table
from pipeline.registry.bundle import Bundle, load_bundle
from pipeline.registry.store import Registry
from pipeline.sinks import Score, SeenOnce, read_score
from pipeline.topics import read_topic
from tests.support.waiting import until
from training.make_baseline import make_baseline_bundle
from training.prepare import prepare
from training.recipe import parse_recipe
from training.train import train

ROOT = Path(__file__).parents[2]
CONTRACT = Contract(channels=tuple(Channel(name=name) for name in ("x", "y", "z")), window=8, memory=24)
DEVICES = ("one", "two", "three")
FIRST_MS = 1_700_000_000_000


def make_rows(count: int, seed: int = 0) -> Table:
    """`count` rows of each device, one a second, devices in turn: two waves, and a channel that is their sum."""
    rng = np.random.default_rng(seed)
    step = np.repeat(np.arange(count), len(DEVICES))
    device = np.tile(np.arange(len(DEVICES)), count)
    waves = np.stack([np.sin(step / 20 + device), np.cos(step / 31 + device)], axis=1)
    values = np.column_stack([waves, waves.sum(axis=1)]) + 0.05 * rng.normal(size=(len(step), 3))
    return Table(
        devices=DEVICES, device=device, ts_ms=FIRST_MS + 1000 * step, channels=CONTRACT.names,
        values=values.astype(np.float32), reason=np.zeros(len(step), np.uint8),
    )


def produce(bootstrap: str, topic: str, rows: Table, instead: bytes | None = None) -> None:
    """Publishes rows, devices in two partitions. instead : a value in place of each row's own."""
    producer = KafkaProducer(bootstrap_servers=bootstrap)
    for number in range(len(rows)):
        device, ts = int(rows.device[number]), int(rows.ts_ms[number])
        values = dict(zip(CONTRACT.names, rows.values[number].tolist(), strict=True))
        value = instead or msgspec.json.encode({"device": DEVICES[device], "ts": ts, "values": values})
        producer.send(topic, value, DEVICES[device].encode(), partition=device % 2, timestamp_ms=ts)
    producer.flush()
    producer.close()


@dataclass
class Place:
    """A stream with records in its topic, a bundle to begin with, and the configuration that names them."""

    folder: Path
    stream: str
    topic: str
    bootstrap: str
    prefix: str
    baseline: Bundle
    registry: Registry
    config: dict[str, Any]

    def start(self, command: str) -> subprocess.Popen:
        """A command that stays until it is told to stop."""
        (self.folder / "narrows.yaml").write_text(yaml.safe_dump(self.config))
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli.main", command], cwd=ROOT,
            env={**os.environ, "NARROWS_CONFIG": str(self.folder / "narrows.yaml")},
        )

    def scores(self) -> list[Score]:
        """Every score so far, each once."""
        seen = SeenOnce()
        found = [read_score(record.value) for _, record in read_topic(self.bootstrap, f"{self.prefix}narrows.scores")]
        return [score for score in found if seen.is_new(score.id)]

    def narrows(self, *arguments: str, code: int = 0) -> str:
        """Standard output of a command."""
        (self.folder / "narrows.yaml").write_text(yaml.safe_dump(self.config))
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.cli.main", *arguments], cwd=ROOT, capture_output=True, text=True,
            timeout=240, env={**os.environ, "NARROWS_CONFIG": str(self.folder / "narrows.yaml"), "COLUMNS": "200"},
        )
        assert done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr)
        return done.stdout + done.stderr


@pytest.fixture
def place(kafka, redis, tmp_path: Path) -> Place:
    stream = f"pump-{uuid.uuid4().hex[:8]}"
    topic, prefix = kafka.new_topic(2), f"test-{uuid.uuid4().hex[:8]}."
    rows = make_rows(1_400)
    produce(kafka.bootstrap, topic, rows.take(slice(0, 50)))
    produce(kafka.bootstrap, topic, rows.take(slice(50, 51)), b"not json")
    produce(kafka.bootstrap, topic, rows.take(slice(51, None)))
    small = make_rows(300, seed=1)
    prepared = prepare(CONTRACT, DEVICES, small.device, small.ts_ms, small.values)
    baseline = make_baseline_bundle(prepared, tmp_path / "baseline", "raw", refuse=False)
    config = {
        "kafka": {"bootstrap": kafka.bootstrap, "topic_prefix": prefix}, "redis": {"url": redis.url},
        "registry": {"path": "registry"},
        "streams": {stream: {
            "topic": topic, "contract": str(tmp_path / "baseline" / "contract.json"),
            "bundle": str(tmp_path / "baseline"), "retrain": {"family": "var", "min_rows": 500},
        }},
    }
    return Place(tmp_path, stream, topic, kafka.bootstrap, prefix, baseline, Registry(tmp_path / "registry"), config)


def submit(place: Place) -> str:
    return msgspec.json.decode(place.narrows("jobs", "submit", place.stream, "--json"))["job_id"]


def job(place: Place, job_id: str) -> dict[str, Any]:
    jobs = msgspec.json.decode(place.narrows("jobs", "list", "--stream", place.stream, "--json"))
    (found,) = [fact for fact in jobs if fact["id"] == job_id]
    return found


def alert(place: Place, device: str, first_row: int, last_row: int) -> None:
    """An episode, opened and closed, as the worker writes it."""
    producer = KafkaProducer(bootstrap_servers=place.bootstrap)
    for state in ("opened", "closed"):
        body = {
            "stream": place.stream, "device": device, "episode_id": "e1", "state": state, "version": 1,
            "window_start": FIRST_MS + 1000 * first_row, "window_end": FIRST_MS + 1000 * last_row,
        }
        producer.send(f"{place.prefix}narrows.anomalies", msgspec.json.encode(body), device.encode())
    producer.flush()
    producer.close()


def test_a_job_asked_for_by_hand_ends_in_a_champion_that_names_its_offsets(place):
    place.narrows("topics", "create")
    alert(place, "one", 100, 149)
    place.narrows("maintenance", "add", place.stream, "--device", "t*",
                  "--from", str(FIRST_MS + 300_000), "--to", str(FIRST_MS + 330_000))
    job_id = submit(place)
    place.narrows("trainer", "--burst")
    done = job(place, job_id)
    assert (done["state"], done["outcome"]) == ("finished", "promoted"), msgspec.json.encode(done["result"])
    pointer = place.registry.champion(place.stream)
    assert (pointer.job, pointer.revision) == (job_id, 1)
    manifest = load_bundle(place.registry.path(place.stream, pointer.digest), place.baseline.contract).manifest
    assert manifest.family == "var"
    assert manifest.parent == place.baseline.digest
    assert manifest.data["topic"] == place.topic
    assert manifest.data["ranges"] == {"0": [0, 2800], "1": [0, 1400]}
    assert manifest.data["last_ts_ms"] == FIRST_MS + 1_399_000
    assert manifest.data["masked_rows"] == 50 + 2 * 30, "rows of the alert, and of two devices in maintenance"
    assert manifest.data["maintenance"] == 1
    assert done["result"]["rows"] == 4_199, "every record but the one that is no JSON"
    place.narrows("models", "verify")
    assert pointer.digest[:12] in place.narrows("models", "list")
    shown = msgspec.json.decode(place.narrows("models", "show", pointer.digest[:8], "--json"))
    assert shown["history"][0]["job"] == job_id


def test_a_torch_champion_is_trained_on_from_its_weights(place):
    place.narrows("topics", "create")
    rows = make_rows(1_400, seed=3)
    recipe = parse_recipe({"model": "dense", "epochs": 2, "linear_path": False})
    champion = train(rows, CONTRACT, recipe, place.folder / "dense", refuse=False).bundle
    place.narrows("models", "add", str(place.folder / "dense"), "--stream", place.stream, "--promote")
    place.config["streams"][place.stream]["retrain"]["family"] = None
    job_id = submit(place)
    place.narrows("trainer", "--burst")
    done = job(place, job_id)
    assert done["outcome"] == "promoted", msgspec.json.encode(done["result"])
    assert done["result"]["figures"]["error"] < done["result"]["champion"]["error"]
    folder = place.registry.path(place.stream, place.registry.champion(place.stream).digest)
    assert load_bundle(folder).manifest.parent == champion.digest


def test_a_topic_without_enough_rows_is_told_and_not_tried_again(place):
    place.config["streams"][place.stream]["retrain"]["min_rows"] = 5_000
    job_id = submit(place)
    place.narrows("trainer", "--burst")
    done = job(place, job_id)
    assert done["state"] == "failed"
    assert "min_rows" in done["error"]
    assert place.registry.champion(place.stream) is None


def test_a_trainer_with_another_contract_refuses_the_job(place):
    job_id = submit(place)
    other = msgspec.structs.replace(CONTRACT, window=9)
    place.config["streams"][place.stream]["contract"] = msgspec.to_builtins(other)
    place.config["streams"][place.stream]["bundle"] = None
    place.narrows("trainer", "--burst")
    assert "give it the workers' configuration" in job(place, job_id)["error"]
    assert place.registry.champion(place.stream) is None


def test_a_bundle_for_another_contract_or_an_altered_one_is_not_taken(place):
    other = msgspec.structs.replace(CONTRACT, window=9)
    place.config["streams"][place.stream]["contract"] = msgspec.to_builtins(other)
    told = place.narrows("models", "add", str(place.folder / "baseline"), "--stream", place.stream, "--promote", code=3)
    assert "another contract" in told
    place.config["streams"][place.stream]["contract"] = str(place.folder / "baseline" / "contract.json")
    model = place.folder / "baseline" / "model.onnx"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    assert "sha256" in place.narrows("models", "add", str(place.folder / "baseline"), "--stream", place.stream, code=3)
    assert place.registry.champion(place.stream) is None


def test_add_promote_and_rollback_by_hand(place):
    place.narrows("models", "add", str(place.folder / "baseline"), "--stream", place.stream, "--promote")
    small = make_rows(300, seed=2)
    prepared = prepare(CONTRACT, DEVICES, small.device, small.ts_ms, small.values)
    second = make_baseline_bundle(prepared, place.folder / "second", "pca", refuse=False)
    place.narrows("models", "add", str(place.folder / "second"), "--stream", place.stream)
    assert place.registry.champion(place.stream).digest == place.baseline.digest
    place.narrows("models", "promote", second.short)
    assert place.registry.champion(place.stream).digest == second.digest
    assert "rollback" in place.narrows("models", "rollback")
    assert place.registry.champion(place.stream).digest == place.baseline.digest


def test_without_redis_each_command_says_so_in_one_line_and_exits_4(place):
    place.config["redis"]["url"] = "redis://127.0.0.1:1/0"
    for command in (["trainer"], ["jobs", "list"], ["jobs", "cancel", "x"], ["jobs", "submit", place.stream]):
        told = place.narrows(*command, code=4)
        assert "Redis can't be reached" in told
        assert len(told.strip().splitlines()) == 1


def test_a_worker_asks_by_itself_and_takes_the_new_champion_without_losing_a_row(place):
    stream = place.config["streams"][place.stream]
    stream["retrain"] |= {"after_rows": 3_000, "cooldown_s": 600.0}
    stream["outputs"] = {"scores": True, "blocks": False, "features": False}
    place.config["worker"] = {"metrics_port": 0}
    place.narrows("topics", "create")
    rows, known = make_rows(9_000), 3 * 1_400
    lost = 1                                              # the record that is no JSON

    def scored(sent: int) -> bool:
        return len(place.scores()) == sent - lost - len(DEVICES) * (CONTRACT.window - 1)

    running = [place.start("worker"), place.start("trainer")]
    try:
        assert until(lambda: place.registry.champion(place.stream) is not None, 120)
        digest = place.registry.champion(place.stream).digest
        (fact,) = msgspec.json.decode(place.narrows("jobs", "list", "--stream", place.stream, "--json"))
        assert fact["reason"].startswith("volume:")
        assert until(lambda: [process.poll() for process in running] == [None, None], 1)
        for first in range(known, len(rows), 150):        # rows come until both partitions have swapped, and then end
            produce(place.bootstrap, place.topic, rows.take(slice(first, first + 150)))
            assert until(partial(scored, first + 150), 60), len(place.scores())
            if {score.device for score in place.scores() if score.digest == digest} == set(DEVICES):
                break
    finally:
        for process in running:
            process.terminate()
        codes = [process.wait(30) for process in running]
    scores = place.scores()
    assert {score.digest for score in scores} == {place.baseline.digest, digest}
    for partition in range(2):
        names = {DEVICES[device] for device in range(3) if device % 2 == partition}
        digests = [score.digest for score in sorted(scores, key=lambda one: one.offset) if score.device in names]
        swap = digests.index(digest)
        assert set(digests[:swap]) == {place.baseline.digest}
        assert set(digests[swap:]) == {digest}
    assert codes == [0, 0]
    baseline = place.registry.publish(place.stream, place.folder / "baseline")
    told = msgspec.json.decode(place.narrows("models", "prune", "--min-age-h", "0", "--json"))
    assert told == {"done": False, "bundles": {place.stream: [baseline]}}, "no commit names the first bundle any more"
    place.narrows("models", "prune", "--min-age-h", "0", "--yes")
    assert place.registry.digests(place.stream) == [digest]
