"""`narrows train --from-topic`: rows between offsets that are fixed before the first record is read."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.config import Config, Stream, load_config
from pipeline.core.contract import Contract
from pipeline.errors import BadInput
from pipeline.formats import Format
from pipeline.formats.files import Table
from pipeline.topics.client import Settings
from pipeline.topics.reader import begin_offsets, end_offsets, offsets_at
from training.topic import Ranges, main_lane, matches_of, read_blocks, read_table


@dataclass(frozen=True)
class Reach:
    """Rows of a topic between offsets that were fixed when this was made.

    contract : the given one, else that of the configured stream that reads this topic.   matches : whether a device
    belongs to that stream; None where all do.   source : for the manifest.
    """

    client: Settings
    topic: str
    ranges: Ranges
    contract: Contract
    format: Format
    matches: Callable[[str], bool] | None = None

    @property
    def records(self) -> int:
        """How many there are at most."""
        return sum(end - start for start, end in self.ranges.values())

    @property
    def source(self) -> dict[str, Any]:
        """What the manifest says of it."""
        return {"topic": self.topic, "ranges": {str(partition): list(span) for partition, span in self.ranges.items()}}

    def table(self) -> Table:
        """All rows of the main lane. Raises BadInput when nothing lies in the range."""
        return main_lane(
            read_table(self.client, self.topic, self.ranges, self.contract, self.format, matches=self.matches))

    def blocks(self) -> Iterator[Table]:
        """All rows, late ones too, a batch of records at a time."""
        return read_blocks(self.client, self.topic, self.ranges, self.contract, self.format, matches=self.matches)


def reach(topic: str, since: str | None, stream: str | None, config: Path | None, contract: Contract | None) -> Reach:
    """All rows of a topic from a time on, decoded as the worker decodes them.

    Raises BadInput when no contract can be had; Unreachable without a broker.
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
    return Reach(client, topic, ranges, contract, read_by.format if read_by else Format(),
                 matches_of(read_by) if read_by else None)


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
