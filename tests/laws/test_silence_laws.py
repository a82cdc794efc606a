"""Silent devices: what is told equals an oracle that goes through the log record by record, whatever the batches."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import Stream as StreamConfig
from pipeline.core.maintenance import Window, Windows
from pipeline.core.rows import Clock, Columns
from pipeline.errors import BadInput
from pipeline.scoring.stream import NO_SLOT, Stream
from tests.support.logs import make_log
from tests.support.models import small_contract, small_model
from tests.support.oracle import Record

CONTRACT = small_contract()
MODEL = small_model(CONTRACT, threshold=0.7)


def wanted(log: list[Record], limit_ms: int, windows: Windows) -> set[tuple[object, ...]]:
    """(state, device, trigger, first and last ms, last row) of every episode of silence."""
    life: dict[str, tuple[int, int]] = {}      # stream time at the last record, its offset
    silent: set[str] = set()
    found: set[tuple[object, ...]] = set()
    now = -1
    for record in log:
        now = max(now, record.time)
        own = record.device if record.values is not None else None
        for device, (since, row) in life.items():
            if device not in silent and now > windows.until(device, since, limit_ms):
                silent.add(device)
                found.add(("opened", device, record.offset, since, now, row))
        if own is not None:
            if own in silent:
                silent.remove(own)
                found.add(("closed", own, record.offset, life[own][0], now, life[own][1]))
            life[own] = now, record.offset
    return found


def told(log: list[Record], silence_ms: int, windows: Windows, largest: int, seed: int) -> list[tuple[object, ...]]:
    rng = np.random.default_rng(seed)
    stream, found, now, at = Stream(CONTRACT, capacity=2, room=16, silence_ms=silence_ms), [], -1, 0
    stream.assign(0, MODEL, 0, -1)
    stream.heed(0, windows)
    while at < len(log):
        part = log[at : at + int(rng.integers(1, largest))]
        at += len(part)
        stream.settle()
        offset = np.array([r.offset for r in part])
        time = np.maximum.accumulate(np.maximum([r.time for r in part], now))
        now = int(time[-1])
        keep = [i for i, r in enumerate(part) if r.values is not None]
        rows = [part[i] for i in keep]
        values = np.array([r.values for r in rows], np.float32).reshape(-1, 3)
        result = stream.push(Columns(
            stream.slots(0, [r.device for r in rows]), np.array([r.ts for r in rows], np.int64), offset[keep],
            offset[keep], time[keep], offset[keep], time[keep], values,
        ), [Clock(0, offset, time)])
        found += [
            (one.event.kind, one.device, one.event.trigger, one.event.start_ts, one.event.end_ts,
             one.event.start_offset)
            for one in result.alarms if one.event.slot == NO_SLOT
        ]
    return found


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10_000), largest=st.sampled_from([2, 40, 2_000]),
    silence_ms=st.sampled_from([CONTRACT.silence_ms, 3 * CONTRACT.silence_ms]), is_quiet=st.booleans(),
)
def test_silence_equals_the_oracle_whatever_the_batches(seed, largest, silence_ms, is_quiet):
    log = make_log(seed, 600)
    start = log[0].time
    windows = Windows([
        Window(id="w", stream="s", device="d[0-4]", begin_ms=start + 60_000, end_ms=start + 150_000)
    ] if is_quiet else [])
    found = told(log, silence_ms, windows, largest, seed)
    assert len(found) == len(set(found))
    assert set(found) == wanted(log, silence_ms, windows)
    assert any(kind == "opened" for kind, *_ in found)


def test_more_silent_devices_than_a_partition_may_have_give_up_the_one_that_is_silent_for_longest():
    stream = Stream(CONTRACT, max_devices=3, silence_ms=CONTRACT.silence_ms)
    stream.assign(0, MODEL, 0, -1)
    events = []
    for offset in range(12):                 # each comes once, later than the limit after the one before
        stream.settle()
        time = np.array([20_000 * offset])
        where = np.array([offset])
        rows = Columns(stream.slots(0, [f"d{offset}"]), time, where, where, time, where, time,
                       np.zeros((1, 3), np.float32))
        events += [(one.device, one.event.kind) for one in stream.push(rows, [Clock(0, where, time)]).alarms]
    assert [device for device, kind in events if kind == "opened"] == [f"d{at}" for at in range(11)]
    assert [device for device, kind in events if kind == "closed"] == [f"d{at}" for at in range(8)]
    assert stream.open_episodes == 3
    assert len(stream.silences.changed(0)) == 11


def test_a_limit_under_the_contracts_silence_is_refused():
    with pytest.raises(BadInput, match="the least is 10"):
        StreamConfig(topic="t", contract=CONTRACT, silence_s=9.0)
    assert StreamConfig(topic="t", contract=CONTRACT, silence_s=10.0).silence_ms == 10_000
