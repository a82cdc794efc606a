"""`narrows maintenance`: spans of time in which devices raise no alert."""

import secrets
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from pipeline.cli.options import ConfigFile, Json, time_ms
from pipeline.config import Config, load_config
from pipeline.core.maintenance import ALL, Plans, Window
from pipeline.errors import BadInput
from pipeline.topics import read_plans, write_record

app = typer.Typer(no_args_is_help=True, help="Spans of time in which devices are scored and raise no alert.")

ID_BYTES = 4


@app.command()
def add(
    stream: Annotated[str, typer.Argument(help="Stream of the configuration.", show_default=False)],
    to: Annotated[str, typer.Option("--to", help="End: ISO 8601, UTC where it has no offset, or epoch ms.",
                                    show_default=False)],
    since: Annotated[str | None, typer.Option("--from", help="Beginning, likewise.", show_default="now")] = None,
    device: Annotated[str, typer.Option(help="Device, or a pattern: 'line3-*'.")] = ALL,
    note: Annotated[str, typer.Option(help="Why, for people.")] = "",
    config: ConfigFile = None, json: Json = False,
) -> None:
    """Declare a window. A row in it, by the row's own time, is scored and raises no alert; retraining leaves it out.

    Workers heed it within seconds, from a commit on; alerts that were raised before stay.

    Example: narrows maintenance add pump --device 'line3-*' --from 2026-01-31T08:00 --to 2026-01-31T12:00
    """
    tree = _tree_with(config, stream)
    window = Window(
        id=secrets.token_hex(ID_BYTES), stream=stream, device=device, note=note, end_ms=time_ms("--to", to),
        begin_ms=round(time.time() * 1000) if since is None else time_ms("--from", since),
    )
    _send(tree, window.id, window)
    _show([window], json)


@app.command("list")
def list_windows(
    stream: Annotated[str | None, typer.Option(help="This stream's alone.")] = None,
    config: ConfigFile = None, json: Json = False,
) -> None:
    """Show every window that is known, by its beginning. The JSON is what `narrows backtest --maintenance` takes.

    Example: narrows maintenance list --stream pump --json
    """
    _show([window for window in _windows(load_config(config)) if stream in (None, window.stream)], json)


@app.command()
def end(
    window: Annotated[str, typer.Argument(help="Id, from `narrows maintenance list`.", show_default=False)],
    at: Annotated[str | None, typer.Option(help="Its new end: ISO 8601 or epoch ms.", show_default="now")] = None,
    config: ConfigFile = None, json: Json = False,
) -> None:
    """End a window earlier or later than was said.

    Example: narrows maintenance end 5f0c2b7e --at 2026-01-31T10:30
    """
    tree = load_config(config)
    known = _known(tree, window)
    changed = msgspec.structs.replace(known, end_ms=round(time.time() * 1000) if at is None else time_ms("--at", at))
    _send(tree, changed.id, changed)
    _show([changed], json)


@app.command()
def cancel(
    window: Annotated[str, typer.Argument(help="Id, from `narrows maintenance list`.", show_default=False)],
    config: ConfigFile = None, json: Json = False,
) -> None:
    """Take a window back as if it had never been; rows that were judged in it stay as they are.

    Example: narrows maintenance cancel 5f0c2b7e
    """
    tree = load_config(config)
    known = _known(tree, window)
    _send(tree, known.id, None)
    print(msgspec.json.encode({"id": known.id, "cancelled": True}).decode() if json else f"{known.id}: cancelled")


def _tree_with(config: ConfigFile, stream: str) -> Config:
    tree = load_config(config)
    if stream not in tree.streams:
        raise BadInput(f"no stream {stream!r} in the configuration; there are {', '.join(tree.streams) or 'none'}")
    return tree


def _windows(tree: Config) -> list[Window]:
    plans = Plans()
    read_plans(tree.kafka.client_settings(), tree.kafka.topic("maintenance"), plans)
    return sorted(plans.wanted().windows, key=lambda window: window.begin_ms)


def _known(tree: Config, name: str) -> Window:
    found = [window for window in _windows(tree) if window.id == name]
    if not found:
        raise BadInput(f"no maintenance window {name}: `narrows maintenance list` shows those that are known")
    return found[0]


def _send(tree: Config, name: str, window: Window | None) -> None:
    value = None if window is None else msgspec.json.encode(window)
    write_record(tree.kafka.client_settings(), tree.kafka.topic("maintenance"), name, value)


def _show(windows: Sequence[Window], json: bool) -> None:
    if json:
        print(msgspec.json.encode(windows).decode())
        return
    table = Table("id", "stream", "device", "from", "to", "note", box=None)
    for window in windows:
        times = [datetime.fromtimestamp(at / 1000, UTC) for at in (window.begin_ms, window.end_ms)]
        told = [f"{at:%Y-%m-%d %H:%M:%S}" for at in times]
        table.add_row(window.id, window.stream, window.device, *told, window.note)
    Console().print(table)
