"""`decode-topic`, `dead-letters`, `offsets`, `dashboard` against a real Kafka."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from kafka import KafkaProducer, TopicPartition
from kafka.structs import OffsetAndMetadata
from pyarrow import parquet
from typer.testing import CliRunner

from pipeline.cli.dashboard import open_watch
from pipeline.cli.main import app
from pipeline.codec import encode_block, pack_frame
from pipeline.codec.summary import put_summary, summarise
from pipeline.config import Config, load_config
from pipeline.core.contract import Channel, Contract
from pipeline.dashboard.page import make_app
from pipeline.dashboard.watch import Snapshot, Watch
from pipeline.engine.checkpoint import Checkpoint
from pipeline.errors import BadInput
from pipeline.sinks import (
    Anomaly,
    BlockLabel,
    DeadLetter,
    Record,
    anomaly_record,
    block_record,
    contract_record,
    dead_letter_record,
)
from pipeline.topics import create, read_topic
from pipeline.topics.client import admin_client
from tests.conftest import KafkaAddress

NOW = 1_700_000_000_000
CONTRACT = Contract(channels=(Channel(name="flow", bound=0.01), Channel(name="heat")))
run = CliRunner().invoke


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kafka: KafkaAddress, new_topic: Callable[..., str]) -> Config:
    """A configured stream `pump` with topics of its own, as the file narrows.yaml in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NARROWS_CONFIG", raising=False)
    readings = new_topic(partitions=2, name="readings")
    plain = {
        "kafka": {"bootstrap": kafka.bootstrap, "topic_prefix": f"{readings}-", "group": f"{readings}-group"},
        "streams": {"pump": {
            "topic": readings, "contract": {"channels": [{"name": "flow", "bound": 0.01}, {"name": "heat"}]},
        }},
    }
    Path("narrows.yaml").write_text(yaml.safe_dump(plain))
    config = load_config()
    create(config.kafka.client_settings(), [readings], config.kafka.topic_prefix)
    return config


def produce(tree: Config, *records: Record) -> None:
    producer = KafkaProducer(bootstrap_servers=tree.kafka.bootstrap)
    for record in records:
        producer.send(
            record.topic, record.value, record.key, partition=record.partition, headers=record.headers, timestamp_ms=NOW
        )
    producer.flush()
    producer.close()


def values(n: int) -> np.ndarray:
    return np.column_stack([np.arange(n) / 8, np.full(n, np.nan)]).astype(np.float32)


def block(
    tree: Config, name: str, n: int, final: bool = True, contract: str = CONTRACT.hash[:12], device: str = "pump-7",
    start: int = NOW, **more: Any,
) -> Record:
    ts_ms = start + np.arange(n) * 1000
    label = BlockLabel(
        1, name, "pump", device, "main", 0, start, int(ts_ms[-1]), n, "d" * 64, 9, final=final, contract=contract,
        **more,
    )
    frame = pack_frame([encode_block(ts_ms, values(n), CONTRACT.bounds)])
    return block_record(tree.kafka.topic("blocks"), 1, label, frame, put_summary(summarise(values(n))))


def letter(tree: Config, name: str, reason: str, value: bytes | None, cut: bool = False) -> Record:
    topic = next(iter(tree.streams.values())).topic
    facts = DeadLetter(
        id=name, stream="pump", reason=reason, topic=topic, partition=1, offset=int(name), timestamp=NOW, key_bytes=6,
        value_bytes=len(value or b""),
    )
    return dead_letter_record(tree.kafka.topic("dead-letters"), facts, b"pump-7", value, room=100 if cut else 1 << 20)


def test_blocks_come_back_as_rows_each_block_once(tree: Config) -> None:
    produce(tree, block(tree, "a", 3, final=False), block(tree, "a", 5), block(tree, "a", 5))
    produce(tree, block(tree, "b", 2, final=False))
    done = run(app, ["decode-topic", "--out", "rows.jsonl"])
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    assert [row["ts"] - NOW for row in rows] == [0, 1000, 2000, 3000, 4000, 0, 1000]
    assert {row["device"] for row in rows} == {"pump-7"}
    assert all(abs(row["values"]["flow"] - i / 8) <= 0.01 for i, row in zip([0, 1, 2, 3, 4, 0, 1], rows, strict=True))
    assert all("heat" not in row["values"] for row in rows)


def test_blocks_of_an_unknown_contract_are_refused_until_narrows_codecs_has_it(tree: Config) -> None:
    other = Contract(channels=(Channel(name="x"), Channel(name="y")))
    produce(tree, block(tree, "a", 3, contract=other.hash[:12]))
    done = run(app, ["decode-topic"])
    assert isinstance(done.exception, BadInput)
    assert "narrows.codecs" in str(done.exception)
    assert run(app, ["decode-topic", "--skip-bad"]).exit_code == 1
    produce(tree, contract_record(tree.kafka.topic("codecs"), other))
    done = run(app, ["decode-topic"])
    assert json.loads(done.stdout.splitlines()[2])["values"] == {"x": pytest.approx(0.25, abs=0.01)}


def test_a_topic_is_read_by_device_and_time_into_a_table(tree: Config) -> None:
    produce(
        tree, block(tree, "a", 5), block(tree, "b", 5, start=NOW + 5_000),
        block(tree, "c", 5, device="pump-8"), block(tree, "d", 5, start=NOW + 3_600_000),
    )
    done = run(app, [
        "decode-topic", "--device", "pump-7", "--since", str(NOW + 3_000), "--until", str(NOW + 7_000),
        "--out", "r.parquet",
    ])
    assert done.exit_code == 0, done.output
    rows = parquet.read_table("r.parquet")
    assert (rows["ts"].to_numpy() - NOW).tolist() == [3000, 4000, 5000, 6000]
    assert rows.column_names == ["device", "ts", "flow", "heat"]
    done = run(app, ["decode-topic", "--partition", "0"])
    assert "0 rows" in done.stderr


def test_a_charts_figures_need_no_block_decoded(tree: Config) -> None:
    good = block(tree, "a", 9)
    produce(tree, good._replace(value=b"no frame"))
    done = run(app, ["decode-topic", "--summary"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["channels"] == {"flow": {"count": 9, "min": 0.0, "max": 1.0, "mean": 0.5}}


def test_stats_tell_bytes_and_errors_inside_and_outside_of_episodes(tree: Config) -> None:
    produce(
        tree, block(tree, "a", 5, errors=(900, 400, 0, 0)),
        block(tree, "b", 10, fine=(0,), fine_rows=10, errors=(0, 0, 100, 50)),
    )
    told = json.loads(run(app, ["decode-topic", "--stats", "--json"]).stdout)
    assert (told["normal"]["rows"], told["episode"]["rows"]) == (5, 10)
    assert (told["normal"]["largest_error"], told["episode"]["mean_error"]) == (0.9, 0.05)
    assert 0 < told["normal"]["bytes"] < told["episode"]["bytes"]


def test_an_altered_block_is_told_and_can_be_stepped_over(tree: Config) -> None:
    good = block(tree, "a", 3)
    assert good.value is not None
    produce(tree, good._replace(value=good.value[:-1]), block(tree, "b", 2))
    done = run(app, ["decode-topic"])
    assert isinstance(done.exception, BadInput)
    assert "block a of pump-7" in str(done.exception)
    done = run(app, ["decode-topic", "--skip-bad"])
    assert done.exit_code == 1
    assert len(done.stdout.splitlines()) == 2


def test_dead_letters_are_listed_once_with_reason_and_place(tree: Config) -> None:
    produce(tree, letter(tree, "4", "bad_json", b"{\xff"), letter(tree, "4", "bad_json", b"{\xff"))
    produce(tree, letter(tree, "5", "tombstone", None))
    produce(tree, Record(tree.kafka.topic("dead-letters"), 0, None, b"of another program", []))
    shown = [json.loads(line) for line in run(app, ["dead-letters", "list", "--json"]).stdout.splitlines()]
    assert [(one["reason"], one["offset"], one["preview"]) for one in shown] == [
        ("bad_json", 4, "{\\xff"), ("tombstone", 5, "(null)"),
    ]
    assert "1 bad_json" in run(app, ["dead-letters", "list", "--reason", "bad_json"]).stdout


def test_dead_letters_go_back_unchanged_to_their_partition(tree: Config) -> None:
    produce(tree, letter(tree, "4", "bad_json", b"{\xff"), letter(tree, "6", "too_large", b"x" * 500, cut=True))
    would = json.loads(run(app, ["dead-letters", "replay", "--dry-run", "--json"]).stdout)
    assert would == {"published": 0, "would_publish": 1, "cut": 1}
    assert run(app, ["dead-letters", "replay"]).exit_code == 0
    topic = tree.streams["pump"].topic
    [(partition, record)] = list(read_topic(tree.kafka.bootstrap, topic))
    assert (partition, record.key, record.value, record.ts_ms) == (1, b"pump-7", b"{\xff", NOW)


def test_offsets_are_shown_with_mark_and_digest_and_can_be_reset(tree: Config) -> None:
    topic = tree.streams["pump"].topic
    produce(tree, *(Record(topic, 0, b"k", b"v", []) for _ in range(10)))
    before = json.loads(run(app, ["offsets", "show", "--json"]).stdout)
    assert [(at["committed"], at["lag"]) for at in before] == [(None, 10), (None, 0)]
    checkpoint = Checkpoint(mark=3, mark_time=NOW, until=9, epoch="e", digests={"pump": "d" * 64})
    with admin_client(tree.kafka.client_settings()) as admin:  # as a worker commits, metadata and all
        admin.alter_group_offsets(
            tree.kafka.group, {TopicPartition(topic, 0): OffsetAndMetadata(7, checkpoint.encode(), -1)}
        )
    shown = json.loads(run(app, ["offsets", "show", "--json"]).stdout)[0]
    assert (shown["committed"], shown["lag"], shown["mark"], shown["digests"]) == (7, 3, 3, {"pump": "d" * 64})
    assert "nothing was changed" in run(app, ["offsets", "reset", "--to", "earliest"]).stdout
    assert json.loads(run(app, ["offsets", "show", "--json"]).stdout)[0]["committed"] == 7
    assert run(app, ["offsets", "reset", "--to", "earliest", "--yes"]).exit_code == 0
    shown = json.loads(run(app, ["offsets", "show", "--json"]).stdout)[0]
    assert (shown["committed"], shown["mark"]) == (0, None)


async def until(watch: Watch, wanted: Callable[[Snapshot], bool]) -> Snapshot:
    for _ in range(1200):
        snapshot = watch.snapshot()
        if snapshot.fault is None and snapshot.streams and wanted(snapshot):
            return snapshot
        await asyncio.sleep(0.1)
    raise AssertionError(f"not seen within two minutes: {watch.snapshot()}")


async def test_the_page_shows_what_the_topics_say(tree: Config) -> None:
    anomaly = Anomaly(
        id="1", episode_id="e", stream="pump", device="pump-7", state="opened", window_start=NOW, window_end=NOW + 5,
        score=3.0, peak=3.0, threshold=1.0, severity="medium", contributions={"flow": 2.5, "heat": 0.5},
        directions={"flow": "above"}, digest="d" * 64, trigger=1,
    )
    produce(tree, anomaly_record(tree.kafka.topic("anomalies"), 0, anomaly))  # before the page looks
    watch = await asyncio.to_thread(open_watch, tree)
    following = asyncio.create_task(watch.run())
    try:
        seen = await until(watch, lambda snapshot: snapshot.streams[0].open_count == 1)
        [episode] = seen.streams[0].open
        assert (episode.device, episode.severity) == ("pump-7", "medium")
        assert episode.channels == [("flow", 2.5, "above"), ("heat", 0.5, "")]
        rows = [
            json.dumps({"device": "pump-7", "ts": NOW + i * 1000, "values": {"flow": i / 8}}).encode() for i in range(5)
        ]
        topic = tree.streams["pump"].topic
        await asyncio.to_thread(produce, tree, *(Record(topic, 1, b"pump-7", row, []) for row in rows))
        await until(watch, lambda snapshot: snapshot.streams[0].records == 5)
        await asyncio.to_thread(produce, tree, block(tree, "a", 5), letter(tree, "4", "bad_json", b"{"))
        seen = await until(watch, lambda snapshot: snapshot.streams[0].rows_out == 5)
        view = seen.streams[0]
        assert view.bytes_in == sum(map(len, rows))
        assert 0 < view.bytes_out < view.bytes_in
        assert view.error_share is not None
        assert 0 <= view.error_share <= 1
        await until(watch, lambda snapshot: snapshot.streams[0].dead_letters == {"bad_json": 1})
        closing = httpx.ASGITransport(make_app(watch))
        async with httpx.AsyncClient(transport=closing, base_url="http://narrows") as client:
            page = await client.get("/")
            assert "default-src 'none'" in page.headers["content-security-policy"]
            assert "http://" not in page.text.replace("http://www.w3.org/2000/svg", "")
            assert (await client.get("/snapshot")).json()["streams"][0]["digest"] == "d" * 64
    finally:
        following.cancel()
