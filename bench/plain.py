"""The scorer that one would write in an afternoon, to stand beside ours: z-score, EWMA 0.1, Mahalanobis, drift drop.

One device at a time, fitted on its first three quarters of normal rows; the threshold from the last quarter, pooled.
"""

import numpy as np

from pipeline.core.threshold import ledoit_wolf

ALPHA, SHARE, NOMINAL, DRIFT_SD, FLOOR = 0.1, 0.75, 0.01, 0.5, 1e-3


def plain_scores(values: np.ndarray, train: int) -> np.ndarray:
    """Distance of every row from the normal ones. values : (n, C), the first `train` normal. (n,)."""
    fit = int(train * SHARE)
    sd = np.maximum(values[:fit].std(axis=0), FLOOR)
    scaled = np.clip((values - values[:fit].mean(axis=0)) / sd, -10, 10)
    half = fit // 2
    steady = np.abs(scaled[:half].mean(axis=0) - scaled[half:fit].mean(axis=0)) <= DRIFT_SD
    if steady.any():
        scaled = scaled[:, steady]
    smooth = np.empty_like(scaled)
    level = scaled[0]
    for row, value in enumerate(scaled):
        level = level + ALPHA * (value - level)
        smooth[row] = level
    apart = smooth - smooth[:fit].mean(axis=0)
    inverse = np.linalg.pinv(ledoit_wolf(smooth[:fit].astype(np.float64)))
    return np.sqrt(np.maximum(np.einsum("ij,jk,ik->i", apart, inverse, apart), 0))


def plain_threshold(held_out: list[np.ndarray]) -> float:
    """From the held-out normal scores of all devices."""
    return float(np.quantile(np.concatenate(held_out), 1 - NOMINAL))
