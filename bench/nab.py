"""The scoring of the Numenta Anomaly Benchmark (NAB v1.1), and our detector on its series.

A detection inside of a labelled window earns the more the earlier it comes; outside it costs the more the further it
lies behind the last window. 100 is perfect, 0 is never alarming. Source: Lavin and Ahmad 2015.
"""

import csv
import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

PROBATION_SHARE, PROBATION_MOST = 0.15, 750
STEEPNESS = 5.0


@dataclass(frozen=True)
class NabSeries:
    """One series. windows : (first, last) rows, inclusive.   probation : rows that count for nothing."""

    name: str
    ts_ms: np.ndarray
    value: np.ndarray
    windows: tuple[tuple[int, int], ...]
    probation: int


def load(folder: Path) -> list[NabSeries]:
    """All series of the folder, in order of their names."""
    labels = json.loads((folder / "windows.json").read_text())
    found = []
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        ts_ms = np.array([_epoch_ms(row["timestamp"]) for row in rows])
        spans = next(value for key, value in labels.items() if Path(key).stem == path.stem)
        windows = tuple(
            (int(np.searchsorted(ts_ms, _epoch_ms(a))), int(np.searchsorted(ts_ms, _epoch_ms(b), side="right")) - 1)
            for a, b in spans
        )
        probation = int(min(PROBATION_SHARE * len(rows), PROBATION_MOST))
        found.append(NabSeries(path.stem, ts_ms, np.array([float(row["value"]) for row in rows]), windows, probation))
    return found


def nab_score(series: list[NabSeries], marks: list[np.ndarray], profile: dict[str, float]) -> float:
    """The normalised score of detections. marks : rows of the detections of each series.

    profile : weights `tp`, `fp`, `fn` (both costs positive).
    """
    raw, windows = 0.0, 0
    for one, rows in zip(series, marks, strict=True):
        for first, last in one.windows:
            windows += 1
            inside = rows[(rows >= max(first, one.probation)) & (rows <= last)]
            if len(inside):
                raw += profile["tp"] * max(_inside(int(row), first, last) for row in inside)
            else:
                raw -= profile["fn"]
        raw += sum(profile["fp"] * _outside(int(row), one.windows) for row in rows if _is_outside(int(row), one))
    return 100 * (raw + profile["fn"] * windows) / ((profile["tp"] + profile["fn"]) * windows)


def _is_outside(row: int, series: NabSeries) -> bool:
    return row >= series.probation and not any(first <= row <= last for first, last in series.windows)


def _inside(row: int, first: int, last: int) -> float:
    """1 at the window's first row, about 0 at its last."""
    return _sigmoid(-(last - row + 1) / (last - first + 1)) / _sigmoid(-1.0)


def _outside(row: int, windows: tuple[tuple[int, int], ...]) -> float:
    """Down to -1, with the distance to the last window before it; -1 where there is none."""
    before = [(first, last) for first, last in windows if last < row]
    if not before:
        return -1.0
    first, last = max(before, key=lambda window: window[1])
    return _sigmoid((row - last) / max(last - first, 1))


def _sigmoid(position: float) -> float:
    return -1.0 if position > 3 else 2 / (1 + math.exp(STEEPNESS * position)) - 1


def _epoch_ms(text: str) -> int:
    return int(datetime.fromisoformat(text.split(".")[0]).replace(tzinfo=UTC).timestamp() * 1000)
