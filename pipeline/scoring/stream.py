"""One stream's state: rows, models, scores, verdicts and complete blocks, over all partitions of one worker.

The same code serves the worker, `narrows backtest` and training. It knows no broker and no clock.

Invariant: everything in a `Result` is a function of the partition's log, the contract and the digest that scores
there, whatever the batches were, wherever it was started again. Law: tests/laws/test_stream_laws.py.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.core import guards
from pipeline.core.contract import Contract
from pipeline.core.episode import EpisodeEvent, Verdict, Verdicts
from pipeline.core.rows import MAX_DEVICES, Clock, Closed, Columns, Float, Int, Pushed, Rows
from pipeline.core.scaling import Scaling
from pipeline.core.score import CHUNK, Scorer, residual
from pipeline.core.windows import fill
from pipeline.errors import BadBundle
from pipeline.scoring.session import Session


@dataclass(frozen=True)
class Model:
    """A loaded bundle, ready to score. Equal digests score equally."""

    digest: str
    session: Session
    scaling: Scaling
    scorer: Scorer
    codec: bytes | None = None


@dataclass(slots=True)
class Alarm:
    """One episode event with what explains it.

    event : its `slot` and `trigger` are final.  name : of the row behind it (`Columns.offset`), -1 by silence.
    ts_ms : of that row (end of the episode where silence closed it).
    contributions : (S,) >= 0, sum to the score.  directions : (S,) int8.
    observed, expected : (S,) in the channels' units, NaN where missing.  All None where silence closed it.
    kind : what the row shows: the machine, or a sensor's fault.
    """

    event: EpisodeEvent
    digest: str
    threshold: float
    ts_ms: int
    contributions: Float | None = None
    directions: np.ndarray | None = None
    observed: Float | None = None
    expected: np.ndarray | None = None
    kind: guards.Kind = "silence"
    name: int = -1


@dataclass(slots=True)
class Scored:
    """Rows at or after what was delivered before, grouped by slot. All (n,) unless said.

    score : NaN where unscored, `run` below the window says that it is warming.
    contributions : (n, S), only where asked for.
    """

    digest: str
    threshold: float
    slot: Int
    ts_ms: Int
    offset: Int
    trigger: Int
    run: Int
    score: Float
    verdict: Verdict
    contributions: Float | None


@dataclass(slots=True)
class Block:
    """A complete block: rows of one lane within one span.

    offset : of its first row, its identity.  ts_ms : (n,).  values : (n, C) float32.
    silent : ended by silence.  evicted : ended early, to make room for another device.
    latent : (D,) of the last whole window in it, None where there was none; latent_offset : that window's newest row.
    """

    slot: int
    trigger: int
    offset: int
    silent: bool
    evicted: bool
    ts_ms: Int
    values: Float
    digest: str
    latent: Float | None
    latent_ts_ms: int


@dataclass(slots=True)
class Result:
    """What one batch caused, at triggers not delivered before."""

    scored: list[Scored] = field(default_factory=list)
    alarms: list[Alarm] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    late: int = 0
    duplicates: int = 0
    evicted: int = 0            # devices that were forgotten to make room


class Stream:
    """State of one stream.

    contract : the stream's.  contributions : keep (n, S) contributions of every scored row, for backtests.
    max_devices : of one partition; see `Rows`.
    """

    def __init__(
        self, contract: Contract, capacity: int = 64, room: int = 256, contributions: bool = False,
        max_devices: int = MAX_DEVICES,
    ) -> None:
        self.contract = contract
        self.contributions = contributions
        self._capacity, self._room = capacity, room
        self.rows = Rows(contract, len(contract.inputs), len(contract.sensors), capacity, room, max_devices)
        self.verdicts = Verdicts(contract.episode, self.rows.capacity)
        self._models: dict[int, Model] = {}
        self._scale = np.full(self.rows.capacity, -1, np.int64)      # each slot's row in its model's scaling
        self._latent = np.zeros((self.rows.capacity, 1), np.float32)
        self._latent_offset = np.full(self.rows.capacity, -1, np.int64)
        self._latent_ts = np.zeros(self.rows.capacity, np.int64)
        self._all_inputs = len(contract.inputs) == len(contract.channels)

    # ---------------------------------------------------------------- partitions

    def assign(
        self, partition: int, model: Model, emit_from: int, stream_time: int,
        verdicts: Mapping[tuple[str, bool], dict[str, Any]] | None = None,
        aside: Mapping[str, dict[str, Any]] | None = None,
    ) -> None:
        """Begin a partition: its records from the mark on are pushed next.

        verdicts : (device, late lane) -> `Verdicts.state` as of `emit_from`.
        aside    : device -> `state` of those whose rows lie before the mark.
        """
        self.revoke(partition)
        self.rows.assign(partition, emit_from, stream_time)
        self._use(partition, model)
        for device, state in (aside or {}).items():
            self.rows.restore(partition, device, state["rows"], state["offset"], state["stream_time"])
        self._fit()
        if aside:
            self._rebuild(partition, model)
        for (device, late), state in (verdicts or {}).items():
            slot = self.rows.slot_of(partition, device, late)
            self._fit()
            self.verdicts.restore(slot, state)

    def revoke(self, partition: int) -> None:
        for slot in self.rows.revoke(partition):
            self._forget(slot)
        self._models.pop(partition, None)

    def swap(self, partition: int, model: Model) -> int:
        """Score with another model from now on; returns the rows whose residuals were made again."""
        self._use(partition, model)
        return self._rebuild(partition, model)

    def _rebuild(self, partition: int, model: Model) -> int:
        """Residuals and latents are a cache per digest: made again from the kept rows. How many rows that were."""
        slots, positions, latest = self.rows.kept(partition)
        rows = self.rows
        self._scale[slots] = -1
        width, top = rows.stride, slots * rows.stride + rows.end[slots]
        for slot, stop in zip(slots.tolist(), top.tolist(), strict=True):
            where = np.arange(max(slot * width, stop - rows.keep), stop)
            rows.scaled[where] = self._scaled(model, np.full(len(where), slot), rows.values[where])
        for part in _chunks(len(positions)):
            at = positions[part]
            passed = model.session.run(fill(rows.windows(at)))
            rows.residual[at, : self._width(model)] = self._residual(model, rows.scaled[at], passed.newest)
        have = np.flatnonzero(latest >= 0)
        for part in _chunks(len(have)):
            picked = have[part]
            latent = model.session.run(fill(rows.windows(latest[picked]))).latent
            self._latent[slots[picked], : latent.shape[1]] = latent
            self._latent_offset[slots[picked]] = rows.offset[latest[picked]]
            self._latent_ts[slots[picked]] = rows.ts_ms[latest[picked]]
        return len(positions)

    def _use(self, partition: int, model: Model) -> None:
        if model.session.latent > self._latent.shape[1]:
            self._latent = np.pad(self._latent, ((0, 0), (0, model.session.latent - self._latent.shape[1])))
        if model.scorer.length != self.contract.filter_length:
            raise BadBundle(
                f"bundle {model.digest[:12]}: filter of {model.scorer.length} rows, the contract's windows and memory "
                f"give {self.contract.filter_length}; train it with this stream's contract"
            )
        self._models[partition] = model
        width = max(self._width(used) for used in self._models.values())
        if width != self.rows.residual.shape[1]:
            self.rows.widen(width)

    def _width(self, model: Model) -> int:
        """Residuals a row: M * S."""
        return model.session.members * len(self.contract.sensors)

    def _fit(self) -> None:
        """Follow `rows` where it grew."""
        more = self.rows.capacity - len(self._scale)
        if more > 0:
            self.verdicts.grow(self.rows.capacity)
            self._scale = np.pad(self._scale, (0, more), constant_values=-1)
            self._latent = np.pad(self._latent, ((0, more), (0, 0)))
            self._latent_offset = np.pad(self._latent_offset, (0, more), constant_values=-1)
            self._latent_ts = np.pad(self._latent_ts, (0, more))

    def _forget(self, slot: int) -> None:
        if slot < len(self._scale):
            self.verdicts.reset(slot)
            self._scale[slot] = -1
            self._latent_offset[slot] = -1

    # ---------------------------------------------------------------- one batch

    def push(self, rows: Columns, clocks: Sequence[Clock]) -> Result:
        """Take one batch in and say what it causes. rows.device comes from `slots` of this very batch."""
        result = Result()
        for part, part_clocks in self.rows.parts(rows, clocks):
            for pushed in self.rows.push(part, part_clocks):
                self._fit()
                self._score(pushed, result)
            result.evicted += sum(trigger >= self._emit_from(main) for main, trigger in pushed.evicted.items())
        return result

    def slots(self, partition: int, devices: Sequence[str]) -> Int:
        """Main slot of each device of a batch. (n,)"""
        return self.rows.slots(partition, devices)

    def settle(self) -> None:
        """Between batches: free the slots of devices that fell silent."""
        for slot in self.rows.settle():
            self._forget(slot)

    def _emit_from(self, slot: int) -> int:
        return self.rows.emit_from[int(self.rows.partition[slot])]

    def _score(self, pushed: Pushed, result: Result) -> None:
        if pushed.late:
            result.late += int(pushed.emit.sum())
        result.duplicates += pushed.duplicates
        for model, index, closed in self._by_model(pushed):
            self._score_with(model, pushed, index, closed, result)
        for slot, trigger in pushed.ended:
            model = self._models[int(self.rows.partition[slot])]
            result.alarms += [
                Alarm(event, model.digest, model.scorer.threshold, event.end_ts, kind=self._end_of(pushed, event))
                for event in self.verdicts.close(slot, trigger)
            ]

    def _by_model(self, pushed: Pushed) -> Iterator[tuple[Model, Int | slice, Closed]]:
        """Rows and closed blocks of each model; nearly always one, more while a swap is on its way."""
        models = list({id(model): model for model in self._models.values()}.values())
        if len(models) <= 1:
            for model in models:
                yield model, slice(None), pushed.closed
            return
        highest = max(self._models) + 1
        for model in models:
            mine = np.zeros(highest, bool)
            mine[[partition for partition, used in self._models.items() if used is model]] = True
            index = np.flatnonzero(mine[self.rows.partition[pushed.slot]])
            which = np.flatnonzero(mine[self.rows.partition[pushed.closed.slot]])
            closed = pushed.closed
            yield model, index, Closed(
                closed.slot[which], closed.trigger[which], closed.start[which], closed.stop[which], closed.silent[which]
            )

    def _score_with(
        self, model: Model, pushed: Pushed, index: Int | slice, closed: Closed, result: Result
    ) -> None:
        rows, contract = self.rows, self.contract
        slot, position, run = pushed.slot[index], pushed.position[index], pushed.run[index]
        offset, ts_ms, emit = pushed.offset[index], pushed.ts_ms[index], pushed.emit[index]
        rows.scaled[position] = self._scaled(model, slot, rows.values[position])
        seen = np.flatnonzero(pushed.due[index])
        latent = np.empty((len(seen), model.session.latent), np.float32)
        expected = np.empty((len(seen), len(contract.sensors)), np.float32)
        due = np.flatnonzero(emit[seen])                     # of `seen`: those that get a score
        width = self._width(model)
        filtered = np.empty((len(due), model.scorer.filters, width), np.float32)
        if contract.hop == 1:
            for part in _chunks(len(seen)):
                at = position[seen[part]]
                passed = model.session.run(fill(rows.windows(at)))
                rows.residual[at, :width] = self._residual(model, rows.scaled[at], passed.newest)
                latent[part], expected[part] = passed.latent, passed.newest[:, 0]
            for part in _chunks(len(due)):
                which = seen[due[part]]
                filtered[part] = model.scorer.filter(rows.residuals(position[which], run[which])[:, :, :width])
        else:
            all_filtered = np.empty((len(seen), *filtered.shape[1:]), np.float32)
            for part in _chunks(len(seen)):
                windows = rows.windows(position[seen[part]])
                rebuilt, latent[part] = model.session.rebuild_and_gist(fill(windows))
                expected[part] = rebuilt[:, -1]
                observed = windows[:, :, contract.sensors_in_inputs]                      # (b,T,S)
                difference = residual(
                    observed.reshape(-1, observed.shape[2]),                              # (b,T,S) -> (b*T,S)
                    rebuilt.reshape(-1, 1, observed.shape[2]), model.scorer.clip,
                )
                all_filtered[part] = model.scorer.filter(difference.reshape(observed.shape))
            filtered = all_filtered[due]
        self._blocks(model, pushed, closed, slot, seen, position, offset, ts_ms, latent, result)
        self._keep_latents(slot, seen, offset, ts_ms, latent)

        emitted = np.flatnonzero(emit)
        if not len(emitted):
            return
        scores = np.full(len(emitted), np.nan, np.float32)
        shift = np.zeros(len(emitted), np.float32)
        place = np.searchsorted(emitted, seen[due])          # of `emitted`: the scored ones
        group = self._scale[slot[seen[due]]]
        scores[place] = model.scorer.score(filtered, group)
        if model.scorer.sees_changes:
            shift[place] = model.scorer.shift(filtered, group)
        filtered_at = np.full(len(emitted), -1, np.int64)
        filtered_at[place] = np.arange(len(due))
        codes = self._guard(model, position[seen[due]], group)
        judged = scores.copy()
        judged[place] = guards.fire(scores[place], codes, model.scorer.threshold)
        verdict, events = self._verdicts(
            model, slot[emitted], offset[emitted], ts_ms[emitted], judged, shift, pushed.silenced[index][emitted],
            pushed.trigger[index][emitted],
        )
        contributions = None
        if self.contributions:
            contributions = np.zeros((len(emitted), len(contract.sensors)), np.float32)
            if len(due):
                contributions[place] = model.scorer.contributions(filtered, scores[place], group)
        result.scored.append(Scored(
            model.digest, model.scorer.threshold, slot[emitted], ts_ms[emitted], offset[emitted],
            pushed.trigger[index][emitted], run[emitted], scores, verdict, contributions,
        ))
        for event in events:
            if event.row < 0:
                result.alarms.append(Alarm(
                    event, model.digest, model.scorer.threshold, event.end_ts, kind=self._end_of(pushed, event)
                ))
                continue
            one = filtered_at[event.row : event.row + 1]
            row = emitted[event.row]
            own = np.array([self._scale[event.slot]])
            rebuilt = np.full((1, len(contract.channels)), np.nan)
            rebuilt[0, contract.sensors] = expected[due[one[0]]]
            shares = model.scorer.contributions(filtered[one], scores[event.row : event.row + 1], own)[0]
            result.alarms.append(Alarm(
                event, model.digest, model.scorer.threshold, int(ts_ms[row]), shares,
                model.scorer.directions(filtered[one], own)[0],
                rows.values[position[row], contract.sensors],
                model.scaling.invert(rebuilt, own)[0, contract.sensors],
                guards.kind_of(codes[one[0]], shares), int(offset[row]),
            ))

    def _verdicts(
        self, model: Model, slot: Int, offset: Int, ts_ms: Int, score: Float, shift: Float, silenced: Int, trigger: Int
    ) -> tuple[Verdict, list[EpisodeEvent]]:
        """Verdicts of emitted rows; a device that fell silent between two of its rows ends its episode there."""
        def push(index: Int | slice) -> Verdict:
            return self.verdicts.push(
                slot[index], offset[index], ts_ms[index], score[index], model.scorer.threshold,
                shift[index], model.scorer.shift_threshold,
            )

        emit_from = np.array([self.rows.emit_from[int(self.rows.partition[at])] for at in slot[silenced >= 0]])
        breaks = np.zeros(len(slot), np.int64)
        breaks[silenced >= 0] = silenced[silenced >= 0] >= emit_from
        if not breaks.any():
            verdict = push(slice(None))
            return verdict, [_retrigger(event, event.row, trigger) for event in verdict.events]
        starts = np.flatnonzero(np.append(True, slot[1:] != slot[:-1]))
        passed = np.cumsum(breaks)
        turn = passed - np.repeat(passed[starts] - breaks[starts], np.diff(np.append(starts, len(slot))))
        whole = Verdict(np.zeros(len(slot), bool), np.full(len(slot), -1, np.int64), np.zeros(len(slot), bool), [])
        for number in range(int(turn.max()) + 1):
            index = np.flatnonzero(turn == number)
            for at in index[(breaks[index] > 0)].tolist():
                whole.events.extend(self.verdicts.close(int(slot[at]), int(silenced[at])))
            part = push(index)
            whole.is_anomaly[index] = part.is_anomaly
            whole.episode_offset[index] = part.episode_offset
            whole.is_change[index] = part.is_change
            whole.events.extend(_retrigger(event, int(index[event.row]), trigger) for event in part.events)
        return whole, whole.events

    def _is_evicted(self, pushed: Pushed, slot: int, trigger: int) -> bool:
        """Whether what ended a lane here was an eviction."""
        return bool(pushed.evicted) and pushed.evicted.get(int(self.rows.main[slot])) == trigger

    def _end_of(self, pushed: Pushed, event: EpisodeEvent) -> guards.Kind:
        return "eviction" if self._is_evicted(pushed, event.slot, event.trigger) else "silence"

    def _blocks(
        self, model: Model, pushed: Pushed, closed: Closed, slot: Int, seen: Int, position: Int, offset: Int,
        ts_ms: Int, latent: Float, result: Result,
    ) -> None:
        rows, passed = self.rows, position[seen]             # ascending: slots are in order, rows in a slot too
        last = np.searchsorted(passed, closed.stop) - 1
        for i, (at, start, stop) in enumerate(
            zip(closed.slot.tolist(), closed.start.tolist(), closed.stop.tolist(), strict=True)
        ):
            first = int(rows.offset[start])
            j = int(last[i])
            gist, when = None, -1
            if j >= 0 and passed[j] >= start:
                gist, when = latent[j].copy(), int(ts_ms[seen[j]])
            elif self._latent_offset[at] >= first:
                gist, when = self._latent[at, : model.session.latent].copy(), int(self._latent_ts[at])
            trigger = int(closed.trigger[i])
            evicted = self._is_evicted(pushed, at, trigger)
            result.blocks.append(Block(
                at, trigger, first, bool(closed.silent[i]) and not evicted, evicted,
                rows.ts_ms[start:stop].copy(), rows.values[start:stop].copy(), model.digest, gist, when,
            ))

    def _keep_latents(self, slot: Int, seen: Int, offset: Int, ts_ms: Int, latent: Float) -> None:
        if len(seen):
            owner = slot[seen]
            last = np.flatnonzero(np.append(owner[1:] != owner[:-1], True))
            self._latent[owner[last], : latent.shape[1]] = latent[last]
            self._latent_offset[owner[last]] = offset[seen[last]]
            self._latent_ts[owner[last]] = ts_ms[seen[last]]

    def _scaled(self, model: Model, slot: Int, values: Float) -> Float:
        """(n, C) -> (n, I), scaled per device."""
        scale = self._scale[slot]
        unknown = np.unique(slot[scale < 0])
        if len(unknown):
            self._scale[unknown] = model.scaling.index([self.rows.names[at] for at in unknown.tolist()])
            scale = self._scale[slot]
        scaled = model.scaling.apply(values, scale)
        return scaled if self._all_inputs else np.ascontiguousarray(scaled[:, self.contract.inputs])

    def _guard(self, model: Model, position: Int, device: Int) -> np.ndarray:
        """What the guards say of the newest row of these windows. device : (n,) in the scaling. (n, S) uint8."""
        contract, (low, high) = self.contract, self.contract.ranges
        codes = np.zeros((len(position), len(contract.sensors)), np.uint8)
        if not (model.scorer.guarded or np.isfinite(low).any() or np.isfinite(high).any()):
            return codes
        for part in _chunks(len(position)):
            at = position[part]
            windows = self.rows.windows(at)[:, :, contract.sensors_in_inputs]
            newest = self.rows.values[at][:, contract.sensors]
            used = ~np.isnan(model.scaling.scale[device[part]][:, contract.sensors])
            codes[part] = guards.check(windows, newest, used, low, high, model.scorer.limits)
        return codes

    def _residual(self, model: Model, scaled: Float, newest: Float) -> Float:
        return residual(scaled[:, self.contract.sensors_in_inputs], newest, model.scorer.clip)

    # ---------------------------------------------------------------- the checkpoint

    def mark(self, partition: int, next_offset: int, floor: int = -1) -> tuple[int, int]:
        """(mark, stream time as of it); see `Rows.mark`."""
        return self.rows.mark(partition, next_offset, floor)


def _chunks(n: int) -> Iterator[slice]:
    return (slice(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK))


def _retrigger(event: EpisodeEvent, row: int, trigger: Int) -> EpisodeEvent:
    """The event of a row, with the record that completed the row as its trigger."""
    if event.row < 0:
        return event
    return EpisodeEvent(
        event.kind, event.slot, int(trigger[row]), row, event.start_offset, event.start_ts, event.end_ts, event.peak,
        event.peak_offset, event.score, event.severity,
    )
