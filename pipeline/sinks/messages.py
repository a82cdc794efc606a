"""What stands in the output topics: one struct a topic, each with its version, and readers that refuse newer ones.

Scores, anomalies and features are JSON objects. A block is the codec's frame, and a msgpack array in one header says
what it holds, since a header's name would cost more than most of its values. Ids come from `pipeline.core.ids`.
"""

import contextlib
from collections.abc import Iterable
from typing import Any, Literal, TypeVar

import msgspec

from pipeline.core.ids import Lane
from pipeline.errors import BadInput

VERSION = 1

State = Literal["opened", "updated", "closed"]
Direction = Literal["above", "below"]
Headers = list[tuple[str, bytes]]
Message = TypeVar("Message", bound="Score | Anomaly | Feature | BlockLabel | DeadLetter")


class Score(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One scored row, in `narrows.scores`; or one that there is no model for: then `score` is null, and a reason said.

    id         : 32 hexadecimal digits, equal however often the row is scored by the same log and digest.
    offset     : of the scored row's record in the input partition.
    index      : place of the row in that record, left out where it is 0.
    ts         : the row's time, ms.
    score      : high is anomalous; compare with threshold.
    reason     : why there is no score: `no_model`; left out where there is one.
    is_muted   : maintenance keeps the row from being an anomaly; left out where it does not.
    episode_id : of the episode that the row belongs to, null outside.
    digest     : of the bundle that scored it.
    """

    version: int = VERSION
    id: str
    stream: str
    device: str
    lane: Lane = "main"
    offset: int
    index: int | msgspec.UnsetType = msgspec.UNSET
    ts: int
    score: float | None
    threshold: float
    reason: str | msgspec.UnsetType = msgspec.UNSET
    is_anomaly: bool
    is_change: bool = False
    is_muted: bool | msgspec.UnsetType = msgspec.UNSET
    episode_id: str | None = None
    top_channel: str | None = None
    digest: str


class Anomaly(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One event of an episode, in `narrows.anomalies`: the body of a CloudEvent.

    id            : of this event; `episode_id` is the same for all events of one episode.
    window_start, window_end : ms; the episode's first row over the threshold, and its last so far.
    score         : at this event; `peak` is the largest so far.
    kind          : what the deviation looks like.
    contributions : share of the score a channel, >= 0, at the event's row; they sum to its score.
    directions    : whether the channel lies above or below what was expected.
    observed, expected : value a channel in its own unit at the event's row.
    margin        : how far from the expected value normal rows lie, in the channel's unit: expected +- margin.
    trigger       : offset of the input record that caused the event.
    index         : place of the event's row in the record that began it, left out where it is 0.
    final         : false for an event of the wall clock, which one of the log with the same id replaces.
    """

    version: int = VERSION
    id: str
    episode_id: str
    stream: str
    device: str
    lane: Lane = "main"
    state: State
    window_start: int
    window_end: int
    score: float
    peak: float
    threshold: float
    severity: str
    kind: str = "deviation"
    contributions: dict[str, float] = {}
    directions: dict[str, Direction] = {}
    observed: dict[str, float | None] = {}
    expected: dict[str, float | None] = {}
    margin: dict[str, float | None] = {}
    digest: str
    trigger: int
    index: int | msgspec.UnsetType = msgspec.UNSET
    final: bool = True


class Feature(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The latent vector of a span's last whole window, in `narrows.features`.

    start, end : ms, times of the window's first and last row.
    space      : version of the latent space: vectors compare only where it is the same.
    """

    version: int = VERSION
    id: str
    stream: str
    device: str
    lane: Lane = "main"
    start: int
    end: int
    latent: list[float]
    space: str
    digest: str
    trigger: int
    final: bool = True


class BlockLabel(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What the header of a block says; fields are told by their place, so new ones go to the end.

    fine : which of the frame's blocks hold an episode's rows, finer than the contract's bounds; fine_rows : how many.
    latent : channels that the frame's latent block alone holds, by number.
    errors : what the blocks really miss, in thousandths of the channels' bounds, rounded up: largest and mean outside
        of episodes, largest and mean within; empty where the writer did not say.
    contract : first 12 digits of its hash, for the columns' names; `narrows.codecs` holds it under `contract_key`.
    span : number of the device's span, floor((ts + phase) / span_ms); a long span has several blocks.
    """

    version: int
    id: str
    stream: str
    device: str
    lane: Lane
    span: int
    first_ts: int
    last_ts: int
    rows: int
    digest: str
    trigger: int
    final: bool = True
    evicted: bool = False
    contract: str = ""
    fine: tuple[int, ...] = ()
    fine_rows: int = 0
    latent: tuple[int, ...] = ()
    errors: tuple[int, ...] = ()


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Where a dead letter came from, as its headers say; key and value of the record are those of the input.

    value_bytes, key_bytes : lengths in the input; the record's own are shorter where they were cut.
    """

    version: int = VERSION
    id: str
    stream: str
    reason: str
    topic: str
    partition: int
    offset: int
    timestamp: int
    key_bytes: int
    value_bytes: int
    is_cut: bool = False


_read_score = msgspec.json.Decoder(Score).decode
_read_anomaly = msgspec.json.Decoder(Anomaly).decode
_read_feature = msgspec.json.Decoder(Feature).decode
_read_label = msgspec.msgpack.Decoder(BlockLabel).decode


class _Version(msgspec.Struct):
    version: int


class _LabelVersion(msgspec.Struct, array_like=True):
    version: int


def read_score(value: bytes) -> Score:
    """A record's value of `narrows.scores`. Raises BadInput, for a newer version too."""
    return _read("score", value, _read_score, msgspec.json.Decoder(_Version).decode)


def read_anomaly(value: bytes) -> Anomaly:
    """A record's value of `narrows.anomalies`. Raises BadInput, for a newer version too."""
    return _read("anomaly", value, _read_anomaly, msgspec.json.Decoder(_Version).decode)


def read_feature(value: bytes) -> Feature:
    """A record's value of `narrows.features`. Raises BadInput, for a newer version too."""
    return _read("feature", value, _read_feature, msgspec.json.Decoder(_Version).decode)


def read_block_label(headers: Iterable[tuple[str, bytes]]) -> BlockLabel:
    """What a record of `narrows.blocks` holds; its value is the codec's. Raises BadInput, for a newer version too."""
    label = dict(headers).get("narrows")
    if label is None:
        raise BadInput("block: no `narrows` header; this record was not written by narrows")
    return _read("block", label, _read_label, msgspec.msgpack.Decoder(_LabelVersion).decode)


def read_dead_letter(headers: Iterable[tuple[str, bytes]]) -> DeadLetter:
    """Where a record of `narrows.dead-letters` came from. Raises BadInput, for a newer version too."""
    try:
        texts = {name: value.decode() for name, value in headers}
        return _newest("dead letter", msgspec.convert(texts, DeadLetter, strict=False))
    except (msgspec.ValidationError, UnicodeDecodeError) as error:
        raise BadInput(f"dead letter: {error}; this record was not written by narrows") from error


def _read(what: str, value: bytes, decode: Any, peek: Any) -> Any:
    try:
        return _newest(what, decode(value))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
            _newest(what, peek(value))
        raise BadInput(f"{what}: {error}; this record was not written by narrows, or was altered") from error


def _newest(what: str, message: Any) -> Any:
    if message.version > VERSION:
        raise BadInput(f"{what}: version {message.version}; this narrows reads {VERSION}: read it with a newer one")
    return message
