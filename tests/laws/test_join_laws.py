"""Joined rows depend on the log alone: not on batches, nor on where a replay began."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.join import Joined, Joiner
from pipeline.core.rows import Clock
from tests.support.models import small_contract

CONTRACT = small_contract(max_gap_ms=4_000, allowance_ms=2_000)
Reading = tuple[int, int, str, int, int, float]   # offset, stream time, device, ts, channel, value


def make_readings(seed: int, count: int = 400) -> list[Reading]:
    """Long readings of four devices: slots of 1 s, a channel left out here and there, late ones, pauses, repeats."""
    rng = np.random.default_rng(seed)
    now = [0, 0, 0, 0]
    readings, time = [], 0
    for offset in range(count):
        time += int(rng.choice([40, 200, 800, 9_000], p=[0.6, 0.3, 0.09, 0.01]))
        device = int(rng.integers(0, 4))
        now[device] = max(now[device], time // 1000) if rng.random() < 0.9 else now[device]
        late = int(rng.integers(1, 4)) if rng.random() < 0.1 else 0
        ts = max(0, now[device] - late) * 1000 + int(rng.integers(0, 1000))
        readings.append((offset, time, f"d{device}", ts, int(rng.integers(0, 3)), float(rng.integers(0, 100))))
    return readings


def push(joiner: Joiner, part: list[Reading]) -> Joined:
    offset, time = np.array([r[0] for r in part]), np.array([r[1] for r in part])
    return joiner.push(
        [r[2] for r in part], np.array([r[3] for r in part]), np.array([r[4] for r in part]),
        np.array([r[5] for r in part], np.float32), offset, offset, time, Clock(0, offset, time),
    )


def rows_of(joined: Joined) -> list[tuple[object, ...]]:
    values = [value.tobytes() for value in joined.values]
    return list(zip(
        joined.trigger.tolist(), joined.device, joined.ts_ms.tolist(), joined.name.tolist(),
        joined.stream_time.tolist(), values, strict=True,
    ))


def expected(readings: list[Reading]) -> list[tuple[object, ...]]:
    """Reading by reading, from the rules: one list of (slot, first offset, values) for each device and lane."""
    rows: list[tuple[object, ...]] = []
    opens: dict[tuple[str, bool], dict[str, object]] = {}
    life: dict[str, int] = {}

    def finish(key: tuple[str, bool], trigger: int, time: int) -> None:
        row = opens[key]
        if not row["done"] and not np.isnan(row["values"]).all():   # type: ignore[call-overload]
            rows.append((
                trigger, key[0], row["slot"] * 1000, row["offset"], time, row["values"].tobytes(),   # type: ignore[operator,attr-defined]
            ))
        row["done"] = True

    for offset, time, device, ts, channel, value in readings:
        for name in sorted(life, key=lambda name: life[name]):
            if time - life[name] > CONTRACT.silence_ms:
                for late in (False, True):
                    if (name, late) in opens:
                        finish((name, late), offset, time)
                        del opens[name, late]
                del life[name]
        life[device] = time
        slot = ts // 1000
        main = opens.get((device, False))
        key = (device, main is not None and slot < main["slot"])   # type: ignore[operator]
        if key in opens and opens[key]["slot"] != slot:
            finish(key, offset, time)
            del opens[key]
        row = opens.setdefault(key, {
            "slot": slot, "offset": offset, "values": np.full(3, np.nan, np.float32), "done": False,
        })
        if not row["done"] and np.isnan(row["values"][channel]):   # type: ignore[index]
            row["values"][channel] = value   # type: ignore[index]
            if not np.isnan(row["values"]).any():   # type: ignore[call-overload]
                finish(key, offset, time)
    return sorted(rows, key=lambda row: (row[0], row[3]))   # type: ignore[arg-type,return-value]


def test_rows_equal_those_made_reading_by_reading() -> None:
    for seed in range(5):
        readings = make_readings(seed)
        rows = rows_of(push(Joiner(CONTRACT), readings))
        assert len(rows) > 50
        assert sorted(rows, key=lambda row: (row[0], row[3])) == expected(readings)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), largest=st.integers(2, 80))
def test_rows_do_not_depend_on_batches(seed: int, largest: int) -> None:
    rng = np.random.default_rng(seed)
    readings = make_readings(seed)
    joiner, rows, at = Joiner(CONTRACT), [], 0
    while at < len(readings):
        size = int(rng.integers(1, largest))
        rows += rows_of(push(joiner, readings[at : at + size]))
        at += size
    assert sorted(rows) == sorted(rows_of(push(Joiner(CONTRACT), readings)))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), cut=st.integers(1, 399))
def test_a_replay_from_the_mark_goes_on_with_the_same_rows(seed: int, cut: int) -> None:
    readings = make_readings(seed)
    before = Joiner(CONTRACT)
    push(before, readings[:cut])
    wanted = [row for row in rows_of(push(Joiner(CONTRACT), readings)) if row[0] >= cut]   # type: ignore[operator]
    found = before.mark(0, cut)
    mark = cut if found is None else found[0]
    rows = rows_of(push(Joiner(CONTRACT), readings[mark:]))
    assert sorted(row for row in rows if row[0] >= cut) == sorted(wanted)   # type: ignore[operator]
