"""Autoencoders in a notebook: scikit-learn's conventions where they fit, River's pair `score` and `learn` beside them.

    >>> import numpy as np
    >>> from training import AutoencoderModel
    >>> rows = np.sin(np.arange(600) / 7)[:, None] + np.arange(3)          # one device, 3 channels
    >>> model = AutoencoderModel(family="dense", window=16, latent=2, settings={"epochs": 3}).fit(rows)
    >>> latent = model.transform(rows)
    >>> latent.shape                                                       # one for each whole window
    (585, 2)
    >>> model.inverse_transform(latent).shape
    (585, 16, 3)
    >>> bool(model.score(rows + 5.0).mean() > model.score(rows).mean())    # high is anomalous
    True
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from pipeline.core.windows import every, fill
from pipeline.errors import BadInput
from training import generate, loop
from training.incremental import Replay, as_rows, train_on
from training.models import BY_NAME, Autoencoder, Shape, initialise
from training.recipe import Recipe, parse_recipe
from training.windows import Windows

CLIP = 10.0


class AutoencoderModel(TransformerMixin, BaseEstimator):
    """An autoencoder over windows of rows.

    family, latent, window, seed : as in `narrows train`; latent 0 chooses.   settings : further fields of the recipe.
    X everywhere: (n, C) rows of one series in order, or (N, T, C) windows; NaN where missing. Values are scaled inside
    by the mean and deviation of the fitted rows. Learned: `model_` (torch), `history_`, `location_`, `scale_` (C,),
    `replay_`.
    """

    def __init__(
        self, family: str = "dense", window: int = 32, latent: int = 0, seed: int = 0,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.family = family
        self.window = window
        self.latent = latent
        self.seed = seed
        self.settings = settings

    def fit(self, X: np.ndarray, y: object = None) -> "AutoencoderModel":
        """Learn from X; the last fifth of it in time is held out to stop by. y is ignored."""
        windows = self._windows(X, scaled=False)
        flat = windows.reshape(-1, windows.shape[2]).astype(np.float64)
        finite = np.isfinite(flat).any(axis=0)
        if not finite.all():
            raise BadInput(f"channels {np.flatnonzero(~finite).tolist()} have no value in any row: leave them out")
        self.location_ = np.nanmean(flat, axis=0)
        deviation = np.nanstd(flat, axis=0)
        self.scale_ = np.where(deviation > 1e-9 * np.maximum(1, np.abs(self.location_)), deviation, 1.0)
        self.n_features_in_ = windows.shape[2]
        self.recipe_ = recipe = self._recipe()
        shape = Shape(windows.shape[1], windows.shape[2], tuple(range(windows.shape[2])),
                      recipe.latent_size(windows.shape[2]))
        scaled = self._scale(windows)
        train, held_out = self._split(X, scaled, recipe.validation)
        loop.seed_everything(recipe.seed)
        with loop.told_memory(recipe):
            model: Autoencoder = BY_NAME[recipe.model](shape, recipe)
            initialise(model, recipe.init)
        start = torch.from_numpy(train.thinned(4096).inputs(slice(None)))
        model.begin(start, start)
        self.history_ = loop.fit(model, train, held_out, recipe)
        self.model_ = model
        self.replay_ = Replay(seed=self.seed)
        self.replay_.add(scaled)
        return self

    def partial_fit(self, X: np.ndarray, y: object = None) -> "AutoencoderModel":
        """Train on with new windows, old ones replayed beside them; the first call fits. Scaling stays as it was."""
        if not hasattr(self, "model_"):
            return self.fit(X)
        self.history_ = train_on(self.model_, self._windows(X), self.replay_, self.recipe_, seed=self.seed)
        return self

    def learn(self, X: np.ndarray) -> "AutoencoderModel":
        """River's name for `partial_fit`."""
        return self.partial_fit(X)

    def transform(self, X: np.ndarray) -> np.ndarray:
        """Latent of each whole window. (N, D) float32."""
        check_is_fitted(self, "model_")
        return generate.encode(self.model_, fill(self._windows(X)))

    def inverse_transform(self, Z: np.ndarray) -> np.ndarray:
        """Windows of these latents, in the channels' units. (N, D) -> (N, T, C)."""
        check_is_fitted(self, "model_")
        latent, wanted = np.asarray(Z), self.model_.shape.latent
        if latent.ndim != 2 or latent.shape[1] != wanted:
            raise BadInput(f"Z is {latent.shape}: give latents (N, {wanted}), as `transform` makes them")
        return self._unscale(generate.decode(self.model_, latent))

    def reconstruct(self, X: np.ndarray) -> np.ndarray:
        """Each whole window as the model rebuilds it, in the channels' units. (N, T, C)."""
        return self.inverse_transform(self.transform(X))

    def score(self, X: np.ndarray, y: object = None) -> np.ndarray:
        """Mean squared error of each whole window, scaled units, missing values not counted. (N,) float64.

        High is anomalous, as everywhere in narrows (scikit-learn's outlier detectors have it the other way round).
        It is the error alone; `narrows train` adds filters, covariance and a threshold.
        """
        check_is_fitted(self, "model_")
        windows = self._windows(X)
        missed = windows - generate.decode(self.model_, generate.encode(self.model_, fill(windows)))
        counted = np.isfinite(missed).sum(axis=(1, 2))
        squares = np.nansum(missed.astype(np.float64) ** 2, axis=(1, 2))
        return np.where(counted > 0, squares / np.maximum(counted, 1), np.nan)

    def sample(self, count: int, seed: int = 0) -> np.ndarray:
        """Windows that were never measured, in the channels' units. (count, T, C)."""
        check_is_fitted(self, "model_")
        if count < 1:
            raise BadInput(f"count is {count}: give 1 or more")
        sampler = generate.fit_sampler(self.model_, fill(self.replay_.windows))
        return self._unscale(sampler.sample(count, seed))

    def interpolate(self, first: np.ndarray, last: np.ndarray, count: int = 9) -> np.ndarray:
        """Windows between two windows (T, C), along the latent space. (count, T, C)."""
        check_is_fitted(self, "model_")
        ends = fill(self._scale(np.stack([first, last])))
        return self._unscale(generate.interpolate(self.model_, ends[0], ends[1], count))

    def save(self, path: Path | str) -> None:
        """Weights, scaling and replay in one safetensors file; no pickle."""
        check_is_fitted(self, "model_")
        tensors = {f"model/{name}": tensor.contiguous() for name, tensor in self.model_.state_dict().items()}
        tensors |= {"location": torch.from_numpy(self.location_), "scale": torch.from_numpy(self.scale_),
                    "replay": torch.from_numpy(np.ascontiguousarray(self.replay_.windows)),
                    "seen": torch.tensor(self.replay_.seen)}
        Path(path).write_bytes(save_tensors(tensors))

    def load(self, path: Path | str) -> "AutoencoderModel":
        """What `save` wrote, into an estimator made with the same parameters. Raises BadInput for anything else."""
        try:
            tensors = load_tensors(Path(path).read_bytes())
            self.location_, self.scale_ = tensors.pop("location").numpy(), tensors.pop("scale").numpy()
            replay, seen = tensors.pop("replay").numpy(), int(tensors.pop("seen"))
        except (OSError, SafetensorError, KeyError) as error:
            raise BadInput(f"{path} is no file that `save` wrote: {error}") from error
        self.n_features_in_ = len(self.location_)
        self.recipe_ = self._recipe()
        self.replay_ = Replay(seed=self.seed)
        self.replay_.add(replay)
        self.replay_.seen = seen
        channels = self.n_features_in_
        shape = Shape(self.window, channels, tuple(range(channels)), self.recipe_.latent_size(channels))
        self.model_ = BY_NAME[self.recipe_.model](shape, self.recipe_)
        try:
            self.model_.load_state_dict({name.removeprefix("model/"): tensor for name, tensor in tensors.items()})
        except RuntimeError as error:
            raise BadInput(f"{path} was saved with other parameters than {self.get_params()}") from error
        self.model_.eval()
        return self

    def _recipe(self) -> Recipe:
        return parse_recipe({**(self.settings or {}), "model": self.family, "latent": self.latent, "seed": self.seed})

    def _windows(self, X: np.ndarray, scaled: bool = True) -> np.ndarray:
        """(n, C) or (N, T, C) -> (N, T, C) float32."""
        try:
            array = np.asarray(X, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise BadInput(f"X is no array of numbers ({error}): give rows (n, C), or windows (N, {self.window}, C)"
                           ) from error
        if array.ndim == 2:
            if len(array) < self.window:
                raise BadInput(f"{len(array)} rows are fewer than one window of {self.window}: give more, or window=")
            array = every(array, self.window)
        if array.ndim != 3 or array.shape[1] != self.window:
            raise BadInput(f"X is {np.shape(X)}: give rows (n, C), or windows (N, {self.window}, C)")
        if scaled and array.shape[2] != self.n_features_in_:
            raise BadInput(f"X has {array.shape[2]} channels, the model was fitted on {self.n_features_in_}")
        return self._scale(array) if scaled else array

    def _scale(self, windows: np.ndarray) -> np.ndarray:
        return np.clip((windows - self.location_) / self.scale_, -CLIP, CLIP).astype(np.float32)

    def _unscale(self, windows: np.ndarray) -> np.ndarray:
        return windows * self.scale_ + self.location_

    def _split(self, X: np.ndarray, windows: np.ndarray, share: float) -> tuple[Windows, Windows]:
        cut = len(windows) - max(1, round(share * len(windows)))
        gap = self.window - 1 if np.ndim(X) == 2 else 0              # windows of one series overlap
        if cut - gap < 1:
            raise BadInput(f"{len(windows)} windows are too few to learn from and to hold some out: give more rows")
        every = as_rows(windows, np.arange(windows.shape[2]))
        return every.part(slice(0, cut - gap)), every.part(slice(cut, None))
