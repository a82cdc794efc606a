"""One stream's state: rows, models, scores, verdicts and complete blocks, over all partitions of one worker.

The same code serves the worker, `narrows backtest` and training. It knows no broker and no clock.

Invariant: everything in a `Result` is a function of the partition's log, the contract and the digest that scores
there, whatever the batches were, wherever it was started again. Law: tests/laws/test_stream_laws.py.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pipeline.codec.latent import window_ends
from pipeline.core import guards
from pipeline.core.contract import Contract
from pipeline.core.episode import (
    ANOMALOUS,
    CALM,
    OVER,
    EpisodeEvent,
    Verdict,
    Verdicts,
    episode_rows,
    fill_moods,
    severity_of,
)
from pipeline.core.maintenance import Windows
from pipeline.core.rows import MAX_DEVICES, Clock, Closed, Columns, Float, Int, Pushed, Rows
from pipeline.core.scaling import Scaling
from pipeline.core.score import Scorer, residual
from pipeline.core.silence import Hushed, SilenceEvent, Silences
from pipeline.core.windows import fill
from pipeline.errors import BadBundle
from pipeline.scoring.session import CHUNK, Session

UNSCORED = ("no_model", "warming", "between_hops")   # why: there is no model, no whole window, or no score is due
BLANK = "none"  # digest where there is no model yet: nothing is scored; see `pipeline.scoring.blank`
NO_SLOT = -1    # of an episode of silence: `Rows` has forgotten the device
BAND_SD = 3.0   # half width of the band around an expected value, in deviations of normal rows


ENDINGS: tuple[guards.Kind, ...] = ("silence", "eviction")   # kinds of events that no row of the device caused

@dataclass(frozen=True)
class Model:
    """A loaded bundle, ready to score. Equal digests score equally."""

    digest: str
    session: Session
    scaling: Scaling
    scorer: Scorer
    codec: bytes | None = None
    graph: bytes = b""                 # the ONNX file, for the decoder of latent blocks
    latent_codec: bytes | None = None

    @property
    def is_blank(self) -> bool:
        """Whether it stands for no model."""
        return self.digest == BLANK


@dataclass(slots=True)
class Alarm:
    """One episode event with what explains it.

    event : its `slot` and `trigger` are final; the slot of a silent device's own episode is NO_SLOT.
    partition, device, late : whose it is.  name : of the row behind it (`Columns.offset`), -1 by silence.
    ts_ms : of that row (end of the episode where silence closed it).
    contributions : (S,) >= 0, sum to the score.  directions : (S,) int8.
    observed, expected : (S,) in the channels' units, NaN where missing.
    margin : (S,) how far from the expected value normal rows lie, BAND_SD deviations, in the channels' units.
    All None where silence closed it.
    kind : of the episode so far: the machine, a sensor's fault, the fleet; or the silence that closed it, or is it.
    """

    event: EpisodeEvent
    partition: int
    device: str
    late: bool
    digest: str
    threshold: float
    ts_ms: int
    contributions: Float | None = None
    directions: np.ndarray | None = None
    observed: Float | None = None
    expected: np.ndarray | None = None
    margin: np.ndarray | None = None
    kind: guards.Kind = "silence"
    name: int = -1


@dataclass(slots=True)
class Scored:
    """Rows at or after what was delivered before, grouped by slot. All (n,) unless said.

    Those with a score; and the others too where a caller asked for contributions.
    score : NaN where unscored, `run` below the window says that it is warming.
    contributions, observed : (n, S), the latter in the channels' units; only where asked for.
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
    observed: Float | None


@dataclass(slots=True)
class Block:
    """A complete block: rows of one lane within one span.

    offset : of its first row, its identity.  ts_ms : (n,).  values : (n, C) float32.
    silent : ended by silence.  evicted : ended early, to make room for another device.
    latent : (D,) of the last whole window in it, None where there was none; latent_ts_ms : that window's newest row.
    in_episode : (n,) bool, see `pipeline.core.episode.episode_rows`.
    latents : (W, D) of the windows at `codec.latent.window_ends`; None where not kept, or the model saw not all whole.
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
    in_episode: np.ndarray
    latents: Float | None = None


@dataclass(slots=True)
class Result:
    """What one batch caused, at triggers not delivered before."""

    scored: list[Scored] = field(default_factory=list)
    alarms: list[Alarm] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    scored_rows: int = 0
    unscored: Counter[str] = field(default_factory=Counter)     # rows by why they have no score, see UNSCORED
    late: int = 0
    duplicates: int = 0
    evicted: int = 0            # devices that were forgotten to make room


@dataclass(slots=True)
class _Open:
    """An open episode: what telling its kind needs."""

    start_ts: int
    kind: guards.Kind


class Stream:
    """State of one stream.

    contract : the stream's.  contributions : keep (n, S) contributions and values of every row, for backtests.
    give_blocks  : hand out complete blocks; they cost as much as scoring at hop 32, where nobody reads them.
    keep_latents : keep each row's latent until its block is complete, for latent blocks: 4 * D bytes a row.
    max_devices : of one partition; see `Rows`.
    silence_ms : a device that says nothing for so long has an episode of silence; at least the contract's silence.
        None: never. Part of what outputs depend on, like the contract.
    """

    def __init__(
        self, contract: Contract, capacity: int = 64, room: int = 256, contributions: bool = False,
        give_blocks: bool = True, keep_latents: bool = False, max_devices: int = MAX_DEVICES,
        silence_ms: int | None = None,
    ) -> None:
        self.contract = contract
        self.contributions = contributions
        self._gives_blocks = give_blocks
        self._keeps_latents = keep_latents
        self._capacity, self._room = capacity, room
        self.rows = Rows(contract, len(contract.inputs), len(contract.sensors), capacity, room, max_devices=max_devices)
        self.verdicts = Verdicts(contract.episode, self.rows.capacity, max(1, contract.memory // contract.hop))
        self._models: dict[int, Model] = {}
        self._windows: dict[int, Windows] = {}                       # of maintenance, by partition, where there are any
        self._scale = np.full(self.rows.capacity, -1, np.int64)      # each slot's row in its model's scaling
        self._latent = np.zeros((self.rows.capacity, 1), np.float32)
        self._latent_offset = np.full(self.rows.capacity, -1, np.int64)
        self._latent_ts = np.zeros(self.rows.capacity, np.int64)
        self._told: dict[int, list[list[int]]] = {}     # moods of rows before `emit_from`, by slot: see `state`
        self._calmed: set[int] = set()                   # slots whose open block with a mood ended since `settled`
        self._born = np.full(self.rows.capacity, -1, np.int64)       # offset from which each main slot's device is live
        self._ended: list[tuple[int, int, int]] = []                 # lives that ended in the newest rows
        self._open: dict[int, _Open] = {}                            # by slot
        self.silences = None
        if silence_ms is not None:
            self.silences = Silences(max(silence_ms, contract.silence_ms), max_devices)
        self._begun: list[tuple[int, int]] = []                      # (slot, trigger) of lives begun in the newest rows
        self._all_inputs = len(contract.inputs) == len(contract.channels)

    # ---------------------------------------------------------------- partitions

    def assign(
        self, partition: int, model: Model, emit_from: int, stream_time: int,
        verdicts: Mapping[tuple[str, bool], dict[str, Any]] | None = None,
        aside: Mapping[str, dict[str, Any]] | None = None, silences: Mapping[str, dict[str, Any]] | None = None,
    ) -> None:
        """Begin a partition: its records from the mark on are pushed next.

        verdicts : (device, late lane) -> `state` as of `emit_from`.
        silences : device -> what `Silences.changed` told of it, likewise.
        aside    : device -> `Rows.state` of those whose rows lie before the mark.
        """
        self.revoke(partition)
        self.rows.assign(partition, emit_from, stream_time)
        if self.silences is not None:
            self.silences.assign(partition, emit_from, silences or {})
        self._use(partition, model)
        for device, state in (aside or {}).items():
            self.rows.restore(partition, device, state["rows"], state["offset"], state["stream_time"])
        self._fit()
        restored = self.rows.live_slots(partition)
        if len(restored):
            self._born[restored] = emit_from              # before whatever is told from now on
            self._say_seen(restored)
            self._rebuild(partition, model)
        for (device, late), state in (verdicts or {}).items():
            slot = self.rows.slot_of(partition, device, late)
            self._fit()
            verdict = dict(state)
            self._told[slot] = verdict.pop("moods", [])
            block = self.rows.open_block(slot)
            self.rows.mood[block] = self._moods_of(slot, self.rows.offset[block])
            self.verdicts.restore(slot, verdict or None)
            if verdict.get("is_open"):
                self._open[slot] = _Open(verdict["start_ts"], verdict.get("kind") or "machine")

    def revoke(self, partition: int) -> None:
        for slot in self.rows.revoke(partition):
            self._forget(slot)
        self._models.pop(partition, None)
        self._windows.pop(partition, None)
        if self.silences is not None:
            self.silences.revoke(partition)

    def heed(self, partition: int, windows: Windows) -> None:
        """Rows in these windows raise no alert from now on; instead of those before."""
        self._windows.pop(partition, None)
        if windows:
            self._windows[partition] = windows
        if self.silences is not None:
            self.silences.heed(partition, windows, self.rows.position(partition))

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
        if model.is_blank:
            return 0
        for part in _chunks(len(positions)):
            at = positions[part]
            passed = model.session.run(fill(rows.windows(at)))
            rows.residual[at, : self._width(model)] = self._residual(model, rows.scaled[at], passed.newest)
        if self._keeps_latents:
            self._see_again(model, slots)
        have = np.flatnonzero(latest >= 0)
        for part in _chunks(len(have)):
            picked = have[part]
            latent = model.session.run(fill(rows.windows(latest[picked]))).latent
            self._latent[slots[picked], : latent.shape[1]] = latent
            self._latent_offset[slots[picked]] = rows.offset[latest[picked]]
            self._latent_ts[slots[picked]] = rows.ts_ms[latest[picked]]
        return len(positions)

    def _say_seen(self, slots: Int) -> None:
        """Of rows of open blocks that came back: nothing is said of them yet; those that end a whole window of their
        block have a latent."""
        rows, contract = self.rows, self.contract
        for slot in slots.tolist():
            block = rows.open_block(slot)
            rows.mood[block] = 0
            cold = np.diff(rows.ts_ms[block], prepend=rows.ts_ms[block][:1]) > contract.max_gap_ms
            place = np.arange(len(cold))
            run = place - np.maximum.accumulate(np.where(cold, place, 0)) + 1
            if self._keeps_latents:
                rows.latent[block] = np.where(run >= contract.window, np.float32(0), np.float32(np.nan))[:, None]

    def _see_again(self, model: Model, slots: Int) -> None:
        """Latents of open blocks, from another model."""
        rows, depth = self.rows, model.session.latent
        blocks = [rows.open_block(slot) for slot in slots.tolist()]
        at = np.concatenate([np.arange(block.start, block.stop) for block in blocks] or [np.empty(0, np.int64)])
        at = at[~np.isnan(rows.latent[at, 0])]
        for part in _chunks(len(at)):
            rows.latent[at[part], :depth] = model.session.run(fill(rows.windows(at[part]))).latent

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
            self.rows.widen("residual", width)
        if self._keeps_latents and model.session.latent > self.rows.latent.shape[1]:
            self.rows.widen("latent", model.session.latent)

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
            self._born = np.pad(self._born, (0, more), constant_values=-1)

    def _forget(self, slot: int) -> None:
        if slot < len(self._scale):
            self.verdicts.reset(slot)
            self._scale[slot] = -1
            self._latent_offset[slot] = -1
        self._told.pop(slot, None)
        self._calmed.discard(slot)
        self._born[slot] = -1
        self._open.pop(slot, None)

    # ---------------------------------------------------------------- one batch

    def push(self, rows: Columns, clocks: Sequence[Clock]) -> Result:
        """Take one batch in and say what it causes. rows.device comes from `slots` of this very batch."""
        result = Result()
        for part, part_clocks in self.rows.parts(rows, clocks):
            known = len(result.alarms)
            every = self.rows.push(part, part_clocks)
            for pushed in every:
                self._fit()
                self._score(pushed, result)
            self._name_kinds(every, result.alarms[known:])
            if self.silences is not None:
                self._tell_silences(every, part_clocks, result)
            result.evicted += sum(
                trigger >= self._emit_from(main) for pushed in every for main, trigger in pushed.evicted.items()
            )
        return result

    def slots(self, partition: int, devices: Sequence[str]) -> Int:
        """Main slot of each device of a batch. (n,)"""
        return self.rows.slots(partition, devices)

    def settle(self) -> None:
        """Between batches: free the slots of devices that fell silent."""
        for slot in self.rows.settle():
            self._forget(slot)

    def still_open(self, partition: int, trigger: int) -> Result:
        """Blocks and episodes that silence would end now, with `trigger` as its record. Changes nothing."""
        model, result, none = self._models[partition], Result(), np.empty(0, np.int64)
        calmed = set(self._calmed)
        if self._gives_blocks:
            closed, latent = self.rows.still_open(partition, trigger), np.empty((0, model.session.latent), np.float32)
            self._blocks(model, self.rows.nothing(), closed, none, none, none, none, none, latent, result)
        self._calmed = calmed
        for event in self.verdicts.open_episodes():
            if self.rows.partition[event.slot] == partition and self.rows.live[event.slot]:
                ended = replace(event, kind="closed", trigger=trigger, row=-1, score=0.0)
                result.alarms.append(self._alarm(ended, model, event.end_ts, kind="silence"))
        return result

    @property
    def open_episodes(self) -> int:
        """How many there are, of silence too."""
        silent = 0 if self.silences is None else self.silences.told
        return len(self.verdicts.open_episodes()) + silent

    def _emit_from(self, slot: int) -> int:
        return self.rows.emit_from[int(self.rows.partition[slot])]

    def _score(self, pushed: Pushed, result: Result) -> None:
        if pushed.late:
            result.late += int(pushed.emit.sum())
        result.duplicates += pushed.duplicates
        for model, index, closed in self._by_model(pushed):
            latents = self._score_with(model, pushed, index, result)
            if self._gives_blocks:
                self._blocks(model, pushed, closed, *latents, result)
                self._keep_latents(*latents)
        for slot, trigger in pushed.ended:
            model = self._models[int(self.rows.partition[slot])]
            result.alarms += [
                self._alarm(event, model, event.end_ts, kind=self._end_of(pushed, event))
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
        self, model: Model, pushed: Pushed, index: Int | slice, result: Result
    ) -> tuple[Int, Int, Int, Int, Int, Float]:
        """Scores, verdicts and alarms; returns what blocks need: slot, seen, position, offset, ts_ms, latent."""
        rows, contract = self.rows, self.contract
        slot, position, run = pushed.slot[index], pushed.position[index], pushed.run[index]
        offset, ts_ms, emit = pushed.offset[index], pushed.ts_ms[index], pushed.emit[index]
        rows.scaled[position] = self._scaled(model, slot, rows.values[position])
        if self._gives_blocks:
            rows.mood[position] = self._told_moods(slot, offset, emit)
        seen = np.flatnonzero(pushed.due[index] & (not model.is_blank))
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
        if self._keeps_latents:
            rows.latent[position] = np.nan
            rows.latent[position[seen], : latent.shape[1]] = latent
        latents = slot, seen, position, offset, ts_ms, latent
        result.scored_rows += len(due)
        result.unscored.update(self._unscored(model, emit, run, len(due)))
        # A row without a score changes nothing, unless its device was silent before it.
        told = emit & (pushed.due[index] | (pushed.silenced[index] >= 0) | self.contributions | model.is_blank)
        emitted = np.flatnonzero(told)
        if not len(emitted):
            return latents
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
            pushed.trigger[index][emitted], self._in_maintenance(slot[emitted], ts_ms[emitted]),
        )
        if self._gives_blocks:
            with np.errstate(invalid="ignore"):
                is_over = (judged > model.scorer.threshold) & ~verdict.is_muted
            mood = np.where(is_over, OVER, np.where(np.isnan(judged), 0, CALM))
            rows.mood[position[emitted]] = np.where(verdict.is_anomaly, ANOMALOUS, mood)
        contributions = values = None
        if self.contributions:
            values = rows.values[position[emitted]][:, contract.sensors]
            contributions = np.zeros((len(emitted), len(contract.sensors)), np.float32)
            if len(due):
                contributions[place] = model.scorer.contributions(filtered, scores[place], group)
        result.scored.append(Scored(
            model.digest, model.scorer.threshold, slot[emitted], ts_ms[emitted], offset[emitted],
            pushed.trigger[index][emitted], run[emitted], scores, verdict, contributions, values,
        ))
        for event in events:
            if event.row < 0:
                result.alarms.append(self._alarm(event, model, event.end_ts, kind=self._end_of(pushed, event)))
                continue
            one = filtered_at[event.row : event.row + 1]
            row = emitted[event.row]
            own = np.array([self._scale[event.slot]])
            rebuilt = np.full((1, len(contract.channels)), np.nan)
            rebuilt[0, contract.sensors] = expected[due[one[0]]]
            shares = model.scorer.contributions(filtered[one], scores[event.row : event.row + 1], own)[0]
            result.alarms.append(self._alarm(
                event, model, int(ts_ms[row]), shares, model.scorer.directions(filtered[one], own)[0],
                rows.values[position[row], contract.sensors],
                model.scaling.invert(rebuilt, own)[0, contract.sensors],
                BAND_SD * model.scorer.expected_spread(own)[0] * model.scaling.scale[own[0], contract.sensors],
                guards.kind_of(codes[one[0]], shares), int(offset[row]),
            ))
        return latents

    def _unscored(self, model: Model, emit: np.ndarray, run: Int, scored: int) -> dict[str, int]:
        """How many of the emitted rows have no score, by why."""
        rows, warming = int(emit.sum()), int((emit & (run < self.contract.window)).sum())
        if model.is_blank:
            return {"no_model": rows}
        return {"warming": warming, "between_hops": rows - scored - warming}

    def _verdicts(
        self, model: Model, slot: Int, offset: Int, ts_ms: Int, score: Float, shift: Float, silenced: Int, trigger: Int,
        muted: np.ndarray,
    ) -> tuple[Verdict, list[EpisodeEvent]]:
        """Verdicts of emitted rows; a device that fell silent between two of its rows ends its episode there."""
        def push(index: Int | slice) -> Verdict:
            return self.verdicts.push(
                slot[index], offset[index], ts_ms[index], score[index], model.scorer.threshold,
                shift[index], model.scorer.shift_threshold, muted[index],
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
        no = np.zeros(len(slot), bool)
        whole = Verdict(no.copy(), np.full(len(slot), -1, np.int64), no.copy(), no.copy(), [])
        for number in range(int(turn.max()) + 1):
            index = np.flatnonzero(turn == number)
            for at in index[(breaks[index] > 0)].tolist():
                whole.events.extend(self.verdicts.close(int(slot[at]), int(silenced[at])))
            part = push(index)
            whole.is_anomaly[index] = part.is_anomaly
            whole.episode_offset[index] = part.episode_offset
            whole.is_change[index] = part.is_change
            whole.is_muted[index] = part.is_muted
            whole.events.extend(_retrigger(event, int(index[event.row]), trigger) for event in part.events)
        return whole, whole.events

    def _alarm(self, event: EpisodeEvent, model: Model, ts_ms: int, *explained: Any, **rest: Any) -> Alarm:
        """An alarm of a slot. explained, rest : the fields of `Alarm` after `ts_ms`."""
        rows, slot = self.rows, event.slot
        return Alarm(
            event, int(rows.partition[slot]), rows.names[slot], rows.is_late(slot), model.digest,
            model.scorer.threshold, ts_ms, *explained, **rest,
        )

    def _in_maintenance(self, slot: Int, ts_ms: Int) -> np.ndarray:
        """Which rows lie in a window of maintenance of their device. (n,) bool."""
        muted = np.zeros(len(slot), bool)
        for partition, windows in self._windows.items():
            mine = np.flatnonzero(self.rows.partition[slot] == partition)
            muted[mine] = windows.cover(self.rows.names, slot[mine], ts_ms[mine])
        return muted

    def _is_evicted(self, pushed: Pushed, slot: int, trigger: int) -> bool:
        """Whether what ended a lane here was an eviction."""
        return bool(pushed.evicted) and pushed.evicted.get(int(self.rows.main[slot])) == trigger

    def _end_of(self, pushed: Pushed, event: EpisodeEvent) -> guards.Kind:
        return "eviction" if self._is_evicted(pushed, event.slot, event.trigger) else "silence"

    def _blocks(
        self, model: Model, pushed: Pushed, closed: Closed, slot: Int, seen: Int, position: Int, offset: Int,
        ts_ms: Int, latent: Float, result: Result,
    ) -> None:
        """Complete blocks. The row that closed one stands behind it in the slab, unless silence did."""
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
            silent, evicted = bool(closed.silent[i]), self._is_evicted(pushed, at, trigger)
            mood = rows.mood[start : stop if silent else stop + 1]
            is_calm = not (mood >= OVER).any()
            if not is_calm:
                self._calmed.add(at)
            result.blocks.append(Block(
                at, trigger, first, silent and not evicted, evicted, rows.ts_ms[start:stop].copy(),
                rows.values[start:stop].copy(), model.digest, gist, when,
                np.zeros(stop - start, bool) if is_calm else episode_rows(mood, stop - start),
                self._block_latents(model, start, stop),
            ))

    def _block_latents(self, model: Model, start: int, stop: int) -> Float | None:
        if not self._keeps_latents:
            return None
        ends = start + window_ends(stop - start, self.contract.window) - 1
        latents: Float = self.rows.latent[ends, : model.session.latent]
        return None if np.isnan(latents).any() else latents

    def _keep_latents(self, slot: Int, seen: Int, position: Int, offset: Int, ts_ms: Int, latent: Float) -> None:
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

    # ---------------------------------------------------------------- kinds of episodes

    def _name_kinds(self, every: list[Pushed], alarms: list[Alarm]) -> None:
        """Say of each event what kind of episode it is of, in the order of the log.

        Each partition is judged by itself: that is the log that the answer is a function of.
        """
        self._follow_lives(every)
        if not alarms:
            return
        lives = self._lives()
        touched: set[int] = set()
        opened = {
            (one.event.slot, one.event.start_offset, one.event.trigger) for one in alarms if one.event.kind == "opened"
        }

        def order(alarm: Alarm) -> tuple[int, int, int]:
            """At one record what ends comes first, but for what only began there: a record may hold many rows."""
            event = alarm.event
            began = (event.slot, event.start_offset, event.trigger) in opened
            return event.trigger, (2 if began else 0) if event.kind == "closed" else 1, event.start_offset

        for alarm in sorted(alarms, key=order):
            event = alarm.event
            if event.kind == "opened":
                self._open[event.slot] = _Open(event.start_ts, alarm.kind)
                touched |= {event.slot, *self._befell_fleet(event, lives)}
            own = self._open.get(event.slot)
            if own is None:
                continue
            if own.kind == "machine" and alarm.kind not in ("machine", *ENDINGS):
                own.kind = alarm.kind                          # the guard needed more rows than the score
                touched.add(event.slot)
            if alarm.kind not in ENDINGS:
                alarm.kind = own.kind
            if event.kind == "closed":
                del self._open[event.slot]
        for slot in touched & self._open.keys():
            self.verdicts.name(slot, self._open[slot].kind)

    def _befell_fleet(self, event: EpisodeEvent, lives: np.ndarray) -> list[int]:
        """Open episodes that an opening shows to be the fleet's, this one included; their kind is changed."""
        if self.rows.is_late(event.slot):
            return []
        partition, within = self.rows.partition[event.slot], self.contract.episode.merge_ms
        mine = [slot for slot in self._open if self.rows.partition[slot] == partition and not self.rows.is_late(slot)]
        started = np.array([self._open[slot].start_ts for slot in mine])
        live = (lives[:, 0] == partition) & (lives[:, 1] <= event.trigger) & (lives[:, 2] > event.trigger)
        if not guards.is_fleet_wide(started, event.start_ts, int(live.sum()), within):
            return []
        near = [mine[i] for i in np.flatnonzero(np.abs(started - event.start_ts) <= within).tolist()]
        machines = [slot for slot in near if self._open[slot].kind == "machine"]
        for slot in machines:
            self._open[slot].kind = "fleet"
        return machines

    def _tell_silences(self, every: list[Pushed], clocks: Sequence[Clock], result: Result) -> None:
        """Open and close the episodes of devices that say nothing."""
        assert self.silences is not None
        rows = self.rows
        hushed = [one for pushed in every for one in pushed.hushed]
        for clock in clocks:
            at = clock.partition
            events = self.silences.push(
                clock, [Hushed(rows.names[one[0]], *one[1:]) for one in hushed if rows.partition[one[0]] == at],
                [(rows.names[slot], trigger) for slot, trigger in self._begun if rows.partition[slot] == at],
                rows.emit_from[at],
            )
            result.alarms += [self._alarm_of_silence(event, at, self.silences.limit_ms) for event in events]

    def _alarm_of_silence(self, event: SilenceEvent, partition: int, limit_ms: int) -> Alarm:
        """The score of silence: how long it lasts, in limits."""
        score = (event.end_ms - event.start_ms) / limit_ms
        told = EpisodeEvent(
            event.kind, NO_SLOT, event.trigger, -1, event.row, event.start_ms, event.end_ms, score, event.row, score,
            severity_of(score),
        )
        return Alarm(told, partition, event.device, False, self._models[partition].digest, 1.0, event.end_ms)

    def _follow_lives(self, every: list[Pushed]) -> None:
        """Note from which offset each device is live, and which lives began and ended in these rows."""
        rows, born = self.rows, self._born
        self._ended, self._begun = [], []
        for pushed in every:
            if pushed.late or not len(pushed.slot):
                continue
            first = np.flatnonzero(np.append(True, pushed.slot[1:] != pushed.slot[:-1]))
            fresh = first[born[pushed.slot[first]] < 0]
            born[pushed.slot[fresh]] = pushed.trigger[fresh]
            self._begun += zip(pushed.slot[fresh].tolist(), pushed.trigger[fresh].tolist(), strict=True)
            for i in np.flatnonzero(pushed.silenced >= 0).tolist():       # silent, then back
                slot = int(pushed.slot[i])
                self._ended.append((int(rows.partition[slot]), int(born[slot]), int(pushed.silenced[i])))
                born[slot] = pushed.trigger[i]
                self._begun.append((slot, int(pushed.trigger[i])))
        for slot, trigger in (pair for pushed in every for pair in pushed.ended):
            if not rows.is_late(slot):
                self._ended.append((int(rows.partition[slot]), int(born[slot]), trigger))
        known = len(rows.names)
        born[:known][~rows.live[:known]] = -1

    def _lives(self) -> np.ndarray:
        """(n, 3) int64, a device's life each: partition, its first offset, the offset that ended it."""
        live = np.flatnonzero(self._born >= 0)
        never = np.full(len(live), np.iinfo(np.int64).max)
        now = np.stack([self.rows.partition[live], self._born[live], never], axis=1)
        return np.concatenate([now, np.array(self._ended, np.int64).reshape(-1, 3)])

    # ---------------------------------------------------------------- the checkpoint

    def state(self, slot: int) -> dict[str, Any] | None:
        """What `assign` needs of a lane beside its rows: the verdict's state, and the moods of the open block.

        moods : [first offset, last offset, mood] of stretches, only where the block has more than calm rows: what was
        said of a row before the commit can't be computed again from the mark on. None for a lane at rest.
        """
        verdict, block = self.verdicts.state(slot), self.rows.open_block(slot)
        if not (self.rows.mood[block] >= OVER).any():
            return verdict
        filled, offset = fill_moods(self.rows.mood[block]), self.rows.offset[block]
        first = np.flatnonzero(np.append(True, filled[1:] != filled[:-1]))
        last = np.append(first[1:], len(filled)) - 1
        moods = np.stack([offset[first], offset[last], filled[first]], axis=1).tolist()
        return {**(verdict or {}), "moods": moods}

    def changed(self) -> list[int]:
        """Slots whose `state` may have changed since `settled`, sorted."""
        return sorted({*self.verdicts.changed(), *self._calmed})

    def settled(self) -> None:
        """The changed states are safe: start over."""
        self.verdicts.settled()
        self._calmed.clear()

    def _told_moods(self, slot: Int, offset: Int, emit: np.ndarray) -> np.ndarray:
        """Moods of rows that were judged before the commit; 0 for all others. (n,) uint8."""
        mood = np.zeros(len(slot), np.uint8)
        if not self._told or emit.all():
            return mood
        for at in self._told:
            index = np.flatnonzero((slot == at) & ~emit)
            mood[index] = self._moods_of(at, offset[index])
        return mood

    def _moods_of(self, slot: int, offset: Int) -> np.ndarray:
        """What was said of these rows of a slot before the commit, 0 where nothing was. (n,) uint8."""
        moods, mood = self._told[slot], np.zeros(len(offset), np.uint8)
        if len(moods) and len(offset):
            first, last, said = np.array(moods).T
            place = np.searchsorted(first, offset, "right") - 1
            found = (place >= 0) & (offset <= last[place])
            mood[found] = said[place[found]]
        return mood

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
