"""`narrows local`: a real Kafka and a real Redis on this machine, without Docker."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from pipeline.cli.options import Json
from pipeline.local import jars, prepare, supervisor

app = typer.Typer(no_args_is_help=True, help="A real Kafka and a real Redis on this machine, without Docker.")

Folder = Annotated[Path, typer.Option(help="Data, logs and ports of the servers.")]


def progress(line: str) -> None:
    """A line for the person who waits; standard output is kept for facts."""
    print(line, file=sys.stderr, flush=True)


def print_state(state: supervisor.State, json: bool) -> None:
    """Facts as JSON, or as lines that a shell can evaluate."""
    if json:
        print(msgspec.json.encode({"running": True, **msgspec.to_builtins(state)}).decode())
        return
    for name, value in state.environment.items():
        print(f"export {name}={shlex.quote(value)}")


@app.command()
def up(
    folder: Folder = supervisor.DEFAULT_FOLDER,
    nodes: Annotated[int, typer.Option(min=1, max=9, help="Nodes of the Kafka cluster.")] = 1,
    json: Json = False,
) -> None:
    """Start Kafka and Redis in the background, and print the variables that point narrows at them.

    Example: eval "$(narrows local up)"
    """
    state = supervisor.up(folder, nodes, progress)
    progress(f"Kafka at {state.kafka}, Redis at {state.redis}, data in {state.folder}")
    print_state(state, json)


@app.command()
def down(
    folder: Folder = supervisor.DEFAULT_FOLDER,
    delete: Annotated[bool, typer.Option("--delete", help="Remove data and logs as well.")] = False,
    json: Json = False,
) -> None:
    """Stop them. Data stay, unless --delete.

    Example: narrows local down
    """
    was_up = supervisor.down(folder, delete=delete)
    print(msgspec.json.encode({"stopped": was_up}).decode() if json else "stopped" if was_up else "nothing was up")


@app.command()
def status(folder: Folder = supervisor.DEFAULT_FOLDER, json: Json = False) -> None:
    """Say what is up; exit code 1 where nothing is.

    Example: narrows local status --json
    """
    state = supervisor.status(folder)
    if state is None:
        print('{"running":false}' if json else f"nothing is up in {folder}; start it with `narrows local up`")
        raise typer.Exit(1)
    print_state(state, json)


@app.command()
def fetch() -> None:
    """Fetch and verify Kafka's jars, so that everything after works offline and starts quickly.

    Example: narrows local fetch
    """
    prepare.prepare(progress)
    print(f"Kafka {jars.lock().kafka}: {len(jars.lock().jars)} jars verified in {jars.jar_folder()}")
