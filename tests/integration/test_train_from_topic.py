"""`narrows train --from-topic`, on a real Kafka: rows between offsets fixed at the start, named in the manifest.

Rows that were alerted or in maintenance are left out, as in a retraining job (test_retraining.py).
"""

import uuid
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


def alert(bootstrap: str, topic: str, episode: str, first_row: int, last_row: int) -> None:
    """An episode of stream pump, opened and closed, as the worker writes it."""
    producer = KafkaProducer(bootstrap_servers=bootstrap)
    for state in ("opened", "closed"):
        producer.send(topic, msgspec.json.encode({
            "stream": "pump", "device": "one", "episode_id": episode, "state": state, "version": 1,
            "window_start": FIRST_MS + 1000 * first_row, "window_end": FIRST_MS + 1000 * last_row}), b"one")
    producer.flush()
    producer.close()


def test_rows_of_alerts_and_of_maintenance_are_left_out_told_and_written_down(
    published: tuple[str, str], tmp_path: Path
) -> None:
    prefix = f"test-{uuid.uuid4().hex[:8]}."
    how = {"streams": {"pump": {"topic": published[1], "contract": CONTRACT}}, "prefix": prefix}
    bundle = tmp_path / "bundle"

    told = run(tmp_path, published, **how).stderr                   # nothing has been written to any topic of ours
    for name in ("anomalies", "maintenance"):
        assert f"there is no topic {prefix}narrows.{name}" in told
    assert "0 rows in alerted episodes" in told
    assert load_bundle(bundle).manifest.data["masked_rows"] == 0

    config = str(tmp_path / "narrows.yaml")
    for command in (["topics", "create"], ["feedback", "wrong", "--false"],
                    ["maintenance", "add", "pump", "--from", str(FIRST_MS + 700_000), "--to", str(FIRST_MS + 730_000)]):
        assert CliRunner().invoke(app, [*command, "--config", config]).exit_code == 0, command
    alert(published[0], f"{prefix}narrows.anomalies", "right", 100, 149)
    alert(published[0], f"{prefix}narrows.anomalies", "wrong", 400, 409)
    for options in ([], ["--memory-mb", "0.4"]):                     # in memory, and laid on disk
        told = run(tmp_path, published, *options, "--report", **how).stderr
        assert "90 rows in alerted episodes or maintenance of stream pump" in told
        assert "10 of them in episodes that were called false" in told
        facts = load_bundle(bundle).manifest.data
        assert (facts["masked_rows"], facts["pardoned_rows"], facts["maintenance"]) == (50 + 10 + 30, 10, 1)
        assert sum(end - begin for begin, end in facts["anomalies"].values()) == 4
        card = (bundle / "card.md").read_text()
        assert "rows masked: 90" in card
        assert f"topic: {published[1]}\n- offsets: [0] 0:" in card

    told = run(tmp_path, published, "--no-masks", **how).stderr
    assert "in alerted episodes" not in told
    assert load_bundle(bundle).manifest.data["masked_rows"] == 0


def test_a_topic_that_no_stream_reads_is_learned_from_whole_and_it_is_said_so(
    published: tuple[str, str], tmp_path: Path
) -> None:
    assert "so no row is known to be masked" in run(tmp_path, published).stderr
