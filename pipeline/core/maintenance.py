"""Maintenance windows: spans of a device's own time in which its rows are scored and raise no alert.

People declare windows in a topic of their own. What is known of them at a place in the input's log is a `Plan`: all
that the topic holds below one offset. A plan comes in where a model does, at a commit that names it; whether a row lies
in a window is told by the row's own time. So a replay judges each row as before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import msgspec
import numpy as np

from pipeline.errors import BadInput

VERSION = 1
ALL = "*"


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """One window, as it stands in the topic under its id; the newest of an id counts, a null value takes it back.

    device   : name of a device, or a pattern of names: `*` any text, `?` any letter, `[ab]` one of these.
    begin_ms : of the rows' own time, the first millisecond in it.   end_ms : the first one after it.
    """

    version: int = VERSION
    id: str
    stream: str
    device: str = ALL
    begin_ms: int
    end_ms: int
    note: str = ""

    def __post_init__(self) -> None:
        if self.end_ms <= self.begin_ms:
            raise BadInput(f"maintenance window {self.id}: it ends before it begins; give a later end")


class Windows:
    """The windows of one stream."""

    def __init__(self, windows: Sequence[Window] = ()) -> None:
        self._windows = sorted(windows, key=lambda window: (window.begin_ms, window.id))
        self._begin = np.array([window.begin_ms for window in self._windows], np.int64)
        self._end = np.array([window.end_ms for window in self._windows], np.int64)

    def __bool__(self) -> bool:
        return bool(self._windows)

    def cover(self, names: Sequence[str], slot: np.ndarray, ts_ms: np.ndarray) -> np.ndarray:
        """Which rows lie in a window of their device. names : by slot. slot, ts_ms : (n,) int64. (n,) bool."""
        inside = np.zeros(len(ts_ms), bool)
        if not len(ts_ms):
            return inside
        for place in np.flatnonzero((self._begin <= ts_ms.max()) & (self._end > ts_ms.min())).tolist():
            window = self._windows[place]
            at = np.flatnonzero((ts_ms >= window.begin_ms) & (ts_ms < window.end_ms))
            used, which = np.unique(slot[at], return_inverse=True)
            mine = np.array([fnmatchcase(names[one], window.device) for one in used.tolist()], bool)
            inside[at[mine[which]]] = True
        return inside

    def spans(self, devices: Sequence[str]) -> list[tuple[str, int, int]]:
        """The windows of these devices: (device, first ms, last ms)."""
        return [
            (device, window.begin_ms, window.end_ms - 1) for window in self._windows for device in devices
            if fnmatchcase(device, window.device)
        ]

    def until(self, device: str, since_ms: int, limit_ms: int) -> int:
        """When `limit_ms` will have passed for a device since `since_ms`, counted anew from the end of a window."""
        for window in self._windows:
            meets = window.begin_ms <= since_ms + limit_ms and window.end_ms > since_ms
            if meets and fnmatchcase(device, window.device):
                since_ms = window.end_ms
        return since_ms + limit_ms


@dataclass(frozen=True)
class Plan:
    """What is known of maintenance at some place. end : offset behind the last record that it is made of."""

    end: int = 0
    windows: tuple[Window, ...] = ()

    def of(self, stream: str) -> Windows:
        """The windows of one stream."""
        return Windows([window for window in self.windows if window.stream == stream])


class Plans:
    """The topic as far as it was read: the newest plan, and any older one that a commit names."""

    def __init__(self) -> None:
        self._records: list[tuple[int, str, Window | None]] = []
        self._newest = Plan()

    @property
    def end(self) -> int:
        """Offset behind the last record that was read."""
        return self._newest.end

    def take(self, offset: int, name: str, window: Window | None) -> None:
        """One record more. name : the window's id.   window : None takes it back."""
        self._records.append((offset, name, window))
        self._newest = self.as_of(offset + 1)

    def wanted(self) -> Plan:
        """The newest one."""
        return self._newest

    def as_of(self, end: int) -> Plan:
        """What the records below an offset say."""
        known: dict[str, Window] = {}
        for offset, name, window in self._records:
            if offset >= end:
                break
            known.pop(name, None)
            if window is not None:
                known[name] = window
        return Plan(end, tuple(known.values()))
