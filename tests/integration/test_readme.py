"""What the README shows, run as it stands there."""

import io
import re
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import yaml
from kafka import KafkaConsumer, KafkaProducer

from pipeline.config import build_config
from pipeline.sinks import Anomaly, anomaly_record
from tests.conftest import KafkaAddress

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()


def test_the_consumer_of_alerts_prints_each_once(
    kafka: KafkaAddress, new_topic: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    [code] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(code.strip().splitlines()) <= 20
    topic = new_topic()
    anomaly = Anomaly(
        id="1", episode_id="e", stream="pump", device="pump-7", state="opened", window_start=1, window_end=2,
        score=3.0, peak=3.0, threshold=1.5, severity="medium", contributions={"flow": 2.5, "heat": 0.5},
        directions={"flow": "above"}, observed={"flow": 9.0}, expected={"flow": 1.5}, digest="d", trigger=1,
    )
    producer = KafkaProducer(bootstrap_servers=kafka.bootstrap)
    record = anomaly_record(topic, 0, anomaly)
    for _ in range(3):
        producer.send(topic, record.value, record.key, headers=record.headers)
    producer.flush()
    producer.close()

    def consumer(name: str, **settings: object) -> KafkaConsumer:
        given = {**settings, "bootstrap_servers": kafka.bootstrap, "group_id": topic}
        return KafkaConsumer(topic, consumer_timeout_ms=15_000, **given)

    monkeypatch.setattr("kafka.KafkaConsumer", consumer)
    with redirect_stdout(io.StringIO()) as out:
        exec(code, {})
    assert out.getvalue().splitlines() == [
        "medium: pump-7, flow is above its expected 1.5 (was 9.0), 2.0 times the threshold"
    ]


def test_five_lines_are_a_stream(tmp_path: Path) -> None:
    text = README.split("## Your own topic")[1].split("Records are")[0]
    assert len(text.strip().splitlines()) == 5
    (tmp_path / "bundles/pump").mkdir(parents=True)
    (tmp_path / "bundles/pump/contract.json").write_text('{"channels": [{"name": "flow"}]}')
    assert build_config(yaml.safe_load(text), {}, tmp_path).streams["pump"].topic == "readings"


def test_every_link_leads_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
