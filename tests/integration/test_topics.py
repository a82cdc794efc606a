"""Topics on a real broker: made once with the right partitions, refused where they do not fit, read between offsets."""

import asyncio
import json
import uuid

import pytest
from aiokafka import AIOKafkaProducer
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from typer.testing import CliRunner

from pipeline import topics
from pipeline.cli.topics import app
from pipeline.errors import BadInput, Unreachable
from pipeline.local.server import free_port
from pipeline.topics.client import admin_client

OWN = list(topics.TOPICS.values())


@pytest.fixture
def prefix() -> str:
    """A topic prefix that nobody else uses."""
    return f"t{uuid.uuid4().hex[:12]}."


def fill(kafka, topic, count, partition=0):
    """Sends `count` records with timestamps 1000, 2000, ..."""
    producer = KafkaProducer(bootstrap_servers=kafka.bootstrap)
    for number in range(count):
        producer.send(
            topic, f"v{number}".encode(), key=b"k", partition=partition, timestamp_ms=1_000 * (number + 1),
            headers=[("n", b"%d" % number)],
        )
    producer.flush()
    producer.close()


def test_outputs_get_the_partitions_of_the_widest_input(kafka, prefix):
    narrow, wide = kafka.new_topic(2), kafka.new_topic(5)
    made = topics.create(kafka.bootstrap, [narrow, wide], prefix)
    counts = {topic.name: topic.partitions for topic in made}
    assert counts.pop(narrow) == 2
    assert counts[f"{prefix}narrows.blocks"] == 5
    assert counts[f"{prefix}narrows.state"] == 5
    assert counts[f"{prefix}narrows.codecs"] == 1
    known = topics.check(kafka.bootstrap, [narrow, wide], prefix)
    assert {name: facts.partitions for name, facts in known.items()} == counts | {narrow: 2}
    assert known[f"{prefix}narrows.state"].config["cleanup.policy"] == "compact"


def test_making_twice_makes_nothing_the_second_time(kafka, prefix):
    fresh = f"{prefix}readings"
    first = topics.create(kafka.bootstrap, [fresh], prefix, partitions=3)
    second = topics.create(kafka.bootstrap, [fresh], prefix, partitions=7)
    assert all(topic.made for topic in first)
    assert not any(topic.made for topic in second)
    assert topics.partitions_of(kafka.bootstrap, fresh) == 3


def test_an_output_with_other_partitions_is_refused_by_name_with_a_remedy(kafka, prefix):
    source = kafka.new_topic(4)
    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    admin.create_topics({f"{prefix}narrows.blocks": {"num_partitions": 2}}, wait_for_metadata=True)
    admin.close()
    with pytest.raises(BadInput, match=r"narrows\.blocks has 2 partitions and must have 4.*--partitions 4"):
        topics.create(kafka.bootstrap, [source], prefix)


def test_a_topic_that_would_forget_codecs_is_refused(kafka, prefix):
    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    admin.create_topics({f"{prefix}narrows.codecs": {"num_partitions": 1}}, wait_for_metadata=True)
    admin.close()
    with pytest.raises(BadInput, match=r"narrows\.codecs forgets old records"):
        topics.create(kafka.bootstrap, [kafka.new_topic()], prefix)


def test_a_missing_topic_is_told_by_name(kafka, prefix):
    with pytest.raises(BadInput, match=r"narrows\.scores is missing: make it with `narrows topics create`"):
        topics.check(kafka.bootstrap, [kafka.new_topic()], prefix)
    with pytest.raises(BadInput, match="no topic absent"):
        topics.end_offsets(kafka.bootstrap, "absent")


def test_a_range_is_read_whole_and_raw_and_no_further(kafka, new_topic):
    topic = new_topic(2)
    fill(kafka, topic, 10, partition=1)
    records = list(topics.read_range(kafka.bootstrap, topic, 1, 3, 7))
    assert [(record.offset, record.ts_ms, record.key, record.value) for record in records] == [
        (number, 1_000 * (number + 1), b"k", f"v{number}".encode()) for number in range(3, 7)
    ]
    assert list(records[0].headers) == [("n", b"3")]
    assert list(topics.read_range(kafka.bootstrap, topic, 1, 4, 4)) == []


def test_a_range_that_the_log_does_not_hold_is_an_error_not_other_records(kafka, new_topic):
    topic = new_topic()
    fill(kafka, topic, 5)
    with pytest.raises(BadInput, match="beyond the end of the log, 5"):
        list(topics.read_range(kafka.bootstrap, topic, 0, 0, 6))
    with pytest.raises(BadInput, match="no partition 3"):
        list(topics.read_range(kafka.bootstrap, topic, 3, 0, 1))
    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    admin.delete_records({TopicPartition(topic, 0): 3})
    admin.close()
    with pytest.raises(BadInput, match="the log begins at 3"):
        list(topics.read_range(kafka.bootstrap, topic, 0, 1, 5))
    assert [record.offset for record in topics.read_range(kafka.bootstrap, topic, 0, 3, 5)] == [3, 4]


async def test_a_range_whose_end_is_no_record_comes_to_its_end(kafka, new_topic):
    """The commit marker of a transaction takes an offset and is no record."""
    topic = new_topic()
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, transactional_id=f"tx-{topic}")
    await producer.start()
    async with producer.transaction():
        await producer.send(topic, b"only")
    await producer.stop()
    end = (await asyncio.to_thread(topics.end_offsets, kafka.bootstrap, topic))[0]
    assert end == 2
    records = await asyncio.to_thread(lambda: list(topics.read_range(kafka.bootstrap, topic, 0, 0, end)))
    assert [record.value for record in records] == [b"only"]


def test_offsets_at_a_time_are_those_of_the_first_record_from_then_on(kafka, new_topic):
    topic = new_topic(2)
    fill(kafka, topic, 5)
    assert topics.offsets_at(kafka.bootstrap, topic, 2_500) == {0: 2, 1: 0}
    assert topics.offsets_at(kafka.bootstrap, topic, 99_000) == {0: 5, 1: 0}
    assert topics.end_offsets(kafka.bootstrap, topic) == {0: 5, 1: 0}


def test_newest_by_key_forgets_keys_that_were_deleted(kafka, new_topic):
    topic = new_topic(config={"cleanup.policy": "compact"})
    producer = KafkaProducer(bootstrap_servers=kafka.bootstrap)
    for key, value in [(b"a", b"1"), (b"b", b"1"), (b"a", b"2"), (b"b", None)]:
        producer.send(topic, value, key=key)
    producer.close()
    assert topics.newest_by_key(kafka.bootstrap, topic) == {b"a": b"2"}


def test_a_topic_is_read_partition_by_partition_or_one_alone(kafka, new_topic):
    topic = new_topic(3)
    fill(kafka, topic, 2, partition=0)
    fill(kafka, topic, 1, partition=2)
    places = [(partition, record.offset) for partition, record in topics.read_topic(kafka.bootstrap, topic)]
    assert places == [(0, 0), (0, 1), (2, 0)]
    assert [record.offset for _, record in topics.read_topic(kafka.bootstrap, topic, only=2)] == [0]


def test_a_broker_that_is_not_there_is_told_in_one_line():
    where = f"127.0.0.1:{free_port()}"
    with pytest.raises(Unreachable, match=f"no Kafka answers at {where}"), admin_client(where, patience_s=0):
        pass


def test_the_commands_make_and_list_the_topics_of_the_configured_streams(kafka, prefix, tmp_path):
    file = tmp_path / "narrows.yaml"
    file.write_text(json.dumps({
        "kafka": {"bootstrap": kafka.bootstrap, "topic_prefix": prefix},
        "streams": {"pump": {"topic": f"{prefix}in", "contract": {"channels": [{"name": "a"}]}}},
    }))
    run = CliRunner().invoke
    before = json.loads(run(app, ["list", "--config", str(file), "--json"]).stdout)
    assert not any(topic["exists"] for topic in before)
    made = json.loads(run(app, ["create", "--config", str(file), "--partitions", "2", "--json"]).stdout)
    assert {topic["name"] for topic in made} == {f"{prefix}in", *(topic.full_name(prefix) for topic in OWN)}
    listed = json.loads(run(app, ["list", "--config", str(file), "--json"]).stdout)
    assert {topic["name"]: topic["records"] for topic in listed} == {topic["name"]: 0 for topic in made}
    assert "for ever" in run(app, ["list", "--config", str(file)]).stdout
