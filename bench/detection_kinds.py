"""A labelled synthetic suite of what befalls devices, and how the stream tells each kind: a confusion matrix.

Each case is a fleet of 20 devices of four channels whose rows come by time; eight of them (for `fleet`, fifteen) have
the fault from row 700 on. A device is told as the kind of its last event after that, `none` where it has none.
`silence` is a device that stops sending at row 700 in the midst of normal rows, `fault, then silence` a machine's fault
whose device then stops. No public set has such labels.
"""

from collections import Counter
from pathlib import Path

import numpy as np

from bench.results import Measurement
from pipeline.cli.backtest import run_backtest
from pipeline.core.contract import Channel, Contract
from pipeline.formats.files import Table
from pipeline.registry.bundle import Bundle
from training.make_baseline import make_baseline_bundle
from training.prepare import prepare

CHANNELS = tuple(Channel(name=f"c{i}", low=-40.0, high=40.0) for i in range(4))
CONTRACT = Contract(channels=CHANNELS, window=24, memory=100)
KINDS = ("machine", "stuck", "out of range", "dropout", "silence", "fleet", "none")
CASES = {**{kind: kind for kind in KINDS}, "fault, then silence": "silence"}   # what befalls devices -> its kind
DEVICES, FAULTY, FLEET_FAULTY = 20, 8, 15
ROWS, AT, LEARNED = 900, 700, 600
SILENT_AFTER = 60    # rows of a fault before its device falls silent
SILENCE_MS = 90_000  # after which a device that sends nothing is told


def normal_rows(seed: int, rows: int = ROWS) -> np.ndarray:
    """Correlated, autocorrelated channels. (rows, 4)."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(0).normal(size=(4, 4)) * 0.4
    state = np.zeros((rows, 4))
    for row in range(1, rows):
        state[row] = 0.7 * state[row - 1] + mix @ rng.normal(size=4)
    return state


def faulty_rows(kind: str, seed: int) -> np.ndarray:
    """The same with a fault of that kind from AT on, in one channel (`fleet`: the same one in all devices)."""
    rows = normal_rows(seed)
    channel = 0 if kind == "fleet" else seed % 4
    if kind in ("machine", "fault, then silence", "fleet"):
        rows[AT:, channel] += 4 * rows[:AT, channel].std()
    elif kind == "stuck":
        rows[AT:, channel] = rows[AT, channel]
    elif kind == "out of range":
        rows[AT:, channel] += 80
    elif kind == "dropout":
        rows[AT:, channel] = np.nan
    return rows


def make_suite_bundle(folder: Path) -> Bundle:
    """A linear ensemble trained on six other devices' normal rows."""
    values = np.vstack([normal_rows(1000 + i, LEARNED) for i in range(6)])
    device, ts_ms = np.repeat(np.arange(6), LEARNED), np.tile(np.arange(LEARNED) * 1000, 6)
    ready = prepare(CONTRACT, [f"n{i}" for i in range(6)], device, ts_ms, values)
    return make_baseline_bundle(ready, folder, refuse=False)


def suite_table(kind: str) -> tuple[Table, list[str]]:
    """A fleet's rows by time, and the names of the devices with the fault."""
    faulty = {"none": 0, "fleet": FLEET_FAULTY}.get(kind, FAULTY)
    each = [faulty_rows(kind if i < faulty else "none", i) for i in range(DEVICES)]
    device, row = np.tile(np.arange(DEVICES), ROWS), np.repeat(np.arange(ROWS), DEVICES)
    values = np.stack(each, axis=1).reshape(-1, 4).astype(np.float32)      # (rows,devices,4) -> (rows*devices,4)
    names = tuple(f"d{i}" for i in range(DEVICES))
    table = Table(names, device, row * 1000, CONTRACT.names, values, reason=np.zeros(len(device), np.uint8))
    if CASES[kind] == "silence":
        last = AT if kind == "silence" else AT + SILENT_AFTER
        table = table.take((device >= faulty) | (row < last))
    return table, [f"d{i}" for i in range(faulty)]


def told_kinds(bundle: Bundle, table: Table, batch_rows: int = 5000) -> dict[str, str]:
    """What each device with an event after AT is told as: the kind of the last one."""
    _, alarms = run_backtest(bundle, table, batch_rows, silence_ms=SILENCE_MS)
    return {name: alarm.kind for name, _, alarm in alarms if alarm.ts_ms >= AT * 1000}


def confusion(folder: Path) -> Counter[tuple[str, str]]:
    """How many devices with a fault of one kind were told as another."""
    bundle = make_suite_bundle(folder)
    found: Counter[tuple[str, str]] = Counter()
    for kind in CASES:
        table, faulty = suite_table(kind)
        told = told_kinds(bundle, table)
        asked = faulty if kind != "none" else table.devices
        found.update((kind, told.get(name, "none")) for name in asked)
    return found


def bench_kinds(folder: Path, work: Path, quick: bool) -> list[Measurement]:
    """The confusion matrix, a cell a line where it is not empty. folder, quick : not needed, it is synthetic."""
    found = confusion(work / "kinds")
    cases: Counter[str] = Counter()
    for (kind, _), count in found.items():
        cases[kind] += count
    return [
        Measurement(f"kinds: {kind} told as {told}", 100 * found[kind, told] / cases[kind], "%",
                    "higher" if right == told else "lower", 87.5 if right == told else None)
        for kind, right in CASES.items() for told in KINDS if right == told or found[kind, told]
    ]
