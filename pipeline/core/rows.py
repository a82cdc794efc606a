"""Rows of devices: order, lanes, silence, evictions, cold starts, spans and the mark, vectorised over devices.

The invariant (tests/laws/test_stream_laws.py): what comes out depends on the log alone. Cutting it into other batches,
mixing devices otherwise, or starting again at the mark changes no row's lane, run, span or window.

A partition keeps at most `max_devices`. Where a row of one more comes, the device whose last sign of life is the oldest
is forgotten, as if it had fallen silent at that record. A replay from the mark evicts the same: a device that it does
not see was last seen before the mark, so at every place it knows those that were seen last, and so the same oldest one
wherever there are too many.

A device whose rows lie too far back to be read again is *put aside*: `state` tells all of it as of one offset,
`restore` takes it up, and what comes before that offset is passed over in the replay. It had come before the mark and
was there all the time, so the others meet the same crowd as before.

A *slot* is one lane of one device. Its rows stand one behind the other in a slab, so that a window is a slice and a
gather of many windows is one memcpy each. A slot keeps the last `keep` rows and has room for `room` new ones; when it
is full its kept rows move to the front.

Times are int64 milliseconds in [0, 2**42), offsets int64.
"""

import base64
import heapq
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.contract import Contract
from pipeline.core.ids import device_phase
from pipeline.core.records import Names

Int = NDArray[np.int64]
Bool = NDArray[np.bool_]
Float = NDArray[np.float32]

TIME_LIMIT_MS = 1 << 42  # year 2109: a time and an epoch fit one int64 key
MAX_DEVICES = 25_000     # of one partition, unless told otherwise

# What a device put aside is made of, beside its rows' values.
_DEVICE_STATE = ("last_life", "last_seen", "last_row")
_LANE_STATE = ("newest", "run", "span", "span_rows", "span_pin", "span_pin_time")
_ROW_TIMES = ("ts_ms", "offset", "pin", "pin_time")


@dataclass(slots=True)
class Columns:
    """Rows of one batch, in log order within each partition.

    device      : (n,) main slot of each row's device, from `Rows.slots`.
    ts_ms       : (n,) the row's own time, in [0, TIME_LIMIT_MS).
    offset      : (n,) what the row is called by in ids, in the order of the log: its first record's offset; where a
                  record holds many rows, with the row's place in it (`ids.INDEX_BITS`).
    pin         : (n,) from which offset a replay makes the row again; equals `offset` but for late joined rows.
    pin_time    : (n,) stream time as of that record.
    trigger     : (n,) offset of the record that completed the row; equals `offset` for wide readings.
    stream_time : (n,) stream time as of the trigger: largest record timestamp of the partition so far.
    values      : (n, C) float32, NaN where missing.
    """

    device: Int
    ts_ms: Int
    offset: Int
    pin: Int
    pin_time: Int
    trigger: Int
    stream_time: Int
    values: Float

    def take(self, index: Int | slice) -> "Columns":
        return Columns(
            self.device[index], self.ts_ms[index], self.offset[index], self.pin[index], self.pin_time[index],
            self.trigger[index], self.stream_time[index], self.values[index],
        )


@dataclass(slots=True)
class Clock:
    """All records of one partition in a batch, rejected ones too: what silence is measured by. Both (r,), r >= 1."""

    partition: int
    offset: Int
    stream_time: Int


@dataclass(slots=True)
class Closed:
    """Blocks that are complete. All (k,), grouped by slot, in order within a slot.

    slot, trigger : which lane, and the record that ended the block.
    start, stop   : its rows in the slab, `rows.values[start:stop]`; good until the next push.
    silent        : ended by silence, not by a row.
    """

    slot: Int
    trigger: Int
    start: Int
    stop: Int
    silent: Bool


@dataclass(slots=True)
class Pushed:
    """New rows, grouped by slot, in log order within a slot. All (n,) unless said.

    position : index into the slab.
    run      : rows since the last cold start, this one included.
    due      : its window is whole and the hop asks for a score.
    emit     : its trigger is at or beyond what was delivered before: it may cause outputs.
    silenced : trigger of a silence of its device between the row before and this one, else -1.
    closed   : blocks that these rows, or silence, completed; those delivered before are left out.
    ended    : (slot, trigger) of lanes that fell silent and have no row since; delivered ones left out.
    evicted  : main slot -> trigger, of devices that were forgotten to make room; for them silence above means that.
    duplicates : rows dropped because the device had sent them before, with equal values.
    hushed   : (main slot, trigger, stream time at its last record, its last row's offset) of devices that fell silent,
               those too that are back by now.
    """

    slot: Int
    ts_ms: Int
    offset: Int
    trigger: Int
    position: Int
    run: Int
    due: Bool
    emit: Bool
    silenced: Int
    closed: Closed
    ended: list[tuple[int, int]]
    late: bool
    duplicates: int
    evicted: dict[int, int] = field(default_factory=dict)
    hushed: list[tuple[int, int, int, int]] = field(default_factory=list)


def group_starts(key: Int) -> Bool:
    """True where a new group begins in grouped `key`."""
    first = np.empty(len(key), bool)
    first[:1] = True
    np.not_equal(key[1:], key[:-1], out=first[1:])
    return first


def since_boundary(boundary: Bool, first: Bool, carry: Int) -> Int:
    """Rows since the last boundary (0 at one), group by group.

    boundary, first : (n,), `first` marks where a group begins.
    carry : (groups,) what a group's first row gets where it is no boundary: the rows that came before this batch.
    """
    index = np.arange(len(boundary))
    starts = np.flatnonzero(first)
    origin = index.copy()
    origin[starts] = np.where(boundary[starts], starts, starts - carry)
    last = np.maximum.accumulate(np.where(boundary | first, index, 0))
    return index - origin[last]


class Rows:
    """State of all devices of one stream, over all partitions that this worker holds.

    scaled_width, residual_width, latent_width : floats a row that the scorer keeps beside it.
    capacity : slots to begin with.  room : new rows a slot takes between two moves of its kept rows.
    max_devices : of one partition, at least 1. Part of what outputs depend on, like the contract.
    """

    partition: Int
    main: Int
    late_slot: Int
    phase: Int
    end: Int
    newest: Int
    run: Int
    span: Int
    span_rows: Int
    span_pin: Int
    span_pin_time: Int
    last_life: Int
    last_seen: Int
    last_row: Int
    aside: Int
    aside_time: Int
    device_epoch: Int
    epoch: Int
    live: Bool
    latent_age: Int
    values: Float
    ts_ms: Int
    offset: Int
    pin: Int
    pin_time: Int
    scaled: Float
    residual: Float
    mood: NDArray[np.uint8]
    latent: Float

    def __init__(
        self, contract: Contract, scaled_width: int = 0, residual_width: int = 0, capacity: int = 64, room: int = 256,
        latent_width: int = 0, max_devices: int = MAX_DEVICES,
    ) -> None:
        self.contract = contract
        self.max_devices = max_devices
        self.keep = max(contract.memory, contract.max_rows + contract.window)
        self.room = room
        self.stride = self.keep + room
        self.capacity = 0
        self._slot_fields: dict[str, tuple[type, int]] = {
            "partition": (np.int64, -1),     # -1: free
            "main": (np.int64, -1),          # the device's main slot; itself unless this is a late lane
            "late_slot": (np.int64, -1),     # of a main slot: the device's late lane, if it ever had one
            "phase": (np.int64, 0),
            "end": (np.int64, self.keep),    # where the next row goes, within the slot's stretch of the slab
            "newest": (np.int64, -1),
            "run": (np.int64, 0),
            "span": (np.int64, -1),
            "span_rows": (np.int64, 0),      # rows of the open span so far; 0: none is open
            "span_pin": (np.int64, 0),
            "span_pin_time": (np.int64, 0),
            "last_life": (np.int64, -1),     # of a main slot: stream time at the device's last record
            "last_seen": (np.int64, -1),     # of a main slot: trigger of the device's last row, whatever its lane ...
            "last_row": (np.int64, -1),      # ... and that row's offset: who is the oldest
            "aside": (np.int64, -1),         # of a main slot: offset as of which the device is put aside, else -1 ...
            "aside_time": (np.int64, -1),    # ... and the stream time as of there
            "device_epoch": (np.int64, 0),   # of a main slot: how often the device fell silent or was evicted
            "epoch": (np.int64, 0),          # the device's epoch when this lane got its last row
            "live": (np.bool_, False),
            "latent_age": (np.int64, -1),    # rows since the last one that the model saw whole; -1: none
        }
        self._row_fields: dict[str, tuple[type, tuple[int, ...]]] = {
            "values": (np.float32, (len(contract.channels),)),
            "ts_ms": (np.int64, ()),
            "offset": (np.int64, ()),
            "pin": (np.int64, ()),           # from which offset a replay rebuilds this row ...
            "pin_time": (np.int64, ()),      # ... and the stream time as of there
            "scaled": (np.float32, (scaled_width,)),
            "residual": (np.float32, (residual_width,)),
            "latent": (np.float32, (latent_width,)),   # of the window that ends with the row, NaN where there is none
            "mood": (np.uint8, ()),          # what the verdict said of the row; see `pipeline.core.episode`
        }
        for name, (dtype, _) in self._slot_fields.items():
            setattr(self, name, np.empty(0, dtype))
        for name, (dtype, shape) in self._row_fields.items():
            setattr(self, name, np.empty((0, *shape), dtype))
        self.names: list[str] = []
        self.strays: list[tuple[str, int, int]] = []  # devices that are new here and known in another partition
        self.stream_time: dict[int, int] = {}
        self.emit_from: dict[int, int] = {}
        self._position: dict[int, int] = {}     # the next offset; below `emit_from` in a replay
        self._index: dict[int, dict[str, int]] = {}
        self._free: list[int] = []
        self._silent: list[int] = []
        self._oldest_life: dict[int, int] = {}  # no live device's last record is older: most sweeps end here
        self._grow(capacity)

    # ---------------------------------------------------------------- partitions and slots

    def assign(self, partition: int, emit_from: int, stream_time: int) -> None:
        """Begin a partition with nothing known; its records from the mark on are pushed next.

        emit_from : outputs only for triggers at or beyond it.  stream_time : as of the mark, -1 at a log's start.
        """
        self.revoke(partition)
        self._index[partition] = {}
        self.stream_time[partition] = stream_time
        self.emit_from[partition] = emit_from
        self._position[partition] = -1

    def is_replaying(self, partition: int) -> bool:
        """Whether the state is not yet what it was when the commit was made that the partition began with."""
        return self._position[partition] < self.emit_from[partition]

    def position(self, partition: int) -> int:
        """Offset behind the last record that was pushed."""
        return self._position[partition]

    def revoke(self, partition: int) -> list[int]:
        """Forget a partition; returns the slots that it had."""
        slots: list[int] = np.flatnonzero(self.partition == partition).tolist()
        for slot in slots:
            self._release(slot)
        gone = set(slots)   # else `settle` would free these numbers again, from whoever has them by then
        self._silent = [main for main in self._silent if main not in gone]
        for state in (self._index, self.stream_time, self.emit_from, self._position, self._oldest_life):
            state.pop(partition, None)
        return slots

    def slots(self, partition: int, devices: Sequence[str]) -> Int:
        """Main slot of each device, made where it is new. (n,) int64."""
        if isinstance(devices, Names):
            used, which = devices.used()
            return self.slots(partition, used)[which]
        index = self._index[partition]
        found = list(map(index.get, devices))
        if None in found:
            names = list(dict.fromkeys(name for name, slot in zip(devices, found, strict=True) if slot is None))
            self.strays += [
                (name, other, partition) for other, there in self._index.items() for name in names if name in there
            ]
            index.update(zip(names, self._claim(partition, names).tolist(), strict=True))
            found = list(map(index.get, devices))
        return np.array(found, np.int64)

    def slot_of(self, partition: int, device: str, late: bool) -> int:
        """The slot of one lane, made where it is new."""
        main = int(self.slots(partition, [device])[0])
        return self._late_lane(main) if late else main

    def is_late(self, slot: int) -> bool:
        return bool(self.main[slot] != slot)

    def settle(self) -> list[int]:
        """Give the slots of devices that fell silent or were evicted free. Called between batches; the freed slots."""
        waiting, freed = [], []
        for main in self._silent:
            partition = int(self.partition[main])
            if partition < 0 or self.live[main]:
                continue
            if self.is_replaying(partition):    # it may come back before the replay is over, and needs its verdict then
                waiting.append(main)
                continue
            self._index[partition].pop(self.names[main], None)
            late = int(self.late_slot[main])
            for slot in (main, late) if late >= 0 else (main,):
                self._release(slot)
                freed.append(slot)
        self._silent = waiting
        return freed

    def _claim(self, partition: int, devices: Sequence[str]) -> Int:
        """A slot for each. (n,)"""
        reused = min(len(self._free), len(devices))
        slots = [self._free.pop() for _ in range(reused)]
        slots += range(len(self.names), len(self.names) + len(devices) - reused)
        self.names += devices[reused:]
        while len(self.names) > self.capacity:
            self._grow(2 * self.capacity)
        for slot, device in zip(slots[:reused], devices, strict=False):
            self.names[slot] = device
        made = np.array(slots, np.int64)
        for name, (_, fill) in self._slot_fields.items():
            getattr(self, name)[made] = fill
        self.partition[made] = partition
        self.main[made] = made
        self.phase[made] = [device_phase(device, self.contract.span_ms) for device in devices]
        return made

    def _late_lane(self, main: int) -> int:
        slot = int(self.late_slot[main])
        if slot < 0:
            slot = int(self._claim(int(self.partition[main]), [self.names[main]])[0])
            self.main[slot] = main
            self.late_slot[main] = slot
        return slot

    def _release(self, slot: int) -> None:
        self.live[slot] = False
        self.partition[slot] = -1
        self._free.append(slot)

    def _grow(self, capacity: int) -> None:
        for name, (dtype, fill) in self._slot_fields.items():
            grown: NDArray[Any] = np.full(capacity, fill, dtype)
            grown[: self.capacity] = getattr(self, name)
            setattr(self, name, grown)
        for name, (dtype, shape) in self._row_fields.items():
            # zeros, not empty: pages that no row has touched cost no memory
            taller: NDArray[Any] = np.zeros((capacity * self.stride, *shape), dtype)
            taller[: self.capacity * self.stride] = getattr(self, name)
            setattr(self, name, taller)
        self.capacity = capacity

    # ---------------------------------------------------------------- push

    def parts(self, rows: Columns, clocks: Sequence[Clock]) -> list[tuple[Columns, Sequence[Clock]]]:
        """Cut a batch where one device has more rows than a slot has room for, or where a device could be evicted by
        rows that came after its own. Push and score one after the other."""
        n = len(rows.device)
        is_crowded = any(len(devices) > self.max_devices for devices in self._index.values())
        most = self.max_devices if is_crowded else n
        if n <= most and (n == 0 or int(np.bincount(rows.device).max()) <= self.room):
            return [(rows, clocks)]
        half = n // 2
        partition = self.partition[rows.device]
        before: list[Clock] = []
        after: list[Clock] = []
        for clock in clocks:
            later = np.flatnonzero(partition[half:] == clock.partition)
            earlier = np.flatnonzero(partition[:half] == clock.partition)
            torn = 0                         # 1 where the cut goes through the rows of one record: it is in both parts
            if len(later) == 0:
                cut = len(clock.offset)
            elif len(earlier) == 0:
                cut = 0
            else:
                cut = int(np.searchsorted(clock.offset, rows.trigger[half + later[0]]))
                torn = int(rows.trigger[earlier[-1]] == rows.trigger[half + later[0]])
            if cut + torn:
                before.append(Clock(clock.partition, clock.offset[: cut + torn], clock.stream_time[: cut + torn]))
            if cut < len(clock.offset):
                after.append(Clock(clock.partition, clock.offset[cut:], clock.stream_time[cut:]))
        return self.parts(rows.take(slice(0, half)), before) + self.parts(rows.take(slice(half, n)), after)

    def push(self, rows: Columns, clocks: Sequence[Clock]) -> list[Pushed]:
        """Take the rows of one part in (see `parts`): one `Pushed` for the main lanes, one for late lanes if any.

        rows may be empty: time passes all the same.
        """
        for clock in clocks:
            self.stream_time[clock.partition] = int(clock.stream_time[-1])
            self._position[clock.partition] = int(clock.offset[-1]) + 1
        pushed = []
        if len(rows.device):
            fresh = rows.trigger >= self.aside[rows.device]
            if not fresh.all():                  # in a replay: known already from what was put aside
                rows = rows.take(np.flatnonzero(fresh))
        evicted: dict[int, int] = {}
        silences: dict[tuple[int, int], int] = {}
        hushed: list[tuple[int, int, int, int]] = []
        if len(rows.device):
            for clock in clocks:
                if len(self._index[clock.partition]) > self.max_devices:
                    self._evict(rows, clock.partition, evicted)
            key = rows.device.astype(np.uint16) if self.capacity <= 1 << 16 else rows.device
            rows = rows.take(np.argsort(key, kind="stable"))      # numpy sorts 16 bits by radix
            first = group_starts(rows.device)
            starts = np.flatnonzero(first)
            forgotten, epoch = self._silence(rows, starts, clocks, silences, evicted, hushed)
            is_main = self._lanes(rows, first, starts, forgotten)
            if is_main.all():
                pushed.append(self._append(rows, rows.device, epoch, rows.pin, rows.pin_time, silences, 0))
            else:
                pushed += self._split_lanes(rows, epoch, is_main, silences)
        closed, ended = self._sweep(clocks, silences, evicted, hushed)
        if not pushed:
            pushed.append(self.nothing())
        pushed[-1].closed = _join(pushed[-1].closed, closed)
        pushed[-1].ended = ended
        pushed[-1].hushed = hushed
        for one in pushed:
            one.evicted = evicted
        return pushed

    def _evict(self, rows: Columns, partition: int, evicted: dict[int, int]) -> None:
        """Make room for the devices that enter with these rows, in log order: fills `evicted`, device -> trigger.

        The oldest goes, by the trigger of its last row, then by that row. A part has at most `max_devices` rows, so
        whoever has one of them is not the oldest again within it. Silence comes before eviction: a silent device that
        is still counted here gives its place first.
        """
        own = np.flatnonzero(self.partition[rows.device] == partition)
        devices, first = np.unique(rows.device[own], return_index=True)
        is_live = self.live[devices]
        n = len(self.names)
        live = np.flatnonzero(self.live[:n] & (self.partition[:n] == partition) & (self.main[:n] == np.arange(n)))
        room = self.max_devices - len(live)
        if len(devices) - int(is_live.sum()) <= room:
            return
        most = min(2 * len(devices), len(live))     # each one that enters takes one, each that is seen is passed over
        seen = self.last_seen[live]
        oldest = live[seen <= np.partition(seen, most - 1)[most - 1]]
        oldest = oldest[np.lexsort((self.last_row[oldest], self.last_seen[oldest]))]
        line = zip(oldest.tolist(), self.last_life[oldest].tolist(), strict=True)
        seen_at = dict(zip(devices[is_live].tolist(), first[is_live].tolist(), strict=True))
        trigger, now = rows.trigger[own].tolist(), rows.stream_time[own].tolist()
        entering = np.sort(first[~is_live]).tolist()
        while entering:
            at = heapq.heappop(entering)
            if room:
                room -= 1
                continue
            for device, life in line:
                back = seen_at.get(device, len(own))
                if back < at:
                    continue
                if now[at] - life <= self.contract.silence_ms:
                    evicted[device] = trigger[at]
                if back < len(own):
                    heapq.heappush(entering, back)
                break

    def _silence(
        self, rows: Columns, starts: Int, clocks: Sequence[Clock], silences: dict[tuple[int, int], int],
        evicted: dict[int, int], hushed: list[tuple[int, int, int, int]],
    ) -> tuple[Bool, Int]:
        """Which rows find their device forgotten, and the device's epoch at each row.

        Silence is stream time now minus stream time at the device's last record: two readings of one clock. Any
        record of a device, a late one too, is a sign of life. Fills `silences`: (device, epoch) -> trigger; who was
        evicted and came back is among them. Adds to `hushed` who was not.
        """
        devices, life = rows.device[starts], rows.stream_time
        previous = np.empty(len(life), np.int64)
        previous[1:] = life[:-1]
        previous[starts] = self.last_life[devices]
        known = np.ones(len(life), bool)
        known[starts] = self.live[devices]
        silent = known & (life - previous > self.contract.silence_ms)
        if evicted:
            silent[starts] |= np.isin(devices, list(evicted))
        epoch = self.device_epoch[rows.device]
        if silent.any():
            passed = np.cumsum(silent)
            epoch += passed - np.repeat(passed[starts] - silent[starts], np.diff(np.append(starts, len(life))))
            found = np.flatnonzero(silent)
            self.aside[rows.device[found]] = -1
            triggers = self._silence_triggers(clocks, rows.device[found], previous[found])
            triggers = np.where(triggers < 0, rows.trigger[found], triggers)    # cut off from a record of several rows
            is_first = np.isin(found, starts)
            last = np.where(is_first, self.last_row[rows.device[found]], rows.offset[found - 1])
            for device, before, trigger, is_start, was, row in zip(
                rows.device[found].tolist(), (epoch[found] - 1).tolist(), triggers.tolist(), is_first.tolist(),
                previous[found].tolist(), last.tolist(), strict=True,
            ):
                silences[device, before] = evicted.get(device, trigger) if is_start else trigger
                if not is_start or device not in evicted:
                    hushed.append((device, trigger, was, row))
        lasts = np.append(starts[1:], len(life)) - 1
        self.last_life[devices] = life[lasts]
        self.last_seen[devices] = rows.trigger[lasts]
        self.last_row[devices] = rows.offset[lasts]
        self.device_epoch[devices] = epoch[lasts]
        return silent | ~known, epoch

    def _silence_triggers(self, clocks: Sequence[Clock], devices: Int, life: Int) -> Int:
        """Offsets of the records whose timestamps made devices silent, -1 where none of these did. (k,)"""
        triggers = np.full(len(devices), -1, np.int64)
        partition = self.partition[devices]
        for clock in clocks:
            mine = np.flatnonzero(partition == clock.partition)
            at = np.searchsorted(clock.stream_time, life[mine] + self.contract.silence_ms, "right")
            triggers[mine] = np.append(clock.offset, -1)[at]
        return triggers

    def _lanes(self, rows: Columns, first: Bool, starts: Int, forgotten: Bool) -> Bool:
        """True for rows of the main lane: newer than every row of the device since it was last forgotten."""
        ts = rows.ts_ms
        newest = np.where(forgotten[starts], -1, self.newest[rows.device[starts]])
        previous = np.empty(len(ts), np.int64)
        previous[1:] = ts[:-1]
        previous[starts] = newest
        in_order = (ts > previous) | forgotten
        if in_order.all():
            return in_order
        segment = np.cumsum(first | forgotten) << 42
        key = segment + ts
        floor = np.where(forgotten, segment - 1, 0)
        floor[starts] = segment[starts] + newest
        largest = np.maximum.accumulate(floor)
        largest[1:] = np.maximum(largest[1:], np.maximum.accumulate(key)[:-1])
        return key > largest

    def _split_lanes(
        self, rows: Columns, epoch: Int, is_main: Bool, silences: dict[tuple[int, int], int]
    ) -> list[Pushed]:
        """Push main rows, drop what the device only sent again, push the rest into late lanes."""
        run_before = self.run.copy()
        main_index = np.flatnonzero(is_main)
        pushed = []
        main_run = np.empty(0, np.int64)
        if len(main_index):
            main = rows.take(main_index)
            pushed.append(
                self._append(main, main.device, epoch[main_index], main.pin, main.pin_time, silences, 0)
            )
            main_run = pushed[0].run
        late_index = np.flatnonzero(~is_main)
        late = rows.take(late_index)
        # The newest main row as a late one arrives: where it stands in the slab, and how long its run was.
        counts = np.cumsum(is_main)
        in_group = np.flatnonzero(group_starts(rows.device))
        group = np.cumsum(group_starts(rows.device)) - 1
        base: Int = counts[in_group] - is_main[in_group]
        before: Int = counts[late_index] - base[group[late_index]]     # main rows of the device before it, this batch
        total = np.add.reduceat(is_main.astype(np.int64), in_group)[group[late_index]]
        last = late.device * self.stride + self.end[late.device] - total + before - 1
        run = run_before[late.device]
        had = before > 0
        run[had] = main_run[counts[late_index][had] - 1]
        low = last - np.minimum(run, self.contract.memory) + 1
        again = self._is_in(low, last, late.ts_ms, late.values)
        older = self.pin[low] <= late.pin
        pin = np.where(older, self.pin[low], late.pin)
        pin_time = np.where(older, self.pin_time[low], late.pin_time)
        kept = np.flatnonzero(~again)
        late, pin, pin_time = late.take(kept), pin[kept], pin_time[kept]
        late_epoch = epoch[late_index[kept]]
        slot = np.array([self._late_lane(device) for device in late.device.tolist()], np.int64)
        order = np.argsort(slot, kind="stable")
        late, slot, late_epoch, pin, pin_time = (
            late.take(order), slot[order], late_epoch[order], pin[order], pin_time[order]
        )
        again = self._repeats(late, slot, late_epoch)
        kept = np.flatnonzero(~again)
        duplicates = len(late_index) - len(kept)
        if len(kept):
            pushed.append(
                self._append(
                    late.take(kept), slot[kept], late_epoch[kept], pin[kept], pin_time[kept], silences, duplicates
                )
            )
        elif pushed:
            pushed[-1].duplicates = duplicates
        else:
            pushed.append(self.nothing(duplicates))
        return pushed

    def _is_in(self, low: Int, high: Int, ts: Int, values: Float) -> Bool:
        """Does the slab hold a row of this time and these values between `low` and `high`, both included? (n,)"""
        end = high + 1
        bottom = low.copy()
        for _ in range(int(self.keep).bit_length()):
            middle = (bottom + end) >> 1
            searching = bottom < end
            less = searching & (self.ts_ms[np.where(searching, middle, low)] < ts)
            bottom = np.where(less, middle + 1, bottom)
            end = np.where(searching & ~less, middle, end)
        at = np.minimum(bottom, high)
        return (self.ts_ms[at] == ts) & _same_bits(self.values[at], values)

    def _repeats(self, rows: Columns, slot: Int, epoch: Int) -> Bool:
        """Is a late row the one that its lane had last? (n,)"""
        first = group_starts(slot)
        starts = np.flatnonzero(first)
        at = slot[starts] * self.stride + self.end[slot[starts]] - 1
        same = np.empty(len(slot), bool)
        same[1:] = (rows.ts_ms[1:] == rows.ts_ms[:-1]) & (epoch[1:] == epoch[:-1])
        same[1:] &= _same_bits(rows.values[1:], rows.values[:-1])
        same[starts] = (
            self.live[slot[starts]] & (self.epoch[slot[starts]] == epoch[starts])
            & (self.ts_ms[at] == rows.ts_ms[starts]) & _same_bits(self.values[at], rows.values[starts])
        )
        return same

    def _append(
        self, rows: Columns, slot: Int, epoch: Int, pin: Int, pin_time: Int,
        silences: dict[tuple[int, int], int], duplicates: int,
    ) -> Pushed:
        """Write rows, grouped by slot, behind those that their slots have; find runs, due scores and closed blocks."""
        contract = self.contract
        n = len(slot)
        first = group_starts(slot)
        starts = np.flatnonzero(first)
        slots = slot[starts]
        count = np.diff(np.append(starts, n))
        self._make_room(slots, count)
        end = self.end[slots]
        position = np.repeat(slots * self.stride + end - starts, count) + np.arange(n)
        self.values[position], self.ts_ms[position], self.offset[position] = rows.values, rows.ts_ms, rows.offset
        self.pin[position], self.pin_time[position] = pin, pin_time
        self.residual[position] = 0

        previous_epoch = np.empty(n, np.int64)
        previous_epoch[1:] = epoch[:-1]
        previous_epoch[starts] = np.where(self.live[slots], self.epoch[slots], -1)
        fresh = previous_epoch != epoch
        previous = np.empty(n, np.int64)
        previous[1:] = rows.ts_ms[:-1]
        previous[starts] = self.newest[slots]
        restart = ~fresh & (rows.ts_ms <= previous)      # only in a late lane: another old buffer begins
        run = since_boundary(
            fresh | restart | (rows.ts_ms - previous > contract.max_gap_ms), first, self.run[slots]
        ) + 1
        due = run >= contract.window
        if contract.hop > 1:
            phase, stretch = self.phase[slot], contract.hop * contract.step_ms
            due &= (rows.ts_ms + phase) // stretch != (previous + phase) // stretch

        # Blocks: a new one begins with a new span, after silence, and every max_rows rows.
        span = (rows.ts_ms + self.phase[slot]) // contract.span_ms
        previous_span = np.empty(n, np.int64)
        previous_span[1:] = span[:-1]
        previous_span[starts] = np.where(self.span_rows[slots] > 0, self.span[slots], -1)
        new_span = fresh | restart | (span != previous_span)
        in_span = since_boundary(new_span, first, self.span_rows[slots])
        begins = np.flatnonzero(in_span % contract.max_rows == 0)
        silenced = np.full(n, -1, np.int64)
        for i in np.flatnonzero(fresh & (previous_epoch >= 0)).tolist():
            silenced[i] = silences[int(self.main[slot[i]]), int(previous_epoch[i])]
        closed = self._closed_by(begins, slot, position, rows.trigger, silenced)

        lasts = np.append(starts[1:], n) - 1
        span_first = lasts - in_span[lasts]
        here = span_first >= starts
        at = np.maximum(span_first, 0)
        self.span_pin[slots] = np.where(here, pin[at], self.span_pin[slots])
        self.span_pin_time[slots] = np.where(here, pin_time[at], self.span_pin_time[slots])
        self.end[slots] = end + count
        self.newest[slots] = rows.ts_ms[lasts]
        self.run[slots] = run[lasts]
        self.span[slots] = span[lasts]
        self.span_rows[slots] = in_span[lasts] + 1
        self.epoch[slots] = epoch[lasts]
        self.live[slots] = True
        last_due = np.maximum.reduceat(np.where(due, np.arange(n), -1), starts)
        age = self.latent_age[slots]
        self.latent_age[slots] = np.where(last_due >= 0, lasts - last_due, np.where(age >= 0, age + count, -1))
        return Pushed(
            slot, rows.ts_ms, rows.offset, rows.trigger, position, run, due, rows.trigger >= self._emit_from(slot),
            silenced, closed, [], bool(self.main[slot[0]] != slot[0]), duplicates,
        )

    def _make_room(self, slots: Int, count: Int) -> None:
        full = slots[self.end[slots] + count > self.stride]
        if len(full):
            source = (full * self.stride + self.end[full] - self.keep)[:, None] + np.arange(self.keep)
            target = (full * self.stride)[:, None] + np.arange(self.keep)
            for name in self._row_fields:
                column = getattr(self, name)
                column[target] = column[source]
            self.end[full] = self.keep

    def _closed_by(self, begins: Int, slot: Int, position: Int, trigger: Int, silenced: Int) -> Closed:
        """Blocks that end where the next one begins. Reads `end` and `span_rows` as they were before these rows."""
        slots = slot[begins]
        follows = np.zeros(len(begins), bool)
        follows[1:] = slots[1:] == slots[:-1]
        start = slots * self.stride + self.end[slots] - self._open_rows(slots)
        start[1:][follows[1:]] = position[begins[:-1]][follows[1:]]
        silent = silenced[begins] >= 0
        by = np.where(silent, silenced[begins], trigger[begins])
        ended = np.flatnonzero((follows | (self.span_rows[slots] > 0)) & (by >= self._emit_from(slots)))
        return Closed(slots[ended], by[ended], start[ended], position[begins][ended], silent[ended])

    def _open_rows(self, slots: Int) -> Int:
        """Rows of the open block: those of the open span since its last full block."""
        rows = self.span_rows[slots]
        return np.where(rows > 0, (rows - 1) % self.contract.max_rows + 1, 0)

    def live_slots(self, partition: int) -> Int:
        """Live lanes of a partition."""
        n = len(self.names)
        return np.flatnonzero(self.live[:n] & (self.partition[:n] == partition))

    def open_block(self, slot: int) -> slice:
        """Where the rows of a lane's open block lie in the slab."""
        top = slot * self.stride + int(self.end[slot])
        return slice(top - int(self._open_rows(np.array([slot]))[0]), top)

    def _emit_from(self, slots: Int) -> Int:
        table = np.full(max(self.emit_from, default=0) + 1, 0, np.int64)
        for partition, offset in self.emit_from.items():
            table[partition] = offset
        return table[self.partition[slots]]

    def _sweep(
        self, clocks: Sequence[Clock], silences: dict[tuple[int, int], int], evicted: dict[int, int],
        hushed: list[tuple[int, int, int, int]],
    ) -> tuple[Closed, list[tuple[int, int]]]:
        """Forget the devices that stream time has left behind or that had to make room; close what they had open."""
        ended: list[tuple[int, int]] = []
        for (main, epoch), trigger in silences.items():       # silent, then back, but not in the late lane
            late = int(self.late_slot[main])
            if late >= 0 and self.live[late] and self.epoch[late] == epoch:
                ended.append((late, trigger))
                self.live[late] = False
        epochs = self.device_epoch
        gone = [(main, trigger) for main, trigger in evicted.items() if (main, int(epochs[main]) - 1) not in silences]
        lost = {main for main, _ in gone}
        n = len(self.names)
        for clock in clocks:
            limit = self.stream_time[clock.partition] - self.contract.silence_ms
            if limit <= self._oldest_life.get(clock.partition, -1):
                continue
            here = self.live[:n] & (self.partition[:n] == clock.partition)
            silent = np.flatnonzero(here & (self.main[:n] == np.arange(n)) & (self.last_life[:n] < limit))
            triggers = self._silence_triggers(clocks, silent, self.last_life[silent])
            fell = [pair for pair in zip(silent.tolist(), triggers.tolist(), strict=True) if pair[0] not in lost]
            gone += fell
            hushed += [(main, by, int(self.last_life[main]), int(self.last_row[main])) for main, by in fell]
            latest = self.stream_time[clock.partition]
            here &= self.last_life[:n] >= limit
            self._oldest_life[clock.partition] = int(self.last_life[:n][here].min(initial=latest))
        for main, trigger in gone:
            late = int(self.late_slot[main])
            ended += [(slot, trigger) for slot in (main, late) if slot >= 0 and self.live[slot]]
            self.device_epoch[main] += 1
            self.aside[main] = -1
            self._silent.append(main)
        slots = np.array([slot for slot, _ in ended], np.int64)
        triggers = np.array([trigger for _, trigger in ended], np.int64)
        stop = slots * self.stride + self.end[slots]
        rows = self._open_rows(slots)
        emit = triggers >= self._emit_from(slots)
        closed = np.flatnonzero((rows > 0) & emit)
        result = Closed(slots, triggers, stop - rows, stop, np.ones(len(slots), bool))
        self.live[slots] = False
        self.run[slots] = 0
        self.span_rows[slots] = 0
        self.newest[slots] = -1
        return _take(result, closed), [ended[i] for i in np.flatnonzero(emit).tolist()]

    def still_open(self, partition: int, trigger: int) -> Closed:
        """Open blocks of a partition, as if silence ended them at `trigger`. Changes nothing."""
        n = len(self.names)
        slots = np.flatnonzero(self.live[:n] & (self.partition[:n] == partition) & (self.span_rows[:n] > 0))
        stop = slots * self.stride + self.end[slots]
        triggers = np.full(len(slots), trigger, np.int64)
        return Closed(slots, triggers, stop - self._open_rows(slots), stop, np.ones(len(slots), bool))

    def nothing(self, duplicates: int = 0) -> Pushed:
        none, no = np.empty(0, np.int64), np.empty(0, bool)
        return Pushed(
            none, none, none, none, none, none, no, no, none, Closed(none, none, none, none, no), [], False, duplicates
        )

    # ---------------------------------------------------------------- what a checkpoint and a swap need

    def mark(self, partition: int, next_offset: int, floor: int = -1) -> tuple[int, int]:
        """(mark, stream time as of the mark): from where a replay rebuilds all that this state knows of a partition.

        That is the smallest offset that the last `memory` rows of a live lane, its open span, or the window behind
        its last latent need, or as of which its device is put aside; `next_offset` where no device is live.
        floor : devices `behind` it are being put aside as of `next_offset`.
        """
        slots, pin, time = self._needs(partition)
        aside = self.aside[self.main[slots]]
        pin, time = np.maximum(pin, aside), np.where(aside > pin, self.aside_time[self.main[slots]], time)
        near = np.flatnonzero(pin >= floor)
        oldest = near[pin[near].argmin()] if len(near) else -1
        if oldest < 0 or pin[oldest] >= next_offset:
            return next_offset, self.stream_time[partition]
        return int(pin[oldest]), int(time[oldest])

    def _needs(self, partition: int) -> tuple[Int, Int, Int]:
        """(live lanes of a partition, from which offset a replay would rebuild each, stream time as of there)."""
        slots = self.live_slots(partition)
        needed, _ = self._needed_rows(slots)
        at = slots * self.stride + self.end[slots] - needed
        by_span = self.span_pin[slots] < self.pin[at]
        pin = np.where(by_span, self.span_pin[slots], self.pin[at])
        return slots, pin, np.where(by_span, self.span_pin_time[slots], self.pin_time[at])

    def _needed_rows(self, slots: Int) -> tuple[Int, Bool]:
        """How many of a lane's last rows later scores need; and whether its last latent is the open block's."""
        age = self.latent_age[slots]
        gist = (age >= 0) & (age < self._open_rows(slots))
        needed = np.minimum(self.run[slots], self.contract.memory)
        return np.maximum(needed, np.where(gist, age + self.contract.window, 0)), gist

    def behind(self, partition: int, floor: int) -> list[str]:
        """Devices that a replay from `floor` would not rebuild."""
        slots, pin, _ = self._needs(partition)
        main = self.main[slots]
        return [self.names[slot] for slot in np.unique(main[np.maximum(pin, self.aside[main]) < floor]).tolist()]

    def leaning(self, partition: int) -> list[str]:
        """Devices that need what was put aside of them: their rows since then are not enough."""
        slots, pin, _ = self._needs(partition)
        main = self.main[slots]
        return [self.names[slot] for slot in np.unique(main[pin < self.aside[main]]).tolist()]

    def aside_at(self, partition: int, device: str) -> int:
        """As of which offset a live device is put aside, -1 where it is not."""
        main = self._index[partition].get(device)
        return int(self.aside[main]) if main is not None and self.live[main] else -1

    def put_aside(self, partition: int, device: str, offset: int, stream_time: int) -> None:
        """What `state` told of a device is safe; offset -1 takes that back."""
        main = self._index[partition].get(device)
        if main is not None and self.live[main]:
            self.aside[main], self.aside_time[main] = offset, stream_time

    def state(self, partition: int, device: str) -> dict[str, Any] | None:
        """Everything of a device, as JSON types, for `restore`; None where it is not live."""
        main = self._index[partition].get(device)
        if main is None or not self.live[main]:
            return None
        late = int(self.late_slot[main])
        lanes = [main, late] if late >= 0 and self.live[late] else [main]
        return {
            **{name: int(getattr(self, name)[main]) for name in _DEVICE_STATE},
            "lanes": [self._lane_state(slot) for slot in lanes],
        }

    def _lane_state(self, slot: int) -> dict[str, Any]:
        one = np.array([slot])
        needed, gist = self._needed_rows(one)
        stop = slot * self.stride + int(self.end[slot])
        kept = slice(stop - max(int(needed[0]), int(self._open_rows(one)[0])), stop)
        times = np.stack([getattr(self, name)[kept] for name in _ROW_TIMES])
        packed = np.diff(times, prepend=0).astype("<i8").tobytes() + self.values[kept].astype("<f4").tobytes()
        return {
            **{name: int(getattr(self, name)[slot]) for name in _LANE_STATE},
            "latent_age": int(self.latent_age[slot]) if gist[0] else -1,
            "rows": base64.b64encode(zlib.compress(packed, 1)).decode(),
        }

    def restore(self, partition: int, device: str, state: Mapping[str, Any], offset: int, stream_time: int) -> None:
        """Take up a device as `state` told it as of `offset`, before anything of the partition is pushed."""
        main = int(self.slots(partition, [device])[0])
        for name in _DEVICE_STATE:
            getattr(self, name)[main] = state[name]
        self.aside[main], self.aside_time[main] = offset, stream_time
        for late, lane in enumerate(state["lanes"]):
            slot = self._late_lane(main) if late else main
            for name in (*_LANE_STATE, "latent_age"):
                getattr(self, name)[slot] = lane[name]
            self.live[slot] = True
            packed = zlib.decompress(base64.b64decode(lane["rows"]))
            count = len(packed) // (8 * len(_ROW_TIMES) + 4 * self.values.shape[1])
            times = np.frombuffer(packed, "<i8", len(_ROW_TIMES) * count).reshape(-1, count).cumsum(axis=1)
            stop = slot * self.stride + self.keep
            for name, column in zip(_ROW_TIMES, times, strict=True):
                getattr(self, name)[stop - count : stop] = column
            self.values[stop - count : stop] = np.frombuffer(packed, "<f4", offset=8 * times.size).reshape(count, -1)

    def kept(self, partition: int) -> tuple[Int, Int, Int]:
        """What a new model must see again: (slots, positions, latest).

        slots : live lanes of the partition.  positions : rows whose residual a later score filters.
        latest : for each slot the row whose latent the open span may need, -1 where none.
        """
        slots = self.live_slots(partition)
        top = slots * self.stride + self.end[slots]
        count = np.zeros(len(slots), np.int64)
        if self.contract.hop == 1:
            count = np.clip(self.run[slots] - self.contract.window + 1, 0, self.contract.filter_length)
        ends = np.cumsum(count)
        positions = np.repeat(top - ends, count) + np.arange(ends[-1] if len(ends) else 0)
        age = self.latent_age[slots]
        return slots, positions, np.where(age >= 0, top - 1 - age, -1)

    def widen(self, name: str, width: int) -> None:
        """Change how many floats a row has as `residual` or `latent`; the first ones stay."""
        held: Float = getattr(self, name)
        self._row_fields[name] = (np.float32, (width,))
        wider = np.zeros((self.capacity * self.stride, width), np.float32)
        both = min(width, held.shape[1])
        wider[:, :both] = held[:, :both]
        setattr(self, name, wider)

    def windows(self, positions: Int) -> Float:
        """Scaled windows that end at these rows. (k,) -> (k, T, I), a copy."""
        width = self.scaled.shape[1]
        length = self.contract.window * width
        view = np.ndarray(
            len(self.scaled) - self.contract.window + 1, f"V{length * 4}", self.scaled.reshape(-1), strides=(width * 4,)
        )
        return view[positions - self.contract.window + 1].view(np.float32).reshape(-1, self.contract.window, width)

    def residuals(self, positions: Int, run: Int) -> Float:
        """Residuals that a score at these rows filters, oldest first, 0 before the run's. (k,) -> (k, L, R), a copy."""
        length, width = self.contract.filter_length, self.residual.shape[1]
        view = np.ndarray(
            len(self.residual) - length + 1, f"V{length * width * 4}", self.residual.reshape(-1), strides=(width * 4,)
        )
        taken = view[positions - length + 1].view(np.float32).reshape(-1, length, width)
        have = run - self.contract.window + 1
        short = np.flatnonzero(have < length)
        if len(short):
            taken[short] *= (np.arange(length) >= length - have[short][:, None])[:, :, None]
        return taken

    @property
    def devices(self) -> int:
        """Devices that have a slot, over all partitions."""
        return sum(map(len, self._index.values()))

    @property
    def bytes_a_device(self) -> int:
        """Bytes that one device's slot takes in the slabs."""
        return sum(
            self.stride * np.dtype(dtype).itemsize * int(np.prod(shape)) for dtype, shape in self._row_fields.values()
        )


def _same_bits(a: Float, b: Float) -> Bool:
    """Equal to the bit in every channel; a missing value equals a missing one. (n, C), (n, C) -> (n,)"""
    return np.asarray((np.ascontiguousarray(a).view(np.int32) == np.ascontiguousarray(b).view(np.int32)).all(axis=1))


def _take(closed: Closed, index: Int) -> Closed:
    return Closed(
        closed.slot[index], closed.trigger[index], closed.start[index], closed.stop[index], closed.silent[index]
    )


def _join(a: Closed, b: Closed) -> Closed:
    if not len(b.slot):
        return a
    return Closed(
        np.concatenate((a.slot, b.slot)), np.concatenate((a.trigger, b.trigger)), np.concatenate((a.start, b.start)),
        np.concatenate((a.stop, b.stop)), np.concatenate((a.silent, b.silent)),
    )
