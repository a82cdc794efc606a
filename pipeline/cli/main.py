"""The root of the command line: which command lies where, and how an error ends the process.

A command's module is imported when it is called, so that `narrows --help` and completion stay quick. Other packages add
commands by the entry point group `narrows.commands`: each entry is a dict of places, in a module cheap to import.
"""

import functools
import importlib
import sys
from importlib.metadata import entry_points, version
from typing import Annotated, Any, NamedTuple

import typer
from typer._click import Command, Context
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from pipeline.errors import NarrowsError

PLUGINS = "narrows.commands"


class Place(NamedTuple):
    """A command: `module:attribute` of a Typer application or of a function, and one line for the list."""

    target: str
    help: str


COMMANDS: dict[str, Place] = {
    "demo": Place("pipeline.cli.demo:demo", "Show the whole pipeline on real data, with a real Kafka and Redis."),
    "config": Place("pipeline.cli.config:app", "Write, check and show the configuration."),
    "doctor": Place("pipeline.cli.doctor:doctor", "Check broker, topics, Redis, bundles and the execution provider."),
    "local": Place("pipeline.cli.local:app", "A real Kafka and Redis on this machine, without Docker."),
    "topics": Place("pipeline.cli.topics:app", "The topics that the configured streams read and write."),
    "replay": Place("pipeline.cli.replay:replay", "Publish recorded data as a live stream."),
    "worker": Place("pipeline.cli.worker:worker", "Run one streaming worker."),
    "trainer": Place("pipeline.cli.trainer:trainer", "Run one retraining worker."),
    "backtest": Place("pipeline.cli.backtest:backtest", "Score a file as the stream would."),
    "explain": Place("pipeline.cli.explain:explain", "Score an alert again, from its offsets and digest."),
    "feedback": Place("pipeline.cli.feedback:feedback", "Say whether an alert was right."),
    "maintenance": Place("pipeline.cli.maintenance:app", "Spans of time in which devices raise no alert."),
    "models": Place("pipeline.cli.models:app", "The registry: list, show, verify, promote, roll back."),
    "jobs": Place("pipeline.cli.jobs:app", "Retraining jobs: list, submit, cancel."),
    "compress": Place("pipeline.cli.compress:compress", "Write a file as bounded blocks."),
    "decompress": Place("pipeline.cli.compress:decompress", "Read a file of blocks back."),
    "inspect": Place("pipeline.cli.inspect:inspect", "Say what a file of blocks holds."),
    "decode-topic": Place("pipeline.cli.decode_topic:decode_topic", "Read the blocks of a topic back to rows."),
    "dead-letters": Place("pipeline.cli.dead_letters:app", "Records that could not be read: list, replay."),
    "offsets": Place("pipeline.cli.offsets:app", "Positions of the workers' group: show, reset."),
    "dashboard": Place("pipeline.cli.dashboard:dashboard", "Serve the page over the output topics."),
}


class _Commands(TyperGroup):
    """Commands by name; a module is imported when its command is resolved, not when it is listed."""

    def list_commands(self, ctx: Context) -> list[str]:
        return list(_places())

    def get_command(self, ctx: Context, cmd_name: str) -> Command | None:
        """For the list of commands: one that has its line of help and nothing else."""
        place = _places().get(cmd_name)
        if place is None:
            return None
        return self.commands.get(cmd_name) or TyperCommand(cmd_name, help=place.help)

    def resolve_command(self, ctx: Context, args: list[str]) -> tuple[str | None, Command | None, list[str]]:
        self._load(args[0])
        return super().resolve_command(ctx, args)

    def _load(self, name: str) -> None:
        place = _places().get(name)
        if place is None:
            return
        module, _, attribute = place.target.partition(":")
        found: Any = getattr(importlib.import_module(module), attribute)
        if not isinstance(found, typer.Typer):
            single = typer.Typer(add_completion=False)
            single.command(name)(found)
            found = single
        command = get_command(found)
        command.name = name
        self.commands[name] = command


@functools.cache
def _places() -> dict[str, Place]:
    """Every command: ours, then what other packages add."""
    added = {
        name: Place(*place) for point in entry_points(group=PLUGINS) for name, place in sorted(point.load().items())
    }
    return {**COMMANDS, **{name: place for name, place in added.items() if name not in COMMANDS}}


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"narrows {version('narrows')}")
        raise typer.Exit


app = typer.Typer(
    cls=_Commands, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def narrows(
    is_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Anomalies, bounded compression and features from sensor streams on Kafka.

    Start with `narrows demo`, or with `narrows config init` for streams of your own.
    """


def main() -> None:
    """Entry point: a deliberate error is one line on standard error and its own exit code."""
    try:
        app()
    except NarrowsError as error:
        print(f"narrows: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has gone, as in `narrows ... | head`
        sys.stderr.close()
        sys.exit(141)


if __name__ == "__main__":
    main()
