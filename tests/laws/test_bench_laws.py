"""What the stream benchmark rests on: the rivals' windows are right, and every subject makes equally many results."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bench.peers.meter import Meter
from bench.peers.same_work import CHANNELS, WINDOW, Windows
from bench.stream_data import results_of, rows_for


@given(st.lists(st.integers(0, 3), min_size=1, max_size=400), st.lists(st.integers(1, 150), min_size=1, max_size=9))
def test_rivals_windows_are_those_of_one_device_at_a_time_however_batches_are_cut(devices: list[int], cuts: list[int]):
    values = np.arange(len(devices) * CHANNELS, dtype=np.float32).reshape(-1, CHANNELS)
    kept: dict[int, list[int]] = {}
    expected = {}
    for row, device in enumerate(devices):
        kept.setdefault(device, []).append(row)
        if len(kept[device]) == WINDOW:
            expected[row] = kept.pop(device)

    windows, found, opened, at, turn = Windows(devices=4), {}, {}, 0, 0
    while at < len(devices):
        stop = at + cuts[turn % len(cuts)]
        closed = windows.push([f"d{device}" for device in devices[at:stop]], values[at:stop])
        for last, rows in zip(closed.last.tolist(), closed.windows, strict=True):
            found[at + last] = rows
        opened |= {int(slot): at + int(row) for slot, row in zip(closed.opened_slot, closed.opened, strict=True)}
        at, turn = stop, turn + 1
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[row], values[rows]) for row, rows in expected.items())
    still_open = {windows.names.index(f"d{device}"): rows[0] for device, rows in kept.items() if rows}
    assert {slot: row for slot, row in opened.items() if windows.filled[slot]} == still_open


@given(st.integers(32, 3000), st.integers(0, 63_999), st.integers(0, 999))
def test_windows_by_count_and_steps_by_the_clock_make_equally_many_results(about: int, device_phase: int, phase: int):
    rows = rows_for(about, 1)
    step = (np.arange(rows) * 1000 + phase + device_phase) // (WINDOW * 1000)
    by_clock = np.flatnonzero(np.diff(step)) + 1
    assert np.count_nonzero(by_clock >= WINDOW - 1) == results_of(rows, 1) == rows // WINDOW


def test_a_stage_is_without_the_stages_that_it_calls(monkeypatch):
    monkeypatch.setenv("BENCH_WARM", "1")
    monkeypatch.setenv("BENCH_END", "2")
    clock = iter([0.0, 1.0, 4.0, 9.0])   # outer begins, inner begins, inner ends, outer ends
    monkeypatch.setattr("time.thread_time", lambda: next(clock))

    class Work:
        def outer(self) -> int:
            return self.inner() + 1

        def inner(self) -> int:
            return 1

    meter = Meter()
    meter.time(Work, "outer", "outer")
    meter.time(Work, "inner", "inner")
    assert Work().outer() == 2
    assert meter.stages == {"outer": 6.0, "inner": 3.0}


async def test_a_coroutine_is_timed_step_by_step_and_gives_what_it_gives(monkeypatch):
    monkeypatch.setenv("BENCH_WARM", "1")
    monkeypatch.setenv("BENCH_END", "2")
    clock = iter([0.0, 1.0, 10.0, 12.0])
    import asyncio

    class Work:
        async def wait(self) -> str:
            await asyncio.sleep(0)
            return "done"

    meter = Meter()
    meter.time_coroutine(Work, "wait", "wait")
    monkeypatch.setattr("time.thread_time", lambda: next(clock))
    assert await Work().wait() == "done"
    assert meter.stages == {"wait": 3.0}
