"""`narrows topics`: the topics that the configured streams read and write."""

from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from pipeline import topics
from pipeline.cli.options import ConfigFile, Json
from pipeline.cli.rekey import rekey
from pipeline.config import Config, load_config

app = typer.Typer(no_args_is_help=True, help="The topics that the configured streams read and write.")


def inputs_of(config: Config) -> list[str]:
    """Topics that the streams read, each once."""
    return list(dict.fromkeys(stream.topic for stream in config.streams.values()))


@app.command()
def create(
    config: ConfigFile = None,
    partitions: Annotated[
        int, typer.Option(min=1, help="Partitions of an input topic that is made; outputs follow their input.")
    ] = 4,
    replicas: Annotated[int, typer.Option(help="Copies of each partition; -1 is the broker's default.")] = -1,
    input_retention_h: Annotated[
        float | None, typer.Option(help="Hours that a made input topic keeps records; default for ever.")
    ] = None,
    json: Json = False,
) -> None:
    """Make what is missing of the input and output topics; say what does not fit.

    Example: narrows topics create --partitions 8
    """
    tree = load_config(config)
    retention_ms = -1 if input_retention_h is None else round(input_retention_h * 3_600_000)
    made = topics.create(
        tree.kafka.client_settings(), inputs_of(tree), tree.kafka.topic_prefix, partitions, replicas, retention_ms
    )
    if json:
        print(msgspec.json.encode(made).decode())
        return
    for topic in made:
        print(f"{topic.name}: {topic.partitions} partitions, {'made' if topic.made else 'was there'}")


@app.command()
def grow(
    partitions: Annotated[int, typer.Option(min=1, help="Partitions that the input topics are to have.")],
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Give the input topics more partitions, and the output topics first. Stop the workers before, start them after.

    Devices whose key falls to another partition begin cold there.
    Example: narrows topics grow --partitions 16
    """
    tree = load_config(config)
    grown = topics.grow(tree.kafka.client_settings(), inputs_of(tree), partitions, tree.kafka.topic_prefix)
    if json:
        print(msgspec.json.encode(grown).decode())
        return
    for topic in grown:
        print(f"{topic.name}: {topic.partitions} partitions, {'grown' if topic.made else 'had them'}")


app.command()(rekey)


@app.command("list")
def list_topics(config: ConfigFile = None, json: Json = False) -> None:
    """Show each topic of the configured streams: partitions, copies, records, how long they are kept.

    Example: narrows topics list --json
    """
    tree = load_config(config)
    settings = tree.kafka.client_settings()
    names = [*inputs_of(tree), *(topic.full_name(tree.kafka.topic_prefix) for topic in topics.TOPICS.values())]
    known = topics.describe(settings, names)
    records = {name: _held(settings, name) for name in known}
    if json:
        rows = [
            {**msgspec.to_builtins(known[name]), "exists": True, "records": records[name]}
            if name in known else {"name": name, "exists": False}
            for name in names
        ]
        print(msgspec.json.encode(rows).decode())
        return
    table = Table("topic", "partitions", "copies", "records", "cleanup", "kept")
    for name in names:
        facts = known.get(name)
        if facts is None:
            table.add_row(name, "missing: narrows topics create")
            continue
        cleanup, kept_ms = facts.config["cleanup.policy"], int(facts.config["retention.ms"])
        kept = "for ever" if kept_ms < 0 or cleanup == "compact" else f"{kept_ms / 86_400_000:g} d"
        table.add_row(name, str(facts.partitions), str(facts.replicas), str(records[name]), cleanup, kept)
    Console().print(table)


def _held(settings: topics.Settings, name: str) -> int:
    """Offsets between the first and the last record that a topic holds."""
    return sum(topics.end_offsets(settings, name).values()) - sum(topics.begin_offsets(settings, name).values())
