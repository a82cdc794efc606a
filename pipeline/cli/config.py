"""`narrows config`: one YAML file and the NARROWS_* variables over it."""

import json as jsonlib
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
import yaml

from pipeline.cli.options import ConfigFile, Json
from pipeline.config import DEFAULT_FILE, Config, Stream, field_notes, load_config, schema, to_plain
from pipeline.core.contract import Channel, Contract
from pipeline.errors import BadInput

app = typer.Typer(no_args_is_help=True, help="Write, check and show the configuration.")

HEAD = """\
# Configuration of narrows. Every setting is optional unless it stands without `#`; the values behind `#` are defaults.
# Variables of the environment go over it: NARROWS_KAFKA__BOOTSTRAP=broker:9093 sets kafka.bootstrap.

streams:
  pump:                        # a name of your choice
    topic: readings            # {"device": "pump-7", "ts": 1700000000000, "values": {"flow": 1.5}}
    contract: bundles/pump/contract.json   # what `narrows train` wrote, or the contract itself, as below
    bundle: bundles/pump
"""


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="File to write.")] = DEFAULT_FILE,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Write a file that names every setting, its default and its meaning.

    Example: narrows config init
    """
    if path.exists() and not force:
        raise BadInput(f"{path} is there already; --force writes over it")
    path.write_text(template(), encoding="utf-8")
    print(f"{path} written; then `narrows config check`")


@app.command()
def check(config: ConfigFile = None, json: Json = False) -> None:
    """Say whether the configuration can be used; exit code 3 and what is wrong where it can't.

    Example: narrows config check --config narrows.yaml
    """
    tree = load_config(config)
    if json:
        print(jsonlib.dumps({"ok": True, "streams": sorted(tree.streams)}))
        return
    streams = ", ".join(f"{name} ({stream.topic})" for name, stream in tree.streams.items()) or "none"
    print(f"ok; streams: {streams}")


@app.command()
def show(config: ConfigFile = None, json: Json = False) -> None:
    """Print the configuration in effect, defaults and variables included, secrets masked.

    Example: narrows config show --json
    """
    plain = jsonlib.loads(jsonlib.dumps(to_plain(load_config(config))))
    print(jsonlib.dumps(plain) if json else yaml.safe_dump(plain, sort_keys=False).rstrip())


@app.command("schema")
def print_schema() -> None:
    """Print the JSON schema of the file, for editors and checks.

    Example: narrows config schema > narrows.schema.json
    """
    print(jsonlib.dumps(schema(), indent=2))


def template() -> str:
    """The file that `config init` writes, made from the settings themselves."""
    lines = [HEAD.rstrip("\n")]
    lines += _part(Stream, 2, skip=("topic", "contract", "bundle"))
    lines += ["", "    # A contract in place of its path; times in ms, lengths in rows:", "    # contract:"]
    lines += ["      # channels:", "      #   - {name: flow}"]
    channel = ", ".join(f"{name}: {_yaml(default)}" for name, default in _defaults(Channel) if name != "name")
    lines += [f"      #   - {{name: valve, {channel}}}   # role: sensor, context or ignore"]
    lines += _part(Contract, 3, skip=("channels",))
    for name in Config.__struct_fields__:
        if name != "streams":
            part = type(getattr(Config(), name))
            lines += ["", f"# {(part.__doc__ or '').splitlines()[0]}", f"# {name}:", *_part(part, 1)]
    return "\n".join(lines) + "\n"


def _part(kind: type[msgspec.Struct], depth: int, skip: tuple[str, ...] = ()) -> list[str]:
    notes = field_notes(kind)
    pad = "  " * depth
    lines: list[str] = []
    for name, default in _defaults(kind):
        if name in skip:
            continue
        if isinstance(default, msgspec.Struct):
            lines += [_line(f"{pad}# {name}:", notes.get(name)), *_part(type(default), depth + 1)]
        else:
            lines.append(_line(f"{pad}# {name}: {_yaml(default)}", notes.get(name)))
    return lines


def _line(setting: str, note: str | None) -> str:
    return setting if note is None else f"{setting:<38}  # {note}"


def _defaults(kind: type[msgspec.Struct]) -> list[tuple[str, Any]]:
    return [
        (field.name, field.default_factory() if field.default is msgspec.NODEFAULT else field.default)
        for field in msgspec.structs.fields(kind)
        if field.default is not msgspec.NODEFAULT or field.default_factory is not msgspec.NODEFAULT
    ]


def _yaml(value: Any) -> str:
    plain = msgspec.to_builtins(value, enc_hook=lambda secret: secret.masked())
    return jsonlib.dumps(plain)
