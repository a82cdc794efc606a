"""What a stream must cause, computed record by record in plain Python from the log alone.

Written from the rules, not from the code: it shares only the float functions (session, scaling, scorer) and the
verdicts' state machine, each called with one row at a time.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from pipeline.core import guards
from pipeline.core.contract import Contract
from pipeline.core.episode import Verdicts
from pipeline.core.ids import device_phase
from pipeline.core.score import residual
from pipeline.core.windows import fill
from pipeline.scoring.stream import Model


@dataclass
class Record:
    """One wide reading of one partition; `values` None for a record that is rejected, for `reason`."""

    offset: int
    time: int
    device: str
    ts: int
    values: np.ndarray | None
    raw: bytes | None = b"{not json"
    reason: str = "bad_json"


@dataclass
class Lane:
    newest: int = -1
    rows: list[Record] = field(default_factory=list)    # of the run, at most `memory`
    run: int = 0
    span: int | None = None
    in_span: int = 0
    block: list[Record] = field(default_factory=list)
    moods: list[str] = field(default_factory=list)      # of the block's rows: calm, over, on; "" unscored
    seen: list[Record] = field(default_factory=list)    # the last window that the model saw whole


@dataclass
class Device:
    life: int
    main: Lane = field(default_factory=Lane)
    late: Lane | None = None


@dataclass
class Expected:
    """scores: offset -> (device, late, ts, score bits, is_anomaly, episode offset); blocks: first offset -> ...;
    alarms: (trigger, device, late, kind) -> ...; open: blocks that nothing has closed"""

    scores: dict[int, tuple[object, ...]] = field(default_factory=dict)
    blocks: dict[tuple[bool, int], tuple[object, ...]] = field(default_factory=dict)
    alarms: dict[tuple[object, ...], tuple[object, ...]] = field(default_factory=dict)
    duplicates: int = 0
    open: dict[tuple[bool, int], tuple[object, ...]] = field(default_factory=dict)   # first offset -> (ts, values)
    evicted: int = 0


def expected(
    records: list[Record], contract: Contract, model: Model | Callable[[int], Model], max_devices: int = 1 << 30
) -> Expected:
    """All outputs of one partition; `model` is one for all, or says which one scores at an offset."""
    out = Expected()
    model_at = model if callable(model) else lambda offset: model
    devices: OrderedDict[str, Device] = OrderedDict()    # by last sign of life
    now = -1
    verdicts = Verdicts(contract.episode, 100_000)
    slots: dict[tuple[str, bool], int] = {}

    def slot(name: str, late: bool) -> int:
        return slots.setdefault((name, late), len(slots))

    def alarm(events: list, name: str, late: bool) -> None:
        for event in events:
            out.alarms[event.trigger, name, late, event.kind] = (
                event.start_offset, event.start_ts, event.end_ts, event.peak, event.peak_offset, event.severity
            )

    def close(name: str, late: bool, lane: Lane, trigger: int, by: str, closing: list[str] | None = None) -> None:
        if lane.block:
            first = lane.block[0].offset
            gist = None
            if lane.seen and lane.seen[-1].offset >= first:
                gist = latent_of(lane.seen, contract, model_at(trigger), name)
            out.blocks[late, first] = (
                name, trigger, by, tuple(r.ts for r in lane.block),
                b"".join(r.values.tobytes() for r in lane.block), gist, in_episode(lane.moods, closing or []),
            )
            lane.block, lane.moods = [], []

    def forget(name: str, trigger: int, by: str) -> None:
        device = devices.pop(name)
        for late, lane in ((False, device.main), (True, device.late)):
            if lane is not None:
                close(name, late, lane, trigger, by)
                alarm(verdicts.close(slot(name, late), trigger), name, late)

    for record in records:
        now = max(now, record.time)
        while devices:
            name, device = next(iter(devices.items()))
            if now - device.life <= contract.silence_ms:
                break
            forget(name, record.offset, "silence")
        if record.values is None:
            continue
        if record.device not in devices and len(devices) == max_devices:
            forget(next(iter(devices)), record.offset, "eviction")
            out.evicted += 1
        device = devices.get(record.device) or Device(now)
        device.life = now
        devices[record.device] = device
        devices.move_to_end(record.device)
        late = record.ts <= device.main.newest
        if late:
            again = [r for r in device.main.rows if r.ts == record.ts]
            if again and again[0].values.tobytes() == record.values.tobytes():
                out.duplicates += 1
                continue
            device.late = device.late or Lane()
            last = device.late.rows[-1:]
            if last and last[0].ts == record.ts and last[0].values.tobytes() == record.values.tobytes():
                out.duplicates += 1
                continue
        lane = device.late if late else device.main
        ended: tuple[Lane, int] | None = None           # the block before, until this row's verdict is known
        restart = late and lane.newest >= 0 and record.ts <= lane.newest
        if restart or lane.newest < 0 or record.ts - lane.newest > contract.max_gap_ms:
            lane.run, lane.rows = 0, []
        previous, lane.newest = lane.newest, record.ts
        lane.run += 1
        lane.rows = [*lane.rows, record][-contract.memory:]

        phase = device_phase(record.device, contract.span_ms)
        span = (record.ts + phase) // contract.span_ms
        if restart or span != lane.span or not lane.in_span:
            ended = replace(lane), record.offset
            lane.block, lane.moods = [], []
            lane.span, lane.in_span = span, 0
        elif lane.in_span % contract.max_rows == 0:
            ended = replace(lane), record.offset
            lane.block, lane.moods = [], []
        lane.in_span += 1
        lane.block.append(record)

        stretch = contract.hop * contract.step_ms
        due = lane.run >= contract.window and (
            contract.hop == 1 or (record.ts + phase) // stretch != (previous + phase) // stretch
        )
        score = judged = np.float32(np.nan)
        if due:
            score, judged = score_row(lane, contract, model_at(record.offset), record.device)
            lane.seen = lane.rows[-contract.window:]
        at = slot(record.device, late)
        verdict = verdicts.push(
            np.array([at]), np.array([record.offset]), np.array([record.ts]), np.array([judged], np.float32),
            model_at(record.offset).scorer.threshold,
        )
        alarm(verdict.events, record.device, late)
        over = judged > model_at(record.offset).scorer.threshold
        mood = "" if np.isnan(judged) else "on" if verdict.is_anomaly[0] else "over" if over else "calm"
        lane.moods.append(mood)
        if ended is not None:
            close(record.device, late, *ended, "row", [mood])
        if due:
            out.scores[record.offset] = (
                record.device, late, record.ts, np.float32(score).tobytes(), bool(verdict.is_anomaly[0]),
                int(verdict.episode_offset[0]),
            )
    for device in devices.values():
        for late, lane in ((False, device.main), (True, device.late)):
            if lane is not None and lane.block:
                out.open[late, lane.block[0].offset] = (
                    tuple(r.ts for r in lane.block), b"".join(r.values.tobytes() for r in lane.block),
                )
    return out


def in_episode(moods: list[str], closing: list[str]) -> tuple[bool, ...]:
    """Rows of runs over the threshold that became an anomaly, or that were still running when the block closed."""
    whole = [*moods, *closing]
    for i, mood in enumerate(whole):
        whole[i] = mood or (whole[i - 1] if i else "calm")
    inside = [False] * len(whole)
    for i, mood in enumerate(whole):
        if mood == "on" or (mood == "over" and i == len(whole) - 1):
            inside[i] = True
    for i in reversed(range(len(whole) - 1)):
        inside[i] |= whole[i] == "over" and inside[i + 1]
    for i in range(1, len(whole)):
        inside[i] |= whole[i] == "over" and inside[i - 1]
    return tuple(inside[: len(moods)])


def latent_of(rows: list[Record], contract: Contract, model: Model, device: str) -> bytes:
    """Latent of a window."""
    scaled = model.scaling.apply(
        np.array([row.values for row in rows], np.float32), np.repeat(model.scaling.index([device]), len(rows))
    )
    return model.session.run(fill(scaled[None, :, contract.inputs])).latent[0].tobytes()


def score_row(lane: Lane, contract: Contract, model: Model, device: str) -> tuple[np.float32, np.float32]:
    """Score of a lane's newest row, from its last rows alone; and as the verdict sees it, guards beside the model."""
    values = np.array([row.values for row in lane.rows], np.float32)
    index = model.scaling.index([device])
    scaled = model.scaling.apply(values, np.repeat(index, len(values)))[:, contract.inputs]
    window, length = contract.window, contract.filter_length
    last = fill(scaled[None, -window:].copy())
    sensors = contract.sensors_in_inputs
    if contract.hop == 1:
        ends = range(max(window, len(scaled) - length + 1), len(scaled) + 1)
        windows = fill(np.array([scaled[end - window : end] for end in ends], np.float32))
        newest = model.session.run(windows).newest
        observed = np.array([scaled[end - 1] for end in ends], np.float32)[:, sensors]
        found = residual(observed, newest, model.scorer.clip)
        filled = np.zeros((1, length, found.shape[1]), np.float32)
        filled[0, length - len(found):] = found
    else:
        rebuilt = model.session.rebuild(last)
        filled = residual(scaled[-window:][:, sensors], rebuilt[0][:, None, :], model.scorer.clip)[None]
    filtered = model.scorer.filter(filled)
    score = model.scorer.score(filtered, index)
    low, high = contract.ranges
    codes = guards.check(
        scaled[None, -window:][:, :, sensors], values[-1:, contract.sensors],
        ~np.isnan(model.scaling.scale[index][:, contract.sensors]), low, high, model.scorer.limits,
    )
    return score[0], guards.fire(score, codes, model.scorer.threshold)[0]
