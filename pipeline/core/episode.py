"""From scores to verdicts, episodes and change points: one small state machine a device and lane.

Invariant: verdicts and events are a function of the rows of a slot, in order, and of nothing else: not of batches, not
of `state`/`restore` in between, not of other slots; and the verdict of a row is never revised.
Law: tests/laws/test_episode_laws.py.

All limits work on score / threshold, so an open episode outlives a model swap.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from pipeline.core.contract import EpisodeRule

EventKind = Literal["opened", "updated", "closed"]
Severity = Literal["low", "medium", "high", "critical"]

SEVERITIES: tuple[Severity, ...] = ("low", "medium", "high", "critical")
SEVERITY_EDGES = (2.0, 4.0, 8.0)   # peak / threshold from which an episode is medium, high, critical
CALM, OVER, ANOMALOUS = 1, 2, 3       # moods of a scored row, from its verdict; 0 is an unscored row
PEAK_MOST = 6.0                    # peak / threshold above which a peak lifts the release limit no further
REARM = 1.3                        # after a release above the threshold, this much over the level left behind re-arms


@dataclass(frozen=True, slots=True)
class EpisodeEvent:
    """One thing to tell about an episode.

    trigger      : offset of the record that causes it.
    row          : index of the row in the push that caused it; -1 when `close` did.
    start_offset : offset of the row that opened the episode; the episode's identity within slot and partition.
    start_ts     : ms, the first row of the run over the threshold that opened it.
    end_ts       : ms, the last anomalous row so far.
    peak, peak_offset : largest score so far and its row.   score : at this event.
    """

    kind: EventKind
    slot: int
    trigger: int
    row: int
    start_offset: int
    start_ts: int
    end_ts: int
    peak: float
    peak_offset: int
    score: float
    severity: Severity


@dataclass(frozen=True, slots=True)
class Verdict:
    """One push: per row, and what happened to episodes.

    is_anomaly     : (n,) bool.   episode_offset : (n,) int64, the opening row's offset, -1 outside of an anomaly.
    is_change      : (n,) bool, a change point is announced at this row.
    is_muted       : (n,) bool, maintenance keeps the row from being an anomaly.
    """

    is_anomaly: np.ndarray
    episode_offset: np.ndarray
    is_change: np.ndarray
    is_muted: np.ndarray
    events: list[EpisodeEvent] = field(default_factory=list)


@dataclass(slots=True)
class _State:
    """One slot that is not at rest. Ratios are score / threshold."""

    over: int = 0             # consecutive rows over the threshold
    first_ts: int = 0         # of that run
    level: float = 0.0        # ratio left behind by a release above the threshold; 0 is armed
    quiet: int = 0            # scored rows left in which no change point is announced
    is_open: bool = False     # an episode exists, perhaps only waiting to be merged or closed
    is_on: bool = False       # and it is anomalous now
    under: int = 0            # consecutive rows under the release limit
    start_offset: int = -1
    start_ts: int = 0
    end_ts: int = 0
    peak: float = 0.0
    peak_ratio: float = 0.0
    peak_offset: int = -1
    severity: int = 0
    kind: str = ""            # of the open episode, as `Verdicts.name` was told
    muted: int = 0            # scored rows over the threshold that still count to the maintenance before them

    def at_rest(self) -> bool:
        return not (self.over or self.is_open or self.quiet or self.level or self.muted)


_FIELDS = tuple(_State.__slots__)


class Verdicts:
    """Episodes of all slots of a partition.

    rule : the contract's.   capacity : slots 0..capacity-1 exist (a slot is one device in one lane).
    reach : scored rows that one score stands on. So many rows over the threshold, without one below it, still count to
        the maintenance that they follow: what was done there moves their scores.
    """

    def __init__(self, rule: EpisodeRule, capacity: int, reach: int = 1) -> None:
        self._rule = rule
        self._reach = reach
        self._states: dict[int, _State] = {}
        self._busy = np.zeros(capacity, dtype=bool)   # slots that are not at rest
        self._changed: set[int] = set()

    def push(
        self, slot: np.ndarray, offset: np.ndarray, ts_ms: np.ndarray, score: np.ndarray, threshold: float,
        shift: np.ndarray | None = None, shift_threshold: float = float("inf"), muted: np.ndarray | None = None,
    ) -> Verdict:
        """Verdicts of rows that arrive grouped by slot and ordered within a slot.

        slot, offset, ts_ms : (n,) int64.   score : (n,) float32, NaN where the row is not scored: it gets no verdict
        and leaves the state alone.   shift : (n,) float32 from `Scorer.shift`.
        muted : (n,) bool, rows in maintenance: none of them is an anomaly, and an open episode ends at the first.
        """
        count = len(slot)
        is_anomaly = np.zeros(count, dtype=bool)
        episode_offset = np.full(count, -1, dtype=np.int64)
        is_change = np.zeros(count, dtype=bool)
        is_muted = np.zeros(count, dtype=bool) if muted is None else muted.copy()
        events: list[EpisodeEvent] = []
        with np.errstate(invalid="ignore"):
            hot = score > threshold
            if shift is not None:
                hot |= shift > shift_threshold
        hot |= self._busy[slot]
        if hot.any():
            stirred = np.zeros(len(self._busy), dtype=bool)
            stirred[slot[hot]] = True
            rows = np.flatnonzero(stirred[slot])
            shifts = np.zeros(len(rows)) if shift is None else shift[rows].astype(np.float64)
            for row, at, place, time, value, change, in_window in zip(
                rows.tolist(), slot[rows].tolist(), offset[rows].tolist(), ts_ms[rows].tolist(),
                score[rows].astype(np.float64).tolist(), shifts.tolist(), is_muted[rows].tolist(), strict=True,
            ):
                if value != value:
                    continue
                state = self._states.get(at)
                if state is None:
                    if not (value > threshold or change > shift_threshold):
                        continue
                    state = self._states[at] = _State()
                    self._busy[at] = True
                self._changed.add(at)
                is_over = value > threshold
                if in_window or (is_over and state.muted):
                    is_muted[row] = True
                    state.muted = (self._reach if in_window else state.muted) - 1 if is_over else 0
                    self._mute(state, at, row, place, value, events)
                else:
                    state.muted = 0
                    self._step(state, at, row, place, time, value, value / threshold, events)
                if state.is_on:
                    is_anomaly[row], episode_offset[row] = True, state.start_offset
                if state.quiet:
                    state.quiet -= 1
                elif change > shift_threshold and not is_muted[row]:
                    is_change[row], state.quiet = True, self._rule.refractory_rows
                if state.at_rest():
                    self._rest(at)
        return Verdict(is_anomaly, episode_offset, is_change, is_muted, events)

    def _mute(
        self, state: _State, slot: int, row: int, offset: int, score: float, events: list[EpisodeEvent]
    ) -> None:
        """One scored row of a device in maintenance: what is open ends, and nothing counts towards another one."""
        if state.is_open:
            events.append(_event("closed", state, slot, offset, row, score))
            _forget_episode(state)
        state.is_on, state.over, state.level = False, 0, 0.0

    def _step(
        self, state: _State, slot: int, row: int, offset: int, ts_ms: int, score: float, ratio: float,
        events: list[EpisodeEvent],
    ) -> None:
        """One scored row."""
        rule = self._rule
        if not state.is_on:
            self._count_over(state, ts_ms, ratio)
            begins = state.first_ts if state.over else ts_ms
            if state.is_open and begins - state.end_ts > rule.merge_ms:
                events.append(_event("closed", state, slot, offset, row, score))
                _forget_episode(state)
            if state.over >= max(1, rule.rows_on):
                self._turn_on(state, slot, row, offset, ts_ms, score, ratio, events)
            return
        if ratio > state.peak_ratio:
            state.peak, state.peak_ratio, state.peak_offset = score, ratio, offset
            if _severity(ratio) > state.severity:
                state.severity = _severity(ratio)
                events.append(_event("updated", state, slot, offset, row, score))
        limit = max(rule.release_share, rule.release_peak * min(state.peak_ratio, PEAK_MOST))
        state.under = state.under + 1 if ratio < limit else 0
        if state.under >= rule.rows_off:
            state.is_on, state.under, state.over = False, 0, 0
            state.level = ratio if ratio > 1 else 0.0
        else:
            state.end_ts = ts_ms

    def _count_over(self, state: _State, ts_ms: int, ratio: float) -> None:
        """Counts a row towards the next anomaly."""
        if state.level:
            state.level = min(state.level, ratio) if ratio > 1 else 0.0
        if ratio <= max(1.0, REARM * state.level):
            state.over = 0
            return
        if not state.over:
            state.first_ts = ts_ms
        state.over += 1

    def _turn_on(
        self, state: _State, slot: int, row: int, offset: int, ts_ms: int, score: float, ratio: float,
        events: list[EpisodeEvent],
    ) -> None:
        state.is_on, state.under, state.over, state.level = True, 0, 0, 0.0
        state.end_ts = ts_ms
        if state.is_open:                      # merged: the release limit follows the new anomaly's own peak
            state.peak_ratio = ratio
            if score > state.peak:
                state.peak, state.peak_offset = score, offset
            if _severity(ratio) > state.severity:
                state.severity = _severity(ratio)
                events.append(_event("updated", state, slot, offset, row, score))
            return
        state.is_open = True
        state.start_offset, state.start_ts = offset, state.first_ts
        state.peak, state.peak_ratio, state.peak_offset = score, ratio, offset
        state.severity = _severity(ratio)
        events.append(_event("opened", state, slot, offset, row, score))

    def close(self, slot: int, trigger: int) -> list[EpisodeEvent]:
        """Ends what a silent device leaves open; the slot is at rest afterwards. trigger : offset that showed it."""
        state = self._states.get(slot)
        if state is None:
            return []
        events = [_event("closed", state, slot, trigger, -1, 0.0)] if state.is_open else []
        self._changed.add(slot)
        self._rest(slot)
        return events

    def state(self, slot: int) -> dict[str, Any] | None:
        """What `restore` needs, as JSON types; None when the slot is at rest."""
        state = self._states.get(slot)
        return None if state is None else {name: getattr(state, name) for name in _FIELDS}

    def restore(self, slot: int, state: dict[str, Any] | None) -> None:
        """Puts a slot where `state` found it; None puts it at rest."""
        if state is None:
            self._rest(slot)
            return
        self._states[slot] = _State(**state)
        self._busy[slot] = True

    def name(self, slot: int, kind: str) -> None:
        """Notes what kind of thing a slot's open episode is; `state` carries it on."""
        state = self._states[slot]
        if state.kind != kind:
            state.kind = kind
            self._changed.add(slot)

    def reset(self, slot: int) -> None:
        """Forgets a slot without a word: its device left the partition, or another one takes the slot."""
        self._rest(slot)
        self._changed.discard(slot)

    def changed(self) -> list[int]:
        """Slots whose state changed since the last call of `settled`, sorted."""
        return sorted(self._changed)

    def settled(self) -> None:
        """The changed states are safe: start over."""
        self._changed.clear()

    def grow(self, capacity: int) -> None:
        """Makes room for slots up to `capacity`; never shrinks."""
        if capacity > len(self._busy):
            self._busy = np.concatenate([self._busy, np.zeros(capacity - len(self._busy), dtype=bool)])

    def open_episodes(self) -> list[EpisodeEvent]:
        """Every episode that is open now, as its latest event would tell it; for the page and for metrics."""
        return [
            _event("updated", state, slot, state.peak_offset, -1, state.peak)
            for slot, state in sorted(self._states.items()) if state.is_open
        ]

    def _rest(self, slot: int) -> None:
        self._states.pop(slot, None)
        self._busy[slot] = False


def fill_moods(mood: np.ndarray) -> np.ndarray:
    """Moods in which an unscored row has that of the row before it. (n,) uint8 -> (n,) uint8, none 0."""
    index = np.maximum.accumulate(np.where(mood > 0, np.arange(len(mood)), -1))
    return np.where(index >= 0, mood[np.maximum(index, 0)], CALM).astype(np.uint8)


def episode_rows(mood: np.ndarray, n: int) -> np.ndarray:
    """Which rows of a block belong to an episode, as far as it is known when the block closes. (n,) bool.

    mood : of the block's n rows and, where a row closed the block, of that one. (n,) or (n + 1,) uint8.
    A run of rows over the threshold belongs to one where it became an anomaly, or still may: it reaches the last row.

    >>> episode_rows(np.array([1, 2, 1, 2, 3, 3, 1, 2], np.uint8), 7).tolist()
    [False, False, False, True, True, True, False]
    """
    filled = fill_moods(mood)
    hot = filled >= OVER
    if not hot.any():
        return hot[:n]
    run = np.cumsum(hot & ~np.append(False, hot[:-1]))
    counts = np.zeros(run[-1] + 1, bool)
    counts[run[filled == ANOMALOUS]] = True
    counts[run[-1]] |= hot[-1]
    return (hot & counts[run])[:n]


def severity_of(ratio: float) -> Severity:
    """How severe an episode is whose peak is so many thresholds."""
    return SEVERITIES[_severity(ratio)]


def _severity(ratio: float) -> int:
    return sum(ratio >= edge for edge in SEVERITY_EDGES)


def _event(kind: EventKind, state: _State, slot: int, trigger: int, row: int, score: float) -> EpisodeEvent:
    return EpisodeEvent(
        kind, slot, trigger, row, state.start_offset, state.start_ts, state.end_ts, state.peak, state.peak_offset,
        score, SEVERITIES[state.severity],
    )


def _forget_episode(state: _State) -> None:
    state.is_open, state.under, state.kind = False, 0, ""
    state.start_offset, state.start_ts, state.end_ts = -1, 0, 0
    state.peak, state.peak_ratio, state.peak_offset, state.severity = 0.0, 0.0, -1, 0
