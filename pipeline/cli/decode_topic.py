"""`narrows decode-topic`: the rows that the blocks of a topic hold."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import ConfigFile
from pipeline.codec import BadBlock
from pipeline.config import Config, load_config, parse_time_ms
from pipeline.errors import BadInput
from pipeline.formats.encode import encode_rows
from pipeline.formats.spec import Format
from pipeline.sinks.blocks import BlockReader, each_once
from pipeline.topics import Record, Settings, end_offsets, newest_by_key, offsets_at, read_range, read_topic


def decode_topic(
    topic: Annotated[str | None, typer.Option(help="Topic of blocks.", show_default="narrows.blocks")] = None,
    out: Annotated[Path | None, typer.Option(help="File to write; default standard output.")] = None,
    device: Annotated[list[str] | None, typer.Option(help="Only this device; repeatable.")] = None,
    since: Annotated[str | None, typer.Option(help="Only blocks written from this time on (ISO 8601).")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Go on after a block that can't be read.")] = False,
    config: ConfigFile = None,
) -> None:
    """Write the rows that the topic's blocks hold, as JSON lines {"device", "ts", "values"}; each block once.

    Example: narrows decode-topic --topic narrows.blocks --out rows.jsonl
    """
    tree = load_config(config)
    name = topic or tree.kafka.topic("blocks")
    reader = open_reader(tree)
    bad = rows = 0
    sink = sys.stdout.buffer if out is None else out.open("wb")
    try:
        for label, frame in each_once(_records(tree.kafka.client_settings(), name, since), device or ()):
            try:
                ts_ms, values = reader.rows(label, frame)
            except (BadBlock, BadInput) as error:
                if not skip_bad:
                    where = f"{name}: block {label.id} of {label.device}"
                    raise BadInput(f"{where}: {error}; --skip-bad goes on") from error
                bad += 1
                continue
            channels = reader.contract(label).names
            for records in encode_rows(Format(), channels, [label.device] * len(ts_ms), ts_ms, values):
                sink.write(records[0] + b"\n")
            rows += len(ts_ms)
    finally:
        if out is not None:
            sink.close()
        else:
            sink.flush()
    print(f"{rows} rows{f', {bad} blocks could not be read' if bad else ''}", file=sys.stderr)
    if bad:
        raise typer.Exit(1)


def open_reader(tree: Config) -> BlockReader:
    """A reader that knows the configured streams and asks `narrows.codecs` of the configured broker."""
    settings, codecs = tree.kafka.client_settings(), tree.kafka.topic("codecs")

    def fetch() -> Mapping[bytes, bytes]:
        try:
            return newest_by_key(settings, codecs)
        except BadInput:  # no such topic: blocks of a configured stream that name no model need none
            return {}

    return BlockReader(fetch, {name: stream.contract for name, stream in tree.streams.items()})


def _records(settings: Settings, topic: str, since: str | None) -> Iterator[Record]:
    if since is None:
        yield from (record for _, record in read_topic(settings, topic))
        return
    starts = offsets_at(settings, topic, parse_time_ms("--since", since))
    for partition, end in end_offsets(settings, topic).items():
        yield from read_range(settings, topic, partition, starts[partition], end)
