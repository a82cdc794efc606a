"""Data sets that need no file: pictures of digits (scikit-learn ships them) and spectrograms of tones (made here).

A picture or a spectrogram is a device of its own with exactly one window: its rows are the picture's rows, or time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.contract import Channel, Contract
from pipeline.formats.files import Table

APART_MS = 1_000_000     # between two pictures: no window spans them
RATE_HZ, FRAME, STEP = 8000, 256, 256
INSTRUMENTS = ("pure", "reed", "string", "bell")
KINDS = {"tones": INSTRUMENTS}      # names of an example's classes, where these are not their numbers


@dataclass(frozen=True)
class Example:
    """A table with labels, its contract, and settings of training that suit it where nothing else is asked for."""

    table: Table
    contract: Contract
    recipe: dict[str, Any]


def digits() -> Example:
    """1 797 pictures of hand-written digits, 8 x 8 points of 0..16 (Alpaydin and Kaynak 1998; CC BY 4.0)."""
    from sklearn.datasets import load_digits

    pictures, label = load_digits(return_X_y=True)
    recipe = {"latent": 16, "plane": True, "epochs": 150, "patience": 15}
    return _example(pictures.reshape(-1, 8, 8), label, "column", "ink", recipe, step_ms=1)


def tones(count: int = 1200, seed: int = 0) -> Example:
    """Log spectrograms of one-second notes of four made-up instruments with vibrato, decay and noise: (32, 24)."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, len(INSTRUMENTS), count)
    pictures = [spectrogram(_note(INSTRUMENTS[kind], rng)) for kind in label]
    recipe = {"latent": 16, "plane": True, "epochs": 60}
    return _example(np.stack(pictures), label, "band", "10 dB", recipe, step_ms=32)


EXAMPLES: dict[str, Callable[[], Example]] = {"digits": digits, "tones": tones}


def classes(name: str, devices: Sequence[str]) -> np.ndarray:
    """The class of each of these pictures of an example, by their names. (n,)"""
    table = EXAMPLES[name]().table
    first = np.flatnonzero(np.diff(table.device, prepend=-1))
    of_each = dict(zip(table.devices, table.labels["class"][first], strict=True))
    return np.array([of_each[device] for device in devices])


def is_named(sources: Sequence[str]) -> bool:
    """Whether these name an example, and no file."""
    return len(sources) == 1 and sources[0] in EXAMPLES and not Path(sources[0]).exists()


def spectrogram(sound: np.ndarray, bands: int = 24) -> np.ndarray:
    """Log power in bands that widen with frequency, frame by frame. (n,) -> (frames, bands), in decibel / 10."""
    frames = np.lib.stride_tricks.sliding_window_view(sound, FRAME)[::STEP]
    power = np.abs(np.fft.rfft(frames * np.hanning(FRAME), axis=1))[:, 1:] ** 2
    edges = np.unique(np.geomspace(1, power.shape[1], bands + 9).astype(int))[-(bands + 1) :]
    summed = np.add.reduceat(power, edges[:-1] - 1, axis=1)
    return np.log10(summed + 1e-4)


def _note(kind: str, rng: np.random.Generator) -> np.ndarray:
    seconds = np.arange(32 * STEP + FRAME) / RATE_HZ
    pitch = 110 * 2 ** (rng.uniform(0, 24) / 12)
    phase = 2 * np.pi * pitch * seconds + rng.uniform(0, 3) * np.sin(2 * np.pi * rng.uniform(4, 7) * seconds)
    orders = np.arange(1, 9)
    strength = {"pure": np.eye(8)[0], "reed": (orders % 2) / orders, "string": 1 / orders,
                "bell": np.array([1, 0, 0.6, 0, 0.3, 0.5, 0, 0.2])}[kind]
    stretch = 1.4 if kind == "bell" else 1.0
    sound = sum(s * np.sin(order**stretch * phase) for order, s in zip(orders, strength, strict=True))
    decay = np.exp(-seconds * {"pure": 0.0, "reed": 0.3, "string": 2.5, "bell": 4.0}[kind] * rng.uniform(0.7, 1.3))
    attack = np.minimum(1, seconds / rng.uniform(0.01, 0.1))
    return np.asarray(sound) * decay * attack + rng.normal(0, 0.01, len(seconds))


def channels(name: str, count: int, unit: str = "") -> tuple[Channel, ...]:
    """Scored channels called name0, name1 ..."""
    return tuple(Channel(name=f"{name}{place}", unit=unit) for place in range(count))


def _example(
    pictures: np.ndarray, label: np.ndarray, name: str, unit: str, recipe: dict[str, Any], step_ms: int
) -> Example:
    count, rows, columns = pictures.shape
    contract = Contract(
        channels=channels(name, columns, unit), step_ms=step_ms, window=rows, memory=rows, max_rows=rows,
        span_ms=APART_MS, max_gap_ms=rows * step_ms * 10)
    device = np.repeat(np.arange(count), rows)
    ts_ms = device * APART_MS + np.tile(np.arange(rows) * step_ms, count)
    table = Table(
        devices=tuple(f"{place:05d}" for place in range(count)), device=device, ts_ms=ts_ms.astype(np.int64),
        channels=contract.names, values=pictures.reshape(-1, columns).astype(np.float32),
        labels={"class": np.repeat(label, rows)}, reason=np.zeros(len(device), np.uint8))
    return Example(table, contract, recipe)
