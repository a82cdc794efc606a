"""The one configuration tree: a YAML file, then `NARROWS_*` environment variables over it, typed and frozen.

`NARROWS_STREAMS__PUMP__TOPIC=readings` sets `streams.pump.topic`: two underscores step down, in upper or lower case.
Only variables with a double underscore are configuration (Kubernetes puts NARROWS_WORKER_PORT and the like beside
them). An unknown key is refused with the nearest right name. Secrets are objects whose repr shows stars, and
`reveal()` is the only way in. This is the one file that reads the environment for settings.
"""

import difflib
import functools
import ipaddress
import itertools
import os
import re
import ssl
import types
import typing
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml
from msgspec import Meta

from pipeline.core.block_rules import BlockRules
from pipeline.core.contract import Contract
from pipeline.errors import BadInput
from pipeline.formats.spec import Format

DEFAULT_FILE = Path("narrows.yaml")
PREFIX = "NARROWS_"

Kind = typing.TypeVar("Kind")
Port = Annotated[int, Meta(ge=0, le=65535)]
Count = Annotated[int, Meta(ge=1)]
Whole = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(gt=0)]


class Secret:
    """A text that no repr, log or `config show` prints."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself: hand it to the one library that needs it."""
        return self._text

    def masked(self) -> str:
        """What may be shown."""
        return "***"

    def __repr__(self) -> str:
        return self.masked()

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)


class RedisUrl(Secret):
    """`redis://` or `rediss://` (TLS) or `unix://`; a password in it is not shown."""

    __slots__ = ()

    def masked(self) -> str:
        return re.sub(r"(://[^:@/]*:)[^@]*@", r"\1***@", self.reveal())


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse_time_ms(key: str, text: str) -> int:
    """Milliseconds since 1970 of an ISO 8601 time; UTC where it has no offset. Raises BadInput naming the key."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise BadInput(f"{key} is {text!r}; give earliest, latest, or a time like 2025-01-31T08:00:00+00:00") from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000)


def _read_secret(key: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{key}: {path} can't be read: {error}") from error


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Kafka(_Part, frozen=True):
    """The broker, the group, and how to log on.

    bootstrap         : host:port, several joined by commas.
    group             : consumer group of the workers.
    topic_prefix      : put before every `narrows.*` topic that is written, never before a stream's own topic.
    start             : where a group without a commit begins: `earliest`, `latest`, or a time in ISO 8601.
    static_member     : name of this worker, kept over a restart so that no rebalance follows; null = dynamic.
    security_protocol : PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL.
    sasl_mechanism    : PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512; null = no SASL.
    username          : SASL user.
    password          : SASL password.
    password_file     : file that holds the password (a mounted secret), instead of `password`.
    cafile            : certificate authority of the broker, PEM; null = the system's.
    certfile          : this client's certificate, PEM.
    keyfile           : this client's key, PEM.
    allow_plaintext   : talk without TLS to a broker that is not on this machine.
    """

    bootstrap: str = "127.0.0.1:9092"
    group: str = "narrows"
    topic_prefix: str = ""
    start: str = "earliest"
    static_member: str | None = None
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    username: str | None = None
    password: Secret | None = None
    password_file: str | None = None
    cafile: str | None = None
    certfile: str | None = None
    keyfile: str | None = None
    allow_plaintext: bool = False

    def __post_init__(self) -> None:
        if not self.hosts:
            raise BadInput("kafka.bootstrap is empty; give host:port")
        if self.password is not None and self.password_file is not None:
            raise BadInput("kafka.password and kafka.password_file are both given; keep one")
        if self.security_protocol.startswith("SASL"):
            secret = self.password is not None or self.password_file is not None
            if self.sasl_mechanism is None or self.username is None or not secret:
                raise BadInput(
                    f"kafka.security_protocol is {self.security_protocol}: it needs sasl_mechanism, username, and "
                    "password or password_file"
                )
        elif self.sasl_mechanism is not None:
            raise BadInput("kafka.sasl_mechanism is given without SASL; set security_protocol: SASL_SSL")
        far = [host for host in self.hosts if not is_loopback(host)]
        if "PLAINTEXT" in self.security_protocol and far and not self.allow_plaintext:
            raise BadInput(
                f"kafka.bootstrap names {far[0]}, which is not this machine, and security_protocol is "
                f"{self.security_protocol}: set it to {self.security_protocol.replace('PLAINTEXT', 'SSL')}, "
                "or say allow_plaintext: true where the network between is trusted"
            )
        if self.start not in ("earliest", "latest"):
            parse_time_ms("kafka.start", self.start)

    @property
    def hosts(self) -> list[str]:
        """Host names of `bootstrap`, without ports."""
        pairs = [pair.strip() for pair in self.bootstrap.split(",") if pair.strip()]
        return [pair.rpartition(":")[0].strip("[]") if ":" in pair else pair for pair in pairs]

    @property
    def sasl_password(self) -> str | None:
        """The password, read from its file at the moment of use."""
        if self.password_file is not None:
            return _read_secret("kafka.password_file", self.password_file)
        return None if self.password is None else self.password.reveal()

    def ssl_context(self) -> ssl.SSLContext | None:
        """TLS settings where the protocol asks for TLS, else None. Raises BadInput where a file can't be read."""
        if not self.security_protocol.endswith("SSL"):
            return None
        try:
            context = ssl.create_default_context(cafile=self.cafile)
            if self.certfile is not None:
                context.load_cert_chain(self.certfile, self.keyfile)
        except (OSError, ssl.SSLError) as error:
            raise BadInput(f"kafka.cafile, certfile or keyfile can't be read: {error}") from error
        return context

    def client_settings(self) -> dict[str, Any]:
        """Keyword arguments that every kafka-python client and every aiokafka client takes."""
        settings: dict[str, Any] = {
            "bootstrap_servers": [pair.strip() for pair in self.bootstrap.split(",") if pair.strip()],
            "security_protocol": self.security_protocol,
        }
        context = self.ssl_context()
        if context is not None:
            settings["ssl_context"] = context
        if self.sasl_mechanism is not None:
            settings["sasl_mechanism"] = self.sasl_mechanism
            settings["sasl_plain_username"] = self.username
            settings["sasl_plain_password"] = self.sasl_password
        return settings

    def topic(self, name: str) -> str:
        """Full name of one of the topics that narrows writes: `topic("anomalies")` -> `narrows.anomalies`."""
        return f"{self.topic_prefix}narrows.{name}"


class Redis(_Part, frozen=True):
    """Retraining jobs and notices; scoring does without.

    url           : redis://host:port/db (default redis://127.0.0.1:6379/0), rediss:// for TLS.
    password      : put into the URL at use.
    password_file : file that holds the password, instead of `password`.
    """

    url: RedisUrl = msgspec.field(default_factory=lambda: RedisUrl("redis://127.0.0.1:6379/0"))
    password: Secret | None = None
    password_file: str | None = None

    def __post_init__(self) -> None:
        if not re.match(r"(rediss?|unix)://", self.url.reveal()):
            raise BadInput(f"redis.url is {self.url.masked()}; it begins with redis://, rediss:// or unix://")
        if self.password is not None and self.password_file is not None:
            raise BadInput("redis.password and redis.password_file are both given; keep one")

    @property
    def auth(self) -> str | None:
        """The password beside the URL, if any; pass it as `password=` to `redis.from_url`."""
        if self.password_file is not None:
            return _read_secret("redis.password_file", self.password_file)
        return None if self.password is None else self.password.reveal()


class Registry(_Part, frozen=True):
    """Where bundles and champion pointers lie.

    path : folder, on this machine or a shared mount.
    """

    path: str = ".narrows/registry"


class Worker(_Part, frozen=True):
    """One streaming worker.

    metrics_host      : address of /metrics, /live and /ready.
    metrics_port      : its port; 0 takes a free one and logs it.
    commit_interval_s : time between two commits.
    max_replay        : records that the mark may trail behind the commit; older state is in `narrows.state`.
    max_devices       : devices of one partition and stream; one more evicts the one whose last record is the oldest.
    fetch_min_bytes   : the broker waits for this much ...
    fetch_max_wait_ms : ... but no longer than this: small is quick, large is cheap.
    provider          : where ONNX Runtime computes: `cpu` or `cuda`.
    max_poll_records  : most records of one batch; null = what a fetch holds.
    session_timeout_s : a dynamic member that is silent for this long loses its partitions.
    stall_s           : the watchdog ends a worker that makes no progress for this long.
    idle_after_s      : where no record comes for this long (and for the contract's silence), open blocks and episodes
        are written as provisional (`final: false`); null = never.
    """

    metrics_host: str = "127.0.0.1"
    metrics_port: Port = 9464
    commit_interval_s: Seconds = 1.0
    max_replay: Count = 2_000_000
    max_devices: Count = 25_000
    fetch_min_bytes: Count = 1 << 20
    fetch_max_wait_ms: Count = 20
    provider: Literal["cpu", "cuda"] = "cpu"
    max_poll_records: Count | None = None
    session_timeout_s: Seconds = 10.0
    stall_s: Seconds = 60.0
    idle_after_s: Seconds | None = 60.0


class Dashboard(_Part, frozen=True):
    """The page over the output topics.

    host : address it listens on.
    port : its port; 0 takes a free one and prints it.
    """

    host: str = "127.0.0.1"
    port: Port = 8765


class Match(_Part, frozen=True):
    """Which devices of the topic belong to the stream; empty = all.

    device_prefix : device names begin with this.
    devices       : these names exactly.
    """

    device_prefix: str | None = None
    devices: tuple[str, ...] = ()

    @property
    def takes_all(self) -> bool:
        """Whether every device belongs."""
        return self.device_prefix is None and not self.devices

    def takes(self, device: str) -> bool:
        """Whether this device belongs, where not all do."""
        return device in self.devices or (self.device_prefix is not None and device.startswith(self.device_prefix))

    def overlaps(self, other: "Match") -> bool:
        """Whether a device can belong to both."""
        if self.takes_all or other.takes_all:
            return True
        names = [(*one.devices, *([] if one.device_prefix is None else [one.device_prefix])) for one in (self, other)]
        return bool(set(self.devices) & set(other.devices)) or any(
            prefix is not None and any(name.startswith(prefix) for name in theirs)
            for prefix, theirs in ((self.device_prefix, names[1]), (other.device_prefix, names[0]))
        )


class Outputs(_Part, frozen=True):
    """What the stream writes beside dead letters.

    anomalies : opened, updated and closed episodes.
    blocks    : compressed rows.
    features  : latent vectors, once a span.
    scores    : one result a scored row.
    """

    anomalies: bool = True
    blocks: bool = True
    features: bool = True
    scores: bool = False


class Retrain(_Part, frozen=True):
    """When a new model is asked for; without any of the first two, never.

    after_rows : rows scored since the champion was made.
    after_s    : seconds of stream time since the champion's data ended.
    min_rows   : fewest rows that a training run takes.
    max_rows   : most rows that a training run takes; the newest are kept.
    cooldown_s : least time between two requests.
    family     : model family to train; null = the champion's.
    """

    after_rows: Count | None = None
    after_s: Seconds | None = None
    min_rows: Count = 1000
    max_rows: Count = 1_000_000
    cooldown_s: Seconds = 600.0
    family: str | None = None


class Stream(_Part, frozen=True):
    """One stream: a topic, or some devices of it, with one contract.

    topic    : topic of the readings.
    match    : devices that belong to it.
    format   : layout and field names of the records.
    contract : the contract itself, or the path of a YAML or JSON file (a bundle's contract.json will do).
    bundle   : bundle to score with while the registry has no champion; null waits for a champion.
    outputs  : what is written.
    blocks   : how rows are kept in blocks.
    retrain  : when a new model is asked for.
    silence_s : a device that sends nothing for so long, while others of its partition do, is told as silent: at least
        the contract's max_gap_ms + allowance_ms; null = never.
    """

    topic: str
    contract: Contract
    match: Match = Match()
    format: Format = Format()
    bundle: str | None = None
    outputs: Outputs = Outputs()
    blocks: BlockRules = BlockRules()
    retrain: Retrain = Retrain()
    silence_s: Seconds | None = None

    @property
    def silence_ms(self) -> int | None:
        """`silence_s` in milliseconds."""
        return None if self.silence_s is None else round(1000 * self.silence_s)

    def __post_init__(self) -> None:
        if self.silence_ms is not None and self.silence_ms < self.contract.silence_ms:
            raise BadInput(
                f"silence_s is {self.silence_s:g}: the least is {self.contract.silence_ms / 1000:g}, the contract's "
                "max_gap_ms + allowance_ms; before that a device counts as one that goes on"
            )
        unknown = [name for name in self.format.fields if name not in self.contract.names]
        if unknown:
            names = ", ".join(self.contract.names)
            raise BadInput(f"format.fields: `{unknown[0]}` is no channel of the contract: {names}")
        for rule in self.blocks.rules:
            strange = [name for name in rule.channels if name not in self.contract.names]
            if strange:
                names = ", ".join(self.contract.names)
                raise BadInput(f"blocks.rules: `{strange[0]}` is no channel of the contract: {names}")
        if self.blocks.wants_latents and self.contract.hop > 1:
            raise BadInput("blocks: latent blocks need a score each row: set the contract's hop to 1, or kind: bounded")


class Config(_Part, frozen=True):
    """Everything that a narrows process is told.

    kafka     : broker and group.
    redis     : retraining jobs.
    registry  : bundles.
    worker    : one streaming worker.
    dashboard : the page.
    streams   : by name.
    """

    kafka: Kafka = Kafka()
    redis: Redis = msgspec.field(default_factory=Redis)
    registry: Registry = Registry()
    worker: Worker = Worker()
    dashboard: Dashboard = Dashboard()
    streams: dict[str, Stream] = {}

    def __post_init__(self) -> None:
        for (name, one), (other_name, other) in itertools.combinations(self.streams.items(), 2):
            if one.topic == other.topic and one.match.overlaps(other.match):
                raise BadInput(
                    f"streams.{name} and streams.{other_name} take the same devices of topic {one.topic}, and a "
                    "record's outputs have one id: give each stream a match (device_prefix or devices) of its own"
                )


def load_config(path: Path | None = None, environ: Mapping[str, str] | None = None) -> Config:
    """The configuration of this process.

    path    : YAML file; default `NARROWS_CONFIG`, else narrows.yaml where there is one, else defaults alone.
    environ : variables; default the process's.
    Relative paths (contract, bundle, registry, certificates, password files) are taken from the file's folder.
    Raises BadInput naming the key, and the nearest right one where it is unknown.
    """
    environ = os.environ if environ is None else environ
    if path is None and environ.get("NARROWS_CONFIG"):
        path = Path(environ["NARROWS_CONFIG"])
    if path is None and DEFAULT_FILE.exists():
        path = DEFAULT_FILE
    tree = {} if path is None else _read_yaml(path)
    return build_config(tree, environ, Path.cwd() if path is None else path.resolve().parent)


def build_config(tree: dict[str, Any], environ: Mapping[str, str], folder: Path) -> Config:
    """A configuration from plain dicts and variables; see `load_config`."""
    for name in sorted(environ):
        if name.startswith(PREFIX) and "__" in name:
            _put(tree, name, environ[name])
    _check_keys(tree, Config, "")
    _resolve_paths(tree, folder)
    streams = tree.get("streams")
    if isinstance(streams, dict):
        typed = {str(name): _convert(node, Stream, f"streams.{name}") for name, node in streams.items()}
        tree = tree | {"streams": typed}
    return _convert(tree, Config, "")


def to_plain(config: Config) -> dict[str, Any]:
    """The tree as dicts and lists, secrets masked: what may be shown."""
    plain: dict[str, Any] = msgspec.to_builtins(config, enc_hook=lambda value: value.masked())
    return plain


def schema() -> dict[str, Any]:
    """JSON schema of the configuration file."""
    tree = msgspec.json.schema(Config, schema_hook=lambda kind: {"type": "string"})
    stream = tree["$defs"]["Stream"]["properties"]
    stream["contract"] = {"anyOf": [stream["contract"], {"type": "string", "description": "path of a file"}]}
    return tree


def field_notes(kind: type[msgspec.Struct]) -> dict[str, str]:
    """What each field means, from the `name : text` lines of the class's docstring."""
    notes: dict[str, str] = {}
    last = ""
    for line in (kind.__doc__ or "").splitlines()[1:]:
        found = re.match(r"\s*(\w+(?:, \w+)*)\s*: (.*)", line)
        if found:
            for last in found[1].split(", "):
                notes[last] = found[2].strip()
        elif line.strip() and last:
            notes[last] += " " + line.strip()
    return notes


class _Loader(yaml.SafeLoader):
    """YAML where 1e-3 is a number, as in JSON and in YAML 1.2; a contract.json has such bounds."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def parse_yaml(text: str) -> Any:
    """What a YAML text says. Raises yaml.YAMLError."""
    return yaml.load(text, _Loader)  # noqa: S506  a safe loader


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} can't be read: {error}; `narrows config init` writes a new one") from error
    try:
        tree = parse_yaml(text)
    except yaml.YAMLError as error:
        raise BadInput(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise BadInput(f"{path} holds a {type(tree).__name__}; a map of names to values is needed")
    return tree


def _put(tree: dict[str, Any], variable: str, text: str) -> None:
    """Lays one variable over the tree; names are matched without regard to case."""
    node: Any = tree
    kind: Any = Config
    steps = variable[len(PREFIX):].split("__")
    for place, step in enumerate(steps):
        if not isinstance(node, dict):
            raise BadInput(f"{variable}: {'.'.join(steps[:place]).lower()} is no map")
        known = [*node, *_fields(kind)]
        name = next((key for key in known if isinstance(key, str) and key.lower() == step.lower()), step.lower())
        kind = _child(kind, name)
        if place == len(steps) - 1:
            node[name] = _parse(text, kind, variable)
        else:
            if node.get(name) is None:
                node[name] = {}
            node = node[name]


def _parse(text: str, kind: Any, variable: str) -> Any:
    """A variable's text: as it stands where a text is wanted, else read as YAML (so 3, true, [a, b] and null work)."""
    options = _options(kind)
    if any(option in (str, Secret, RedisUrl) or typing.get_origin(option) is Literal for option in options):
        return None if text == "null" and type(None) in options else text
    try:
        value = parse_yaml(text)
    except yaml.YAMLError as error:
        raise BadInput(f"{variable} is {text!r}, which is not YAML: {' '.join(str(error).split())}") from error
    return float(value) if float in options and isinstance(value, int) and not isinstance(value, bool) else value


def _options(kind: Any) -> tuple[Any, ...]:
    """Members of a union, annotations taken off; a lone type is a union of one."""
    while typing.get_origin(kind) is Annotated:
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return tuple(inner for member in typing.get_args(kind) for inner in _options(member))
    return (kind,)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)


def _fields(kind: Any) -> tuple[str, ...]:
    for option in _options(kind):
        if isinstance(option, type) and issubclass(option, msgspec.Struct):
            return option.__struct_fields__
    return ()


def _child(kind: Any, name: str) -> Any:
    for option in _options(kind):
        if isinstance(option, type) and issubclass(option, msgspec.Struct) and name in option.__struct_fields__:
            return _hints(option)[name]
        if typing.get_origin(option) is dict:
            return typing.get_args(option)[1]
        if typing.get_origin(option) is tuple:
            return typing.get_args(option)[0]
    return Any


def _check_keys(node: Any, kind: Any, path: str) -> None:
    """Raises BadInput at the first key that the tree does not know."""
    if isinstance(node, list):
        for place, item in enumerate(node):
            _check_keys(item, _child(kind, ""), f"{path}[{place}]")
    if not isinstance(node, dict):
        return
    known = _fields(kind)
    for key, value in node.items():
        where = f"{path}.{key}" if path else str(key)
        if known and key not in known:
            raise BadInput(f"configuration: {where} is unknown{_near(str(key), known, path)}")
        _check_keys(value, _child(kind, str(key)), where)


def _near(key: str, known: tuple[str, ...], path: str = "") -> str:
    close = difflib.get_close_matches(key.lower(), known, 1, 0.6)
    if close:
        return f"; did you mean `{close[0]}`?"
    homes = [home for home in _homes(Config, "", key.lower()) if home != f"{path}.{key}"]
    return f"; it belongs under {homes[0]}" if homes else f"; known here: {', '.join(known)}"


def _homes(kind: Any, path: str, key: str) -> list[str]:
    """Every place in the tree that has a field of this name."""
    homes: list[str] = []
    for name in _fields(kind):
        child = _child(kind, name)
        where = f"{path}.{name}" if path else name
        if name == key:
            homes.append(where)
        if any(typing.get_origin(option) is dict for option in _options(child)):
            homes += _homes(_child(child, ""), f"{where}.NAME", key)
        else:
            homes += _homes(child, where, key)
    return homes


def _resolve_paths(tree: dict[str, Any], folder: Path) -> None:
    """Makes paths absolute, and reads a contract that is named by its path."""

    def place(node: Any, *names: str) -> None:
        for name in names:
            if isinstance(node, dict) and isinstance(node.get(name), str):
                node[name] = str(folder / Path(node[name]).expanduser())

    place(tree.get("kafka"), "password_file", "cafile", "certfile", "keyfile")
    place(tree.get("redis"), "password_file")
    tree["registry"] = tree.get("registry") or {}
    if isinstance(tree["registry"], dict):
        tree["registry"].setdefault("path", Registry().path)
    place(tree["registry"], "path")
    streams = tree.get("streams")
    for name, stream in streams.items() if isinstance(streams, dict) else ():
        place(stream, "bundle", "contract")
        if isinstance(stream, dict) and isinstance(stream.get("contract"), str):
            stream["contract"] = _read_yaml(Path(stream["contract"]))
            _check_keys(stream["contract"], Contract, f"streams.{name}.contract")


def _convert(node: Any, kind: type[Kind], path: str) -> Kind:
    """A typed part of the tree; every error names the place in it."""
    try:
        return msgspec.convert(node, kind, strict=True, dec_hook=_decode_secret)
    except BadInput as error:
        raise BadInput(f"{path}: {error}" if path else str(error)) from error
    except msgspec.ValidationError as error:
        found = re.fullmatch(r"(.*) - at `\$\.?(.*)`", str(error))
        what, where = (found[1], found[2]) if found else (str(error), "")
        place = ".".join(part for part in (path, where) if part)
        raise BadInput(f"configuration: {place}: {what}") from error


def _decode_secret(kind: type, value: Any) -> Any:
    if not isinstance(value, str):
        raise TypeError("Expected `str`")
    return kind(value)
