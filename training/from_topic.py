"""`narrows train --from-topic`: rows between offsets that are fixed before the first record is read."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.config import Config, load_config
from pipeline.core.contract import Contract
from pipeline.errors import BadInput
from pipeline.formats import Format
from pipeline.formats.files import Table
from pipeline.topics.client import Settings
from pipeline.topics.reader import begin_offsets, end_offsets, offsets_at
from training.masks import Masks, read_masks
from training.topic import Ranges, as_json, main_lane, matches_of, read_blocks, read_table


@dataclass(frozen=True)
class Reach:
    """Rows of a topic between offsets that were fixed when this was made.

    contract : the given one, else that of the configured stream that reads this topic.   matches : whether a device
    belongs to that stream; None where all do.   masks : rows of it that are not to be learned.
    """

    client: Settings
    topic: str
    ranges: Ranges
    contract: Contract
    format: Format
    matches: Callable[[str], bool] | None
    masks: Masks

    @property
    def records(self) -> int:
        """How many there are at most."""
        return sum(end - start for start, end in self.ranges.values())

    @property
    def source(self) -> dict[str, Any]:
        """What the manifest says of it."""
        return {"topic": self.topic, "ranges": as_json(self.ranges), **self.masks.source}

    def table(self) -> Table:
        """All rows of the main lane. Raises BadInput when nothing lies in the range."""
        return main_lane(
            read_table(self.client, self.topic, self.ranges, self.contract, self.format, matches=self.matches))

    def blocks(self) -> Iterator[Table]:
        """All rows, late ones too, a batch of records at a time."""
        return read_blocks(self.client, self.topic, self.ranges, self.contract, self.format, matches=self.matches)


def reach(
    topic: str, since: str | None, stream: str | None, config: Path | None, contract: Contract | None, *,
    is_masked: bool = True,
) -> Reach:
    """All rows of a topic from a time on, decoded as the worker decodes them.

    is_masked : rows in alerted episodes and in maintenance are to be left out, as the retraining job does.
    Raises BadInput when no contract can be had; Unreachable without a broker.
    """
    settings = load_config(config)
    name = _stream(settings, topic, stream)
    read_by = settings.streams.get(name)
    if contract is None and read_by is None:
        raise BadInput(f"no configured stream reads topic {topic}: name one with --stream, or give --contract")
    contract = contract or (read_by.contract if read_by else None)
    assert contract is not None
    client = settings.kafka.client_settings()
    last = end_offsets(client, topic)
    first = begin_offsets(client, topic) if since is None else offsets_at(client, topic, _epoch_ms(since))
    ranges = {partition: (min(first[partition], end), end) for partition, end in last.items()}
    if read_by is None:
        masks = Masks(missing=(f"no configured stream reads topic {topic}, so no row is known to be masked: name one "
                               "with --stream",) if is_masked else ())
        return Reach(client, topic, ranges, contract, Format(), None, masks)
    return Reach(client, topic, ranges, contract, read_by.format, matches_of(read_by),
                 read_masks(settings.kafka, name) if is_masked else Masks())


def _stream(settings: Config, topic: str, name: str | None) -> str:
    """The stream's name, "" where none reads the topic."""
    if name is not None:
        if name not in settings.streams:
            raise BadInput(f"--stream {name}: the configuration has {', '.join(settings.streams) or 'no stream'}")
        return name
    return next((name for name, stream in settings.streams.items() if stream.topic == topic), "")


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
