"""`narrows dead-letters`: records that could not be read."""

import sys
from collections.abc import Iterator
from typing import Annotated

import msgspec
import typer
from kafka import KafkaProducer
from kafka.errors import KafkaError
from rich.console import Console
from rich.table import Table

from pipeline.cli.options import ConfigFile, Json
from pipeline.config import load_config
from pipeline.errors import Unreachable
from pipeline.sinks import DeadLetter, SeenOnce, read_dead_letter
from pipeline.topics import Record, Settings, read_topic
from pipeline.topics.client import address, keywords

app = typer.Typer(no_args_is_help=True, help="Records that could not be read: list, replay.")

PREVIEW = 60  # characters of a value that a line shows

Topic = Annotated[str | None, typer.Option(help="Topic of dead letters.", show_default="narrows.dead-letters")]
Reason = Annotated[list[str] | None, typer.Option(help="Only this reason code; repeatable.")]
Source = Annotated[str | None, typer.Option("--from", help="Only records of this input topic.")]


@app.command("list")
def list_letters(
    topic: Topic = None,
    reason: Reason = None,
    source: Source = None,
    limit: Annotated[int, typer.Option(min=0, help="Show at most the newest so many; 0 all.")] = 50,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Show what could not be read, and why.

    Example: narrows dead-letters list --reason bad_json
    """
    tree = load_config(config)
    name = topic or tree.kafka.topic("dead-letters")
    found = list(_letters(tree.kafka.client_settings(), name, reason or [], source))
    shown = found[-limit:] if limit else found
    if json:
        for letter, record in shown:
            print(msgspec.json.encode({**msgspec.to_builtins(letter), "preview": _preview(record.value)}).decode())
        return
    table = Table("reason", "topic", "partition", "offset", "bytes", "value")
    for letter, record in shown:
        table.add_row(
            letter.reason, letter.topic, str(letter.partition), str(letter.offset),
            f"{letter.value_bytes}{' (cut)' if letter.is_cut else ''}", _preview(record.value),
        )
    Console().print(table)
    counts: dict[str, int] = {}
    for letter, _ in found:
        counts[letter.reason] = counts.get(letter.reason, 0) + 1
    print(f"{len(found)} dead letters: " + (", ".join(f"{n} {code}" for code, n in sorted(counts.items())) or "none"))


@app.command()
def replay(
    topic: Topic = None,
    reason: Reason = None,
    source: Source = None,
    to: Annotated[str | None, typer.Option(help="Publish to this topic instead of the one they came from.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be published, no more.")] = False,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Publish dead letters again, unchanged, to where they came from: for when the format was at fault, not they.

    One that was cut is left out. One that is still unreadable comes back as a new dead letter.
    Example: narrows dead-letters replay --reason wrong_type
    """
    tree = load_config(config)
    settings = tree.kafka.client_settings()
    name = topic or tree.kafka.topic("dead-letters")
    found = list(_letters(settings, name, reason or [], source))
    whole = [(letter, record) for letter, record in found if not letter.is_cut]
    if not dry_run and whole:
        _publish(settings, whole, to)
    facts = {"published": 0 if dry_run else len(whole), "would_publish": len(whole), "cut": len(found) - len(whole)}
    if json:
        print(msgspec.json.encode(facts).decode())
    else:
        print(f"{len(whole)} {'would be ' if dry_run else ''}published, {facts['cut']} left out because they were cut")


def _letters(
    settings: Settings, topic: str, reasons: list[str], source: str | None
) -> Iterator[tuple[DeadLetter, Record]]:
    """Dead letters, each once, oldest first within a partition."""
    seen = SeenOnce()
    foreign = 0
    for _, record in read_topic(settings, topic):
        headers = dict(record.headers)
        if "reason" not in headers:
            foreign += 1
            continue
        letter = read_dead_letter(record.headers)
        if (reasons and letter.reason not in reasons) or (source is not None and letter.topic != source):
            continue
        if seen.is_new(letter.id):
            yield letter, record
    if foreign:
        print(f"{foreign} records of {topic} were not written by narrows and are left out", file=sys.stderr)


def _publish(settings: Settings, letters: list[tuple[DeadLetter, Record]], to: str | None) -> None:
    try:
        producer = KafkaProducer(**keywords(settings), acks="all", linger_ms=20)
        try:
            # The partition stays where it was: a device's records must not be split over two.
            sent = [
                producer.send(
                    to or letter.topic, record.value, record.key, partition=None if to else letter.partition,
                    timestamp_ms=letter.timestamp if letter.timestamp >= 0 else None,
                )
                for letter, record in letters
            ]
            producer.flush()
            for future in sent:
                future.get(timeout=30)
        finally:
            producer.close(timeout=5)
    except (KafkaError, OSError) as error:
        raise Unreachable(f"Kafka at {address(settings)} did not take the records: {error}") from error


def _preview(value: bytes | None) -> str:
    if value is None:
        return "(null)"
    text = value[: 4 * PREVIEW].decode("utf-8", errors="backslashreplace")
    shown = "".join(letter if letter.isprintable() else " " for letter in text)
    return shown if len(shown) <= PREVIEW else shown[: PREVIEW - 1] + "…"
