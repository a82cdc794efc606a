"""Scores of recorded rows by a bundle, and honest measures of them.

The scores are those of the stream (same scaling, windows, filters, verdicts); rows are taken in each device's order.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.core.episode import EpisodeEvent, Verdicts
from pipeline.core.windows import run_lengths
from pipeline.formats.files import Table
from pipeline.registry.bundle import Bundle
from pipeline.scoring.session import Session
from training import data, metrics
from training.calibrate import filter_rows, residual_rows
from training.prepare import CALIBRATION, Prepared

WEEK_MS = 7 * 24 * 3600 * 1000


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
    residuals, age = residual_rows(Session(bundle.model), prepared)
    filtered = filter_rows(scorer, residuals, age)
    raw = scorer.score(filtered, prepared.index)
    contribution = scorer.contributions(filtered, raw, prepared.index)
    score = np.where(age > 0, raw, np.float32(np.nan))
    verdict = Verdicts(bundle.contract.episode, int(prepared.device.max(initial=0)) + 1).push(
        prepared.device, np.arange(len(score)), prepared.ts_ms, score, scorer.threshold)
    return Scored(
        prepared, np.arange(len(score)) if order is None else order, score, residuals[:, : scorer.channels],
        contribution, verdict.is_anomaly, verdict.events, scorer.threshold)


def measure(scored: Scored, label: np.ndarray | None = None) -> dict[str, float]:
    """Figures by name; those with a label only where one is given.

    label : (n,) over `scored`'s rows, 1 anomalous, 0 normal, NaN unknown.
    Rows without a score are left out of every figure.
    """
    seen = scored.is_scored
    weeks = float(seen.sum()) * scored.prepared.contract.step_ms / WEEK_MS
    opened = [event for event in scored.events if event.kind == "opened"]
    figures = {
        "rows": float(len(seen)), "scored_rows": float(seen.sum()), "devices": float(len(scored.prepared.devices)),
        "device_weeks": weeks, "over_threshold_share": float((scored.score[seen] > scored.threshold).mean()),
        "anomalous_share": float(scored.is_anomaly[seen].mean()), "episodes": float(len(opened)),
    }
    figures["alerts_per_device_week"] = len(opened) / weeks if weeks else 0.0
    if label is None:
        return figures
    known = seen & np.isfinite(label)
    truth = label[known] > 0
    called, score = scored.is_anomaly[known], scored.score[known].astype(np.float64)
    rows = metrics.count_rows(truth, called)
    share = float(truth.mean()) if len(truth) else 0.0
    figures |= {
        "label_share": share, "f1": rows.f1, "far_percent": rows.far, "mar_percent": rows.mar,
        "always_alarm_f1": 2 * share / (1 + share),
    }
    if not truth.any() or truth.all():
        return figures
    figures["average_precision"] = metrics.average_precision(truth, score)
    return figures | _by_device(scored, known, truth, called, score)


def _by_device(
    scored: Scored, known: np.ndarray, truth: np.ndarray, called: np.ndarray, score: np.ndarray
) -> dict[str, float]:
    """Figures of events and ranges, which never reach from one device into the next; and those of two baselines.

    The z-score is a row's largest |value| in the bundle's own scaling: what the score must beat.
    """
    prepared = scored.prepared
    device, contract = prepared.device[known], prepared.contract
    scaled = np.nan_to_num(prepared.scaled[known][:, contract.sensors])
    zscore = np.abs(scaled).max(axis=1).astype(np.float64)
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


def label_of(scored: Scored, table: Table, names: tuple[str, ...]) -> np.ndarray | None:
    """Labels of the scored rows: 1 where any of these columns is above 0. None where no column is named."""
    return None if not names else any_label(table, names)[scored.order]


def any_label(table: Table, names: tuple[str, ...]) -> np.ndarray:
    """(n,) float32 over the table's rows: 1 where any label is above 0, NaN where all are unknown."""
    columns = np.stack([np.asarray(table.labels[name], dtype=np.float64) for name in names])
    return np.where(np.isnan(columns).all(axis=0), np.nan, np.nansum(columns > 0, axis=0) > 0).astype(np.float32)


def to_lines(figures: dict[str, Any]) -> list[str]:
    """Aligned lines for people."""
    width = max(len(name) for name in figures)
    return [f"{name:<{width}}  {value:.4g}" for name, value in figures.items()]


