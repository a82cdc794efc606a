"""From a table of readings to what training needs: a contract where none is given, masked rows, windows to learn from.

Rows are grouped, split by time and scaled in training.prepare. Here the fit part is cut once more by time, into rows
that move weights and rows that choose the epoch to stop at, with a purge gap: no row is in windows of both.

    per device:  | fit ......... gap validation | covariance | calibration |   (time runs to the right)
"""

import re
from collections.abc import Iterable, Sequence

import numpy as np

from pipeline.core.contract import Channel, Contract, EpisodeRule, Role
from pipeline.errors import BadInput
from pipeline.formats.files import Table
from training.prepare import FIT, Prepared
from training.windows import Windows

Span = tuple[str, int, int]
"""(device, first ms, last ms) of the rows' own time; both are inside."""

BACKWARDS_SHARE = 0.01   # rows that may lie behind their device's newest before a file is refused
LABEL_NAMES = re.compile(
    r"^(is_?)?(anomal(y|ies|ous)|labels?|outliers?|changepoints?|targets?|faults?|attacks?|class)$", re.IGNORECASE)


def derive_contract(
    table: Table, *, window: int = 32, memory: int = 160, hop: int = 1, step_ms: int | None = None,
    ranges: tuple[np.ndarray, np.ndarray] | None = None,
) -> Contract:
    """A contract from the data: all channels, median step, bounds of 1e-3 of each channel's range.

    ranges : least and greatest value of each channel, (C,) each, NaN where it has none, where the table is a sample.

    Times that the default contract gives in seconds at 1 Hz become as many steps.
    Raises BadInput for a label among the channels, and for a channel without a value. A constant channel stays: that it
    moves at all is an anomaly (`constant` names such sensors).
    """
    channels = []
    for place, name in enumerate(table.channels):
        column = table.values[:, place]
        finite = column[np.isfinite(column)]
        low, high = (float(finite.min()), float(finite.max())) if len(finite) else (np.nan, np.nan)
        if ranges is not None:
            low, high = float(ranges[0][place]), float(ranges[1][place])
        if np.isnan(low):
            raise BadInput(f"channel {name!r} has no value in any row: --ignore-columns {name}")
        is_context = name in table.context
        if LABEL_NAMES.match(name) and len(np.unique(finite[:100_000])) <= 10:
            raise BadInput(f"channel {name!r} looks like a label, which is never a feature: --ignore-columns {name}, "
                           f"or --label-column {name} to judge by it")
        role: Role = "context" if is_context else "sensor"
        channels.append(Channel(name=name, role=role, bound=_round(1e-3 * (high - low))))
    step = step_ms or median_step(table)
    return Contract(
        channels=tuple(channels), step_ms=step, window=window, memory=max(memory, window), hop=hop, span_ms=64 * step,
        max_gap_ms=30 * step, allowance_ms=30 * step, max_ahead_ms=max(3_600_000, 10 * step),
        episode=EpisodeRule(merge_ms=60 * step))


def constant(table: Table) -> list[str]:
    """Names of the table's channels, but for context, that never move."""
    return [name for name, column in zip(table.channels, table.values.T, strict=True)
            if name not in table.context and np.nanmin(column) == np.nanmax(column)]


def stand_in(table: Table) -> tuple[float, list[str]] | None:
    """A number that looks as if it stood for missing values, and its channels: the least or greatest value of two or
    more channels, repeated, and further from all their other values than these are from each other. None without."""
    found: dict[float, list[str]] = {}
    for name, column in zip(table.channels, table.values.T, strict=True):
        values, counts = np.unique(column[np.isfinite(column)], return_counts=True)
        if len(values) < 4:
            continue
        for value, count, gap, span in ((values[0], counts[0], values[1] - values[0], values[-1] - values[1]),
                                        (values[-1], counts[-1], values[-1] - values[-2], values[-2] - values[0])):
            if count >= 3 and gap > span:
                found.setdefault(float(value), []).append(name)
    shared = {value: names for value, names in found.items() if len(names) > 1}
    return max(shared.items(), key=lambda one: len(one[1])) if shared else None


def _round(value: float) -> float:
    return float(f"{value:.1g}")


def median_step(table: Table) -> int:
    """Median time between two rows of a device, in ms; at least 1."""
    same = table.device[1:] == table.device[:-1]
    steps = np.diff(table.ts_ms)[same]
    steps = steps[steps > 0]
    return max(1, round(float(np.median(steps)))) if len(steps) else 1000


def check_order(table: Table) -> None:
    """Raises BadInput when time goes backwards or stands still in more than 1 % of the rows (late rows are dropped)."""
    order = np.argsort(table.device, kind="stable")                  # file order inside a device
    device, ts_ms = table.device[order], table.ts_ms[order]
    late = np.flatnonzero((device[1:] == device[:-1]) & (np.diff(ts_ms) <= 0))
    behind = len(late)
    if behind:
        behind = len(order) - int(newer_than_all_before(device, ts_ms).sum())
    if behind > BACKWARDS_SHARE * len(order):
        first = int(order[late[0] + 1])
        raise BadInput(f"time goes backwards or stands still in {behind} of {len(order)} rows, first in row {first}, "
                       f"device {table.devices[int(table.device[first])]!r}: sort the file by time, name the column "
                       "that tells devices apart (--device-column), or use --time-column none --step SECONDS")


def newer_than_all_before(device: np.ndarray, ts_ms: np.ndarray) -> np.ndarray:
    """Rows newer than all earlier rows of their device; devices together, in file order. (n,) bool."""
    first = np.concatenate([[True], device[1:] != device[:-1]])
    lifted = ts_ms - ts_ms.min() + np.cumsum(first) * (np.ptp(ts_ms) + 1)   # devices apart: one running maximum serves
    highest = np.maximum.accumulate(lifted)
    return first | np.concatenate([[True], lifted[1:] > highest[:-1]])


def rows_inside(table: Table, spans: Iterable[Span]) -> np.ndarray:
    """Rows inside any of the spans. table : each device's rows in time order; devices may alternate. (n,) bool."""
    order = np.argsort(table.device, kind="stable")
    edges = np.searchsorted(table.device[order], np.arange(len(table.devices) + 1)).tolist()
    grouped, inside = np.zeros((2, len(order)), bool)
    mark_inside(grouped, table.ts_ms[order], table.devices, edges[:-1], edges[1:], spans)
    inside[order] = grouped
    return inside


def mark_inside(
    rows: np.ndarray, ts_ms: np.ndarray, devices: Sequence[str], starts: Sequence[int], stops: Sequence[int],
    spans: Iterable[Span],
) -> None:
    """Sets `rows` to 1 inside any of the spans.

    rows, ts_ms : (n,), each device's rows together and in time order.   starts, stops : (D,) where they begin and end.
    """
    places = {device: place for place, device in enumerate(devices)}
    for device, first, last in spans:
        if device in places:
            start, stop = starts[places[device]], stops[places[device]]
            own = ts_ms[start:stop]
            rows[start + np.searchsorted(own, first) : start + np.searchsorted(own, last, "right")] = 1


def in_contract_order(table: Table, contract: Contract) -> np.ndarray:
    """The contract's channels of the table, in its order. (n, C) float32. Raises BadInput where one is missing."""
    missing = [name for name in contract.names if name not in table.channels]
    if missing:
        raise BadInput(f"no column for channel {', '.join(map(repr, missing))}; there are {', '.join(table.channels)}")
    columns = [table.channels.index(name) for name in contract.names]
    if columns == list(range(len(table.channels))):
        return table.values
    return table.values[:, columns]


def windows_of(prepared: Prepared, part: int) -> Windows:
    """All windows whose newest row is in `part` and that touch no masked row, not laid out."""
    contract = prepared.contract
    ends = np.flatnonzero((prepared.run >= contract.window) & (prepared.part == part))
    touched = np.concatenate([[0], np.cumsum(prepared.part < 0)])
    ends = ends[touched[ends + 1] == touched[ends - contract.window + 1]]
    every = len(contract.inputs) == prepared.scaled.shape[1]
    inputs = prepared.scaled if every else prepared.scaled[:, contract.inputs]
    return Windows(inputs, ends, contract.window, contract.sensors_in_inputs)


def learning_windows(prepared: Prepared, validation: float) -> tuple[Windows, Windows]:
    """Windows that move weights, and later ones of the fit part that choose the epoch.

    validation : share of each device's fit windows, the last ones; of the devices, where each has but a few windows.
    Raises BadInput where too few rows are left for either.
    """
    every = windows_of(prepared, FIT)
    if len(every) < 8:
        raise BadInput(f"the fit part has {len(every)} whole windows of {every.length} rows: give more rows (about "
                       f"{10 * every.length} or more), or a shorter --window")
    device = prepared.device[every.ends]
    starts = np.flatnonzero(np.concatenate([[True], device[1:] != device[:-1]]))
    count = np.diff(np.append(starts, len(device)))
    held_out = np.zeros(len(every), dtype=bool)
    learned = np.ones(len(every), dtype=bool)
    few = bool(np.median(count) < 2 * every.length)
    if few and len(starts) >= 5:                                     # whole devices, the ones that come last
        by_time = np.argsort(prepared.ts_ms[every.ends[starts]], kind="stable")
        for place in by_time[-max(1, round(validation * len(starts))) :]:
            held_out[starts[place] : starts[place] + count[place]] = True
        learned = ~held_out
    else:
        for start, length in zip(starts, count, strict=True):
            cut = start + length - max(1, round(validation * length))
            held_out[cut : start + length] = True
            rows_between = every.ends[cut] - every.ends[start : start + length]
            learned[start : start + length] = rows_between >= every.length
    if not learned.any():
        learned = ~held_out                                          # too short for a gap: better than no model
    return every.part(learned), every.part(held_out)

