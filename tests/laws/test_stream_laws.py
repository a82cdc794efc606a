"""What a stream causes depends on the log alone: not on batches, restarts, other partitions or swaps in between."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.contract import Contract
from pipeline.core.rows import MAX_DEVICES, Clock, Columns
from pipeline.scoring.stream import Block, Model, Result, Stream
from tests.support.logs import make_log
from tests.support.models import small_contract, small_model
from tests.support.oracle import Expected, Record, expected

CONTRACT = small_contract()
MODEL = small_model(CONTRACT, threshold=0.7)


class Play:
    """Feeds logs of partitions to a `Stream` and collects what it causes."""

    def __init__(
        self, contract: Contract, logs: list[list[Record]], room: int = 16, max_devices: int = MAX_DEVICES
    ) -> None:
        self.contract, self.logs, self.room, self.max_devices = contract, logs, room, max_devices
        self.found = [Expected() for _ in logs]
        self.conflicts = self.restored = 0

    def start(self, model: Model, at: list[tuple[int, int, int, dict, dict]], anew: bool = True) -> None:
        """Begin every partition; `anew` False: by the same worker, after a rebalance."""
        if anew:
            self.stream = Stream(self.contract, capacity=2, room=self.room, max_devices=self.max_devices)
        self.now = []
        for partition, (_, next_offset, time, states, aside) in enumerate(at):
            self.stream.assign(partition, model, next_offset, time, states, aside)
            self.now.append(time)
            self.restored += len(aside)

    def batch(self, parts: list[tuple[int, list[Record]]]) -> None:
        columns, clocks = [], []
        self.stream.settle()
        for partition, records in parts:
            if not records:
                continue
            offset = np.array([r.offset for r in records])
            time = np.maximum.accumulate(np.maximum([r.time for r in records], self.now[partition]))
            self.now[partition] = int(time[-1])
            clocks.append(Clock(partition, offset, time))
            keep = [i for i, r in enumerate(records) if r.values is not None]
            if keep:
                rows = [records[i] for i in keep]
                device = self.stream.slots(partition, [r.device for r in rows])
                columns.append(Columns(
                    device, np.array([r.ts for r in rows]), offset[keep], offset[keep], time[keep], offset[keep],
                    time[keep],
                    np.array([r.values for r in rows], np.float32),
                ))
        if not columns:
            none = np.empty(0, np.int64)
            empty = np.empty((0, len(self.contract.channels)), np.float32)
            columns = [Columns(none, none, none, none, none, none, none, empty)]
        joined = Columns(*(np.concatenate([getattr(c, name) for c in columns]) for name in Columns.__slots__))
        self.collect(self.stream.push(joined, clocks))

    def put(self, into: dict, key: object, value: object) -> None:
        if key in into and into[key] != value:
            self.conflicts += 1
        into[key] = value

    def collect(self, result: Result) -> None:
        rows = self.stream.rows
        for scored in result.scored:
            for i in np.flatnonzero(~np.isnan(scored.score)).tolist():
                slot = scored.slot[i]
                self.put(self.found[rows.partition[slot]].scores, int(scored.offset[i]), (
                    rows.names[slot], rows.is_late(slot), int(scored.ts_ms[i]), scored.score[i].tobytes(),
                    bool(scored.verdict.is_anomaly[i]), int(scored.verdict.episode_offset[i]),
                ))
        for block in result.blocks:
            late = rows.is_late(block.slot)
            self.put(self.found[rows.partition[block.slot]].blocks, (late, block.offset), (
                rows.names[block.slot], block.trigger, ended_by(block), tuple(block.ts_ms.tolist()),
                block.values.tobytes(), None if block.latent is None else block.latent.tobytes(),
                tuple(block.in_episode.tolist()),
            ))
        for alarm in result.alarms:
            event = alarm.event
            self.put(self.found[rows.partition[event.slot]].alarms, (
                event.trigger, rows.names[event.slot], rows.is_late(event.slot), event.kind
            ), (event.start_offset, event.start_ts, event.end_ts, event.peak, event.peak_offset, event.severity))

    def aside(self, partition: int, floor: int, before: dict) -> dict:
        """Put aside what lies behind `floor`; what was before stays while its device needs it."""
        rows = self.stream.rows
        leaning = set(rows.leaning(partition))
        stay = {name: state for name, state in before.items() if name in leaning}
        for name in rows.behind(partition, floor):
            offset, time = rows.position(partition), rows.stream_time[partition]
            state = json.loads(json.dumps(rows.state(partition, name)))
            stay[name] = {"rows": state, "offset": offset, "stream_time": time}
            rows.put_aside(partition, name, offset, time)
        return stay

    def states(self, partition: int) -> dict:
        rows = self.stream.rows
        found = {}
        for slot in np.flatnonzero(rows.partition == partition).tolist():
            state = self.stream.state(slot)
            if state is not None:
                found[rows.names[slot], rows.is_late(slot)] = json.loads(json.dumps(state))
        return found


def ended_by(block: Block) -> str:
    return "eviction" if block.evicted else "silence" if block.silent else "row"


def run(
    contract: Contract, logs: list[list[Record]], model: Model, seed: int, restarts: float, largest: int,
    max_devices: int = MAX_DEVICES, max_replay: int = 1 << 30,
) -> Play:
    """Random batches, and after some of them a new beginning from the mark, by another worker or the same one."""
    rng = np.random.default_rng(seed)
    play = Play(contract, logs, max_devices=max_devices)
    committed: list[tuple[int, int, int, dict, dict]] = [(log[0].offset, log[0].offset, -1, {}, {}) for log in logs]
    anew = True
    while True:
        play.start(model, committed, anew)
        at = [next((i for i, r in enumerate(log) if r.offset >= mark[0]), len(log))
              for log, mark in zip(logs, committed, strict=True)]
        again = ahead = False
        while any(i < len(log) for i, log in zip(at, logs, strict=True)):
            parts = []
            for partition, log in enumerate(logs):
                n = int(rng.integers(0, largest))
                parts.append((partition, log[at[partition] : at[partition] + n]))
                at[partition] = min(len(log), at[partition] + n)
            play.batch(parts)
            if rng.random() < 0.5:
                for partition, log in enumerate(logs):
                    position = log[at[partition] - 1].offset + 1 if at[partition] else log[0].offset
                    if position >= committed[partition][1]:
                        floor, aside = position - max_replay, committed[partition][4]
                        if not play.stream.rows.is_replaying(partition):
                            aside = play.aside(partition, floor, aside)
                        mark, time = play.stream.mark(partition, position)
                        assert mark >= min(floor, position)
                        ahead |= position > committed[partition][1]
                        committed[partition] = (mark, position, time, play.states(partition), aside)
            if ahead and rng.random() < restarts:
                again = True
                break
        if not again:
            return play
        anew = bool(rng.random() < 0.5)


def check(play: Play, wanted: list[Expected]) -> None:
    assert play.conflicts == 0
    for found, want in zip(play.found, wanted, strict=True):
        assert min(len(want.scores), 10 * len(want.blocks), 20 * len(want.alarms)) >= 40
        assert found.scores == want.scores
        assert found.blocks == want.blocks
        assert found.alarms == want.alarms


@pytest.mark.parametrize("seed", range(4))
def test_outputs_equal_the_oracle_in_one_batch(seed: int) -> None:
    log = make_log(seed)
    play = run(CONTRACT, [log], MODEL, seed, 0.0, len(log) + 1)
    check(play, [expected(log, CONTRACT, MODEL)])


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), largest=st.sampled_from([2, 7, 40, 300]))
def test_outputs_do_not_depend_on_batches_or_restarts(seed: int, largest: int) -> None:
    logs = [make_log(seed, 500), make_log(seed + 1, 400)]
    play = run(CONTRACT, logs, MODEL, seed, 0.02 if largest < 10 else 0.15, largest)
    check(play, [expected(log, CONTRACT, MODEL) for log in logs])


@pytest.mark.parametrize("seed", range(2))
def test_outputs_at_a_hop_equal_the_oracle_over_restarts(seed: int) -> None:
    contract = small_contract(hop=4)
    model = small_model(contract, threshold=0.6)
    log = make_log(seed)
    check(run(contract, [log], model, seed, 0.1, 60), [expected(log, contract, model)])


def test_several_members_equal_the_oracle() -> None:
    model = small_model(CONTRACT, members=3, threshold=0.7)
    log = make_log(11)
    check(run(CONTRACT, [log], model, 3, 0.05, 100), [expected(log, CONTRACT, model)])


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), largest=st.sampled_from([7, 40, 300]), most=st.integers(1, 8))
def test_evictions_do_not_depend_on_batches_or_restarts(seed: int, largest: int, most: int) -> None:
    logs = [make_log(seed, 500), make_log(seed + 1, 400)]
    wanted = [expected(log, CONTRACT, MODEL, most) for log in logs]
    assert all(want.evicted > 0 for want in wanted)
    play = run(CONTRACT, logs, MODEL, seed, 0.02 if largest < 10 else 0.15, largest, most)
    for found, want in zip(play.found, wanted, strict=True):
        assert (play.conflicts, found.scores, found.blocks, found.alarms) == (0, want.scores, want.blocks, want.alarms)


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 10_000), largest=st.sampled_from([7, 40, 300]), hop=st.sampled_from([1, 4]),
    most=st.sampled_from([7, MAX_DEVICES]), max_replay=st.sampled_from([1, 50, 200]),
)
def test_outputs_do_not_depend_on_how_far_the_mark_trails(
    seed: int, largest: int, hop: int, most: int, max_replay: int
) -> None:
    contract = small_contract(hop=hop)
    model = small_model(contract, threshold=0.7)
    logs = [make_log(seed, 500), make_log(seed + 1, 400)]
    wanted = [expected(log, contract, model, most) for log in logs]
    play = run(contract, logs, model, seed, 0.02 if largest < 10 else 0.15, largest, most, max_replay)
    for found, want in zip(play.found, wanted, strict=True):
        assert (play.conflicts, found.scores, found.blocks, found.alarms) == (0, want.scores, want.blocks, want.alarms)


def test_a_slow_device_beside_fast_ones_is_restored_from_what_was_put_aside() -> None:
    log = make_log(3, 1200)
    play = run(CONTRACT, [log], MODEL, 3, 0.2, 100, MAX_DEVICES, 50)
    assert play.restored > 10
    check(play, [expected(log, CONTRACT, MODEL)])


def test_slots_and_names_do_not_outnumber_the_devices_of_one_batch_beyond_those_kept() -> None:
    stream = Stream(CONTRACT, capacity=2, room=16, max_devices=10)
    stream.assign(0, MODEL, 0, -1)
    evicted = 0
    for turn in range(100):
        stream.settle()
        offset, time = np.arange(20) + 20 * turn, np.full(20, 1000 * turn)
        device = stream.slots(0, [f"d{at}" for at in offset.tolist()])
        values = np.zeros((20, len(CONTRACT.channels)), np.float32)
        rows = Columns(device, time, offset, offset, time, offset, time, values)
        evicted += stream.push(rows, [Clock(0, offset, time)]).evicted
    assert evicted == 100 * 20 - 10
    assert len(stream.rows.names) <= 10 + 20
    assert stream.rows.devices <= 10 + 20


YEARS = {"1970": 0, "2099": 4_070_908_800_000}


@pytest.mark.parametrize("year", YEARS)
def test_clocks_at_the_ends_of_time_change_nothing(year: str) -> None:
    """The first milliseconds of 1970, and 2099: rows' times and records' timestamps alike, over restarts."""
    log = [
        replace(record, time=record.time - 999_000 + YEARS[year], ts=max(0, record.ts - 999_000) + YEARS[year])
        for record in make_log(5, 700)
    ]
    play = run(CONTRACT, [log], MODEL, 5, 0.1, 60, MAX_DEVICES, 100)
    check(play, [expected(log, CONTRACT, MODEL)])


def test_one_clock_far_in_the_future_harms_no_other_device() -> None:
    """A device whose rows are dated 60 years ahead is scored by itself; the others' rows are as without it."""
    log = make_log(6, 700)
    ahead = [replace(r, ts=r.ts + 1_900_000_000_000) if r.device == "d8" else r for r in log]
    play = run(CONTRACT, [ahead], MODEL, 6, 0.1, 60, MAX_DEVICES, 100)
    found, want = play.found[0], expected(log, CONTRACT, MODEL)
    check(play, [expected(ahead, CONTRACT, MODEL)])
    assert {at: score for at, score in found.scores.items() if score[0] != "d8"} == {
        at: score for at, score in want.scores.items() if score[0] != "d8"
    }


def test_one_row_in_ten_minutes_beside_fast_ones_is_scored_with_a_mark_that_trails_little() -> None:
    """A contract for the slow ones; 150 rows of the fast device come between two of the slow one."""
    contract = small_contract(max_gap_ms=1_200_000, allowance_ms=600_000, span_ms=3_600_000)
    model, rng = small_model(contract, threshold=0.7), np.random.default_rng(4)
    log = []
    for second in range(0, 6_000, 4):
        names = ["fast", "slow"] if second % 600 == 0 else ["fast"]
        for name in names:
            values = rng.normal(0, 1, 3).astype("f")
            log.append(Record(len(log), 1000 * second, name, 1000 * second, values))
    play = run(contract, [log], model, 4, 0.3, 100, MAX_DEVICES, 100)
    want = expected(log, contract, model)
    assert play.restored > 5
    assert sum(score[0] == "slow" and not np.isnan(np.frombuffer(score[3], "f")[0]) for score in want.scores.values())
    found = play.found[0]
    assert (play.conflicts, found.scores, found.blocks, found.alarms) == (0, want.scores, want.blocks, want.alarms)
