"""Scores of recorded rows by a bundle, and honest measures of them.

The scores are those of the stream (same scaling, windows, filters, verdicts); rows are taken in each device's order.
Rows that lie on disk are scored a chunk at a time, to the same bits: a score depends on the last H rows alone.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.contract import Contract
from pipeline.core.episode import EpisodeEvent, Verdicts
from pipeline.core.windows import run_lengths
from pipeline.errors import BadInput
from pipeline.formats.files import Table
from pipeline.registry.bundle import Bundle
from pipeline.scoring.session import Session
from training import data, metrics
from training.calibrate import filter_rows, residual_rows
from training.prepare import CALIBRATION, Prepared

if TYPE_CHECKING:
    from training.spool import Spool

WEEK_MS = 7 * 24 * 3600 * 1000
WORDS = {                  # what figures are, for people
    "scored_rows": "rows with a whole window behind them; shares and rates are of these",
    "over_threshold_share": "of the rows, by score alone",
    "anomalous_share": "of the rows, inside an episode",
    "label_share": "of the rows are labelled anomalous",
    "f1": "row by row, called by episodes",
    "far_percent": "of normal rows are called anomalous",
    "mar_percent": "of anomalous rows are missed",
    "always_alarm_f1": "f1, were every row called anomalous",
    "average_precision": "row by row, over all thresholds",
    "event_f1": "a labelled range counts once, found or missed",
    "range_f1": "by how much of each range and alert overlaps; mean over devices",
    "events_found_share": "of labelled ranges",
    "false_alerts": "that touch no labelled range",
    "median_delay_s": "from the begin of a range to its alert",
    "vus_pr": "over all thresholds and tolerances of time; mean over devices",
    "zscore_vus_pr": "the same of a row's largest scaled value: what the model must beat",
}
SCORED_ROWS = 1 << 14      # that are in memory at once, where rows lie on disk


@dataclass(frozen=True)
class Judged:
    """What measures need of scored rows, a few bytes a row; devices together and in time order.

    device : (n,) place in `devices`.   score : (n,) float32, NaN where a row has none.   is_anomaly : (n,) bool.
    zscore : (n,) float32, a row's largest |value| in the bundle's own scaling: what the score must beat.
    opened : number of episodes that began.
    """

    contract: Contract
    devices: tuple[str, ...]
    device: np.ndarray
    score: np.ndarray
    is_anomaly: np.ndarray
    zscore: np.ndarray
    opened: int
    threshold: float


@dataclass(frozen=True)
class Scored:
    """Rows with their scores, devices together and in time order.

    prepared : the rows.   order : (n,) their places in the table.   score : (n,) NaN where a row has none.
    residual : (n, S) of the first member, scaled units.   contribution : (n, S), sums to the score.
    is_anomaly : (n,) bool.   events : episodes opened and closed.   threshold : of the score.
    """

    prepared: Prepared
    order: np.ndarray
    score: np.ndarray
    residual: np.ndarray
    contribution: np.ndarray
    is_anomaly: np.ndarray
    events: list[EpisodeEvent]
    threshold: float

    @property
    def is_scored(self) -> np.ndarray:
        """(n,) bool."""
        return np.isfinite(self.score)

    @property
    def judged(self) -> Judged:
        """What `measure` needs of it."""
        prepared = self.prepared
        opened = sum(event.kind == "opened" for event in self.events)
        return Judged(prepared.contract, prepared.devices, prepared.device, self.score, self.is_anomaly,
                      _zscore(prepared), opened, self.threshold)


def lay_out(bundle: Bundle, table: Table) -> tuple[Prepared, np.ndarray]:
    """A table's rows under a bundle's own scaling; and their places in the table. Late rows and duplicates left out."""
    contract = bundle.contract
    values = data.in_contract_order(table, contract)
    order = np.argsort(table.device, kind="stable")
    order = order[data.newer_than_all_before(table.device[order], table.ts_ms[order])]
    device, ts_ms, rows = table.device[order], table.ts_ms[order], values[order]
    index = bundle.scaling.index(list(table.devices))[device]
    run = run_lengths(device, ts_ms, contract.max_gap_ms)
    part = np.full(len(order), CALIBRATION, dtype=np.int8)
    scaled = bundle.scaling.apply(rows, index)
    return Prepared(contract, table.devices, device, ts_ms, rows, part, bundle.scaling, scaled, run, index, {}), order


def score_table(bundle: Bundle, table: Table) -> Scored:
    """Scores every row of a table. Raises BadInput when a channel is missing or no window is whole."""
    prepared, order = lay_out(bundle, table)
    return score_prepared(bundle, prepared, order)


def score_prepared(bundle: Bundle, prepared: Prepared, order: np.ndarray | None = None) -> Scored:
    """Scores of rows that are laid out already."""
    scorer = bundle.scorer
    score, residuals, filtered = _scores(bundle, Session(bundle.model), prepared)
    contribution = scorer.contributions(filtered, scorer.score(filtered, prepared.index), prepared.index)
    verdict = Verdicts(bundle.contract.episode, int(prepared.device.max(initial=0)) + 1).push(
        prepared.device, np.arange(len(score)), prepared.ts_ms, score, scorer.threshold)
    return Scored(
        prepared, np.arange(len(score)) if order is None else order, score, residuals[:, : scorer.channels],
        contribution, verdict.is_anomaly, verdict.events, scorer.threshold)


def score_laid(bundle: Bundle, laid: "Spool") -> Judged:
    """Scores of all rows that lie on disk, a chunk of them in memory at a time.

    Raises BadInput when a channel is missing or no window is whole.
    """
    contract, session = bundle.contract, Session(bundle.model)
    verdicts = Verdicts(contract.episode, len(laid.devices))
    device = np.repeat(np.arange(len(laid.devices), dtype=np.int32), laid.stops - laid.starts)
    score, zscore = np.full(len(laid), np.nan, np.float32), np.empty(len(laid), np.float32)
    is_anomaly = np.zeros(len(laid), bool)
    opened = 0
    for low in range(0, len(laid), SCORED_ROWS):
        high = min(len(laid), low + SCORED_ROWS)
        begin = max(int(laid.starts[device[low]]), low - contract.memory + 1)    # the rows that the first score needs
        prepared, _ = lay_out(bundle, laid.take(np.arange(begin, high)))
        new = slice(low - begin, None)
        if (prepared.run >= contract.window).any():
            score[low:high] = _scores(bundle, session, prepared)[0][new]
        zscore[low:high] = _zscore(prepared)[new]
        verdict = verdicts.push(
            device[low:high].astype(np.int64), np.arange(low, high), prepared.ts_ms[new], score[low:high],
            bundle.scorer.threshold)
        is_anomaly[low:high] = verdict.is_anomaly
        opened += sum(event.kind == "opened" for event in verdict.events)
    if not np.isfinite(score).any():
        raise BadInput(f"no run of {contract.window} rows without a gap, which a score needs: give more rows")
    return Judged(contract, laid.devices, device, score, is_anomaly, zscore, opened, bundle.scorer.threshold)


def _scores(bundle: Bundle, session: Session, prepared: Prepared) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(score (n,) float32, NaN where a row has none; residuals; filtered residuals) of rows that are laid out."""
    residuals, age = residual_rows(session, prepared)
    filtered = filter_rows(bundle.scorer, residuals, age)
    score = bundle.scorer.score(filtered, prepared.index)
    return np.where(age > 0, score, np.float32(np.nan)), residuals, filtered


def _zscore(prepared: Prepared) -> np.ndarray:
    scaled = np.nan_to_num(prepared.scaled[:, prepared.contract.sensors])
    return np.abs(scaled).max(axis=1).astype(np.float32)


def measure(judged: Judged, label: np.ndarray | None = None) -> dict[str, float]:
    """Figures by name; those with a label only where one is given.

    label : (n,) over the rows, 1 anomalous, 0 normal, NaN unknown.
    Rows without a score are left out of every figure.
    """
    seen = np.isfinite(judged.score)
    weeks = float(seen.sum()) * judged.contract.step_ms / WEEK_MS
    figures = {
        "rows": float(len(seen)), "scored_rows": float(seen.sum()), "devices": float(len(judged.devices)),
        "device_weeks": weeks, "over_threshold_share": float((judged.score[seen] > judged.threshold).mean()),
        "anomalous_share": float(judged.is_anomaly[seen].mean()), "episodes": float(judged.opened),
    }
    figures["alerts_per_device_week"] = judged.opened / weeks if weeks else 0.0
    if label is None:
        return figures
    known = seen & np.isfinite(label)
    truth = label[known] > 0
    called, score = judged.is_anomaly[known], judged.score[known].astype(np.float64)
    rows = metrics.count_rows(truth, called)
    share = float(truth.mean()) if len(truth) else 0.0
    figures |= {
        "label_share": share, "f1": rows.f1, "far_percent": rows.far, "mar_percent": rows.mar,
        "always_alarm_f1": 2 * share / (1 + share),
    }
    if not truth.any() or truth.all():
        return figures
    figures["average_precision"] = metrics.average_precision(truth, score)
    return figures | _by_device(judged, known, truth, called, score)


def _by_device(
    judged: Judged, known: np.ndarray, truth: np.ndarray, called: np.ndarray, score: np.ndarray
) -> dict[str, float]:
    """Figures of events and ranges, which never reach from one device into the next; and those of two baselines."""
    device, contract = judged.device[known], judged.contract
    zscore = judged.zscore[known].astype(np.float64)
    found, missed, false, normal, delays = 0, 0, 0, 0, []
    ours, plain, ranged = [], [], []
    for one in np.unique(device):
        mine = device == one
        events = metrics.count_events(truth[mine], called[mine])
        found, missed, false = found + events.found, missed + events.missed, false + events.false
        normal += int((~truth[mine]).sum())
        delays += list(events.delays)
        if truth[mine].any():
            ranged.append(metrics.range_f1(truth[mine], called[mine]))
            if not truth[mine].all():
                ours.append(metrics.vus_pr(truth[mine], score[mine], contract.window))
                plain.append(metrics.vus_pr(truth[mine], zscore[mine], contract.window))
    weeks = normal * contract.step_ms / WEEK_MS
    figures = {
        "event_f1": metrics.EventCounts(found, missed, false, tuple(delays)).f1, "range_f1": float(np.mean(ranged)),
        "events_found_share": found / (found + missed), "false_alerts": float(false),
        "false_alerts_per_normal_device_week": false / weeks if weeks else 0.0,
    }
    if delays:
        figures["median_delay_s"] = float(np.median(delays)) * contract.step_ms / 1000
    if ours:
        figures |= {"vus_pr": float(np.mean(ours)), "zscore_vus_pr": float(np.mean(plain))}
    return figures


def any_label(table: Table, names: tuple[str, ...]) -> np.ndarray:
    """(n,) float32 over the table's rows: 1 where any label is above 0, NaN where all are unknown."""
    columns = np.stack([np.asarray(table.labels[name], dtype=np.float64) for name in names])
    return np.where(np.isnan(columns).all(axis=0), np.nan, np.nansum(columns > 0, axis=0) > 0).astype(np.float32)


def to_lines(figures: dict[str, Any]) -> list[str]:
    """Aligned lines for people: name, figure, and what it is where the name does not say it."""
    width = max(len(name) for name in figures)
    told = {name: f"{value:,.0f}" if value == round(value) else f"{value:.4g}" for name, value in figures.items()}
    figure_width = max(map(len, told.values()))
    return [f"{name:<{width}}  {told[name]:<{figure_width}}  {WORDS.get(name, '')}".rstrip() for name in figures]
