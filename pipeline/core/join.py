"""Readings joined to rows: long readings (one channel a record), and wide ones that are put onto slots.

A row is what a device said in one slot, floor(ts / step). It is complete when every scored channel has come, or when
the device's next slot begins, or when the device falls silent or must make room. The first value of a slot and channel
wins. A reading of an older slot than the device's newest goes to a second lane, so that it does not tear the newest row
apart.

Invariant (tests/laws/test_join_laws.py): rows depend on the log alone; a replay from `mark` makes the same ones.
One Python step a reading: long readings cost about eight times a wide row of eight channels (docs/performance.md).
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.core.contract import Contract
from pipeline.core.rows import MAX_DEVICES, Clock, Float, Int


@dataclass(slots=True)
class Joined:
    """Rows in the order of their triggers; see `rows.Columns`. device : n names."""

    device: list[str]
    ts_ms: Int
    offset: Int
    trigger: Int
    stream_time: Int
    pin: Int
    pin_time: Int
    values: Float


@dataclass(slots=True)
class _Open:
    """A row that is being filled, or the last complete one: more of its slot is ignored."""

    slot: int
    offset: int
    pin: int
    pin_time: int
    values: list[float]
    waiting: int                # bits of the scored channels still to come
    is_done: bool = False


@dataclass(slots=True)
class _Device:
    life: int
    main: _Open | None = None
    late: _Open | None = None


@dataclass(slots=True)
class _Rows:
    """Completed rows, column by column."""

    device: list[str] = field(default_factory=list)
    opens: list[_Open] = field(default_factory=list)
    trigger: list[int] = field(default_factory=list)
    time: list[int] = field(default_factory=list)


class Joiner:
    """Open rows of all devices of one stream. ignored : readings whose slot and channel had a value already.

    max_devices : of one partition; one more finishes the open rows of the one whose last reading is the oldest.
    """

    def __init__(self, contract: Contract, max_devices: int = MAX_DEVICES) -> None:
        self._max_devices = max_devices
        self._step = contract.step_ms
        self._silence = contract.silence_ms
        self._channels = len(contract.channels)
        self._scored = sum(1 << int(place) for place in contract.sensors)
        self._devices: dict[int, OrderedDict[str, _Device]] = {}   # by partition, oldest sign of life first
        self.ignored = 0

    def revoke(self, partition: int) -> None:
        """Forget a partition."""
        self._devices.pop(partition, None)

    def mark(self, partition: int, next_offset: int) -> tuple[int, int] | None:
        """(offset, stream time as of it) from which a replay rebuilds the open rows; None where none is open."""
        opens = [
            one for device in self._devices.get(partition, {}).values() for one in (device.main, device.late) if one
        ]
        pins = [(one.pin, one.pin_time) for one in opens if one.pin < next_offset]
        return min(pins) if pins else None

    def push(
        self, device: Sequence[str], ts_ms: Int, channel: Int | None, values: Float, offset: Int, stream_time: Int,
        clock: Clock,
    ) -> Joined:
        """Take readings of one partition in; rows that they, or silence, complete.

        channel : (n,) place of the one channel that each reading has, or None where a reading has all.
        values  : (n,), or (n, C) where channel is None; NaN where missing.
        clock   : every record of the partition in this batch.
        """
        devices = self._devices.setdefault(clock.partition, OrderedDict())
        done = _Rows()
        places = [-1] * len(offset) if channel is None else channel.tolist()
        for name, ts, place, value, at, now in zip(
            device, ts_ms.tolist(), places, values.tolist(), offset.tolist(), stream_time.tolist(), strict=True
        ):
            if devices and now - next(iter(devices.values())).life > self._silence:
                self._expire(devices, now, clock, done)
            known = devices.get(name)
            if known is None:
                if len(devices) >= self._max_devices:
                    self._forget(devices, at, now, done)
                known = devices[name] = _Device(now)
            known.life = now
            devices.move_to_end(name)
            pairs = [(place, value)] if place >= 0 else list(enumerate(value))
            self._put(name, known, ts // self._step, pairs, at, now, done)
        if len(clock.stream_time):
            self._expire(devices, int(clock.stream_time[-1]), clock, done)
        return self._columns(done)

    def _put(
        self, name: str, device: _Device, slot: int, pairs: list[tuple[int, float]], offset: int, now: int, done: _Rows
    ) -> None:
        main = device.main
        is_late = main is not None and slot < main.slot
        row = device.late if is_late else main
        if row is not None and row.slot != slot:
            if not row.is_done:
                self._finish(name, row, offset, now, done)
            row = None
        if row is None:
            # A late row is told from a main one by the newest main slot: its replay begins with that one.
            pin, pin_time = (main.pin, main.pin_time) if is_late and main is not None else (offset, now)
            row = _Open(slot, offset, pin, pin_time, [np.nan] * self._channels, self._scored)
            if is_late:
                device.late = row
            else:
                device.main = row
        for place, value in pairs:
            if value != value:
                continue
            if row.is_done or row.values[place] == row.values[place]:
                self.ignored += 1
                continue
            row.values[place] = value
            row.waiting &= ~(1 << place)
        if not row.is_done and not row.waiting:
            self._finish(name, row, offset, now, done)

    def _finish(self, name: str, row: _Open, trigger: int, now: int, done: _Rows) -> None:
        row.is_done = True
        if row.waiting == self._scored:
            return  # context alone: no scored channel, no row
        done.device.append(name)
        done.opens.append(row)
        done.trigger.append(trigger)
        done.time.append(now)

    def _expire(self, devices: OrderedDict[str, _Device], now: int, clock: Clock, done: _Rows) -> None:
        """Finish what silent devices left open, and forget them."""
        while devices:
            device = next(iter(devices.values()))
            if now - device.life <= self._silence:
                return
            at = int(np.searchsorted(clock.stream_time, device.life + self._silence, "right"))
            self._forget(devices, int(clock.offset[at]), int(clock.stream_time[at]), done)

    def _forget(self, devices: OrderedDict[str, _Device], trigger: int, now: int, done: _Rows) -> None:
        """Finish what the device with the oldest sign of life left open."""
        name, device = devices.popitem(last=False)
        for row in (device.main, device.late):
            if row is not None and not row.is_done:
                self._finish(name, row, trigger, now, done)

    def _columns(self, done: _Rows) -> Joined:
        def ints(values: list[int]) -> Int:
            return np.array(values, np.int64)

        opens = done.opens
        return Joined(
            done.device, ints([row.slot * self._step for row in opens]), ints([row.offset for row in opens]),
            ints(done.trigger), ints(done.time),
            ints([row.pin for row in opens]), ints([row.pin_time for row in opens]),
            np.array([row.values for row in opens], np.float32).reshape(-1, self._channels),
        )
