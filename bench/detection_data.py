"""The labelled sets of `python -m bench.detection`, as tables: SKAB, MSL and SMAP, Tennessee Eastman, NAB.

They lie in $NARROWS_DATA (default ../shared/data) and are inputs only; its README names sources and licences.
"""

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from pipeline.formats.files import Table

SKAB_CHANNELS = ("Accelerometer1RMS", "Accelerometer2RMS", "Current", "Pressure", "Temperature", "Thermocouple",
                 "Voltage", "Volume Flow RateRMS")
TEP_CHANNELS = (*(f"XMEAS{i}" for i in range(1, 23)), *(f"XMV{i}" for i in range(1, 12)))   # the set that papers use
TEP_STEP_MS = 180_000
TEP_FAULT_ROW = 160
START_MS = 1_600_000_000_000   # for sets without a time


def data_folder() -> Path:
    """Where the sets lie; may not exist."""
    return Path(os.environ.get("NARROWS_DATA", "../shared/data"))


@dataclass(frozen=True)
class Series:
    """One labelled series: values (n, C) float32; label, change (n,) 0 or 1; rows before `train` are for training."""

    name: str
    ts_ms: np.ndarray
    values: np.ndarray
    label: np.ndarray
    change: np.ndarray
    train: int


def skab(folder: Path) -> list[Series]:
    """The pump test bed: rows 0..399 of each file are for training."""
    return [
        _skab_file(folder / "skab" / f"{row['file']}.csv", row["file"], int(row["train_rows"]))
        for row in _rows(folder / "skab" / "split.csv")
    ]


def _skab_file(path: Path, name: str, train: int) -> Series:
    rows = list(_rows(path, ";"))
    ts_ms = np.array([_epoch_ms(row["datetime"]) for row in rows])
    values = np.array([[float(row[channel]) for channel in SKAB_CHANNELS] for row in rows], dtype=np.float32)
    label = np.array([int(float(row["anomaly"])) for row in rows])
    change = np.array([int(float(row["changepoint"])) for row in rows])
    return Series(name, ts_ms, values, label, change, train)


@dataclass(frozen=True)
class Telemetry:
    """One spacecraft channel: the first column is telemetry, the others commands. window : VUS-PR's buffer, rows."""

    series: Series
    craft: str
    columns: tuple[str, ...]
    window: int
    best_published: float


def telemetry(folder: Path) -> list[Telemetry]:
    """MSL and SMAP channels that equal files of TSB-AD-M, with the best figure published for each."""
    tables = {craft: pq.read_table(folder / "smap_msl" / f"{craft.lower()}_test.parquet") for craft in ("MSL", "SMAP")}
    found = []
    for row in _rows(folder / "smap_msl" / "tsb_ad_m_map.csv"):
        table = tables[row["spacecraft"]]
        mine = np.array(table["chan_id"].to_pylist()) == row["chan_id"]
        names = [name for name in table.column_names if name.startswith("f")]
        values = np.column_stack([np.asarray(table[name])[mine] for name in names]).astype(np.float32)
        train = int(row["train_rows"])
        told = np.isfinite(values).all(axis=0) & ((np.ptp(values[:train], axis=0) > 0) | (np.arange(len(names)) == 0))
        label = np.asarray(table["label"])[mine].astype(np.int64)
        ts_ms = START_MS + np.arange(len(label)) * 60_000
        series = Series(row["chan_id"], ts_ms, values[:, told], label, np.zeros_like(label), train)
        columns = tuple(name for name, keep in zip(names, told, strict=True) if keep)
        window = period(values[:, 0].astype(np.float64))
        found.append(Telemetry(series, row["spacecraft"], columns, window, float(row["best_vuspr"])))
    return found


def period(values: np.ndarray) -> int:
    """The buffer that TSB-AD takes for a series: the lag of the highest local maximum of its autocorrelation.

    125 where there is none between 6 and 303 rows. Source: TSB-AD, find_length_rank.
    """
    first, most, fallback = 3, 400, 125
    centred = values[:20_000] - values[:20_000].mean()
    power = np.abs(np.fft.rfft(centred, 2 * len(centred))) ** 2
    correlation = np.fft.irfft(power)[: most + 1]
    if correlation[0] <= 0:
        return fallback
    tail = correlation[first:] / correlation[0]
    peaks = np.flatnonzero((tail[1:-1] > tail[:-2]) & (tail[1:-1] > tail[2:])) + 1
    if not len(peaks):
        return fallback
    highest = int(peaks[tail[peaks].argmax()])
    return highest + first if 3 <= highest <= 300 else fallback


def tep(folder: Path) -> tuple[list[Series], list[Series]]:
    """Two normal runs of the plant, and one run a fault, which enters at row 160."""
    normal, test = (pq.read_table(folder / "tep" / f"{name}.parquet") for name in ("train_normal", "test"))
    runs = [_tep_run(normal, 0, "normal-a", 0)]
    faults = np.unique(np.asarray(test["fault"]))
    tested = [_tep_run(test, int(fault), f"fault-{fault}", TEP_FAULT_ROW) for fault in faults if fault]
    return [*runs, _tep_run(test, 0, "normal-b", 0)], tested


def _tep_run(table: object, fault: int, name: str, train: int) -> Series:
    mine = np.asarray(table["fault"]) == fault   # type: ignore[index]  # pyarrow ships no types
    values = np.column_stack([np.asarray(table[c])[mine] for c in TEP_CHANNELS])   # type: ignore[index]
    label = (np.arange(len(values)) >= TEP_FAULT_ROW).astype(np.int64) * bool(fault)
    ts_ms = START_MS + np.arange(len(values)) * TEP_STEP_MS
    return Series(name, ts_ms, values.astype(np.float32), label, np.zeros_like(label), train)


def table_of(series: list[Series], channels: tuple[str, ...], rows: slice | None = None) -> Table:
    """Series as one table, one device each, one after the other."""
    rows = rows or slice(None)
    count = sum(len(one.ts_ms[rows]) for one in series)
    return Table(
        devices=tuple(one.name for one in series), reason=np.zeros(count, dtype=np.uint8),
        device=np.concatenate([np.full(len(one.ts_ms[rows]), place) for place, one in enumerate(series)]),
        ts_ms=np.concatenate([one.ts_ms[rows] for one in series]), channels=channels,
        values=np.concatenate([one.values[rows] for one in series]),
    )


def _rows(path: Path, separator: str = ",") -> Iterator[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file, delimiter=separator)


def _epoch_ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)
