"""The contract of a stream: what a row is, how rows become windows, spans and episodes.

A contract belongs to the stream, never to a bundle; a bundle names the hash of the contract it was made for and
is refused by a stream with another one. Every output is a function of the log, the contract and a bundle's digest,
so whatever changes an output stands here and nowhere else.
"""

import hashlib
from functools import cached_property
from typing import Literal

import msgspec
import numpy as np

from pipeline.errors import BadInput

Role = Literal["sensor", "context", "ignore"]


class Channel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One value of a row.

    role  : `sensor` is scored, `context` (a command, a set point) is input only, `ignore` is stored and nothing else.
    low, high : hard range in the channel's unit; None where nobody knows.
    bound : largest absolute error of a stored value in the channel's unit; 0 stores every bit.
    """

    name: str
    role: Role = "sensor"
    unit: str = ""
    low: float | None = None
    high: float | None = None
    bound: float = 0.0


class EpisodeRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """When a run of high scores is an episode.

    rows_on       : consecutive scored rows over the threshold that open an episode.
    release_share : a row counts towards release below this share of the threshold ...
    release_peak  : ... or below this share of the episode's peak; the larger of the two limits holds.
    rows_off      : consecutive such rows that end the anomaly.
    merge_ms      : an anomaly that begins this soon after the last one ended belongs to the same episode.
    refractory_rows : scored rows after a change point in which no other is announced.
    """

    rows_on: int = 4
    release_share: float = 0.7
    release_peak: float = 0.5
    rows_off: int = 10
    merge_ms: int = 60_000
    refractory_rows: int = 50


class Contract(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, dict=True):
    """What the stream means. Times in milliseconds, lengths in rows.

    step_ms      : nominal time between two rows of a device.
    window       : T, rows that the model sees at once.
    hop          : 1 scores every row; more thins (see `pipeline.core.rows`).
    memory       : H, rows that one score may depend on; at least T.
    span_ms      : stretch of a device's time that one block covers.
    max_rows     : rows of one block; a longer span goes on in a next part.
    max_gap_ms   : a longer gap makes a device cold: its window starts anew.
    allowance_ms : silence is `max_gap_ms + allowance_ms`; must exceed the upload interval of a device that bursts.
    max_ahead_ms : a reading further ahead of its record's timestamp is refused.
    resample     : put wide readings onto slots of `step_ms`, as long readings always are.
    """

    channels: tuple[Channel, ...]
    step_ms: int = 1000
    window: int = 32
    hop: int = 1
    memory: int = 160
    span_ms: int = 64_000
    max_rows: int = 150
    max_gap_ms: int = 30_000
    allowance_ms: int = 30_000
    max_ahead_ms: int = 3_600_000
    resample: bool = False
    episode: EpisodeRule = EpisodeRule()

    def __post_init__(self) -> None:
        names = [channel.name for channel in self.channels]
        if not names or len(set(names)) != len(names):
            raise BadInput("contract.channels: give at least one channel, each name once")
        if not any(channel.role == "sensor" for channel in self.channels):
            raise BadInput("contract.channels: at least one channel needs role: sensor")
        for field, least in (
            ("step_ms", 1), ("window", 2), ("hop", 1), ("memory", self.window), ("span_ms", 1), ("max_rows", 1),
            ("max_gap_ms", 1), ("allowance_ms", 0), ("max_ahead_ms", 0),
        ):
            if getattr(self, field) < least:
                raise BadInput(f"contract.{field} is {getattr(self, field)}; the least is {least}")
        for channel in self.channels:
            if not (np.isfinite(channel.bound) and channel.bound >= 0):
                raise BadInput(f"contract.channels.{channel.name}.bound is {channel.bound}; give 0 or a positive one")

    @cached_property
    def hash(self) -> str:
        """sha256 of the canonical JSON form, 64 hexadecimal digits."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of all C channels, in the order of every array's last axis."""
        return tuple(channel.name for channel in self.channels)

    @cached_property
    def inputs(self) -> np.ndarray:
        """Indices of the channels that the model sees: sensors and context. (I,) int64."""
        return np.flatnonzero([channel.role != "ignore" for channel in self.channels])

    @cached_property
    def sensors(self) -> np.ndarray:
        """Indices of the scored channels among all channels. (S,) int64."""
        return np.flatnonzero([channel.role == "sensor" for channel in self.channels])

    @cached_property
    def sensors_in_inputs(self) -> np.ndarray:
        """Indices of the scored channels among the model's inputs. (S,) int64."""
        return np.searchsorted(self.inputs, self.sensors)

    @cached_property
    def bounds(self) -> np.ndarray:
        """Largest absolute error of a stored value. (C,) float64."""
        return np.array([channel.bound for channel in self.channels])

    @cached_property
    def ranges(self) -> np.ndarray:
        """Hard range of each scored channel, infinite where there is none. (2, S) float64: low, high."""
        scored = [self.channels[place] for place in self.sensors]
        low = [-np.inf if channel.low is None else channel.low for channel in scored]
        high = [np.inf if channel.high is None else channel.high for channel in scored]
        return np.array([low, high])

    @property
    def filter_length(self) -> int:
        """L: residual rows that a score filters. H - T + 1 at hop 1, else the T rows of the one scored window."""
        return self.memory - self.window + 1 if self.hop == 1 else self.window

    @property
    def silence_ms(self) -> int:
        """Stream time without a sign of life after which a device's state is dropped."""
        return self.max_gap_ms + self.allowance_ms


def parse_contract(raw: object) -> Contract:
    """A contract from plain dicts and lists (YAML or JSON already read). Raises BadInput naming the bad field."""
    try:
        return msgspec.convert(raw, Contract, strict=True)
    except msgspec.ValidationError as error:
        raise BadInput(f"contract: {error}") from error
