"""Rows that don't fit into memory: laid once on disk, device by device and in order, and read from there.

Invariant: whatever is kept in memory is bounded by CHUNK rows, by WINDOWS of one device's length and by the sample that
calibration, baselines and report look at; everything with an entry a row is a file mapped from `folder`. A spooled
training learns from the windows that one in memory would learn from; its constants come from the sample.

    blocks -> values, ts_ms (input order) -> grouped by device -> part, scaled rows -> ends of windows to learn from
                                                              `-> sample: whole stretches of each part, in memory
"""

import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from pipeline.core import scaling as scalings
from pipeline.core.contract import Contract
from pipeline.core.scaling import Moments, Scaling
from pipeline.core.windows import run_lengths
from pipeline.errors import BadInput
from pipeline.formats.files import Table
from training import data
from training.contamination import Oddness, labelled_shares
from training.contamination import find as find_odd
from training.evaluate import any_label
from training.prepare import CALIBRATION, COVARIANCE, FIT, SHARES, Prepared, prepare, split_devices
from training.windows import Windows

CHUNK = 1 << 16          # rows of one device that are looked at together
ANOMALOUS, UNKNOWN = 1, 2    # a row's label, else 0
STRETCH = 4              # a sampled stretch is as long as so many memories
PER_VALUE, PER_ROW = 160, 200   # bytes that training in memory takes at its peak, a value and a row


def most_rows(channels: int, memory_mb: float) -> int:
    """How many rows training may hold in memory at once."""
    return max(1, int(memory_mb * 1e6 / (PER_ROW + PER_VALUE * channels)))


def free_memory_mb() -> float:
    """Memory that this process may still take: of the machine, or of its container if that has less. In 10^6 bytes."""
    free = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")]
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            free = [int(line.split()[1]) * 1024]
    first = "memory/memory."                                         # cgroups of the first version
    for limit, used in (("memory.max", "memory.current"), (f"{first}limit_in_bytes", f"{first}usage_in_bytes")):
        numbers = [line for name in (limit, used) for line in _lines(Path("/sys/fs/cgroup") / name)[:1]]
        if len(numbers) == 2 and all(number.isdigit() for number in numbers):
            free.append(int(numbers[0]) - int(numbers[1]))
    return max(0, min(free)) / 1e6


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


@dataclass
class Spool:
    """Rows on disk, grouped by device and in time order. Made by `spool`; a context that removes its folder.

    devices : D names.   starts, stops : (D,) row at which each device begins, and the one behind its last.
    channels, context : names.
    low, high : (C,) of the finite values, NaN where there is none.   dropped : rows behind their device's newest.
    marked : share of the rows that each column called like a label marks.
    ts_ms : (n,) int64.   values : (n, C) float32.   label : (n,) uint8, ANOMALOUS or UNKNOWN by the label columns.
    Each of the last three, `part` (n,) int8 from `cut` and what `learn` gives are files under `folder`.
    """

    folder: Path
    devices: tuple[str, ...]
    starts: np.ndarray
    stops: np.ndarray
    channels: tuple[str, ...]
    context: tuple[str, ...]
    low: np.ndarray
    high: np.ndarray
    dropped: int
    marked: dict[str, float]
    ts_ms: np.ndarray
    values: np.ndarray
    label: np.ndarray
    part: np.ndarray | None = field(init=False, default=None)

    def __len__(self) -> int:
        return int((self.stops - self.starts).sum())

    @property
    def first_ms(self) -> int:
        """Time of the first row."""
        return int(self.ts_ms[self.starts].min())

    @property
    def last_ms(self) -> int:
        """Time of the last row."""
        return int(self.ts_ms[self.stops - 1].max())

    def check_order(self) -> None:
        """Raises BadInput when time goes backwards or stands still in more than 1 % of the rows that came."""
        total = len(self) + self.dropped
        if self.dropped > data.BACKWARDS_SHARE * total:
            raise BadInput(f"time goes backwards or stands still in {self.dropped} of {total} rows: sort the files by "
                           "time, name the column that tells devices apart (--device-column), or use --time-column "
                           "none --step SECONDS")

    def count_masked(self) -> int:
        """Rows that `cut` left out."""
        part = self._cut_part()
        return sum(int((part[low:high] < 0).sum()) for span in self._spans() for low, high in _chunks(*span))

    def count(self, mask: np.ndarray) -> int:
        """Rows that a mask on disk, or `label`, marks as those that `cut` leaves out."""
        return sum(int((mask[low:high] == ANOMALOUS).sum()) for span in self._spans() for low, high in _chunks(*span))

    def labels(self) -> np.ndarray:
        """(n,) float32 in memory: 1 anomalous, 0 normal, NaN unknown."""
        return _as_label(self.label)

    def take(self, places: np.ndarray) -> Table:
        """The rows at these places, ascending, as a table with `label`."""
        used, device = np.unique(np.searchsorted(self.starts, places, side="right") - 1, return_inverse=True)
        return Table(
            devices=tuple(self.devices[one] for one in used), device=device.astype(np.int64),
            ts_ms=np.asarray(self.ts_ms[places]), channels=self.channels, values=np.asarray(self.values[places]),
            context=self.context, labels={"label": _as_label(self.label[places])},
            reason=np.zeros(len(places), np.uint8))

    def until(self, stops: np.ndarray) -> "Spool":
        """The same rows up to an earlier one of each device. stops : (D,), each at or behind its start."""
        return replace(self, stops=stops)

    def inside(self, spans: Iterable[data.Span], name: str) -> np.ndarray:
        """Rows inside any of the spans. (n,) uint8 on disk, 1 inside. name : of its file."""
        rows = _create(self.folder / f"{name}.bin", (len(self.ts_ms),), np.uint8)
        data.mark_inside(rows, self.ts_ms, self.devices, self.starts.tolist(), self.stops.tolist(), spans)
        return rows

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    # ------------------------------------------------------------ what is looked at whole, thinned

    def thinned(self, most: int) -> Table:
        """Each n-th row of every device, about `most` in all; times are the rows' own."""
        every = [self._every(device, self._stride(device, most)) for device in range(len(self.devices))]
        return self.take(np.concatenate(every))

    def head(self, most: int) -> Table:
        """The first rows, in a row."""
        return self.take(np.arange(min(most, len(self.ts_ms))))

    def find_odd(
        self, contract: Contract, most: int, masks: Iterable[np.ndarray] = ()
    ) -> tuple[Oddness, np.ndarray]:
        """Stretches unlike the rest of their device, as `contamination.find`, in every n-th row.

        masks : (n,) rows that are left out anyway, 1.
        Returns what was found in those rows, and a mask of all rows, (n,) bool on disk.
        """
        table = self.thinned(most)
        odd = find_odd(contract, table.devices, table.device, data.in_contract_order(table, contract),
                       np.logical_or.reduce([self._thin(one, most) == ANOMALOUS for one in (self.label, *masks)]))
        rows = _create(self.folder / "odd.bin", (len(self.ts_ms),), np.uint8)
        at = 0
        for device, (start, stop) in enumerate(self._spans()):
            stride = self._stride(device, most)
            count = -(-(stop - start) // stride)
            wide = np.flatnonzero(odd.rows[at : at + count])
            for one in wide:
                rows[start + one * stride : min(stop, start + (one + 1) * stride)] = 1
            at += count
        return odd, rows

    # ------------------------------------------------------------ parts, sample, windows

    def cut(self, contract: Contract, masks: Iterable[np.ndarray] = ()) -> None:
        """Which part each row belongs to, as `prepare.split`, into `part`. masks : (n,) rows to leave out, 1."""
        self.part = _create(self.folder / "part.bin", (len(self.ts_ms),), np.int8)
        left_out = (self.label, *masks)
        lengths = self.stops - self.starts
        if len(lengths) >= 10 and np.median(lengths) < 2 * contract.window:
            whole = split_devices(np.arange(len(lengths)), np.asarray(self.ts_ms[self.starts]),
                                  np.zeros(len(lengths), dtype=bool))
            for device, (start, stop) in enumerate(self._spans()):
                self.part[start:stop] = np.where(self._masked(left_out, start, stop), -1, whole[device])
            return
        edges = np.cumsum(SHARES)[:-1]
        for start, stop in self._spans():
            kept = sum(int((~self._masked(left_out, *chunk)).sum()) for chunk in _chunks(start, stop))
            seen = 0
            for low, high in _chunks(start, stop):
                free = ~self._masked(left_out, low, high)
                rank = seen + np.cumsum(free) - 1
                part = np.searchsorted(edges, (rank + 0.5) / max(kept, 1), side="right")
                self.part[low:high] = np.where(free, part, -1)
                seen += int(free.sum())

    def sample(self, contract: Contract, most: int) -> Table:
        """About `most` rows in memory: whole stretches of each device, evenly spread over each part if there are any.
        """
        return self.take(self._sampled(contract, most))

    def prepare(
        self, contract: Contract, most: int, pardoned: np.ndarray | None = None
    ) -> tuple[Table, Prepared]:
        """A sample of about `most` rows in memory, made ready: whole stretches of each device, evenly spread over each
        part. The scaling is that of all rows.

        Call `cut` before. pardoned : (n,) rows of alerts that people called false, 1.
        Returns the sample as a table, its label columns as one called `label`, and made ready.
        """
        places = self._sampled(contract, most)
        table = self.take(places)
        part = np.asarray(self._cut_part()[places])
        prepared = prepare(
            contract, table.devices, table.device, table.ts_ms, data.in_contract_order(table, contract),
            mask=part < 0, part=part, scaling=self._scaling(contract),
            pardoned=None if pardoned is None else np.asarray(pardoned[places]) > 0)
        return table, prepared

    def learn(self, prepared: Prepared, validation: float) -> tuple[Windows, Windows]:
        """Windows that move weights and later ones that choose the epoch, as `data.learning_windows`, over all rows.

        prepared : from `prepare`, for its scaling.
        """
        contract = prepared.contract
        rows = self._scaled(contract, prepared.scaling)
        places = [self.folder / f"{name}.bin" for name in ("learned", "held")]
        with places[0].open("wb") as learned, places[1].open("wb") as held:
            spans = [(device, ends) for device, ends in self._fit_ends(contract) if len(ends)]
            lengths = [len(ends) for _, ends in spans]
            few = len(spans) >= 5 and np.median(lengths) < 2 * contract.window
            by_time = np.argsort([int(self.ts_ms[ends[0]]) for _, ends in spans], kind="stable")
            late = set(by_time[-max(1, round(validation * len(spans))) :].tolist())   # devices held out whole, if few
            for place, (_, ends) in enumerate(spans):
                cut = len(ends) - max(1, round(validation * len(ends)))
                stop = int(np.searchsorted(ends, ends[cut] - contract.window, side="right"))
                if few:
                    cut = stop = 0 if place in late else len(ends)
                ends[:stop].tofile(learned)
                ends[cut:].tofile(held)
        both = [np.memmap(place, np.int64, "r") if place.stat().st_size else np.empty(0, np.int64) for place in places]
        if sum(lengths) < 8 or not len(both[0]):
            raise BadInput(f"the fit part has {sum(lengths)} whole windows of {contract.window} rows: give more rows, "
                           "or a shorter --window")
        learn, hold = (Windows(rows, ends, contract.window, contract.sensors_in_inputs) for ends in both)
        return learn, hold

    # ------------------------------------------------------------ inside

    def _spans(self) -> Iterator[tuple[int, int]]:
        return zip(self.starts.tolist(), self.stops.tolist(), strict=True)

    def _masked(self, masks: Iterable[np.ndarray], start: int, stop: int) -> np.ndarray:
        return np.logical_or.reduce([mask[start:stop] == ANOMALOUS for mask in masks])

    def _cut_part(self) -> np.ndarray:
        assert self.part is not None, "cut comes first"
        return self.part

    def _stride(self, device: int, most: int) -> int:
        count = int(self.stops[device] - self.starts[device])
        return max(1, -(-count // max(1, round(most * count / len(self)))))

    def _every(self, device: int, stride: int) -> np.ndarray:
        return np.arange(self.starts[device], self.stops[device], stride)

    def _thin(self, column: np.ndarray, most: int) -> np.ndarray:
        return np.concatenate([
            column[self._every(device, self._stride(device, most))] for device in range(len(self.devices))])

    def _sampled(self, contract: Contract, most: int) -> np.ndarray:
        """Places of the sample's rows, ascending."""
        length = STRETCH * contract.memory
        least = 3 * length                                          # a stretch of each part
        lengths = self.stops - self.starts
        quota = np.maximum(np.minimum(lengths, least), most * lengths // len(self))
        places = [self._sampled_of(int(device), contract, int(quota[device]), length)
                  for device in fewer_devices(quota, most)]
        return np.concatenate(places)

    def _sampled_of(self, device: int, contract: Contract, quota: int, length: int) -> np.ndarray:
        start, stop = int(self.starts[device]), int(self.stops[device])
        if stop - start <= quota:
            return np.arange(start, stop)
        places = []
        for low, high in self._parts_of(start, stop):
            count = max(1, round(quota * (high - low) / (stop - start) / length))
            begin = low
            for turn in range(count):
                begin = max(begin, low + (high - low) * turn // count)
                end = min(high, begin + length)
                places.append(np.arange(begin, end))
                if end >= high:
                    break
                begin = end + int(np.searchsorted(                  # so far on that no window spans the hole
                    self.ts_ms[end : min(high, end + 4 * length)], self.ts_ms[end - 1] + contract.max_gap_ms, "right"))
        return np.concatenate(places)

    def _parts_of(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Where fit, covariance and calibration lie, masked rows among them; one stretch where nothing was cut."""
        if self.part is None:
            return [(start, stop)]
        edges = [start]
        for part in (COVARIANCE, CALIBRATION):
            first = stop
            for low, high in _chunks(edges[-1], stop):
                found = np.flatnonzero(self.part[low:high] >= part)
                if len(found):
                    first = low + int(found[0])
                    break
            edges.append(first)
        edges.append(stop)
        return [(low, high) for low, high in pairwise(edges) if high > low]

    def _scaling(self, contract: Contract) -> Scaling | None:
        """Of all rows that a scaling is fitted on; None where the sample's own is meant (pictures, recordings)."""
        if len(self.devices) >= 10 and np.median(self.stops - self.starts) < 2 * contract.window:
            return None
        order = [self.channels.index(name) for name in contract.names]
        count, mean, square = (np.zeros((len(self.devices), len(order))) for _ in range(3))
        for device, (start, stop) in enumerate(self._spans()):
            for low, high in _chunks(start, stop):
                part = self._cut_part()[low:high]
                known = self.values[low:high][(part == FIT) | (part == COVARIANCE)][:, order]
                one = Moments(count[device : device + 1], mean[device : device + 1], square[device : device + 1])
                one = one.joined(Moments.of(known, np.zeros(len(known), np.int64), 1))
                count[device], mean[device], square[device] = one.count[0], one.mean[0], one.square[0]
        return scalings.of_moments(Moments(count, mean, square), self.devices)

    def _scaled(self, contract: Contract, scaling: Scaling) -> np.ndarray:
        """The model's inputs of all rows, (n, I) float32 on disk."""
        order = [self.channels.index(name) for name in contract.names]
        rows = _create(self.folder / "scaled.bin", (len(self.ts_ms), len(contract.inputs)), np.float32)
        index = scaling.index(self.devices)
        for device, (start, stop) in enumerate(self._spans()):
            for low, high in _chunks(start, stop):
                one = np.full(high - low, index[device])
                rows[low:high] = scaling.apply(self.values[low:high][:, order], one)[:, contract.inputs]
        return rows

    def _fit_ends(self, contract: Contract) -> Iterator[tuple[int, np.ndarray]]:
        """Of each device, the rows that a whole window of the fit part ends with, none of its rows masked; on disk."""
        place = self.folder / "ends.bin"
        ranges = []
        with place.open("wb") as out:
            at = 0
            for start, stop in self._spans():
                count = 0
                for low, high in _chunks(start, stop):
                    begin = max(start, low - contract.window + 1)    # the rows that the first window needs
                    ts_ms, part = np.asarray(self.ts_ms[begin:high]), self._cut_part()[begin:high]
                    run = run_lengths(np.zeros(high - begin, np.int64), ts_ms, contract.max_gap_ms)
                    touched = np.concatenate([[0], np.cumsum(part < 0)])
                    ends = np.flatnonzero((run >= contract.window) & (part == FIT))
                    ends = ends[(touched[ends + 1] == touched[ends - contract.window + 1]) & (ends >= low - begin)]
                    (ends + begin).astype(np.int64).tofile(out)
                    count += len(ends)
                ranges.append((at, at + count))
                at += count
        every = np.memmap(place, np.int64, "r") if at else np.empty(0, np.int64)
        return ((device, every[low:high]) for device, (low, high) in enumerate(ranges))


def fewer_devices(sizes: np.ndarray, most: int) -> np.ndarray:
    """Devices, evenly spread, whose rows together are about `most`: of a fleet of many, whole ones are left out.

    sizes : (D,) rows of each.
    """
    kept = np.arange(len(sizes))
    while len(kept) > 3 and sizes[kept].sum() > 1.5 * most:
        kept = kept[::2]
    return kept


def spool(blocks: Iterable[Table], folder: Path, labels: tuple[str, ...] = ()) -> Spool:
    """Lay blocks of rows on disk under `folder` (made anew), grouped by device, rows behind their device's newest left
    out. labels : columns of the blocks that mark anomalous rows.

    Raises BadInput when nothing came.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    names: dict[str, int] = {}
    newest, count = np.empty(0, np.int64), np.empty(0, np.int64)
    low = high = np.empty(0)
    first: Table | None = None
    total = kept_rows = 0
    marked_rows: dict[str, float] = {}
    kinds = {"device": np.int32, "ts_ms": np.int64, "values": np.float32, "label": np.uint8}
    files: dict[str, Any] = {name: (folder / f"came.{name}.bin").open("wb") for name in kinds}
    try:
        for block in blocks:
            if not len(block):
                continue
            if first is None:
                first, low, high = block, np.full(len(block.channels), np.nan), np.full(len(block.channels), np.nan)
            place = np.array([names.setdefault(name, len(names)) for name in block.devices], np.int64)[block.device]
            fresh = len(names) - len(newest)
            newest = np.concatenate([newest, np.full(fresh, np.iinfo(np.int64).min)])
            count = np.concatenate([count, np.zeros(fresh, np.int64)])
            keep = _newer(place, block.ts_ms, newest)
            np.maximum.at(newest, place, block.ts_ms)
            count += np.bincount(place[keep], minlength=len(names))
            total, kept_rows = total + len(block), kept_rows + int(keep.sum())
            values = np.where(np.isfinite(block.values), block.values, np.float32(np.nan))
            low, high = np.fmin(low, _edge(values, np.fmin)), np.fmax(high, _edge(values, np.fmax))
            for name, share in labelled_shares(block).items():
                marked_rows[name] = marked_rows.get(name, 0.0) + share * len(block)
            marked = any_label(block, labels) if labels else np.zeros(len(block))
            marked = np.where(np.isnan(marked), UNKNOWN, marked)
            for name, column in (("device", place), ("ts_ms", block.ts_ms), ("values", values), ("label", marked)):
                column[keep].astype(kinds[name]).tofile(files[name])
    finally:
        for file in files.values():
            file.close()
    if first is None or not kept_rows:
        raise BadInput("there are no rows")
    starts = np.concatenate([[0], np.cumsum(count)])
    grouped = _group(folder, kept_rows, len(first.channels), starts, kinds)
    return Spool(
        folder, tuple(names), starts[:-1], starts[1:], first.channels, first.context, low, high, total - kept_rows,
        {name: rows / total for name, rows in marked_rows.items()}, grouped["ts_ms"], grouped["values"],
        grouped["label"])


def _group(
    folder: Path, rows: int, channels: int, starts: np.ndarray, kinds: dict[str, Any]
) -> dict[str, np.ndarray]:
    """The columns as they came -> each device's rows together, in the same order. The former are removed."""
    shapes = {name: (rows, channels) if name == "values" else (rows,) for name in kinds}
    came: dict[str, Any] = {}
    made: dict[str, Any] = {}
    for name, kind in kinds.items():
        came[name] = np.memmap(folder / f"came.{name}.bin", kind, "r", shape=shapes[name])
        if name != "device":
            made[name] = _create(folder / f"{name}.bin", shapes[name], kind)
    filled = starts[:-1].copy()
    for low, high in _chunks(0, rows):
        device = np.asarray(came["device"][low:high])
        order = np.argsort(device, kind="stable")
        sorted_ = device[order]
        begins = np.flatnonzero(np.diff(sorted_, prepend=-1))
        sizes = np.diff(np.append(begins, len(sorted_)))
        to = filled[sorted_] + np.arange(len(sorted_)) - np.repeat(begins, sizes)
        filled[sorted_[begins]] += sizes
        for name, column in made.items():
            column[to] = came[name][low:high][order]
    for name in kinds:
        (folder / f"came.{name}.bin").unlink()
    return made


def _newer(device: np.ndarray, ts_ms: np.ndarray, newest: np.ndarray) -> np.ndarray:
    """Rows newer than all before them of their device. newest : (D,) before these rows. (n,) bool."""
    order = np.argsort(device, kind="stable")
    keep = np.empty(len(device), bool)
    keep[order] = data.newer_than_all_before(device[order], ts_ms[order])
    return keep & (ts_ms > newest[device])


def _edge(values: np.ndarray, which: np.ufunc) -> np.ndarray:
    """Least or greatest finite value of each column, NaN where there is none."""
    edge: np.ndarray = which.reduce(values, axis=0)
    return edge.astype(np.float64)


def _as_label(label: np.ndarray) -> np.ndarray:
    return np.where(label == UNKNOWN, np.float32(np.nan), label).astype(np.float32)


def _create(path: Path, shape: tuple[int, ...], kind: Any) -> np.ndarray:
    return np.memmap(path, kind, "w+", shape=shape)


def _chunks(start: int, stop: int) -> Iterator[tuple[int, int]]:
    for low in range(start, stop, CHUNK):
        yield low, min(stop, low + CHUNK)
