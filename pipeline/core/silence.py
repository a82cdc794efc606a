"""Silent devices: who stopped sending while the log went on, told as an episode of its own.

Time is the partition's stream time, so a partition that nothing comes to tells nobody silent. Time in a window of
maintenance does not count, and counting begins anew at its end.

Invariant: what is told is a function of the partition's log and the windows known at each place in it; not of batches,
nor of restarts. Law: tests/laws/test_line_laws.py.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pipeline.core.maintenance import Windows
from pipeline.core.rows import Clock


@dataclass(frozen=True, slots=True)
class Hushed:
    """A device that is forgotten because it sends nothing. life : stream time at its last record.

    row : what its last row is called (`Columns.offset`).   trigger : offset of the record that showed it.
    """

    device: str
    trigger: int
    life: int
    row: int


@dataclass(frozen=True, slots=True)
class SilenceEvent:
    """One thing to tell of a silent device.

    trigger : offset of the record that causes it.  row : of the device's last row, the episode's identity.
    start_ms, end_ms : stream time at the device's last record, and at the trigger.
    """

    kind: Literal["opened", "closed"]
    device: str
    trigger: int
    row: int
    start_ms: int
    end_ms: int


@dataclass(slots=True)
class _Quiet:
    life: int
    row: int
    is_told: bool = False


class Silences:
    """Silent devices of all partitions. `Rows` has forgotten them: they are known here by name.

    limit_ms : how long a device may say nothing.
    most     : silent devices that a partition keeps; beyond it the one that is silent for longest is given up.
    """

    def __init__(self, limit_ms: int, most: int) -> None:
        self.limit_ms, self._most = limit_ms, most
        self._quiet: dict[int, dict[str, _Quiet]] = {}
        self._windows: dict[int, Windows] = {}
        self._floor: dict[int, int] = {}       # no record before it tells anything
        self._due: dict[int, int] = {}         # stream time until which nobody has to be told
        self._changed: set[tuple[int, str]] = set()

    def assign(self, partition: int, emit_from: int, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Begin a partition. states : `changed` as of `emit_from`, by device."""
        self.revoke(partition)
        self._quiet[partition] = {
            device: _Quiet(state["life"], state["row"], state["is_told"]) for device, state in states.items()
        }
        self._floor[partition] = emit_from
        self._windows[partition] = Windows()
        self._due[partition] = -1

    def heed(self, partition: int, windows: Windows, position: int) -> None:
        """These windows hold from the record at `position` on."""
        self._windows[partition] = windows
        self._floor[partition] = max(self._floor[partition], position)
        self._due[partition] = -1

    def revoke(self, partition: int) -> None:
        for states in (self._quiet, self._windows, self._floor, self._due):
            states.pop(partition, None)
        self._changed = {pair for pair in self._changed if pair[0] != partition}

    def push(
        self, clock: Clock, hushed: Iterable[Hushed], back: Iterable[tuple[str, int]], emit_from: int
    ) -> list[SilenceEvent]:
        """One partition's records. back : (device, trigger) of rows that are their device's first in its life."""
        partition = clock.partition
        quiet, events = self._quiet[partition], list[SilenceEvent]()
        happened: list[tuple[int, int, str, Hushed | None]] = [(one.trigger, 0, one.device, one) for one in hushed]
        happened += [(trigger, 1, device, None) for device, trigger in back]
        for trigger, _, device, one in sorted(happened, key=lambda what: what[:3]):
            if trigger < emit_from:              # in a replay: known already from what was put aside
                continue
            if one is not None:
                quiet[device] = _Quiet(one.life, one.row)
                self._due[partition] = -1
                self._changed.add((partition, device))
                if len(quiet) > self._most:
                    longest = min(quiet, key=lambda name: (quiet[name].life, quiet[name].row))
                    self._leave(clock, longest, trigger, events)
            elif device in quiet:
                self._leave(clock, device, trigger, events)
        if int(clock.stream_time[-1]) > self._due[partition]:
            last = int(clock.offset[-1]) + 1
            dues = [self._tell(clock, device, last, events) for device, one in quiet.items() if not one.is_told]
            self._due[partition] = min(
                (due for due in dues if due is not None), default=np.iinfo(np.int64).max
            )
        return events

    def _leave(self, clock: Clock, device: str, trigger: int, events: list[SilenceEvent]) -> None:
        """A device is no longer silent, or given up."""
        self._tell(clock, device, trigger + 1, events)
        one = self._quiet[clock.partition].pop(device)
        self._changed.add((clock.partition, device))
        if one.is_told:
            events.append(_event("closed", device, one, clock, trigger))

    def _tell(self, clock: Clock, device: str, before: int, events: list[SilenceEvent]) -> int | None:
        """Tell that a device is silent if a record before offset `before` shows it; else when it will have to be."""
        one = self._quiet[clock.partition][device]
        due = self._windows[clock.partition].until(device, one.life, self.limit_ms)
        at = max(
            int(np.searchsorted(clock.stream_time, due, "right")),
            int(np.searchsorted(clock.offset, self._floor[clock.partition])),
        )
        if one.is_told or at == len(clock.offset) or clock.offset[at] >= before:
            return due
        one.is_told = True
        self._changed.add((clock.partition, device))
        events.append(_event("opened", device, one, clock, int(clock.offset[at])))
        return None

    def changed(self, partition: int) -> dict[str, dict[str, Any] | None]:
        """By device, what `assign` needs of those that may differ since `settled`; None where one is not silent."""
        quiet = self._quiet[partition]
        found: dict[str, dict[str, Any] | None] = {}
        for _, device in sorted(pair for pair in self._changed if pair[0] == partition):
            one = quiet.get(device)
            found[device] = None if one is None else {"life": one.life, "row": one.row, "is_told": one.is_told}
        return found

    def settled(self) -> None:
        """What `changed` told is safe."""
        self._changed.clear()

    @property
    def told(self) -> int:
        """Devices that are told as silent now."""
        return sum(one.is_told for quiet in self._quiet.values() for one in quiet.values())


def _event(kind: Literal["opened", "closed"], device: str, one: _Quiet, clock: Clock, trigger: int) -> SilenceEvent:
    now = int(clock.stream_time[np.searchsorted(clock.offset, trigger)])
    return SilenceEvent(kind, device, trigger, one.row, one.life, now)
