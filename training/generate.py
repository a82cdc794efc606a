"""Windows that were never measured: samples, paths between two windows, and how well a classifier can tell them.

A sample is a latent from a mixture of Gaussians over those of known windows, decoded, with the decoder's error drawn
too: a decoder is a distribution, not a mean (Kingma and Welling 2014), and the latents' density is taken from the data
afterwards, it is never quite the prior (Ghosh et al. 2020). The error of a value is one that a known window has at the
same place, where about the same was rebuilt, and errors of different places go together as they do there: a Gaussian
copula (Sklar 1959). Nothing of a known window is taken whole, so samples are no nearer to known windows than new
ones are (`nearness`).
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.errors import BadInput
from training.models import Autoencoder

ALIKE = 20               # known windows that rebuild about the same value at a place: where its error is drawn from
MOST_LEVELS = 64
COMPONENTS = (1, 2, 4, 8, 16, 32, 64)
LEAST_VARIANCES = (0.01, 0.03, 0.1)     # of a component, as shares of a latent's own


@dataclass(frozen=True)
class Prior:
    """A mixture of Gaussians over latents. share : (K,); middle : (K, D); factor : (K, D, D), factor @ factor.T is the
    covariance."""

    share: np.ndarray
    middle: np.ndarray
    factor: np.ndarray

    def sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """(count, D)."""
        chosen = rng.choice(len(self.share), count, p=self.share)
        noise = rng.normal(size=(count, self.middle.shape[1], 1))
        return self.middle[chosen] + (self.factor[chosen] @ noise)[..., 0]


@dataclass(frozen=True)
class Sampler:
    """Draws windows of the scored channels, in scaled units. Made by `fit_sampler`.

    P = T * S places; the columns of `rebuilt` are sorted, and `left` goes with them.
    rebuilt : (m, P) what the decoder makes of known windows.
    left    : (m, P) their error; of a channel with few values (`is_free` false) the value itself.
    score   : (m, P) normal scores of `left` among those that are alike, rows being windows: how errors go together.
    is_free : (P,) bool.   low, high : (P,) range of the data.
    """

    model: Autoencoder
    prior: Prior
    rebuilt: np.ndarray
    left: np.ndarray
    score: np.ndarray
    is_free: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def sample(self, count: int, seed: int = 0) -> np.ndarray:
        """(count, T, S) float32."""
        from scipy.special import ndtr

        rng = np.random.default_rng(seed)
        mean = decode(self.model, self.prior.sample(count, rng))         # (count,T,S)
        flat = mean.reshape(count, -1)
        noise = rng.normal(size=(count, len(self.score))) @ self.score / np.sqrt(len(self.score))
        rank = np.minimum((ndtr(noise) * ALIKE).astype(np.int64), ALIKE - 1)
        made = np.empty_like(flat)
        for place, rebuilt in enumerate(flat.T):
            first = _alike(np.searchsorted(self.rebuilt[:, place], rebuilt), len(self.rebuilt))
            near = np.lib.stride_tricks.sliding_window_view(self.left[:, place], ALIKE)[first]
            made[:, place] = np.take_along_axis(np.sort(near, axis=1), rank[:, place, None], axis=1)[:, 0]
        made = np.clip(made + np.where(self.is_free, flat, 0), self.low, self.high)
        return made.reshape(mean.shape).astype(np.float32)


def fit_sampler(model: Autoencoder, windows: np.ndarray) -> Sampler:
    """A sampler from known windows.

    windows : (n, T, I) float32, scaled and filled; at least 50.
    """
    from scipy.special import ndtri

    count = len(windows)
    if count < 50:
        raise BadInput(f"{count} windows are too few to learn where latents lie: give at least 50")
    scored = windows[:, :, list(model.shape.scored)]
    z = encode(model, windows)
    mean, exact = decode(model, z).reshape(count, -1), scored.reshape(count, -1)
    levels = levels_of(scored.reshape(-1, scored.shape[2]))
    is_free = np.tile([len(one) == 0 for one in levels], scored.shape[1])
    order = np.argsort(mean, axis=0, kind="stable")
    left = np.take_along_axis(exact - np.where(is_free, mean, 0), order, axis=0).astype(np.float32)
    first, rng, score = _alike(np.arange(count), count), np.random.default_rng(0), np.empty_like(mean)
    for place, column in enumerate(left.T):
        near = np.lib.stride_tricks.sliding_window_view(column, ALIKE)[first]
        below, same = (near < column[:, None]).sum(axis=1), (near == column[:, None]).sum(axis=1)
        share = (below + rng.random(count) * same) / ALIKE               # equal values: anywhere among them
        score[order[:, place], place] = ndtri(np.clip(share, 0.25 / ALIKE, 1 - 0.25 / ALIKE))
    score /= np.sqrt(np.square(score).mean(axis=0))
    return Sampler(model, fit_prior(z), np.take_along_axis(mean, order, axis=0), left, score, is_free,
                   exact.min(axis=0), exact.max(axis=0))


def _alike(place: np.ndarray, count: int) -> np.ndarray:
    """First of the ALIKE ranks around each rank, out of `count`."""
    return np.clip(place - ALIKE // 2, 0, count - ALIKE)


def fit_prior(latents: np.ndarray) -> Prior:
    """The mixture under which a fifth of the latents, held out, is likeliest: its size and least variance.

    latents : (n, D).
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    spread = latents.std(axis=0).astype(np.float64) + 1e-6
    even = latents / spread
    order = np.random.default_rng(0).permutation(len(even))
    learn, held_out = np.split(even[order], [4 * len(even) // 5])

    def fitted(size: int, least: float, rows: np.ndarray) -> GaussianMixture:
        return GaussianMixture(size, reg_covar=least, random_state=0).fit(rows)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)              # the held-out share judges it as it is
        tried = [(size, least) for size in COMPONENTS if 4 * size <= len(learn) for least in LEAST_VARIANCES]
        size, least = max(tried, key=lambda one: float(fitted(one[0], one[1], learn).score(held_out)))
        mixture = fitted(size, least, even)
    factor = np.linalg.cholesky(mixture.covariances_)
    return Prior(mixture.weights_ / mixture.weights_.sum(), mixture.means_ * spread, factor * spread[:, None])


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


def nearness(real: np.ndarray, made: np.ndarray, known: np.ndarray) -> float:
    """Median distance of made windows to the nearest known one, over that of real ones never seen: copies are near 0.

    real, made, known : (n, T, S) each.
    """
    from sklearn.neighbors import NearestNeighbors

    near = NearestNeighbors(n_neighbors=1).fit(known.reshape(len(known), -1))
    far = [float(np.median(near.kneighbors(one.reshape(len(one), -1))[0])) for one in (made, real)]
    return far[0] / far[1]


@torch.no_grad()
def encode(model: Autoencoder, windows: np.ndarray) -> np.ndarray:
    """(n, T, I) -> (n, D) float32."""
    return model.eval().encode(torch.from_numpy(np.ascontiguousarray(windows, dtype=np.float32))).numpy()


@torch.no_grad()
def decode(model: Autoencoder, z: np.ndarray) -> np.ndarray:
    """(n, D) -> (n, T, S) float32."""
    return model.eval().decode(torch.from_numpy(np.asarray(z, dtype=np.float32))).numpy()


