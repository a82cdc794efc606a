"""Windows that were never measured: samples, paths between two windows, and how well a classifier can tell them.

A sample is a latent between those of two neighbouring windows, decoded, with the decoder's error at a third neighbour
added: a decoder is a distribution, not a mean (Kingma and Welling 2014), and the latents' density is taken from the
data afterwards, it is never quite the prior (Ghosh et al. 2020; between neighbours: Chawla et al. 2002). The error of
one of the two ends would make samples that are harder to tell from real windows, and nearly copies of them.
"""

from dataclasses import dataclass

import numpy as np
import torch

from pipeline.errors import BadInput
from training.models import Autoencoder

NEIGHBOURS = 4
MOST_LEVELS = 64


@dataclass(frozen=True)
class Sampler:
    """Draws windows of the scored channels, in scaled units. Made by `fit_sampler`.

    latents : (m, D) of known windows.   errors : (m, T, S), what the decoder misses of each.
    near    : (m, NEIGHBOURS) indices of each one's nearest.   low, high : (T, S) range of the data.
    levels  : the values that a channel takes, where they are few (a grid, counts, states); empty where any may come.
    """

    model: Autoencoder
    latents: np.ndarray
    errors: np.ndarray
    near: np.ndarray
    low: np.ndarray
    high: np.ndarray
    levels: tuple[np.ndarray, ...]

    def sample(self, count: int, seed: int = 0) -> np.ndarray:
        """(count, T, S) float32."""
        rng = np.random.default_rng(seed)
        first = rng.integers(0, len(self.latents), count)
        second, third = rng.permuted(self.near[first], axis=1)[:, :2].T
        share = rng.random((count, 1))
        z = (1 - share) * self.latents[first] + share * self.latents[second]
        made = np.clip(decode(self.model, z) + self.errors[third], self.low, self.high)
        for place, levels in enumerate(self.levels):
            if len(levels) > 1:
                made[..., place] = levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, made[..., place])]
        return made.astype(np.float32)


def fit_sampler(model: Autoencoder, windows: np.ndarray) -> Sampler:
    """A sampler from known windows.

    windows : (n, T, I) float32, scaled and filled; at least 50.
    """
    from sklearn.neighbors import NearestNeighbors

    if len(windows) < 50:
        raise BadInput(f"{len(windows)} windows are too few to learn where latents lie: give at least 50")
    scored = windows[:, :, list(model.shape.scored)]
    z = encode(model, windows)
    even = z / (z.std(axis=0) + 1e-6)
    near = NearestNeighbors(n_neighbors=NEIGHBOURS + 1).fit(even).kneighbors(even, return_distance=False)[:, 1:]
    levels = levels_of(scored.reshape(-1, scored.shape[2]))
    return Sampler(model, z, scored - decode(model, z), near, scored.min(axis=0), scored.max(axis=0), levels)


def levels_of(values: np.ndarray) -> tuple[np.ndarray, ...]:
    """The values that each column takes where there are at most MOST_LEVELS, else an empty array. values : (n, S)."""
    taken = [np.unique(values[:, place]) for place in range(values.shape[1])]
    return tuple(one if len(one) <= MOST_LEVELS else one[:0] for one in taken)


def interpolate(model: Autoencoder, first: np.ndarray, last: np.ndarray, count: int = 9) -> np.ndarray:
    """Windows on the straight line between two windows' latents. first, last : (T, I).   Returns (count, T, S)."""
    ends = encode(model, np.stack([first, last]))
    shares = np.linspace(0, 1, count)[:, None]
    return decode(model, (1 - shares) * ends[0] + shares * ends[1])


def gaussian_in_pca_space(windows: np.ndarray, size: int, count: int, seed: int = 0) -> np.ndarray:
    """The rival: a Gaussian over the first `size` components, and independent Gaussian noise for the rest.

    windows : (n, T, S).   Returns (count, T, S) float32. This is probabilistic PCA (Tipping and Bishop 1999).
    """
    rng = np.random.default_rng(seed)
    flat = windows.reshape(len(windows), -1).astype(np.float64)
    middle = flat.mean(axis=0)
    values, axes = np.linalg.eigh(np.cov(flat - middle, rowvar=False))
    values, axes = np.maximum(values[::-1], 0), axes[:, ::-1]
    rest = float(values[size:].mean()) if size < len(values) else 0.0
    z = rng.normal(size=(count, size)) * np.sqrt(np.maximum(values[:size] - rest, 0))
    made = middle + z @ axes[:, :size].T + rng.normal(size=(count, len(middle))) * np.sqrt(rest)
    return made.reshape(count, *windows.shape[1:]).astype(np.float32)


def told_apart(real: np.ndarray, made: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Five-fold cross-validated accuracy of classifiers that tell real from made windows; 0.5 is indistinguishable.

    real, made : (n, T, S), as many of each.   Returns accuracy by classifier, and `best`, the highest of them.
    """
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    count = min(len(real), len(made))
    x = np.concatenate([real[:count], made[:count]]).reshape(2 * count, -1)
    y = np.repeat([0, 1], count)
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    classifiers = {
        "logistic": make_pipeline(StandardScaler(), LogisticRegression(max_iter=500, C=0.1)),
        "neighbours": make_pipeline(StandardScaler(), KNeighborsClassifier(5)),
        "forest": RandomForestClassifier(200, min_samples_leaf=3, random_state=seed, n_jobs=1),
    }
    told = {name: float(cross_val_score(one, x, y, cv=folds).mean()) for name, one in classifiers.items()}
    return told | {"best": max(told.values())}


@torch.no_grad()
def encode(model: Autoencoder, windows: np.ndarray) -> np.ndarray:
    """(n, T, I) -> (n, D) float32."""
    return model.eval().encode(torch.from_numpy(np.ascontiguousarray(windows, dtype=np.float32))).numpy()


@torch.no_grad()
def decode(model: Autoencoder, z: np.ndarray) -> np.ndarray:
    """(n, D) -> (n, T, S) float32."""
    return model.eval().decode(torch.from_numpy(np.asarray(z, dtype=np.float32))).numpy()


