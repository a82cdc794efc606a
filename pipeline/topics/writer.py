"""One record that a person has something to say by: what `narrows feedback` and `narrows maintenance` write."""

from kafka import KafkaProducer
from kafka.errors import KafkaError

from pipeline.errors import Unreachable
from pipeline.topics.client import Settings, address, keywords

WAIT_S = 30


def write_record(settings: Settings, topic: str, key: str, value: bytes | None) -> None:
    """Written and acknowledged by all replicas; value None takes back what stood under the key. Raises Unreachable."""
    try:
        producer = KafkaProducer(**keywords(settings), acks="all")
        try:
            producer.send(topic, value, key.encode()).get(WAIT_S)
        finally:
            producer.close()
    except KafkaError as error:
        raise Unreachable(f"{topic} at {address(settings)} takes nothing ({error}): is the broker up, and the topic "
                          "made (`narrows topics create`)?") from error
