"""Honest measures of detection. Point-adjusted F1 is not among them: a random score gets 0.96 and more by it.

A label is 1 where a row is anomalous; a range is a run of such rows; higher scores are more anomalous.
"""

from dataclasses import dataclass

import numpy as np

THRESHOLDS = 250


@dataclass(frozen=True)
class RowCounts:
    """Row by row. Rates are in per cent; 0 where there is nothing to count."""

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN)."""
        return _ratio(self.true_positive, self.true_positive + 0.5 * (self.false_positive + self.false_negative))

    @property
    def far(self) -> float:
        """False alarm rate: normal rows called anomalous, per cent."""
        return 100 * _ratio(self.false_positive, self.false_positive + self.true_negative)

    @property
    def mar(self) -> float:
        """Missed alarm rate: anomalous rows called normal, per cent."""
        return 100 * _ratio(self.false_negative, self.false_negative + self.true_positive)


def count_rows(label: np.ndarray, called: np.ndarray) -> RowCounts:
    """label, called : (n,), 0 or 1."""
    label, called = np.asarray(label, dtype=bool), np.asarray(called, dtype=bool)
    return RowCounts(
        int((label & called).sum()), int((~label & called).sum()), int((label & ~called).sum()),
        int((~label & ~called).sum()),
    )


def ranges(marked: np.ndarray, merge: int = 0) -> list[tuple[int, int]]:
    """Runs of marked rows, (first, last) inclusive; runs with at most `merge` rows between them are one."""
    padded = np.concatenate([[False], np.asarray(marked, dtype=bool), [False]])
    edges = np.flatnonzero(padded[1:] != padded[:-1]).reshape(-1, 2)
    joined: list[tuple[int, int]] = []
    for first, end in edges.tolist():
        if joined and first - joined[-1][1] - 1 <= merge:
            joined[-1] = (joined[-1][0], end - 1)
        else:
            joined.append((first, end - 1))
    return joined


@dataclass(frozen=True)
class EventCounts:
    """Labelled ranges found or missed, and alerts that touch none. delays : rows from a range's start to its alert."""

    found: int
    missed: int
    false: int
    delays: tuple[int, ...]

    @property
    def f1(self) -> float:
        """2 found / (2 found + missed + false)."""
        return _ratio(2 * self.found, 2 * self.found + self.missed + self.false)


def count_events(label: np.ndarray, called: np.ndarray, merge: int = 0) -> EventCounts:
    """Alerts (called rows, merged where at most `merge` rows apart) against labelled ranges.

    A range counts as found when an alert touches it; an alert is false when it touches no range.
    """
    alerts, events = ranges(called, merge), ranges(label)
    delays = []
    for first, last in events:
        touching = [max(start - first, 0) for start, end in alerts if start <= last and end >= first]
        if touching:
            delays.append(min(touching))
    false = sum(not any(start <= last and end >= first for first, last in events) for start, end in alerts)
    return EventCounts(len(delays), len(events) - len(delays), false, tuple(delays))


def range_f1(label: np.ndarray, called: np.ndarray, existence: float = 0.2) -> float:
    """F1 of range-based precision and recall with flat bias. Source: Tatbul et al. 2018.

    existence : weight of merely touching a range, in recall; precision has none.
    """
    recall = _range_recall(ranges(label), ranges(called), called, existence)
    precision = _range_recall(ranges(called), ranges(label), label, 0.0)
    return _ratio(2 * precision * recall, precision + recall)


def _range_recall(
    wanted: list[tuple[int, int]], given: list[tuple[int, int]], rows: np.ndarray, existence: float
) -> float:
    total = 0.0
    for first, last in wanted:
        touching = sum(start <= last and end >= first for start, end in given)
        covered = float(np.mean(np.asarray(rows[first : last + 1], dtype=bool)))
        total += existence * (touching > 0) + (1 - existence) * _ratio(covered, touching)
    return _ratio(total, len(wanted))


def average_precision(label: np.ndarray, score: np.ndarray) -> float:
    """Area under the precision-recall curve, step-wise, ties taken together."""
    order = np.argsort(-np.asarray(score, dtype=np.float64), kind="stable")
    hits = np.asarray(label, dtype=bool)[order]
    ordered = np.asarray(score)[order]
    last = np.append(ordered[1:] != ordered[:-1], True)
    found = np.cumsum(hits)[last]
    called = np.flatnonzero(last) + 1
    if not found[-1]:
        return 0.0
    return float((np.diff(found, prepend=0) * (found / called)).sum() / found[-1])


def vus_pr(label: np.ndarray, score: np.ndarray, window: int, thresholds: int = THRESHOLDS) -> float:
    """Volume under the precision-recall surface over buffer lengths 0..window.

    label : (n,) 0 or 1, with at least one range.   score : (n,).   window : rows, the longest buffer.
    Source: Paparrizos et al. 2022, in the form of TSB-AD's evaluation (`opt`, 250 thresholds): soft labels
    sqrt(1 - d/l) in the buffer around a range; recall times the share of ranges that are touched.
    """
    label, score = np.asarray(label, dtype=bool), np.asarray(score, dtype=np.float64)
    count, events = len(score), ranges(label)
    ordered = np.sort(score)[::-1]
    levels = ordered[np.linspace(0, count - 1, thresholds).astype(int)]
    order = np.argsort(-score, kind="stable")
    called = np.searchsorted(-ordered, -levels, side="right")            # rows at or above each level, ties included
    positives = int(label.sum())
    hits = np.cumsum(label[order])[called - 1]
    volumes = []
    for length in range(window + 1):
        soft = _buffer(label, events, length)
        soft_hits = np.cumsum(soft[order])[called - 1]
        peaks = np.array([score[first : last + 1].max() for first, last in _joined(events, length, count)])
        touched = (peaks[:, None] >= levels).mean(axis=0)
        recall = np.minimum((soft_hits + hits) / ((positives + soft_hits + positives) / 2), 1) * touched
        precision = (soft_hits + hits) / called
        volumes.append(float((np.diff(recall, prepend=0) * precision).sum()))
    return float(np.mean(volumes))


def _buffer(label: np.ndarray, events: list[tuple[int, int]], length: int) -> np.ndarray:
    """Soft labels outside of the ranges, at most 1. (n,)."""
    soft = np.zeros(len(label))
    for first, last in events:
        after = np.arange(last + 1, min(last + length // 2 + 1, len(label)))
        before = np.arange(max(first - length // 2, 0), first)
        if length:
            soft[after] += np.sqrt(1 - (after - last) / length)
            soft[before] += np.sqrt(1 - (first - before) / length)
    soft[label] = 0
    return np.minimum(soft, 1)


def _joined(events: list[tuple[int, int]], length: int, count: int) -> list[tuple[int, int]]:
    """Ranges with their buffers, joined where those overlap."""
    half = length // 2
    joined = [(max(events[0][0] - half, 0), events[0][1] + half)]
    for first, last in events[1:]:
        if joined[-1][1] < first - half:
            joined.append((first - half, last + half))
        else:
            joined[-1] = (joined[-1][0], last + half)
    return [(first, min(last, count - 1)) for first, last in joined]


def change_points(marks: np.ndarray, wanted: np.ndarray, within: int) -> EventCounts:
    """Announced change points against true ones, each matched at most once, announced 0..within rows after.

    marks, wanted : row numbers, ascending.
    """
    free = list(np.asarray(marks).tolist())
    delays = []
    for true in np.asarray(wanted).tolist():
        match = next((mark for mark in free if true <= mark <= true + within), None)
        if match is not None:
            free.remove(match)
            delays.append(match - true)
    return EventCounts(len(delays), len(np.asarray(wanted)) - len(delays), len(free), tuple(delays))


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0
