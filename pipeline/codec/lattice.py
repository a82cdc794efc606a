"""Value lattices: many sensors only ever give offset + k * pitch (an ADC's counts, two decimals)."""

import numpy as np

MOST_VALUES = 3000
WIDEST_ERROR = 0.8
"""Training values may lie this share of the bound off the lattice; the encoder proves each block's anyway."""
LEAST_GAIN = 1.3
"""A lattice must be this much coarser than the plain step of twice the bound, or it is not worth its risk."""


def find_lattice(values: np.ndarray, bound: float) -> tuple[float, float] | None:
    """(pitch, offset) of the coarsest lattice that holds 99.9 % of the values within the bound, or None.

    values : (n,) float32, finite, of one channel. bound : absolute, 0 for lossless (then only exact lattices count).
    """
    distinct = np.unique(values.astype(np.float64))
    if len(distinct) < 3:
        return None
    if bound <= 0:
        return _exact_lattice(values)
    gaps = np.diff(distinct)
    gaps = np.sort(gaps[gaps > bound])
    if len(gaps) == 0:
        return None
    if len(distinct) > MOST_VALUES:
        distinct = distinct[np.linspace(0, len(distinct) - 1, MOST_VALUES).astype(int)]
    guesses = np.unique(np.r_[np.quantile(gaps, [0, 0.02, 0.05, 0.1, 0.25, 0.5]), gaps[:30:3]])
    for guess in np.sort(np.unique(np.outer(guesses, 1 / np.arange(1, 5))))[::-1]:
        found = _refined(distinct, float(guess), bound) if guess >= 2 * LEAST_GAIN * bound else None
        if found is not None:
            return found
    return None


def _refined(distinct: np.ndarray, pitch: float, bound: float) -> tuple[float, float] | None:
    """Fits the pitch to ever wider stretches around the middle value, and keeps it if the values then lie on it."""
    middle = distinct[len(distinct) // 2]
    away = distinct - middle
    by_distance = away[np.argsort(np.abs(away), kind="stable")]
    for share in (0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0):
        near = by_distance[: max(4, int(len(by_distance) * share))]
        steps = np.rint(near / pitch)
        if steps.any():
            pitch = float((steps * near).sum() / (steps * steps).sum())
    if pitch < 2 * LEAST_GAIN * bound:
        return None
    error = away - np.rint(away / pitch) * pitch
    centre = (error.max() + error.min()) / 2
    if np.mean(np.abs(error - centre) <= WIDEST_ERROR * bound) < 0.999:
        return None
    return pitch, float(middle + centre)


def _exact_lattice(values: np.ndarray) -> tuple[float, float] | None:
    """The coarsest decimal or binary pitch that gives back 99.9 % of the values to the bit."""
    exact = values.astype(np.float64)
    for pitch in sorted([10.0**-d for d in range(-2, 8)] + [2.0**-d for d in range(1, 17)], reverse=True):
        steps = np.rint(exact / pitch)
        if np.abs(steps).max() < 1 << 24 and np.mean((steps * pitch).astype(np.float32) == values) >= 0.999:
            return pitch, 0.0
    return None
