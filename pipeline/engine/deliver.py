"""Delivery: the only way out to Kafka. When `deliver` returns, every record is acknowledged by all replicas."""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from aiokafka.errors import (
    KafkaError,
    MessageSizeTooLargeError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)

from pipeline.errors import StopWorker


class Output(Protocol):
    """One record to write; `topic` is the full name."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes]]: ...


async def deliver(producer: Any, outputs: Iterable[Output]) -> None:
    """Write records and wait for every acknowledgement.

    producer : a started AIOKafkaProducer.
    Raises StopWorker naming the topic and the remedy; what was not acknowledged is made again after a restart.
    """
    groups: dict[tuple[str, int], list[Output]] = defaultdict(list)
    for output in outputs:
        groups[output.topic, output.partition].append(output)
    waiting = []
    for (topic, partition), group in groups.items():
        try:
            waiting += [(topic, future) for future in await _send(producer, topic, partition, group)]
        except KafkaError as error:
            raise _stop(topic, error) from error
    if not waiting:
        return
    done = await asyncio.gather(*(future for _, future in waiting), return_exceptions=True)
    for (topic, _), result in zip(waiting, done, strict=True):
        if isinstance(result, KafkaError):
            raise _stop(topic, result) from result
        if isinstance(result, BaseException):
            raise result


async def _send(producer: Any, topic: str, partition: int, group: list[Output]) -> list[Any]:
    """One future for each producer batch."""
    futures = []
    at = 0
    while at < len(group):
        batch = producer.create_batch()
        while at < len(group):
            output = group[at]
            added = batch.append(key=output.key, value=output.value, timestamp=None, headers=list(output.headers))
            if added is None:
                break
            at += 1
        futures.append(await producer.send_batch(batch, topic, partition=partition))
    return futures


def _stop(topic: str, error: KafkaError) -> StopWorker:
    if isinstance(error, MessageSizeTooLargeError):
        return StopWorker(f"topic {topic}: a record is larger than it takes; raise its max.message.bytes")
    if isinstance(error, TopicAuthorizationFailedError):
        return StopWorker(f"topic {topic}: the broker does not let us write; grant WRITE to this user")
    if isinstance(error, UnknownTopicOrPartitionError):
        return StopWorker(f"topic {topic}: missing, or with too few partitions; run `narrows topics create`")
    return StopWorker(f"topic {topic}: delivery failed: {error!r}")
