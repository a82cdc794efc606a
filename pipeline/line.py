"""One stream's line through the worker: fetched records to columns, columns to results, results to output records.

Pure computing, in the scoring thread: no I/O, no clock. What a batch causes depends on the log, the contract and the
digest alone.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np

from pipeline.codec.summary import put_summary, summarise
from pipeline.core.block_rules import BlockRules
from pipeline.core.contract import Contract
from pipeline.core.ids import INDEX_BITS, LANES, Kind, Lane, output_id
from pipeline.core.join import Joiner
from pipeline.core.maintenance import Plan
from pipeline.core.records import Names, Records, take_names
from pipeline.core.rows import MAX_DEVICES, Clock, Columns, Float
from pipeline.engine.state_topic import Name, State
from pipeline.formats import Format, LongReadings, Reason, Rejects, make_decoder
from pipeline.scoring.blocks import BlockCoder, Class, Coded
from pipeline.scoring.stream import BLANK, NO_SLOT, Alarm, Block, Model, Result, Scored, Stream
from pipeline.sinks import (
    Anomaly,
    BlockLabel,
    DeadLetter,
    Feature,
    Record,
    Score,
    anomaly_record,
    block_record,
    codec_record,
    contract_record,
    dead_letter_record,
    feature_record,
    score_record,
    whole_records,
)

MAX_REPLAY = 2_000_000   # records, unless told otherwise
_OF_SILENCE: dict[str, Kind] = {"opened": "silence opened", "closed": "silence closed"}
MOST_TOLD = 100_000  # devices with wrong keys that are counted


class Part(Protocol):
    """Records of one partition within a batch; see `pipeline.agent.Part`."""

    tp: Any
    records: Records
    stream_time: np.ndarray
    emit_from: int
    crashed: frozenset[int]


class Match(Protocol):
    """Which devices of the topic belong to the stream."""

    @property
    def takes_all(self) -> bool: ...
    def takes(self, device: str) -> bool: ...


class OutputTopics(NamedTuple):
    """Full names of the output topics; None where the stream does not write to one."""

    scores: str | None
    anomalies: str | None
    blocks: str | None
    features: str | None
    dead_letters: str
    codecs: str


class _Aside(NamedTuple):
    """An entry of a device: as of which offset, and what it has."""

    offset: int
    has_rows: bool
    has_opens: bool

    @classmethod
    def of(cls, state: State) -> "_Aside":
        return cls(state["offset"], state["rows"] is not None, state["opens"] is not None)


class Line:
    """One stream: decoding, state and encoding.

    max_devices : of one partition; see `core.rows`.  max_replay : records that a mark may trail.
    takes_nameless : reports unreadable records that name no device; one stream of a topic does.
    rules : how blocks are kept.  silence_ms : see `Stream`.
    counts, classes : what happened since metrics last looked, by name; blocks by class (normal, episode).
    wrong_keys : (device, partition, another one) of devices that showed up in two, each device once; cleared likewise.
    """

    def __init__(
        self, name: str, topic: str, contract: Contract, spec: Format, match: Match, outputs: OutputTopics,
        capacity: int = 64, room: int = 256, takes_nameless: bool = True, rules: BlockRules = BlockRules(),
        max_devices: int = MAX_DEVICES, max_replay: int = MAX_REPLAY, silence_ms: int | None = None,
    ) -> None:
        self.name, self.topic, self.contract = name, topic, contract
        self._outputs = outputs
        self._match = match
        self._takes_nameless = takes_nameless
        self._decoder = make_decoder(contract, spec)
        self._bits = INDEX_BITS if spec.encoding == "arrow" else 0   # of a row's name, for its place in its record
        self._rules = rules
        self.stream = Stream(
            contract, capacity, room, give_blocks=outputs.blocks is not None or outputs.features is not None,
            keep_latents=outputs.blocks is not None and rules.wants_latents, max_devices=max_devices,
            silence_ms=silence_ms,
        )
        self._joiner = Joiner(contract, max_devices) if spec.layout == "long" or contract.resample else None
        self._coders: dict[str, BlockCoder] = {}
        self._preface: list[Record] = []
        self._models: dict[int, Model] = {}
        self._resting: dict[int, set[Name]] = {}
        self._max_replay = max_replay
        self._aside: dict[int, dict[str, _Aside]] = {}          # as the last acknowledged commit has them
        self._proposed: dict[int, dict[str, State | None]] = {}     # what `changed` told of them since
        self._told: dict[int, dict[tuple[str, int, int], int]] = {}   # what is provisional, and how long it was
        self._names = [contract.names[place] for place in contract.sensors]
        self.counts: Counter[str] = Counter()
        self.wrong_keys: list[tuple[str, int, int]] = []
        self._strayed: set[str] = set()
        self.reasons: Counter[str] = Counter()
        self.classes: dict[str, list[Class]] = {"normal": [], "episode": []}

    # ---------------------------------------------------------------- state

    def assign(
        self, partition: int, model: Model, emit_from: int, mark_time: int, states: Mapping[Name, State]
    ) -> None:
        """Begin a partition. states : as of `emit_from`."""
        verdicts = {(name.device, name.late): state for name, state in states.items() if name.kind == "verdict"}
        aside = {name.device: state for name, state in states.items() if name.kind == "aside"}
        silences = {name.device: state for name, state in states.items() if name.kind == "silence"}
        with_rows = {device: state for device, state in aside.items() if state["rows"] is not None}
        self.stream.assign(partition, model, emit_from, mark_time, verdicts, with_rows, silences)
        self._use(partition, model)
        self._resting.pop(partition, None)
        self._told.pop(partition, None)
        self._aside[partition] = {device: _Aside.of(state) for device, state in aside.items()}
        if self._joiner is not None:
            self._joiner.restore(partition, mark_time, {
                device: (state["opens"], state["offset"], state["stream_time"]) for device, state in aside.items()
                if state["opens"] is not None
            })

    def revoke(self, partition: int) -> None:
        self.stream.revoke(partition)
        for states in (self._models, self._resting, self._told, self._aside, self._proposed):
            states.pop(partition, None)
        if self._joiner is not None:
            self._joiner.revoke(partition)

    def swap(self, partition: int, model: Model) -> int:
        """See `Stream.swap`."""
        self._use(partition, model)
        return self.stream.swap(partition, model)

    def heed(self, partition: int, plan: Plan) -> None:
        """See `Stream.heed`."""
        self.stream.heed(partition, plan.of(self.name))

    def _use(self, partition: int, model: Model) -> None:
        self._models[partition] = model
        if self._outputs.blocks is None or model.digest in self._coders:
            return
        coder = self._coders[model.digest] = BlockCoder(self.contract, model, self._rules)
        topic = self._outputs.codecs           # what a reader of the blocks needs goes out before them
        self._preface.append(contract_record(topic, self.contract))
        self._preface += [codec_record(topic, name, data) for name, data in coder.codec_models().items()]
        if coder.decoder is not None:
            self._preface += whole_records(topic, "decoder", *coder.decoder)
            self._preface += whole_records(topic, "scaling", model.digest[:12], model.scaling.to_bytes())

    def refuses(self, model: Model) -> str:
        """Why the stream's blocks can't be written with this model as the rules ask; "" where they can."""
        if self._outputs.blocks is None or model.is_blank:
            return ""
        return BlockCoder(self.contract, model, self._rules).refused

    def mark(self, partition: int, next_offset: int) -> tuple[int, int]:
        """(mark, stream time as of it), at most `max_replay` records behind once `changed` is safe."""
        floor = self._floor(partition)
        mark = self.stream.mark(partition, next_offset, floor)
        opened = None if self._joiner is None else self._joiner.mark(partition, next_offset, floor)
        return mark if opened is None else min(mark, opened)

    def _floor(self, partition: int) -> int:
        """Devices whose rows lie before this offset are put aside; -1 in a replay: the state is not whole."""
        rows = self.stream.rows
        return -1 if rows.is_replaying(partition) else rows.position(partition) - self._max_replay

    def changed(self, partition: int) -> dict[Name, State | None]:
        """Entries that changed since `settled`, as of the last record taken; None at rest."""
        rows = self.stream.rows
        resting: dict[Name, State | None] = dict.fromkeys(self._resting.get(partition, ()))
        return resting | {
            Name(self.name, rows.names[slot], rows.is_late(slot)): self.stream.state(slot)
            for slot in self.stream.changed() if rows.partition[slot] == partition
        } | {
            Name(self.name, device, kind="aside"): state for device, state in self._put_aside(partition).items()
        } | {
            Name(self.name, device, kind="silence"): state
            for device, state in (self.stream.silences.changed(partition) if self.stream.silences else {}).items()
        }

    def _put_aside(self, partition: int) -> dict[str, State | None]:
        """Devices to put aside, or anew where a part of them came to its end since; None where no longer needed.

        None is put aside before it must: one that entered behind a mark would be counted too early in its replay.
        """
        rows, joiner = self.stream.rows, self._joiner
        tried = self._proposed.get(partition, {})       # of commits whose answer never came
        told: dict[str, State | None] = {}
        self._proposed[partition] = told
        floor = self._floor(partition)
        if floor < 0:
            return {}
        due = dict.fromkeys(rows.behind(partition, floor) + (joiner.behind(partition, floor) if joiner else []))
        leaning = set(rows.leaning(partition) + (joiner.leaning(partition) if joiner else []))
        rest: dict[str, State | None] = dict.fromkeys(tried)
        for device, known in self._aside[partition].items():
            opens_at = -1 if joiner is None else joiner.aside_at(partition, device)
            if device not in leaning:
                rest[device] = None
            elif device in tried or known != _Aside(
                known.offset, rows.aside_at(partition, device) == known.offset, opens_at == known.offset
            ):
                due[device] = None
        states: dict[str, State] = {}
        for device in due:
            states[device] = {
                "offset": rows.position(partition), "stream_time": rows.stream_time[partition],
                "rows": rows.state(partition, device),
                "opens": None if joiner is None else joiner.state(partition, device),
            }
        told.update(rest | states)
        return told

    def settled(self) -> None:
        """What `changed` told is safe."""
        self.stream.settled()
        if self.stream.silences is not None:
            self.stream.silences.settled()
        self._resting.clear()
        for partition, told in self._proposed.items():
            for device, state in told.items():
                offset, time = (-1, -1) if state is None else (state["offset"], state["stream_time"])
                self.stream.rows.put_aside(partition, device, offset, time)
                if self._joiner is not None:
                    self._joiner.put_aside(partition, device, offset, time)
                self._aside[partition].pop(device, None)
                if state is not None:
                    self._aside[partition][device] = _Aside.of(state)
        self._proposed.clear()

    def _settle(self) -> None:
        """Free the slots of silent devices; that their verdicts came to rest is kept until a commit has told it."""
        rows = self.stream.rows
        for slot in self.stream.changed():
            if rows.partition[slot] >= 0 and not rows.live[slot]:
                name = Name(self.name, rows.names[slot], rows.is_late(slot))
                self._resting.setdefault(int(rows.partition[slot]), set()).add(name)
        self.stream.settle()

    # ---------------------------------------------------------------- one batch

    def take(self, batch: Sequence[Part]) -> list[Record]:
        """Everything that these records trigger, as records to write."""
        outputs, self._preface = self._preface, []
        result, dead_letters = self.compute(batch)
        outputs += dead_letters
        self._take_result(result, outputs)
        return outputs

    @property
    def silence_s(self) -> float:
        """How long a device says nothing before it is silent, in seconds."""
        return self.contract.silence_ms / 1000

    def provisional(self, partition: int, trigger: int) -> list[Record]:
        """Open blocks and episodes of a partition that nothing comes to, `final: false`; the log's own supersede them.

        trigger : offset of the next record. What was told before and did not grow is left out; no state changes.
        """
        result = self.stream.still_open(partition, trigger)
        before = self._told.get(partition, {})
        now = {("block", block.slot, block.offset): len(block.ts_ms) for block in result.blocks}
        now |= {("closed", alarm.event.slot, alarm.event.start_offset): alarm.event.end_ts for alarm in result.alarms}
        self._told[partition] = now
        new = {key for key, size in now.items() if before.get(key) != size}
        blocks = [block for block in result.blocks if ("block", block.slot, block.offset) in new]
        outputs, self._preface = self._preface, []
        if self._outputs.blocks is not None and blocks:
            outputs += self._blocks(blocks, final=False)
        if self._outputs.features is not None:
            outputs += [self._feature(block, final=False) for block in blocks if block.latent is not None]
        if self._outputs.anomalies is not None:
            outputs += [
                self._anomaly(alarm, final=False) for alarm in result.alarms
                if ("closed", alarm.event.slot, alarm.event.start_offset) in new
            ]
        return outputs

    def compute(self, batch: Sequence[Part]) -> tuple[Result, list[Record]]:
        """What these records cause, and the dead letters among them."""
        self._settle()
        unknown = self._decoder.unknown.total()
        dead_letters: list[Record] = []
        columns: list[Columns] = []
        clocks: list[Clock] = []
        for part in batch:
            partition = part.tp.partition
            clocks.append(Clock(partition, part.records.offset, part.stream_time))
            self.counts["records"] += len(part.records)
            self.counts["record_bytes"] += part.records.value_bytes
            # Whatever a record holds that kills, nobody looks at it again.
            readable = part.records.without(_crashed(part)) if part.crashed else part.records
            readings, rejects = self._decoder.decode_records(readable)
            dead_letters += self._dead_letters(part, rejects)
            device, ts_ms, kept = readings.device, readings.ts_ms, readings.kept
            channel = readings.channel if isinstance(readings, LongReadings) else None
            numbers: Float = readings.value if isinstance(readings, LongReadings) else readings.values
            index = None if isinstance(readings, LongReadings) else readings.index
            if not self._match.takes_all:
                own = np.flatnonzero(self._owned(device))
                self.counts["unmatched"] += len(kept) - len(own)
                device = take_names(device, own)
                ts_ms, kept, numbers = ts_ms[own], kept[own], numbers[own]
                channel = None if channel is None else channel[own]
                index = None if index is None else index[own]
            if not len(kept) and self._joiner is None:
                continue
            offset, time = part.records.offset[kept], part.stream_time[kept]
            name = offset if index is None else offset << INDEX_BITS | index
            if self._joiner is None:
                slots = self.stream.slots(partition, device)
                columns.append(Columns(slots, ts_ms, name, offset, time, offset, time, numbers))
                continue
            joined = self._joiner.push(device, ts_ms, channel, numbers, name, offset, time, clocks[-1])
            columns.append(Columns(
                self.stream.slots(partition, joined.device), joined.ts_ms, joined.name, joined.pin, joined.pin_time,
                joined.trigger, joined.stream_time, joined.values,
            ))
        self.counts["unknown_fields"] += self._decoder.unknown.total() - unknown
        if self.stream.rows.strays:
            self._note_strays()
        return self.stream.push(_join(columns, len(self.contract.channels)), clocks), dead_letters

    def _note_strays(self) -> None:
        """A device in two partitions has a wrong key in one: told once a device, as long as memory bears it."""
        for device, one, other in self.stream.rows.strays:
            if device not in self._strayed and len(self._strayed) < MOST_TOLD:
                self._strayed.add(device)
                self.wrong_keys.append((device, one, other))
        self.stream.rows.strays.clear()

    def _owned(self, devices: Sequence[str]) -> np.ndarray:
        """Which of these names are of this stream. (n,) bool."""
        if not isinstance(devices, Names):
            return np.array([self._match.takes(name) for name in devices], bool)
        used, which = devices.used()
        return np.array([self._match.takes(name) for name in used], bool)[which]

    def _take_result(self, result: Result, outputs: list[Record]) -> None:
        for scored in result.scored:
            self.counts["muted"] += int((scored.verdict.is_muted & (scored.score > scored.threshold)).sum())
            if self._outputs.scores is not None:
                outputs += self._scores(scored, np.flatnonzero(~np.isnan(scored.score) | (scored.digest == BLANK)))
        self.counts["scored"] += result.scored_rows
        self.counts.update(result.unscored)
        self.counts["late"] += result.late
        self.counts["duplicates"] += result.duplicates
        self.counts["evicted"] += result.evicted
        for alarm in result.alarms:
            self.counts[alarm.event.kind] += 1
            if self._outputs.anomalies is not None:
                outputs.append(self._anomaly(alarm))
        if self._outputs.blocks is not None and result.blocks:
            outputs += self._blocks(result.blocks)
        if self._outputs.features is not None:
            outputs += [self._feature(block) for block in result.blocks if block.latent is not None]

    # ---------------------------------------------------------------- results to records

    def _id(self, partition: int, kind: Kind, lane: Lane, name: int) -> str:
        """Id of an output that a row of this name stands for."""
        offset, index = self.unname(name)
        return output_id(self.topic, partition, kind, lane, offset, index)

    def unname(self, name: Any) -> tuple[Any, Any]:
        """Offset of the record that a row came in, and its place among that record's rows; of one name or an array."""
        return name >> self._bits, name & ((1 << self._bits) - 1)

    def _place(self, slot: int) -> tuple[int, str, Any]:
        rows = self.stream.rows
        return int(rows.partition[slot]), rows.names[slot], LANES[rows.is_late(slot)]

    def _scores(self, scored: Scored, index: np.ndarray) -> list[Record]:
        topic = self._outputs.scores
        if topic is None:
            return []
        verdict = scored.verdict
        records = []
        offsets, places = self.unname(scored.offset[index])
        for slot, offset, place, ts, score, is_anomaly, is_change, is_muted, episode in zip(
            scored.slot[index].tolist(), offsets.tolist(), places.tolist(), scored.ts_ms[index].tolist(),
            scored.score[index].tolist(), verdict.is_anomaly[index].tolist(), verdict.is_change[index].tolist(),
            verdict.is_muted[index].tolist(), verdict.episode_offset[index].tolist(), strict=True,
        ):
            partition, device, lane = self._place(slot)
            is_scored = score == score
            records.append(score_record(topic, partition, Score(
                id=output_id(self.topic, partition, "score", lane, offset, place), stream=self.name, device=device,
                lane=lane, offset=offset, index=place or msgspec.UNSET, ts=ts, score=score if is_scored else None,
                reason=msgspec.UNSET if is_scored else "no_model", threshold=scored.threshold, is_anomaly=is_anomaly,
                is_change=is_change, is_muted=is_muted or msgspec.UNSET, digest=scored.digest,
                episode_id=self._id(partition, "episode", lane, episode) if episode >= 0 else None,
            )))
        return records

    def _anomaly(self, alarm: Alarm, final: bool = True) -> Record:
        event, lane = alarm.event, LANES[alarm.late]
        episode: Kind
        told: Kind
        episode, told = ("episode", event.kind) if event.slot != NO_SLOT else ("silence", _OF_SILENCE[event.kind])
        explained: dict[str, Any] = {}
        if alarm.contributions is not None and alarm.directions is not None:
            explained = {
                "contributions": dict(zip(self._names, alarm.contributions.tolist(), strict=True)),
                "directions": {
                    name: "above" if way > 0 else "below"
                    for name, way in zip(self._names, alarm.directions.tolist(), strict=True) if way
                },
                "observed": _known(self._names, alarm.observed), "expected": _known(self._names, alarm.expected),
                "margin": _known(self._names, alarm.margin),
            }
        # Opened and closed once an episode, updated at most once a row: unique without the device's name.
        at = alarm.name if event.kind == "updated" else event.start_offset
        return anomaly_record(self._outputs.anomalies or "", alarm.partition, Anomaly(
            id=self._id(alarm.partition, told, lane, at),
            episode_id=self._id(alarm.partition, episode, lane, event.start_offset),
            stream=self.name, device=alarm.device, lane=lane, state=event.kind, window_start=event.start_ts,
            window_end=event.end_ts, score=event.score, peak=event.peak, threshold=alarm.threshold,
            severity=event.severity, kind=alarm.kind, digest=alarm.digest, trigger=event.trigger, final=final,
            index=(alarm.name >= 0 and self.unname(alarm.name)[1]) or msgspec.UNSET, **explained,
        ))

    def _blocks(self, blocks: list[Block], final: bool = True) -> list[Record]:
        topic = self._outputs.blocks or ""
        records = []
        by_digest: dict[str, list[Block]] = {}
        for block in blocks:
            by_digest.setdefault(block.digest, []).append(block)
        for digest, group in by_digest.items():
            names = [self.stream.rows.names[block.slot] for block in group]
            for block, coded in zip(group, self._coders[digest].encode(group, names), strict=True):
                records.append(self._block(topic, block, coded, final))
                if final:
                    self.counts["block_rows"] += len(block.ts_ms)
                    self.classes["normal"].append(coded.normal)
                    self.classes["episode"].append(coded.episode)
        return records

    def _block(self, topic: str, block: Block, coded: Coded, final: bool) -> Record:
        partition, device, lane = self._place(block.slot)
        phase = int(self.stream.rows.phase[block.slot])
        shares = (coded.normal.largest, coded.normal.mean, coded.episode.largest, coded.episode.mean)
        thousandths = tuple(math.ceil(1000 * share) for share in shares)
        return block_record(topic, partition, BlockLabel(
            version=1, id=self._id(partition, "block", lane, block.offset), stream=self.name,
            device=device, lane=lane, span=(int(block.ts_ms[0]) + phase) // self.contract.span_ms,
            first_ts=int(block.ts_ms[0]), last_ts=int(block.ts_ms[-1]), rows=len(block.ts_ms),
            digest=block.digest, trigger=block.trigger, final=final, evicted=block.evicted,
            contract=self.contract.hash[:12], fine=coded.fine, fine_rows=coded.episode.rows, latent=coded.latent,
            errors=thousandths,
        ), coded.frame, put_summary(summarise(block.values)) if self._rules.summaries else None)

    def _feature(self, block: Block, final: bool = True) -> Record:
        partition, device, lane = self._place(block.slot)
        latent = [] if block.latent is None else block.latent.tolist()
        return feature_record(self._outputs.features or "", partition, Feature(
            id=self._id(partition, "features", lane, block.offset), stream=self.name, device=device,
            lane=lane, start=int(block.ts_ms[0]), end=block.latent_ts_ms, latent=latent, space=block.digest[:12],
            digest=block.digest, trigger=block.trigger, final=final,
        ))

    def _is_ours(self, key: bytes | None, value: bytes | None) -> bool:
        """Whether a record that can't be read is this stream's to report: one dead letter a record, by one stream."""
        if self._match.takes_all:
            return True
        device = self._decoder.device_of(value, key)
        return self._takes_nameless if device is None else self._match.takes(device)

    def _dead_letters(self, part: Part, rejects: Rejects) -> list[Record]:
        records = []
        for place, reason in zip(rejects.index.tolist(), rejects.reason.tolist(), strict=True):
            offset = int(part.records.offset[place])
            key, value, crashed = part.records.key_at(place), part.records.value_at(place), offset in part.crashed
            ours = self._takes_nameless if crashed else self._is_ours(key, value)
            if offset < part.emit_from or not ours:
                continue
            code = (Reason.CRASHED if crashed else Reason(reason)).code
            self.reasons[code] += 1
            records.append(dead_letter_record(self._outputs.dead_letters, DeadLetter(
                id=output_id(self.topic, part.tp.partition, "dead-letter", "main", offset), stream=self.name,
                reason=code, topic=self.topic, partition=part.tp.partition, offset=offset,
                timestamp=int(part.records.timestamp[place]), key_bytes=len(key or b""), value_bytes=len(value or b""),
            ), key, value))
        return records


def _crashed(part: Part) -> np.ndarray:
    """Places of records that killed whoever read them."""
    return np.flatnonzero(np.isin(part.records.offset, list(part.crashed)))


def _known(names: list[str], values: np.ndarray | None) -> dict[str, float | None]:
    """By name, None where missing."""
    if values is None:
        return {}
    return {name: None if value != value else value for name, value in zip(names, values.tolist(), strict=True)}


def _join(columns: list[Columns], channels: int) -> Columns:
    """One batch of all partitions; empty where no row came: time passes all the same."""
    if not columns:
        none = np.empty(0, np.int64)
        return Columns(none, none, none, none, none, none, none, np.empty((0, channels), np.float32))
    if len(columns) == 1:
        return columns[0]
    return Columns(*(np.concatenate([getattr(one, name) for one in columns]) for name in Columns.__slots__))
