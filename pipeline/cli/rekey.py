"""`narrows topics rekey`: a topic copied into another one, each device's records under one key."""

import heapq
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
import typer
from kafka import KafkaProducer
from kafka.errors import KafkaError

from pipeline import topics
from pipeline.cli.options import ConfigFile, Json
from pipeline.config import Config, load_config
from pipeline.core.contract import Channel, Contract
from pipeline.errors import BadInput, Unreachable
from pipeline.formats import Decoder, Format, make_decoder
from pipeline.formats.arrow import ArrowDecoder
from pipeline.formats.spec import read_encoding
from pipeline.topics.client import address, keywords

FLUSH_EVERY = 10_000  # records that wait for the broker at most


class Copied(msgspec.Struct):
    """What was done. read : records of the source; written : more than read where one held several devices.

    devices : that were met.  keyless : records that name no device, copied as they are.
    """

    read: int = 0
    written: int = 0
    devices: int = 0
    keyless: int = 0


def rekey(
    source: Annotated[str, typer.Argument(help="Topic to copy.")],
    target: Annotated[str, typer.Argument(help="Topic to copy to; made where it is missing, else it must be empty.")],
    device_field: Annotated[
        str | None, typer.Option(help="Field with the device's name; default that of the source's stream, else device.")
    ] = None,
    encoding: Annotated[
        str | None, typer.Option(help="json, msgpack, cbor or arrow; default that of the source's stream, else json.")
    ] = None,
    partitions: Annotated[
        int | None, typer.Option(min=1, help="Partitions of a target that is made; default the source's.")
    ] = None,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Copy a topic into another one under the key that a stream needs: the device that each record names.

    Values, timestamps and headers stay. Records of a device that lie in several partitions are merged by timestamp.
    An Arrow record of several devices becomes one for each. Stop the producers before, or what they write is left out.
    Example: narrows topics rekey readings readings-2 --device-field id
    """
    tree = load_config(config)
    settings = tree.kafka.client_settings()
    decoder = _decoder(tree, source, device_field, encoding)
    if source == target:
        raise BadInput(f"{target} can't be copied into itself; name a new topic")
    count = topics.partitions_of(settings, source)
    topics.create(settings, [target], partitions=partitions or count, outputs=())
    if any(topics.end_offsets(settings, target).values()):
        raise BadInput(f"{target} holds records already, and a copy would come between them; name a new topic")
    copied = _copy(settings, source, target, decoder)
    if json:
        print(msgspec.json.encode(copied).decode())
    else:
        print(
            f"{copied.read} records of {copied.devices} devices copied from {source} to {target} as {copied.written}; "
            f"{copied.keyless} name no device and keep their key"
        )


def _decoder(tree: Config, source: str, device_field: str | None, encoding: str | None) -> Decoder:
    """What finds the device in a record: the layout of the rest does not matter."""
    spec = next((stream.format for stream in tree.streams.values() if stream.topic == source), Format())
    changes: dict[str, Any] = {} if device_field is None else {"device": device_field}
    if encoding is not None:
        changes["encoding"] = read_encoding(encoding)
    contract = next(
        (stream.contract for stream in tree.streams.values() if stream.topic == source),
        Contract(channels=(Channel(name="value"),)),
    )
    return make_decoder(contract, msgspec.structs.replace(spec, **changes))


def _copy(settings: topics.Settings, source: str, target: str, decoder: Decoder) -> Copied:
    copied, devices = Copied(), set()
    failed: list[BaseException] = []
    try:
        producer: Any = KafkaProducer(**keywords(settings), acks="all", linger_ms=20, batch_size=1 << 17)
        try:
            for record in _merged(settings, source):
                copied.read += 1
                for device, value in _by_device(decoder, record):
                    copied.written += 1
                    copied.keyless += device is None
                    devices.add(device)
                    producer.send(
                        target, value, record.key if device is None else device.encode(),
                        headers=list(record.headers), timestamp_ms=record.ts_ms,
                    ).add_errback(failed.append)
                if copied.read % FLUSH_EVERY == 0:
                    producer.flush()
                if failed:
                    raise failed[0]
            producer.flush()
            if failed:
                raise failed[0]
        finally:
            producer.close(timeout=5)
    except (KafkaError, OSError) as error:
        raise Unreachable(f"Kafka at {address(settings)} did not take a record of {target}: {error}") from error
    copied.devices = len(devices - {None})
    return copied


def _merged(settings: topics.Settings, source: str) -> Iterator[topics.Record]:
    """All records by timestamp, each partition in its own order."""
    begins, ends = topics.begin_offsets(settings, source), topics.end_offsets(settings, source)
    parts = [topics.read_range(settings, source, number, begins[number], ends[number]) for number in sorted(ends)]
    return heapq.merge(*parts, key=lambda record: record.ts_ms)


def _by_device(decoder: Decoder, record: topics.Record) -> list[tuple[str | None, bytes | None]]:
    if isinstance(decoder, ArrowDecoder):
        return decoder.split(record.value, record.key)
    return [(decoder.device_of(record.value, record.key), record.value)]
