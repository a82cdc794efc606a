"""Rows of a file or topic made ready for training: grouped by device, cut by time, scaled, windowed.

The same `run_lengths`, `Scaling`, `fill` serve the stream, so that training and scoring can't drift apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.core import scaling as scalings
from pipeline.core.contract import Contract
from pipeline.core.scaling import Scaling
from pipeline.core.windows import fill, run_lengths, sliding
from pipeline.errors import BadInput

FIT, COVARIANCE, CALIBRATION = 0, 1, 2
SHARES = (0.6, 0.15, 0.25)   # of each device's rows, by time
DRIFT_SD = 1.0               # a channel whose halves differ by more than this is taken out ...
DRIFT_FLEET = 5              # ... or, with so many devices, by more than half of it in the median device: out for all
DRIFT_MOST = 0.5             # at most this share of the sensors goes


@dataclass(frozen=True)
class Prepared:
    """Normal rows, grouped by device and ordered by time within one.

    devices : names.   device : (n,) index into them.   ts_ms : (n,).   values : (n, C) float32, NaN where missing.
    part    : (n,) int8, FIT | COVARIANCE | CALIBRATION, or -1 for a masked row: it stands in windows but is neither
              learned nor judged.
    scaled  : (n, C) float32.   run : (n,) rows of the run so far, from `run_lengths`.
    index   : (n,) int64 of each row's device in `scaling`.
    drifted : channel names taken out, by device.
    pardoned : (n,) bool, rows of alerts that people called false; None where there are none. They are masked, but
              calibration makes their pattern silent.
    """

    contract: Contract
    devices: tuple[str, ...]
    device: np.ndarray
    ts_ms: np.ndarray
    values: np.ndarray
    part: np.ndarray
    scaling: Scaling
    scaled: np.ndarray
    run: np.ndarray
    index: np.ndarray
    drifted: dict[str, list[str]]
    pardoned: np.ndarray | None = None

    def windows(self, part: int, most: int | None = None) -> np.ndarray:
        """Filled windows of the model's inputs that end in this part and hold no masked row. (m, T, I) float32.

        most : at most so many, evenly spread.
        """
        windows, ends = sliding(self.scaled[:, self.contract.inputs], self.run, self.contract.window)
        places = np.arange(len(self.part))
        masked = np.maximum.accumulate(np.where(self.part < 0, places, -self.contract.window))   # the last such row
        keep = np.flatnonzero((self.part[ends] == part) & ((places - masked)[ends] >= self.contract.window))
        if most is not None and len(keep) > most:
            keep = keep[np.linspace(0, len(keep) - 1, most).astype(np.int64)]
        return fill(np.ascontiguousarray(windows[keep], dtype=np.float32))


def prepare(
    contract: Contract, devices: Sequence[str], device: np.ndarray, ts_ms: np.ndarray, values: np.ndarray,
    mask: np.ndarray | None = None, shares: tuple[float, float, float] = SHARES, drift_sd: float = DRIFT_SD,
    pardoned: np.ndarray | None = None, part: np.ndarray | None = None, scaling: Scaling | None = None,
) -> Prepared:
    """Groups, splits and scales rows.

    devices : names.   device : (n,) index into them.   ts_ms : (n,).   values : (n, C) in the contract's order.
    mask    : (n,) bool, rows to leave out of learning and judging (alerted, marked, labelled anomalous).
    pardoned : (n,) bool, rows of alerts marked as false: left out likewise, and made silent in calibration.
    part, scaling : where these rows are a sample of more, each row's part and the scaling of all.
    Rows not newer than the device's newest are dropped, as the main lane of the stream would not see them.
    Raises BadInput when no device has enough rows for one window in each part.
    """
    if values.shape != (len(device), len(contract.channels)):
        raise BadInput(f"values are {values.shape}; the contract has {len(contract.channels)} channels")
    order = np.argsort(device, kind="stable")
    order = order[_newer(device[order], ts_ms[order])]
    device, ts_ms, values = device[order], ts_ms[order], np.asarray(values[order], dtype=np.float32)
    values = np.where(np.isfinite(values), values, np.float32(np.nan))
    masked = np.zeros(len(order), dtype=bool) if mask is None else np.asarray(mask, dtype=bool)[order]
    forgiven = None if pardoned is None else np.asarray(pardoned, dtype=bool)[order]
    if forgiven is not None:
        masked |= forgiven
    whole = are_short(device, contract.window)
    if part is not None:
        part = np.where(masked, np.int8(-1), part[order])
    else:
        part = split_devices(device, ts_ms, masked, shares) if whole else split(device, masked, shares)
    if not (part == CALIBRATION).sum() or not (part == FIT).sum():
        raise BadInput(f"{len(order)} usable rows are too few to train, and to hold out rows to judge by: give more")
    known = (part == FIT) | (part == COVARIANCE)
    if whole:
        drifted: dict[str, list[str]] = {}
        fleet = scalings.fit(values[known], np.zeros(int(known.sum()), dtype=np.int64), [""])
        scaling = Scaling((), fleet.location[-1:], fleet.scale[-1:])
        if len({channel.unit for channel in contract.channels} - {""}) == 1:
            scaling = _alike(values[known])      # the points of a picture: their heights among each other count
    else:
        scaling = scaling or scalings.fit(values[known], device[known], devices)
        scaling, drifted = _without_drift(contract, devices, device, values, known, drift_sd, scaling)
    index = scaling.index(list(devices))[device] if len(devices) else device
    run = run_lengths(device, ts_ms, contract.max_gap_ms)
    if not (run >= contract.window).any():
        most = max((span.stop - span.start for span in spans(device)), default=0)
        if most < contract.window:
            raise BadInput(f"{most} rows, the most that a device has, are fewer than one window of {contract.window}: "
                           "give more rows, or a shorter --window")
        raise BadInput(
            f"no run of {contract.window} rows without a gap over {contract.max_gap_ms} ms: check the time column and "
            "step, or give a shorter window or a longer max_gap"
        )
    scaled = scaling.apply(values, index)
    return Prepared(
        contract, tuple(devices), device, ts_ms, values, part, scaling, scaled, run, index, drifted, forgiven
    )


def split(device: np.ndarray, masked: np.ndarray, shares: tuple[float, float, float] = SHARES) -> np.ndarray:
    """Which part each row belongs to, by time within its device; -1 where masked. (n,) int8.

    device : (n,), rows of one device together, in order.
    """
    part = np.full(len(device), -1, dtype=np.int8)
    edges = np.cumsum(shares)[:-1]
    for span in spans(device):
        rows = span.start + np.flatnonzero(~masked[span])
        part[rows] = np.searchsorted(edges, (np.arange(len(rows)) + 0.5) / len(rows), side="right")
    return part


def are_short(device: np.ndarray, window: int) -> bool:
    """Whether the devices are many and hardly longer than one window each (pictures, recordings): such devices are
    split as a whole, and scaled as one fleet."""
    lengths = [span.stop - span.start for span in spans(device)]
    return len(lengths) >= 10 and float(np.median(lengths)) < 2 * window


def split_devices(
    device: np.ndarray, ts_ms: np.ndarray, masked: np.ndarray, shares: tuple[float, float, float] = SHARES
) -> np.ndarray:
    """As `split`, each device whole in one part, devices in order of their first row's time. (n,) int8."""
    part = np.full(len(device), -1, dtype=np.int8)
    edges = np.cumsum(shares)[:-1]
    parts = sorted(spans(device), key=lambda span: (int(ts_ms[span.start]), span.start))
    for rank, span in enumerate(parts):
        part[span] = np.searchsorted(edges, (rank + 0.5) / len(parts), side="right")
    part[masked] = -1
    return part


def spans(device: np.ndarray) -> list[slice]:
    """Where each device's rows stand. device : (n,), rows of one device together."""
    starts = np.flatnonzero(np.diff(device, prepend=-1)).tolist()
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], len(device)], strict=True)]


def _newer(device: np.ndarray, ts_ms: np.ndarray) -> np.ndarray:
    """Rows newer than all before them of the same device, devices grouped. (n,) bool."""
    newer = np.ones(len(device), dtype=bool)
    for span in spans(device):
        newest = np.maximum.accumulate(ts_ms[span])
        newer[span.start + 1 : span.stop] = ts_ms[span][1:] > newest[:-1]
    return newer


def _without_drift(
    contract: Contract, devices: Sequence[str], device: np.ndarray, values: np.ndarray, known: np.ndarray,
    drift_sd: float, scaling: Scaling,
) -> tuple[Scaling, dict[str, list[str]]]:
    drifts = np.array([drift(values[span][known[span]][:, contract.sensors]) for span in spans(device)])
    if len(drifts) >= DRIFT_FLEET:
        drifts = np.broadcast_to(np.median(drifts, axis=0), drifts.shape)   # a trait of the channel, not of one device
        drift_sd = drift_sd / 2
    out = np.array([_worst(one, drift_sd) for one in drifts])
    scale = scaling.scale.copy()
    places = scaling.index([devices[int(device[span.start])] for span in spans(device)])
    for place, gone in zip(places, out, strict=True):
        scale[place, contract.sensors[gone]] = np.nan
    if len(drifts) >= DRIFT_FLEET:
        scale[:, contract.sensors[out[0]]] = np.nan                  # devices that stand in no sample too
    scale[-1, contract.sensors[out.all(axis=0)]] = np.nan
    names = {
        scaling.devices[place]: [contract.names[channel] for channel in contract.sensors[gone]]
        for place, gone in zip(places, out, strict=True) if gone.any()
    }
    return Scaling(scaling.devices, scaling.location, scale), names


def _alike(values: np.ndarray) -> Scaling:
    """One location and one scale for all channels. values : (n, C)."""
    one = np.ones((1, values.shape[1]))
    return Scaling((), one * float(np.nanmean(values)), one * max(float(np.nanstd(values)), 1e-6))


def drift(rows: np.ndarray) -> np.ndarray:
    """How far each channel's mean moves between the halves of a device's normal rows, in sd within a half.

    rows : (n, S), NaN where missing.   Returns (S,); 0 for a constant channel or fewer than 8 rows.
    """
    if len(rows) < 8:
        return np.zeros(rows.shape[1])
    means: list[np.ndarray] = []
    variances: list[np.ndarray] = []
    for half in np.array_split(np.where(np.isfinite(rows), rows, np.nan).astype(np.float64), 2):
        seen = np.isfinite(half)
        count = np.maximum(seen.sum(axis=0), 1)
        means.append(np.where(seen, half, 0).sum(axis=0) / count)
        variances.append((np.where(seen, half - means[-1], 0) ** 2).sum(axis=0) / count)
    step, within = np.abs(means[1] - means[0]), np.sqrt(np.mean(variances, axis=0))
    still = within <= 1e-9 * np.maximum(np.abs(means[0]), 1e-9)
    return np.where(still, 0, step / np.where(still, 1, within))


def _worst(drifts: np.ndarray, limit: float) -> np.ndarray:
    """Channels over the limit, at most half of all, the worst ones: a device must keep some. (S,) bool."""
    out = drifts > limit
    allowed = int(DRIFT_MOST * len(out))
    if out.sum() > allowed:
        worst = np.argsort(-drifts, kind="stable")[:allowed]
        out = np.zeros_like(out)
        out[worst] = True
    return out
