"""`narrows train --from-topic`: rows between offsets that are fixed before the first record is read."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.config import Config, Stream, load_config
from pipeline.core.contract import Contract
from pipeline.errors import BadInput
from pipeline.formats import Format
from pipeline.formats.files import Table
from pipeline.topics.reader import begin_offsets, end_offsets, offsets_at
from training.topic import main_lane, read_table


def read_since(
    topic: str, since: str | None, stream: str | None, config: Path | None, contract: Contract | None
) -> tuple[Table, Contract, dict[str, Any]]:
    """All rows of a topic from a time on, decoded as the worker decodes them; contract; offsets for the manifest.

    The contract is the given one, else that of the configured stream that reads this topic.
    Raises BadInput when no contract can be had or nothing lies in the range; Unreachable without a broker.
    """
    settings = load_config(config)
    read_by = _stream(settings, topic, stream)
    if contract is None and read_by is None:
        raise BadInput(f"no configured stream reads topic {topic}: name one with --stream, or give --contract")
    contract = contract or (read_by.contract if read_by else None)
    assert contract is not None
    client = settings.kafka.client_settings()
    last = end_offsets(client, topic)
    first = begin_offsets(client, topic) if since is None else offsets_at(client, topic, _epoch_ms(since))
    ranges = {partition: (min(first[partition], end), end) for partition, end in last.items()}
    table = read_table(client, topic, ranges, contract, read_by.format if read_by else Format())
    source = {"topic": topic, "ranges": {str(partition): list(span) for partition, span in ranges.items()}}
    return main_lane(table), contract, source


def _stream(settings: Config, topic: str, name: str | None) -> Stream | None:
    if name is not None:
        if name not in settings.streams:
            raise BadInput(f"--stream {name}: the configuration has {', '.join(settings.streams) or 'no stream'}")
        return settings.streams[name]
    return next((stream for stream in settings.streams.values() if stream.topic == topic), None)


def _epoch_ms(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise BadInput(f"--since {text}: give ISO 8601, as 2026-01-31T08:00, or epoch milliseconds") from error
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
