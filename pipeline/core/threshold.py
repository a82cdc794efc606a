"""The mathematics of calibration: covariances, and thresholds from held-out normal rows.

Every function here sees normal rows only, never a label. Arrays are float64.
"""

import numpy as np

MOST_LEFT_OUT = 100   # groups


def ledoit_wolf(samples: np.ndarray, centered: bool = False) -> np.ndarray:
    """Covariance shrunk towards a multiple of the identity; positive definite unless every column is constant.

    samples  : (n, F).   centered : the columns already have mean 0 (means were removed device by device).
    Returns (F, F). Source: Ledoit and Wolf 2004, the form that scikit-learn uses.
    """
    count, size = samples.shape
    centre = samples if centered else samples - samples.mean(axis=0)
    empirical = centre.T @ centre / count
    level = np.trace(empirical) / size
    square = centre**2
    spread = (square.T @ square / count - empirical**2).sum() / count
    distance = ((empirical - level * np.eye(size)) ** 2).sum()
    shrinkage = 1.0 if distance <= 0 else float(min(spread, distance) / distance)
    return (1 - shrinkage) * empirical + shrinkage * level * np.eye(size)


def whitening(covariance: np.ndarray, floor: float) -> np.ndarray:
    """The matrix W with |d @ W| = sqrt(d' C^-1 d). (F, F).

    floor : least standard deviation along any direction: a constant or duplicated channel leaves a direction of no
            variance at all, in which rounding noise would be an infinite distance.
    """
    values, vectors = np.linalg.eigh(covariance)
    return vectors / np.sqrt(np.maximum(values, floor**2))


def tail_quantile(values: np.ndarray, share: float) -> tuple[float, bool]:
    """The level that a share of rows exceeds, and whether it had to be extrapolated.

    values : (n,) held-out.   A share below 3 / n can't be verified by n rows: beyond it the upper 2 % (at least 10
    rows) are continued by a generalised Pareto tail fitted by moments, its shape held within [-0.5, 0.5].
    Source: Pickands 1975; Hosking and Wallis 1987 for the moments.
    """
    count = len(values)
    if share * count >= 3:
        return float(np.quantile(values, 1 - share)), False
    tail = max(10, int(0.02 * count))
    if count <= tail:
        return float(values.max()), True
    ordered = np.sort(values)
    start = ordered[-tail - 1]
    excess = ordered[-tail:] - start
    mean, variance = float(excess.mean()), float(excess.var())
    if variance <= 0:
        return float(ordered[-1]), True
    shape = float(np.clip(0.5 * (1 - mean**2 / variance), -0.5, 0.5))
    scale = mean * (1 - shape)
    ratio = share * count / tail
    if abs(shape) < 1e-6:
        return float(start - scale * np.log(ratio)), True
    return float(start + scale / shape * (ratio**-shape - 1)), True


def left_out(values: np.ndarray, group: np.ndarray, share: float) -> np.ndarray:
    """For each group, the threshold from all other groups' rows. (groups,) float64.

    values, group : (n,) held-out rows and the block or device they belong to, 0..groups-1.
    With one group alone the threshold is its own; with over a hundred, one group no longer matters and stays in.
    """
    names = np.arange(int(group.max()) + 1 if len(group) else 0)
    if not 2 <= len(names) <= MOST_LEFT_OUT:
        return np.full(len(names), tail_quantile(values, share)[0] if len(names) else np.inf)
    return np.array([
        tail_quantile(values[group != name], share)[0] if (group != name).any() else np.inf for name in names
    ])
