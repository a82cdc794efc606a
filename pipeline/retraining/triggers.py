"""When a stream asks for a new model: pure functions over counters; time is passed in.

A trigger is a function `(rule, counters) -> reason or None`. `TRIGGERS` holds those that are always asked; drift
detectors are handed to `due` beside them. Volume and age are counted in the log's own rows and time, so a replayed
topic triggers at the same row; only the pause between two requests is wall-clock.
"""

from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec


class RetrainRule(Protocol):
    """When to retrain a stream (`streams.NAME.retrain` of the configuration).

    after_rows : rows since the champion's training data ended; None: never for volume.
    after_s    : seconds of stream time since then; None: never for age.
    min_rows   : fewer new rows than this never trigger: there is nothing to learn from.
    cooldown_s : least wall-clock time between two requests for one stream, refused challengers included.
    """

    @property
    def after_rows(self) -> int | None: ...
    @property
    def after_s(self) -> float | None: ...
    @property
    def min_rows(self) -> int: ...
    @property
    def cooldown_s(self) -> float: ...


class Counters(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker knows about a stream; of its own partitions where there are several workers.

    rows           : rows since the champion's training data ended.
    data_end_ms    : last timestamp of the champion's training data, epoch milliseconds.
    stream_time_ms : the largest record timestamp so far; None before the first record.
    asked_ms       : wall clock of this worker's last request; None: never.
    """

    rows: int
    data_end_ms: int
    stream_time_ms: int | None = None
    asked_ms: int | None = None


Trigger = Callable[[RetrainRule, Counters], str | None]


def volume(rule: RetrainRule, counters: Counters) -> str | None:
    """Reason when enough new rows came, else None."""
    if rule.after_rows is None or counters.rows < rule.after_rows:
        return None
    return f"volume: {counters.rows} rows since the champion's data ended, limit {rule.after_rows}"


def age(rule: RetrainRule, counters: Counters) -> str | None:
    """Reason when the champion's data lies far back in the stream's own time, else None."""
    if rule.after_s is None or counters.stream_time_ms is None:
        return None
    age_s = (counters.stream_time_ms - counters.data_end_ms) / 1000
    if age_s < rule.after_s:
        return None
    return f"age: the champion's data ended {age_s:.0f} s ago, limit {rule.after_s:.0f} s"


TRIGGERS: tuple[Trigger, ...] = (volume, age)


def due(rule: RetrainRule, counters: Counters, now_ms: int, triggers: Iterable[Trigger] = TRIGGERS) -> str | None:
    """The first trigger's reason to retrain now, or None: never below `min_rows`, never within `cooldown_s`.

    now_ms : wall clock, epoch milliseconds.
    """
    if counters.rows < rule.min_rows:
        return None
    if counters.asked_ms is not None and now_ms - counters.asked_ms < rule.cooldown_s * 1000:
        return None
    return next((reason for trigger in triggers if (reason := trigger(rule, counters)) is not None), None)
