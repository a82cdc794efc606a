"""`narrows train --from-topic`, on a real Kafka: rows between offsets fixed at the start, named in the manifest."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import yaml
from click.testing import Result
from kafka import KafkaProducer
from typer.testing import CliRunner

from pipeline.cli.main import app
from pipeline.core.contract import parse_contract
from pipeline.errors import BadInput
from pipeline.registry.bundle import load_bundle

FIRST_MS = 1_700_000_000_000
CHANNELS = ("x", "y")
CONTRACT = {"channels": [{"name": name} for name in CHANNELS], "window": 8, "memory": 24}


@pytest.fixture(scope="module")
def published(kafka) -> tuple[str, str]:  # type: ignore[no-untyped-def]
    """A topic with 1 500 rows of one device, a second apart."""
    topic = kafka.new_topic(2, "train")
    producer = KafkaProducer(bootstrap_servers=kafka.bootstrap)
    rng = np.random.default_rng(0)
    for number in range(1500):
        values = {"x": float(np.sin(number / 20) + 0.1 * rng.normal()), "y": float(rng.normal())}
        ts_ms = FIRST_MS + 1000 * number
        value = msgspec.json.encode({"device": "one", "ts": ts_ms, "values": values})
        producer.send(topic, value, b"one", partition=1, timestamp_ms=ts_ms)
    producer.flush()
    producer.close()
    return kafka.bootstrap, topic


def run(
    folder: Path, published: tuple[str, str], *options: str, streams: dict[str, Any] | None = None, prefix: str = ""
) -> Result:
    """`narrows train` on the topic, by the contract of its streams, else by a given one."""
    bootstrap, topic = published
    config = folder / "narrows.yaml"
    kafka = {"bootstrap": bootstrap, "topic_prefix": prefix}
    config.write_text(yaml.safe_dump({"kafka": kafka, "streams": streams or {}}))
    contract = folder / "contract.yaml"
    contract.write_text(yaml.safe_dump(CONTRACT))
    given = [] if streams else ["--contract", str(contract)]
    done = CliRunner().invoke(app, [
        "train", "--from-topic", topic, "--config", str(config), *given, "--model", "var",
        "--out", str(folder / "bundle"), "--no-report", *options])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done


def test_all_rows_of_the_topic_are_learned_from_and_its_offsets_are_in_the_manifest(
    published: tuple[str, str], tmp_path: Path
) -> None:
    run(tmp_path, published)
    manifest = load_bundle(tmp_path / "bundle").manifest
    assert manifest.data["rows"] == 1500
    assert manifest.data["ranges"] == {"0": [0, 0], "1": [0, 1500]}
    assert manifest.data["topic"] == published[1]


def test_a_topic_that_does_not_fit_is_laid_on_disk_and_learned_from_whole(
    published: tuple[str, str], tmp_path: Path
) -> None:
    run(tmp_path, published, "--memory-mb", "0.4")
    facts = load_bundle(tmp_path / "bundle").manifest.data
    assert (facts["rows"], facts["first_ts_ms"]) == (1500, FIRST_MS)
    assert facts["sampled_rows"] < 1500
    assert facts["ranges"]["1"] == [0, 1500]
    assert not list(tmp_path.glob("*.spool"))


def test_since_is_a_time_of_the_records(published: tuple[str, str], tmp_path: Path) -> None:
    run(tmp_path, published, "--since", str(FIRST_MS + 500_000))
    manifest = load_bundle(tmp_path / "bundle").manifest
    assert manifest.data["ranges"]["1"] == [500, 1500]
    assert manifest.data["first_ts_ms"] == FIRST_MS + 500_000


def test_a_topic_that_no_stream_reads_needs_a_contract(published: tuple[str, str], tmp_path: Path) -> None:
    config = tmp_path / "narrows.yaml"
    config.write_text(yaml.safe_dump({"kafka": {"bootstrap": published[0]}}))
    done = CliRunner().invoke(app, ["train", "--from-topic", published[1], "--config", str(config), "--out", "b"])
    assert isinstance(done.exception, BadInput)
    assert "--contract" in str(done.exception)


def test_the_contract_and_the_devices_are_those_of_the_stream_that_reads_the_topic(
    published: tuple[str, str], tmp_path: Path
) -> None:
    stream = {"topic": published[1], "contract": CONTRACT}
    run(tmp_path, published, streams={"pump": stream | {"match": {"devices": ["one"]}}})
    bundle = load_bundle(tmp_path / "bundle", parse_contract(CONTRACT))    # raises for any other contract
    assert bundle.manifest.data["rows"] == 1500
    with pytest.raises(BadInput, match="format and match"):
        run(tmp_path, published, streams={"pump": stream | {"match": {"devices": ["two"]}}})
