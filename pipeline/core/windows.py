"""From rows to windows: runs, sliding windows, and what stands where a value is missing."""

from collections.abc import Iterator

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


def fill(windows: np.ndarray) -> np.ndarray:
    """Missing values of each window replaced by the channel's last earlier value inside the window, 0 where none.

    windows : (B, T, C) float32, scaled, so that 0 is the channel's mean.
    Returns `windows` itself when nothing is missing, else a filled copy; never looks outside of the window, so that
    a window's content is a function of its T rows.
    """
    missing = np.isnan(windows)
    if not missing.any():
        return windows
    filled = windows.copy()
    touched = np.flatnonzero(missing.any(axis=(1, 2)))
    part, hole = filled[touched], missing[touched]
    steps = np.arange(windows.shape[1])[None, :, None]
    last = np.maximum.accumulate(np.where(hole, 0, steps), axis=1)   # (b,T,C): newest step that has a value
    part = np.take_along_axis(part, last, axis=1)
    filled[touched] = np.where(np.isnan(part), np.float32(0), part)
    return filled


def run_lengths(device: np.ndarray, ts_ms: np.ndarray, max_gap_ms: int) -> np.ndarray:
    """How many rows each row's run holds so far, itself included. (n,) int64.

    device, ts_ms : (n,), rows of a device together and in order. A run ends where the device changes or where the
    next row comes more than `max_gap_ms` later: the device is then cold and its window starts anew.
    """
    count = len(device)
    if count == 0:
        return np.zeros(0, dtype=np.int64)
    fresh = np.empty(count, dtype=bool)
    fresh[0] = True
    fresh[1:] = (device[1:] != device[:-1]) | (np.diff(ts_ms) > max_gap_ms)
    places = np.arange(count)
    return places - np.maximum.accumulate(np.where(fresh, places, 0)) + 1


def every(values: np.ndarray, window: int) -> np.ndarray:
    """All stretches of `window` rows, a view. (n, C) -> (max(0, n-T+1), T, C)."""
    if len(values) < window:
        return np.empty((0, window, values.shape[1]), dtype=values.dtype)
    return sliding_window_view(values, window, axis=0).transpose(0, 2, 1)   # (n-T+1,C,T) -> (n-T+1,T,C)


def sliding(values: np.ndarray, run: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Every whole window of the rows, one for each row that has `window` rows of its run up to itself.

    values : (n, C).   run : (n,) from `run_lengths`.
    Returns (windows (m, T, C), a view; ends (m,) int64: the row that each window ends with). Windows are not filled.
    """
    ends = np.flatnonzero(run >= window)
    view = every(values, window)
    if len(ends) == len(view):
        return view, ends
    return view[ends - window + 1], ends


def trailing(values: np.ndarray, age: np.ndarray, length: int, chunk: int = 1024) -> Iterator[tuple[slice, np.ndarray]]:
    """The last `length` rows up to each row, zeros where they lie before its run's start; in chunks.

    values : (n, F) float32.   age : (n,) how many of the rows up to and with this one count (0: none).
    Yields (slice of rows, (b, L, F) contiguous float32, oldest first).
    """
    padded = np.concatenate([np.zeros((length - 1, values.shape[1]), dtype=values.dtype), values])
    view = every(padded, length)
    lag = np.arange(length)[::-1]                                            # 0 for the newest row
    for start in range(0, len(values), chunk):
        rows = slice(start, min(start + chunk, len(values)))
        block = view[rows].copy()                                            # (b,L,F)
        block[lag[None, :] >= age[rows, None]] = 0
        yield rows, block
