"""`narrows offsets`: where the workers' group stands."""

from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from pipeline.cli.options import ConfigFile, Json
from pipeline.config import Config, load_config, parse_time_ms
from pipeline.engine.checkpoint import read_checkpoint
from pipeline.errors import BadInput, StopWorker
from pipeline.topics import begin_offsets, end_offsets, offsets_at
from pipeline.topics.groups import committed, move

app = typer.Typer(no_args_is_help=True, help="Positions of the workers' group: show, reset.")

Topic = Annotated[list[str] | None, typer.Option(help="Only this input topic; repeatable.")]


class Position(msgspec.Struct, frozen=True):
    """One partition of one input. committed, mark: None where there is no commit, or one without a checkpoint."""

    topic: str
    partition: int
    begin: int
    committed: int | None
    end: int
    lag: int
    mark: int | None
    digests: dict[str, str]
    note: str = ""


@app.command()
def show(topic: Topic = None, config: ConfigFile = None, json: Json = False) -> None:
    """Show each partition's committed offset, its lag, from where a worker would rebuild, and the digests that score.

    Example: narrows offsets show
    """
    tree = load_config(config)
    positions = _positions(tree, _topics(tree, topic))
    if json:
        print(msgspec.json.encode(positions).decode())
        return
    table = Table("topic", "partition", "committed", "end", "lag", "mark", "digests")
    for at in positions:
        digests = ", ".join(f"{stream} {digest[:12]}" for stream, digest in at.digests.items())
        table.add_row(
            at.topic, str(at.partition), "none" if at.committed is None else str(at.committed), str(at.end),
            str(at.lag), "" if at.mark is None else str(at.mark), at.note or digests,
        )
    Console().print(table)
    print(f"group {tree.kafka.group}: {sum(at.lag for at in positions)} records behind")


@app.command()
def reset(
    to: Annotated[str, typer.Option(help="earliest, latest, or a time (ISO 8601).")],
    topic: Topic = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without, only say what would be done.")] = False,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Set the group's position. Outputs of records that are read again come again, with the same ids.

    Open windows, episodes and blocks are forgotten. The workers must be stopped.
    Example: narrows offsets reset --to 2025-01-31T08:00:00Z --yes
    """
    tree = load_config(config)
    settings = tree.kafka.client_settings()
    wanted: dict[tuple[str, int], int] = {}
    for name in _topics(tree, topic):
        if to == "earliest":
            offsets = begin_offsets(settings, name)
        elif to == "latest":
            offsets = end_offsets(settings, name)
        else:
            offsets = offsets_at(settings, name, parse_time_ms("--to", to))
        wanted |= {(name, partition): offset for partition, offset in offsets.items()}
    if yes:
        move(settings, tree.kafka.group, wanted)
    if json:
        moved = [{"topic": name, "partition": partition, "offset": at} for (name, partition), at in wanted.items()]
        print(msgspec.json.encode({"done": yes, "offsets": moved}).decode())
        return
    for (name, partition), offset in wanted.items():
        print(f"{name}[{partition}] {'->' if yes else 'would go to'} {offset}")
    if not yes:
        print("nothing was changed; --yes does it")


def _topics(tree: Config, chosen: list[str] | None) -> list[str]:
    topics = list(dict.fromkeys(stream.topic for stream in tree.streams.values()))
    if not chosen and not topics:
        raise BadInput("no stream is configured; add one under streams, or name a --topic")
    return chosen or topics


def _positions(tree: Config, topics: list[str]) -> list[Position]:
    settings = tree.kafka.client_settings()
    held = committed(settings, tree.kafka.group)
    positions: list[Position] = []
    for name in topics:
        begins, ends = begin_offsets(settings, name), end_offsets(settings, name)
        for partition, end in ends.items():
            at = held.get((name, partition))
            offset = None if at is None else at.offset
            mark, digests, note = None, {}, ""
            if at is not None:
                try:
                    checkpoint = read_checkpoint(at.metadata, f"{name}[{partition}]")
                    mark = None if checkpoint is None else checkpoint.mark
                    digests = {} if checkpoint is None else checkpoint.digests
                except StopWorker as error:
                    note = str(error)
            lag = max(0, end - (begins[partition] if offset is None else offset))
            positions.append(Position(name, partition, begins[partition], offset, end, lag, mark, digests, note))
    return positions
