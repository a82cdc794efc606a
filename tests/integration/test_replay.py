"""`narrows replay` against a real Kafka."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli.main import app
from pipeline.topics import read_topic
from tests.conftest import KafkaAddress

run = CliRunner().invoke


@pytest.fixture
def pump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kafka: KafkaAddress) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NARROWS_KAFKA__BOOTSTRAP", kafka.bootstrap)
    rows = [f"2020-03-09 10:14:{second:02d};pump-{pump};{second}.5;1" for second in range(20) for pump in (1, 2)]
    path = tmp_path / "pump.csv"
    path.write_text("\n".join(["datetime;pump;flow;heat", *rows, ""]))
    return path


def test_a_file_becomes_a_stream(pump: Path, kafka: KafkaAddress, new_topic: Callable[..., str]) -> None:
    topic = new_topic(partitions=3)
    done = run(app, ["replay", str(pump), "--topic", topic, "--device-column", "pump", "--rate", "0", "--json"])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert (facts["rows"], facts["records"], facts["devices"]) == (40, 40, 2)
    held = read_topic(kafka.bootstrap, topic)
    found = [(partition, record, json.loads(record.value or b"")) for partition, record in held]
    assert len(found) == 40
    for device in ("pump-1", "pump-2"):
        mine = [(partition, record, body) for partition, record, body in found if body["device"] == device]
        assert len({partition for partition, _, _ in mine}) == 1
        assert {record.key for _, record, _ in mine} == {device.encode()}
        assert [body["values"]["flow"] for _, _, body in mine] == [second + 0.5 for second in range(20)]
        assert all(record.ts_ms == body["ts"] for _, record, body in mine)


def test_no_broker_is_one_line_and_exit_code_4(pump: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.errors import Unreachable

    monkeypatch.setenv("NARROWS_KAFKA__BOOTSTRAP", "127.0.0.1:1")
    done = run(app, ["replay", str(pump), "--topic", "t"])
    assert isinstance(done.exception, Unreachable)
    assert "narrows local up" in str(done.exception)
