"""`narrows.maintenance`: windows that people declare, each under its id; read from its beginning and as they come."""

import logging
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing

import msgspec
from aiokafka.errors import KafkaError

from pipeline.core.maintenance import VERSION, Plans, Window
from pipeline.errors import BadInput
from pipeline.topics.client import Settings, ours
from pipeline.topics.reader import Record, follow, read_topic

log = logging.getLogger(__name__)


class _Version(msgspec.Struct):
    version: int


_version = msgspec.json.Decoder(_Version).decode
_window = msgspec.json.Decoder(Window).decode


def take_records(plans: Plans, records: Iterable[Record]) -> None:
    """Lays records over what is known, in the order of the log; what is no window is stepped over and logged.

    Raises BadInput for a window of a newer version.
    """
    for record in records:
        name, window = (record.key or b"").decode(errors="replace"), None
        if record.value is not None:
            window = read_window(record)
            if window is None:
                continue
        plans.take(record.offset, name, window)


def read_window(record: Record) -> Window | None:
    """What a record declares; None, and a line in the log, where it is no window."""
    value = record.value or b""
    try:
        version = _version(value).version
        if version <= VERSION:
            return _window(value)
    except (msgspec.DecodeError, BadInput) as error:
        log.warning("narrows.maintenance, offset %d: no window (%s)", record.offset, error)
        return None
    raise BadInput(f"narrows.maintenance, offset {record.offset}: version {version}; this narrows reads {VERSION}: "
                   "update it")


def read_plans(settings: Settings, topic: str, plans: Plans) -> None:
    """All that the topic holds now. Raises BadInput where there is no such topic, Unreachable."""
    take_records(plans, (record for _, record in read_topic(settings, topic)))


async def follow_plans(settings: Settings, topic: str, plans: Plans, wait_s: float) -> AsyncGenerator[None]:
    """Goes on reading from where `plans` ends; yields at least every `wait_s`."""
    try:
        async with aclosing(follow(settings, topic, plans.end, wait_s)) as batches:
            async for records in batches:
                take_records(plans, records)
                yield
    except KafkaError as error:
        raise ours(error, settings) from error
