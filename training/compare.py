"""Held-out reconstruction of models beside the baselines, in scaled units. No torch in here."""

from collections.abc import Mapping

import numpy as np

from pipeline.errors import BadInput
from pipeline.scoring.session import Session
from training import data
from training.baselines import fit_baseline
from training.prepare import CALIBRATION, FIT, Prepared
from training.recipe import BASELINES
from training.windows import Windows

JUDGED_WINDOWS = 20_000   # held-out windows that models are compared on, evenly spread


def compare(models: Mapping[str, bytes], prepared: Prepared) -> dict[str, dict[str, float]]:
    """Held-out reconstruction of models and of the baselines, in scaled units.

    For each: `newest_mse` of the newest row's residual (what is scored), `window_mse` of whole windows, `latent`.
    `pca, same D` is PCA with the first model's latent size, so that like is compared with like.
    """
    held_out = data.windows_of(prepared, CALIBRATION).thinned(JUDGED_WINDOWS)
    if not len(held_out):
        raise BadInput("no whole window among the rows held out for calibration: give more rows")
    learn = data.windows_of(prepared, FIT).thinned(JUDGED_WINDOWS).inputs(slice(None))
    baselines = {kind: fit_baseline(kind, learn, prepared.contract) for kind in BASELINES}
    figures = {name: _errors(Session(content), held_out) for name, content in {**models, **baselines}.items()}
    size = int(next(iter(figures.values()))["latent"])
    return figures | {"pca, same D": pca_errors(learn, held_out, size)}


def pca_errors(learn: np.ndarray, held_out: Windows, size: int) -> dict[str, float]:
    """`compare`'s figures of PCA with that many components. learn : (n, T, I) filled windows."""
    flat = learn.reshape(len(learn), -1).astype(np.float64)          # (n,T,I) -> (n,T*I)
    middle = flat.mean(axis=0)
    axes = np.linalg.eigh((flat - middle).T @ (flat - middle))[1][:, ::-1][:, :size]
    squares, counts = np.zeros(2), np.zeros(2)
    for which in np.array_split(np.arange(len(held_out)), max(1, len(held_out) // 1024)):
        x = held_out.inputs(which)
        centred = x.reshape(len(x), -1) - middle
        rebuilt = (centred @ axes @ axes.T + middle).reshape(x.shape)
        missed = (held_out.raw(which) - rebuilt)[:, :, held_out.scored]
        squares += np.nansum(missed[:, -1] ** 2), np.nansum(missed**2)
        counts += np.isfinite(missed[:, -1]).sum(), np.isfinite(missed).sum()
    newest, whole = squares / np.maximum(counts, 1)
    return {"newest_mse": float(newest), "window_mse": float(whole), "latent": float(size)}


def _errors(session: Session, windows: Windows) -> dict[str, float]:
    squares = np.zeros(2)
    counts = np.zeros(2)
    latent = 0
    for which in np.array_split(np.arange(len(windows)), max(1, len(windows) // 1024)):
        raw = windows.raw(which)
        target = raw[:, :, windows.scored]
        x = windows.inputs(which)
        passed = session.run(x)
        latent = passed.latent.shape[1]
        for place, difference in enumerate((target[:, -1] - passed.newest[:, 0], target - session.rebuild(x))):
            squares[place] += np.nansum(np.square(difference, dtype=np.float64))
            counts[place] += np.isfinite(difference).sum()
    newest, whole = squares / np.maximum(counts, 1)
    return {"newest_mse": float(newest), "window_mse": float(whole), "latent": float(latent)}
