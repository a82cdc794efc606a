"""The work that every rival does: decode, a window of 32 rows, the autoencoder, one JSON result a window.

numpy, msgspec and ONNX Runtime alone, so that a rival with an environment of its own can use it. It is written as for
speed: typed decoding, columns by packing, windows of all devices at once. It is less than what narrows does: a record
that can't be read ends it, silence, gaps and late rows are not looked at.
"""

import struct
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import onnxruntime as ort

WINDOW, CHANNELS, CHUNK = 32, 8, 128
THRESHOLD = 1.1
GC_THRESHOLDS = (100_000, 20, 100)   # as narrows: the default walks the fetched records again and again

Values = msgspec.defstruct("Values", [(f"ch{i}", float) for i in range(CHANNELS)], gc=False)


class Reading(msgspec.Struct, gc=False):
    """One record."""

    device: str
    ts: int
    values: Values  # type: ignore[valid-type]


class Found(msgspec.Struct, gc=False):
    """One result, as written."""

    id: str
    device: str
    ts: int
    offset: int
    score: float
    threshold: float
    is_anomaly: bool


decode = msgspec.json.Decoder(Reading).decode
encode = msgspec.json.Encoder().encode
_pack = struct.Struct(f"{CHANNELS}f").pack


def columns(readings: Sequence[Reading]) -> np.ndarray:
    """(n, C) float32."""
    astuple = msgspec.structs.astuple
    packed = b"".join([_pack(*astuple(reading.values)) for reading in readings])  # type: ignore[arg-type]
    return np.frombuffer(packed, np.float32).reshape(-1, CHANNELS)


class Closed(NamedTuple):
    """What a batch did to the windows.

    slot    : (k,) devices whose window is whole.   last : (k,) the batch's row that completed it.
    windows : (k, T, C) float32.
    opened_slot, opened : (m,) devices and rows that began a window, in log order.
    """

    slot: np.ndarray
    last: np.ndarray
    windows: np.ndarray
    opened_slot: np.ndarray
    opened: np.ndarray


class Windows:
    """Tumbling windows of 32 rows of all devices.

    filled : (slots,) rows of the open window.
    """

    def __init__(self, devices: int = 1024) -> None:
        self.names: list[str] = []
        self.filled = np.zeros(devices, np.int64)
        self._rows = np.zeros((devices, WINDOW, CHANNELS), np.float32)
        self._slots: dict[str, int] = {}

    def push(self, devices: list[str], values: np.ndarray) -> Closed:
        """devices : n names.   values : (n, C) float32."""
        slot = self._find(devices)
        order = np.argsort(slot, kind="stable")                       # grouped by device, log order within
        grouped = slot[order].astype(np.int64)
        starts = np.flatnonzero(np.diff(grouped, prepend=-1))
        lengths = np.diff(starts, append=len(grouped))
        place = self.filled[grouped] + np.arange(len(grouped)) - np.repeat(starts, lengths)
        window, step = place // WINDOW, place % WINDOW
        parts = []
        for turn in range(int(window.max()) + 1):
            now = np.flatnonzero(window == turn)
            self._rows[grouped[now], step[now]] = values[order[now]]
            whole = now[step[now] == WINDOW - 1]
            parts.append((whole, self._rows[grouped[whole]]))
        ends = np.concatenate([whole for whole, _ in parts])
        self.filled[grouped[starts]] = (place[starts + lengths - 1] + 1) % WINDOW
        begins = np.flatnonzero(step == 0)
        return Closed(
            grouped[ends], order[ends], np.concatenate([rows for _, rows in parts]), grouped[begins], order[begins],
        )

    def _find(self, devices: list[str]) -> np.ndarray:
        found = list(map(self._slots.get, devices))
        if None in found:
            for name in devices:
                if name not in self._slots:
                    self._slots[name] = len(self.names)
                    self.names.append(name)
            found = list(map(self._slots.get, devices))
        return np.array(found, np.int16)                              # numpy sorts 16 bits by radix


class Autoencoder:
    """ONNX Runtime as narrows sets it: one thread, no spinning, chunks of 128."""

    def __init__(self, path: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._run = ort.RunOptions()
        self._run.only_execute_path_to_fetches = True

    def score(self, windows: np.ndarray) -> np.ndarray:
        """Mean squared error of each window. windows : (k, T, C) float32.  (k,)"""
        scores = np.empty(len(windows), np.float32)
        for start in range(0, len(windows), CHUNK):
            chunk = windows[start : start + CHUNK]
            rebuilt = self._session.run(["rebuilt"], {"x": chunk}, self._run)[0]
            scores[start : start + CHUNK] = np.square(chunk - rebuilt).mean(axis=(1, 2))
        return scores


def result(partition: int, offset: int, device: str, ts: int, score: float) -> bytes:
    """One result as JSON; its id tells a repeated one from a new one."""
    return encode(Found(f"{partition}-{offset}", device, ts, offset, score, THRESHOLD, score > THRESHOLD))
