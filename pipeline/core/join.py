"""Readings joined to rows: long readings (one channel a record), and wide ones that are put onto slots.

A row is what a device said in one slot, floor(ts / step). It is complete when every scored channel has come, or when
the device's next slot begins, or when the device falls silent or must make room. The first value of a slot and channel
wins. A reading of an older slot than the device's newest goes to a second lane, so that it does not tear the newest row
apart.

Invariant (tests/laws/test_join_laws.py): rows depend on the log alone; a replay from `mark` makes the same ones.
One Python step a reading: long readings cost about eight times a wide row of eight channels (docs/performance.md).
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

import numpy as np

from pipeline.core.contract import Contract
from pipeline.core.rows import MAX_DEVICES, Clock, Float, Int


@dataclass(slots=True)
class Joined:
    """Rows in the order of their triggers; see `rows.Columns`. device : n names. name : `Columns.offset`."""

    device: list[str]
    ts_ms: Int
    name: Int
    trigger: Int
    stream_time: Int
    pin: Int
    pin_time: Int
    values: Float


@dataclass(slots=True)
class _Open:
    """A row that is being filled, or the last complete one: more of its slot is ignored."""

    slot: int
    name: int
    pin: int
    pin_time: int
    values: list[float]
    waiting: int                # bits of the scored channels still to come
    is_done: bool = False


@dataclass(slots=True)
class _Device:
    life: int                   # stream time at its last reading ...
    seen: int                   # ... and that reading's offset
    main: _Open | None = None
    late: _Open | None = None
    aside: int = -1             # put aside as of this offset, -1: it is not ...
    aside_time: int = -1        # ... and the stream time as of there

    @property
    def opens(self) -> list[_Open]:
        return [one for one in (self.main, self.late) if one is not None]

    def need(self) -> tuple[int, int]:
        """(offset, stream time as of it) from which a replay makes its open rows."""
        return min((one.pin, one.pin_time) for one in self.opens)


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

    def _of(self, partition: int) -> OrderedDict[str, _Device]:
        return self._devices.get(partition) or OrderedDict()

    def mark(self, partition: int, next_offset: int, floor: int = -1) -> tuple[int, int] | None:
        """(offset, stream time as of it) from which a replay rebuilds the open rows; None where none is open.

        floor : devices `behind` it are being put aside.
        """
        devices = self._of(partition).values()
        pins = [max(device.need(), (device.aside, device.aside_time)) for device in devices if device.opens]
        return min((pin for pin in pins if floor <= pin[0] < next_offset), default=None)

    def behind(self, partition: int, floor: int) -> list[str]:
        """Devices whose open rows a replay from `floor` would not make."""
        devices = self._of(partition).items()
        return [name for name, one in devices if one.opens and max(one.need()[0], one.aside) < floor]

    def leaning(self, partition: int) -> list[str]:
        """Devices that need what was put aside of them."""
        return [name for name, one in self._of(partition).items() if one.opens and one.need()[0] < one.aside]

    def aside_at(self, partition: int, device: str) -> int:
        """As of which offset a device is put aside, -1 where it is not."""
        known = self._of(partition).get(device)
        return -1 if known is None else known.aside

    def put_aside(self, partition: int, device: str, offset: int, stream_time: int) -> None:
        """What `state` told of a device is safe; offset -1 takes that back."""
        known = self._of(partition).get(device)
        if known is not None:
            known.aside, known.aside_time = offset, stream_time

    def state(self, partition: int, device: str) -> dict[str, Any] | None:
        """Open rows of a device, as JSON types, for `restore`; None where it has none."""
        known = self._of(partition).get(device)
        if known is None:
            return None
        lanes = [None if one is None else _open_state(one) for one in (known.main, known.late)]
        return {"life": known.life, "seen": known.seen, "lanes": lanes}

    def restore(self, partition: int, mark_time: int, states: Mapping[str, tuple[dict[str, Any], int, int]]) -> None:
        """Begin a partition with devices as (`state`, offset as of it, stream time as of it), by name.

        What a device says in the replay up to that offset is only a sign of life. Its life before the mark is not
        known, and no later than the mark: so it stands before all that the replay sees, and does not expire too early.
        """
        devices = self._devices[partition] = OrderedDict()
        for name, (state, offset, stream_time) in sorted(states.items(), key=lambda item: item[1][0]["seen"]):
            main, late = (None if lane is None else _opened(lane) for lane in state["lanes"])
            life = min(state["life"], mark_time)
            devices[name] = _Device(life, state["seen"], main, late, offset, stream_time)

    def push(
        self, device: Sequence[str], ts_ms: Int, channel: Int | None, values: Float, name: Int, offset: Int,
        stream_time: Int, clock: Clock,
    ) -> Joined:
        """Take readings of one partition in; rows that they, or silence, complete.

        channel : (n,) place of the one channel that each reading has, or None where a reading has all.
        values  : (n,), or (n, C) where channel is None; NaN where missing.
        name    : (n,) what a row is called that begins with the reading; offset : (n,) of its record.
        clock   : every record of the partition in this batch.
        """
        devices = self._devices.setdefault(clock.partition, OrderedDict())
        done = _Rows()
        places = [-1] * len(offset) if channel is None else channel.tolist()
        for owner, ts, place, value, row, at, now in zip(
            device, ts_ms.tolist(), places, values.tolist(), name.tolist(), offset.tolist(), stream_time.tolist(),
            strict=True,
        ):
            if devices and now - next(iter(devices.values())).life > self._silence:
                self._expire(devices, now, clock, done)
            known = devices.get(owner)
            if known is None:
                if len(devices) >= self._max_devices:
                    self._forget(devices, at, now, done)
                known = devices[owner] = _Device(now, at)
            known.life, known.seen = now, at
            devices.move_to_end(owner)
            if at < known.aside:
                continue
            pairs = [(place, value)] if place >= 0 else list(enumerate(value))
            self._put(owner, known, ts // self._step, pairs, row, at, now, done)
        if len(clock.stream_time):
            self._expire(devices, int(clock.stream_time[-1]), clock, done)
        return self._columns(done)

    def _put(
        self, owner: str, device: _Device, slot: int, pairs: list[tuple[int, float]], name: int, offset: int, now: int,
        done: _Rows,
    ) -> None:
        main = device.main
        is_late = main is not None and slot < main.slot
        row = device.late if is_late else main
        if row is not None and row.slot != slot:
            if not row.is_done:
                self._finish(owner, row, offset, now, done)
            row = None
        if row is None:
            # A late row is told from a main one by the newest main slot: its replay begins with that one.
            pin, pin_time = (main.pin, main.pin_time) if is_late and main is not None else (offset, now)
            row = _Open(slot, name, pin, pin_time, [np.nan] * self._channels, self._scored)
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
            self._finish(owner, row, offset, now, done)

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
        for row in device.opens:
            if not row.is_done:
                self._finish(name, row, trigger, now, done)

    def _columns(self, done: _Rows) -> Joined:
        def ints(values: list[int]) -> Int:
            return np.array(values, np.int64)

        opens = done.opens
        return Joined(
            done.device, ints([row.slot * self._step for row in opens]), ints([row.name for row in opens]),
            ints(done.trigger), ints(done.time),
            ints([row.pin for row in opens]), ints([row.pin_time for row in opens]),
            np.array([row.values for row in opens], np.float32).reshape(-1, self._channels),
        )


def _open_state(row: _Open) -> list[Any]:
    slot, offset, pin, pin_time, values, waiting, is_done = astuple(row)
    return [slot, offset, pin, pin_time, [None if value != value else value for value in values], waiting, is_done]


def _opened(state: list[Any]) -> _Open:
    slot, offset, pin, pin_time, values, waiting, is_done = state
    known = [np.nan if value is None else value for value in values]
    return _Open(slot, offset, pin, pin_time, known, waiting, is_done)
