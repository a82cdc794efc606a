"""The series that the codec benchmark judges: the first half (or a training file) to learn from, the rest to judge."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute
from pyarrow import csv, parquet


class Series(NamedTuple):
    """One recorded series. train : (N, C) float32; test : segments of (n, C) float32, each continuous in time."""

    name: str
    train: np.ndarray
    test: tuple[np.ndarray, ...]

    @property
    def channels(self) -> int:
        """C."""
        return self.train.shape[1]

    @property
    def everything(self) -> np.ndarray:
        """Training and judged rows together, for the range. (N, C) float32."""
        return np.concatenate([self.train, *self.test])

    def bounds(self, share: float) -> np.ndarray:
        """Absolute bound per channel: a share of the channel's range, of its size where the channel is constant."""
        rows = self.everything.astype(np.float64)
        spread = np.ptp(rows, axis=0)
        size = np.maximum(np.abs(rows).max(axis=0), 1e-6)
        return share * np.where(spread > 0, spread, size)

    def blocks(self, n: int, most: int | None = None) -> list[np.ndarray]:
        """Whole blocks of n rows of the judged part, in order; `most` of them, evenly spread, where given."""
        blocks = [segment[i : i + n] for segment in self.test for i in range(0, len(segment) - n + 1, n)]
        if most is not None and len(blocks) > most:
            blocks = [blocks[i] for i in np.linspace(0, len(blocks) - 1, most).round().astype(int)]
        return blocks


def data_folder() -> Path:
    """The folder of recorded data: NARROWS_DATA, else ../shared/data."""
    return Path(os.environ.get("NARROWS_DATA", "../shared/data"))


def _columns(table: pa.Table, names: list[str]) -> np.ndarray:
    """The named columns as (N, C) float32; a missing value is NaN."""
    columns = [table[name].cast(pa.float64()).to_numpy(zero_copy_only=False) for name in names]
    return np.stack(columns, axis=1).astype(np.float32)


def _halves(name: str, rows: np.ndarray) -> Series:
    half = len(rows) // 2
    return Series(name, rows[:half], (rows[half:],))


def _whole(path: Path, name: str, drop: tuple[str, ...]) -> Series:
    table = csv.read_csv(path)
    return _halves(name, _columns(table, [column for column in table.column_names if column not in drop]))


def _skab(folder: Path) -> Series:
    options = csv.ParseOptions(delimiter=";")
    drop = {"datetime", "anomaly", "changepoint"}

    def rows(path: Path) -> np.ndarray:
        table = csv.read_csv(path, parse_options=options)
        return _columns(table, [column for column in table.column_names if column not in drop])

    judged = sorted(folder.glob("valve*/*.csv")) + sorted(folder.glob("other/*.csv"))
    return Series("skab", rows(folder / "anomaly-free.csv"), tuple(rows(path) for path in judged))


def _spacecraft(folder: Path, craft: str, channel: str) -> Series:
    def rows(part: str) -> np.ndarray:
        table = parquet.read_table(folder / f"{craft}_{part}.parquet")
        chosen = table.filter(pa.compute.equal(table["chan_id"].cast(pa.string()), channel))
        return _columns(chosen, [name for name in chosen.column_names if name.startswith("f")])

    return Series(f"{craft} {channel}", rows("train"), (rows("test"),))


def real_series(folder: Path) -> Iterator[Series]:
    """Seven channels or more, values that a sensor measured: what the goals are about."""
    yield _skab(folder / "skab")
    yield _whole(folder / "series/etth1.csv", "etth1", ("date",))
    yield _whole(folder / "series/air_quality.csv", "air quality", ("Date", "Time"))
    yield _whole(folder / "series/room_occupancy.csv", "room occupancy", ("Room_Occupancy_Count", "Date", "Time"))


def single_series(folder: Path) -> Iterator[Series]:
    """One channel."""
    for stem, name in (
        ("machine_temperature_system_failure", "machine temperature"),
        ("ambient_temperature_system_failure", "ambient temperature"),
        ("cpu_utilization_asg_misconfiguration", "cpu utilization"),
        ("nyc_taxi", "nyc taxi"),
    ):
        yield _whole(folder / f"nab/{stem}.csv", name, ("timestamp",))


def telemetry_series(folder: Path) -> Iterator[Series]:
    """Spacecraft telemetry: one value and dozens of command flags that are almost always still."""
    for craft, channel in (("smap", "P-1"), ("smap", "E-6"), ("msl", "T-5"), ("msl", "M-2")):
        series = _spacecraft(folder / "smap_msl", craft, channel)
        if len(series.train):
            yield series
