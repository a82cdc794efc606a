"""`narrows models`: the registry's bundles and champion pointers."""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from pipeline.cli.options import ConfigFile, Json
from pipeline.config import Config, load_config
from pipeline.engine.checkpoint import read_checkpoint
from pipeline.errors import BadInput
from pipeline.registry.bundle import load_bundle, read_manifest
from pipeline.registry.store import Pointer, Registry
from pipeline.scoring.gate import open_session
from pipeline.topics.groups import committed

app = typer.Typer(no_args_is_help=True, help="Bundles in the registry, and which one is champion.")

Stream = Annotated[str, typer.Option(help="Stream of the bundle; may be left out where the registry has one alone.")]
Digest = Annotated[str, typer.Argument(help="Digest of a bundle, or its first digits.")]


def open_registry(config: Path | None, stream: str) -> tuple[Registry, str]:
    """The registry and the stream that is meant. Raises BadInput where several could be."""
    registry = Registry(load_config(config).registry.path)
    streams = registry.streams()
    if stream:
        return registry, stream
    if len(streams) != 1:
        raise BadInput(f"registry {registry.root} holds {', '.join(streams) or 'no stream'}: give --stream")
    return registry, streams[0]


@app.command("list")
def list_models(
    stream: Annotated[str, typer.Option(help="This stream's alone.")] = "", config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Show every bundle, oldest first, with the champion marked.

    Example: narrows models list --stream pump
    """
    registry = Registry(load_config(config).registry.path)
    entries = [entry for name in ([stream] if stream else registry.streams()) for entry in registry.entries(name)]
    if json:
        print(msgspec.json.encode(entries).decode())
        return
    table = Table("stream", "digest", "family", "published", "size", "", box=None)
    for entry in entries:
        published = datetime.fromtimestamp(entry.published_ms / 1000, UTC)
        table.add_row(
            entry.stream, entry.digest[:12], entry.family, f"{published:%Y-%m-%d %H:%M:%S}",
            f"{entry.size_bytes / 1024:.0f} KB", "champion" if entry.is_champion else entry.fault,
        )
    Console().print(table)


@app.command()
def show(digest: Digest, stream: Stream = "", config: ConfigFile = None, json: Json = False) -> None:
    """Show a bundle's manifest, and the champion's history of its stream.

    Example: narrows models show 3fa9 --stream pump
    """
    registry, name = open_registry(config, stream)
    folder = registry.path(name, registry.find(name, digest))
    facts = {"folder": str(folder), "manifest": read_manifest(folder), "history": registry.history(name)}
    encoded = msgspec.json.encode(facts)
    print(encoded.decode() if json else msgspec.json.format(encoded, indent=2).decode())


@app.command()
def verify(
    digest: Annotated[str, typer.Argument(help="Digest or its first digits; default every bundle.")] = "",
    stream: Stream = "", config: ConfigFile = None, json: Json = False,
) -> None:
    """Read every byte against its digest, load the model in a child process and ask it for its golden outputs.

    Example: narrows models verify 3fa9 --stream pump
    """
    registry, name = open_registry(config, stream)
    digests = [registry.find(name, digest)] if digest else registry.digests(name)
    for found in digests:
        registry.verify(name, found)
        open_session(load_bundle(registry.path(name, found)), in_child=True)
        if not json:
            print(f"{found[:12]} is whole, finite, and gives its golden outputs")
    if json:
        print(msgspec.json.encode({"stream": name, "verified": digests}).decode())


@app.command()
def add(
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle.")],
    stream: Annotated[str, typer.Option(help="Stream that it is for.")],
    promote: Annotated[bool, typer.Option("--promote", help="Make it the champion as well.")] = False,
    config: ConfigFile = None, json: Json = False,
) -> None:
    """Publish a bundle into the registry; the champion stays unless --promote is given.

    Example: narrows models add bundles/pump --stream pump --promote
    """
    tree = load_config(config)
    contract = tree.streams[stream].contract if stream in tree.streams else None
    open_session(load_bundle(bundle, contract), in_child=True)
    registry = Registry(tree.registry.path)
    digest = registry.publish(stream, bundle)
    if promote:
        _tell(registry.promote(stream, digest, now_ms=_now_ms(), reason="added by hand"), json)
    else:
        facts = {"stream": stream, "digest": digest}
        print(msgspec.json.encode(facts).decode() if json else f"{stream}: {digest[:12]} published")


@app.command()
def promote(digest: Digest, stream: Stream = "", config: ConfigFile = None, json: Json = False) -> None:
    """Make a bundle the champion; workers swap at their next commit. A retraining under way is then superseded.

    Example: narrows models promote 3fa9 --stream pump
    """
    registry, name = open_registry(config, stream)
    found = registry.find(name, digest)
    tree = load_config(config)
    contract = tree.streams[name].contract if name in tree.streams else None
    open_session(load_bundle(registry.path(name, found), contract), in_child=True)
    _tell(registry.promote(name, found, now_ms=_now_ms(), reason="promoted by hand"), json)


@app.command()
def rollback(
    stream: Stream = "",
    to: Annotated[str, typer.Option(help="Digest or its first digits; default the champion before.")] = "",
    config: ConfigFile = None, json: Json = False,
) -> None:
    """Go back to the champion before, or to a named one; twice in a row goes two back.

    Example: narrows models rollback --stream pump
    """
    registry, name = open_registry(config, stream)
    _tell(registry.rollback(name, now_ms=_now_ms(), to=registry.find(name, to) if to else None), json)


@app.command()
def prune(
    keep_last: Annotated[int, typer.Option(min=1, help="Past champions that stay, for rollback.")] = 3,
    min_age_h: Annotated[float, typer.Option(min=0, help="Younger bundles stay.")] = 24.0,
    group: Annotated[
        list[str] | None, typer.Option(help="Groups of workers that use this registry; default kafka.group.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without, only say what would be done.")] = False,
    config: ConfigFile = None, json: Json = False,
) -> None:
    """Remove bundles that no commit names, that are no champion, and that nobody would roll back to.

    Example: narrows models prune --keep-last 5 --yes
    """
    tree = load_config(config)
    registry = Registry(tree.registry.path)
    named = {digest for name in group or [tree.kafka.group] for digest in named_in_commits(tree, name)}
    prunable: dict[str, list[str]] = {}
    for name in registry.streams():
        choose = registry.prune if yes else registry.unneeded
        prunable[name] = choose(
            name, named=named, now_ms=_now_ms(), keep_last=keep_last, min_age_s=min_age_h * 3600,
        )
    if json:
        print(msgspec.json.encode({"done": yes, "bundles": prunable}).decode())
        return
    for name, digests in prunable.items():
        for digest in digests:
            print(f"{name}: {digest[:12]} {'removed' if yes else 'would go'}")
    if not yes:
        print("nothing was changed; --yes does it")


def named_in_commits(config: Config, group: str) -> set[str]:
    """Digests that a group's commits name. Raises StopWorker for a commit that can't be read: then nothing may go."""
    digests: set[str] = set()
    for (topic, partition), at in committed(config.kafka.client_settings(), group).items():
        checkpoint = read_checkpoint(at.metadata, f"{topic}[{partition}]")
        digests |= set(checkpoint.digests.values()) if checkpoint is not None else set()
    return digests


def _tell(pointer: Pointer, json: bool) -> None:
    line = f"{pointer.stream}: champion {pointer.digest[:12]}, revision {pointer.revision} ({pointer.reason})"
    print(msgspec.json.encode(pointer).decode() if json else line)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
