"""`narrows decode-topic`: the rows that the blocks of a topic hold, their summaries, what they took."""

import sys
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from pipeline.cli.options import ConfigFile, Json, time_ms
from pipeline.cli.tables import RowWriter, open_decoder
from pipeline.codec import BadBlock, unpack_frame
from pipeline.codec.block import LATENT, kind_of_block
from pipeline.codec.summary import take_summary
from pipeline.codec.wire import Reader
from pipeline.config import Config, load_config
from pipeline.errors import BadInput
from pipeline.sinks.blocks import BlockReader, LabelledBlock, each_once
from pipeline.topics import Record, Settings, begin_offsets, end_offsets, newest_by_key, offsets_at, read_range

HOUR_MS = 3_600_000
"""How far ahead of the broker's clock a record's timestamp may be (Kafka's default)."""


def decode_topic(
    topic: Annotated[str | None, typer.Option(help="Topic of blocks.", show_default="narrows.blocks")] = None,
    out: Annotated[Path | None, typer.Option(
        help="File to write, by its ending .csv, .parquet, .arrow, else JSON lines; default standard output.",
    )] = None,
    device: Annotated[list[str] | None, typer.Option(help="Only this device; repeatable.")] = None,
    since: Annotated[str | None, typer.Option(help="Rows from this time on (ISO 8601 or epoch ms).")] = None,
    until: Annotated[str | None, typer.Option(help="Rows before this time (ISO 8601 or epoch ms).")] = None,
    partition: Annotated[int | None, typer.Option(
        help="Only this partition: a device's blocks lie in that of its readings.",
    )] = None,
    summary: Annotated[bool, typer.Option(
        "--summary", help="Least, largest, mean and count of each block, decoding none; JSON lines.",
    )] = False,
    stats: Annotated[bool, typer.Option(
        "--stats", help="Bytes and errors inside and outside of episodes, decoding none.",
    )] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Go on after a block that can't be read.")] = False,
    as_json: Json = False,
    config: ConfigFile = None,
) -> None:
    """Write the rows that the topic's blocks hold, as JSON lines {"device", "ts", "values"}; each block once.

    With --since what the broker stored earlier stays unread, blocks of other devices and times undecoded.

    Example: narrows decode-topic --device pump-7 --since 2025-01-31T08:00 --until 2025-01-31T09:00 --out rows.parquet
    """
    tree = load_config(config)
    name = topic or tree.kafka.topic("blocks")
    first, last = _time("--since", since), _time("--until", until)
    bad = 0
    with closing(_records(tree, name, first, partition)) as records:    # a bad block leaves them in the middle
        chosen = (
            block for block in each_once(records, device or ())
            if (first is None or block.label.last_ts >= first) and (last is None or block.label.first_ts < last)
        )
        if summary:
            _write_summaries(chosen, open_reader(tree), out)
        elif stats:
            _print_stats(chosen, as_json)
        else:
            bad = _write_rows(chosen, open_reader(tree), out, name, (first, last), skip_bad)
    if bad:
        raise typer.Exit(1)


def _write_rows(
    chosen: Iterator[LabelledBlock], reader: BlockReader, out: Path | None, name: str,
    times: tuple[int | None, int | None], skip_bad: bool,
) -> int:
    """How many blocks could not be read."""
    bad, (first, last) = 0, times
    with RowWriter(out) as writer:
        for block in chosen:
            try:
                ts_ms, values = reader.rows(block.label, block.frame)
            except (BadBlock, BadInput) as error:
                if not skip_bad:
                    where = f"{name}: block {block.label.id} of {block.label.device}"
                    raise BadInput(f"{where}: {error}; --skip-bad goes on") from error
                bad += 1
                continue
            keep = (ts_ms >= (ts_ms.min() if first is None else first)) & (ts_ms < (1 << 62 if last is None else last))
            if keep.any():
                writer.write(reader.contract(block.label).names, block.label.device, ts_ms[keep], values[keep])
    print(f"{writer.rows} rows{f', {bad} blocks could not be read' if bad else ''}", file=sys.stderr)
    return bad


def _write_summaries(chosen: Iterator[LabelledBlock], reader: BlockReader, out: Path | None) -> None:
    sink = sys.stdout.buffer if out is None else out.open("wb")
    written = without = 0
    try:
        for label, _, data in chosen:
            if data is None:
                without += 1
                continue
            told, names = take_summary(Reader(data)), reader.contract(label).names
            sink.write(msgspec.json.encode({
                "device": label.device, "first": label.first_ts, "last": label.last_ts, "rows": label.rows,
                "channels": {
                    channel: {"count": count, "min": low, "max": high, "mean": mean}
                    for channel, count, low, high, mean in zip(
                        names, told.counts.tolist(), told.low.astype(float).tolist(),
                        told.high.astype(float).tolist(), told.mean.astype(float).tolist(), strict=True,
                    ) if count
                },
            }) + b"\n")
            written += 1
    finally:
        if out is not None:
            sink.close()
        else:
            sink.flush()
    print(f"{written} blocks", file=sys.stderr)
    if without:
        print(f"{without} blocks have no summary: set streams.NAME.blocks.summaries", file=sys.stderr)


def _print_stats(chosen: Iterator[LabelledBlock], as_json: bool) -> None:
    """By class: rows, bytes, errors as shares of the bound."""
    facts: dict[str, dict[str, Any]] = {
        kind: {"rows": 0, "bytes": 0, "largest_error": 0.0, "mean_error": 0.0} for kind in ("normal", "episode")
    }
    blocks = latent = 0
    for label, frame, _ in chosen:
        parts = unpack_frame(frame)
        blocks += 1
        latent += any(kind_of_block(part) == LATENT for part in parts)
        errors = label.errors or (0, 0, 0, 0)
        for number, kind in enumerate(("normal", "episode")):
            size = sum(len(part) for place, part in enumerate(parts) if (place in label.fine) == bool(number))
            one, rows = facts[kind], label.fine_rows if number else label.rows - label.fine_rows
            one["rows"] += rows
            one["bytes"] += size
            one["largest_error"] = max(one["largest_error"], errors[2 * number] / 1000)
            one["mean_error"] += errors[2 * number + 1] / 1000 * rows
    for one in facts.values():
        one["mean_error"] = round(one["mean_error"] / max(one["rows"], 1), 4)
    told = {"blocks": blocks, "blocks_with_latents": latent, **facts}
    if as_json:
        print(msgspec.json.encode(told).decode())
        return
    print(f"{blocks} blocks, {latent} with latents")
    for kind, one in facts.items():
        print(
            f"  {kind}: {one['rows']} rows, {one['bytes']:,} bytes, errors at most {one['largest_error']:.3f} of the "
            f"bound, {one['mean_error']:.3f} on average"
        )


def open_reader(tree: Config) -> BlockReader:
    """A reader that knows the configured streams and asks `narrows.codecs` of the configured broker."""
    settings, codecs = tree.kafka.client_settings(), tree.kafka.topic("codecs")

    def fetch() -> Mapping[bytes, bytes]:
        try:
            return newest_by_key(settings, codecs)
        except BadInput:  # no such topic: blocks of a configured stream that name no model need none
            return {}

    return BlockReader(fetch, {name: stream.contract for name, stream in tree.streams.items()}, open_decoder)


def _time(key: str, text: str | None) -> int | None:
    return None if text is None else time_ms(key, text)


def _records(tree: Config, topic: str, since: int | None, only: int | None) -> Generator[Record, None, None]:
    """Records that may hold rows from `since` on: a row is at most `max_ahead` ahead of its record's timestamp."""
    settings: Settings = tree.kafka.client_settings()
    if since is None:
        starts = begin_offsets(settings, topic)
    else:
        ahead = max((stream.contract.max_ahead_ms for stream in tree.streams.values()), default=HOUR_MS)
        starts = offsets_at(settings, topic, max(since - ahead - HOUR_MS, 0))
    for partition, end in end_offsets(settings, topic).items():
        if only in (None, partition):
            yield from read_range(settings, topic, partition, starts[partition], end)
