"""Champion and challenger on the same held-out rows: the figures that the promotion gate compares.

The rows are the newest of each device, cut off before anything was fitted, thresholds included. Faults of known size
are planted into them, alike for both bundles: without labels this is what tells a sharp model from a lenient one.
"""

from dataclasses import replace

import numpy as np

from pipeline.core.contract import Contract
from pipeline.core.scaling import Scaling
from pipeline.core.windows import run_lengths, trailing
from pipeline.errors import BadInput
from pipeline.formats.files import Table
from pipeline.registry.bundle import Bundle
from pipeline.retraining.gate import Figures
from pipeline.scoring.gate import open_session
from pipeline.scoring.session import Session
from training.calibrate import residual_rows
from training.prepare import CALIBRATION, Prepared, spans
from training.spool import Spool, fewer_devices

HELD_OUT = 0.2       # share of each device's newest rows
FAULT_ROWS = 24      # length of a planted fault
FAULT_SD = (1.0, 2.0, 4.0)   # its height, in the fleet's sd of the channel; in turn, so that no model sees all or none


def cut(
    laid: Spool, contract: Contract, most: int, share: float = HELD_OUT
) -> tuple[Spool, np.ndarray, np.ndarray]:
    """Rows cut by time within each device: what to learn from, and the newest rows to judge by.

    most : rows to judge by, about; where there are more, the newest of each device, and of a fleet of many some.
    Returns (earlier, places, lead): `places` of the rows to judge by begin H rows early so that the first one has its
    memory; `lead` (n,) bool says which are that beginning. Those are in `earlier` too, and are judged by nobody.
    """
    count = laid.stops - laid.starts
    first = laid.stops - np.array([round(share * rows) for rows in count.tolist()])
    judged = np.maximum(first, laid.stops - np.maximum(1, most * count // len(laid)))
    begin = np.maximum(laid.starts, judged - contract.memory)
    kept = fewer_devices(laid.stops - begin, most)
    places = [np.arange(begin[device], laid.stops[device]) for device in kept]
    lead = [rows < judged[device] for device, rows in zip(kept, places, strict=True)]
    return laid.until(first), np.concatenate(places), np.concatenate(lead)


def measure(bundle: Bundle, judge: Table, lead: np.ndarray, masked: np.ndarray, unit: Scaling) -> Figures:
    """A bundle's figures on held-out rows.

    judge, lead : the rows of `cut`.   masked : (n,) bool, alerted rows: they stand in windows and are not judged.
    unit        : scaling whose fleet row the error and the faults are measured in: the champion's, for both.
    Raises BadBundle when the bundle fails the load gate, BadInput when no held-out row has a whole window.
    """
    session = open_session(bundle, in_child=True)
    rows = _ready(bundle, judge, lead | masked)
    residuals, age = residual_rows(session, rows)
    judged = (age > 0) & (rows.part == CALIBRATION)
    if not judged.any():
        raise BadInput(f"no held-out row has a whole window of {bundle.contract.window} rows: give more rows")
    over = _over(bundle, rows, residuals, age)[judged].mean()
    sensors = bundle.contract.sensors
    first = np.abs(residuals[judged, : len(sensors)]) * bundle.scaling.scale[rows.index[judged]][:, sensors]
    return Figures(
        rows=int(judged.sum()), over=float(over), detected=_detected(bundle, session, rows, judged, unit),
        error=float(np.nanmean(first / unit.scale[-1, sensors])), family=bundle.manifest.family,
    )


def plant(
    values: np.ndarray, device: np.ndarray, judged: np.ndarray, contract: Contract, scale: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Offsets on one sensor at a time, FAULT_ROWS long, two windows apart; sensors, heights and signs in turn.

    values : (n, C).   judged : (n,) bool, rows that may carry one.   scale : (C,).
    Returns (values with faults, fault (n,) int64: number of the fault that the row carries, else -1).
    """
    planted = values.copy()
    fault = np.full(len(values), -1, np.int64)
    stride = FAULT_ROWS + 2 * contract.window
    number = 0
    for span in spans(device):
        rows = np.arange(span.start, span.stop)[judged[span]]
        for start in range(0, len(rows) - FAULT_ROWS + 1, stride):
            carrying = rows[start : start + FAULT_ROWS]
            turn, place = divmod(number, len(contract.sensors))
            channel = int(contract.sensors[place])
            height = FAULT_SD[turn % len(FAULT_SD)] * (1 if (turn // len(FAULT_SD)) % 2 == 0 else -1)
            planted[carrying, channel] += np.float32(height * scale[channel])
            fault[carrying] = number
            number += 1
    return planted, fault


def _ready(bundle: Bundle, table: Table, unjudged: np.ndarray) -> Prepared:
    contract = bundle.contract
    index = bundle.scaling.index(table.devices)[table.device]
    return Prepared(
        contract=contract, devices=table.devices, device=table.device, ts_ms=table.ts_ms, values=table.values,
        part=np.where(unjudged, -1, CALIBRATION).astype(np.int8), scaling=bundle.scaling,
        scaled=bundle.scaling.apply(table.values, index),
        run=run_lengths(table.device, table.ts_ms, contract.max_gap_ms), index=index, drifted={},
    )


def _over(bundle: Bundle, rows: Prepared, residuals: np.ndarray, age: np.ndarray) -> np.ndarray:
    """Whether each row scores over the bundle's threshold. (n,) bool."""
    over = np.zeros(len(residuals), bool)
    for part, block in trailing(residuals, age, bundle.scorer.length):    # filtered rows of all at once would not fit
        score = bundle.scorer.score(bundle.scorer.filter(block), rows.index[part])
        over[part] = score > bundle.scorer.threshold
    return over


def _detected(bundle: Bundle, session: Session, rows: Prepared, judged: np.ndarray, unit: Scaling) -> float:
    values, fault = plant(rows.values, rows.device, judged, bundle.contract, unit.scale[-1])
    carries = fault >= 0
    if not carries.any():
        return 0.0
    ill = replace(rows, values=values, scaled=bundle.scaling.apply(values, rows.index))
    over = _over(bundle, ill, *residual_rows(session, ill))
    seen = np.zeros(fault.max() + 1, bool)
    np.logical_or.at(seen, fault[carries], over[carries])
    return float(seen.mean())
