"""Baselines as ONNX graphs, by onnx.helper and numpy alone: raw, PCA and linear vector autoregression (VAR).

They are always shipped: they start a stream before any autoencoder is trained, and an autoencoder that does not beat
them on held-out data says so in its card. Each takes `x` (b, T, I) and gives `newest` (b, 1, S), `latent` (b, D) and
`rebuilt` (b, T, S), as `pipeline.scoring.session` wants them.
"""

from collections.abc import Callable

import numpy as np

from pipeline.core.contract import Contract
from pipeline.errors import BadInput
from training.graphs import Graph

RIDGES = (1.0, 10.0, 100.0, 1000.0)   # of the VAR's least squares, in rows: scaled inputs have variance near 1
VAR_LAGS = (1, 2, 4, 8, 16, 31)       # rows that it may look back on
MOST_INPUTS = 400     # lags x channels that a regression is solved for
PCA_KEPT = 0.9        # share of the variance that PCA keeps
FIT_WINDOWS = 50_000  # windows that a fit looks at, evenly spread


def fit_raw(windows: np.ndarray, contract: Contract) -> bytes:
    """Rebuilds nothing: the residual is the scaled value itself. `latent` is the window's mean (D = S)."""
    graph = Graph(contract)
    zero = graph.constant("zero", np.zeros(1, dtype=np.float32))
    scored = graph.scored()
    graph.add("Mul", [scored, zero], "rebuilt")
    graph.add("ReduceMean", [scored, graph.constant("time", np.array([1]))], "latent", keepdims=0)
    graph.newest_of_rebuilt()
    return graph.finish(len(contract.sensors))


def fit_pca(windows: np.ndarray, contract: Contract, kept: float = PCA_KEPT) -> bytes:
    """Projection of the whole window onto its main directions; `latent` is that projection.

    windows : (n, T, I) float32, scaled and filled.   kept : share of the variance.
    """
    flat = _some(windows).reshape(-1, windows.shape[1] * windows.shape[2]).astype(np.float64)   # (n,T,I) -> (n,T*I)
    mean = flat.mean(axis=0)
    values, vectors = np.linalg.eigh((flat - mean).T @ (flat - mean) / len(flat))
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    share = np.cumsum(values) / max(values.sum(), 1e-12)
    size = min(int(np.searchsorted(share, kept)) + 1, len(values) - 1, len(flat))
    down = vectors[:, :size]                                                                     # (T*I,D)
    cells = np.arange(len(mean)).reshape(windows.shape[1:])[:, contract.sensors_in_inputs]       # (T,S)
    up = down[cells.ravel()].T                                                                   # (D,T*S)

    graph = Graph(contract)
    latent = graph.affine(graph.flat(), down, -mean @ down, "latent")
    whole = graph.affine(latent, up, mean[cells.ravel()], "whole")
    graph.add("Reshape", [whole, graph.constant("shape", np.array([0, *cells.shape]))], "rebuilt")
    newest = graph.affine(latent, down[cells[-1]].T, mean[cells[-1]], "newest_row")              # sliced: cheap
    graph.add("Unsqueeze", [newest, graph.constant("one", np.array([1]))], "newest")
    return graph.finish(size)


def fit_var(windows: np.ndarray, contract: Contract) -> bytes:
    """Each row predicted from the rows before it by ridge least squares; context channels are inputs, never predicted.

    windows : (n, T, I) float32, scaled and filled, in time order. How many rows it looks back on and how strong the
    ridge is are chosen on the last part of them.
    `latent` is the window's mean (D = S). The first rows of `rebuilt` have fewer rows before them; 0 stands there.
    """
    some = _some(windows)
    lags, solved = _regress(some, contract)
    sensors = contract.sensors
    weights, bias = solved[:-1].reshape(lags, -1, len(sensors)), solved[-1]                      # (p,I,S), oldest first

    graph = Graph(contract)
    recent = graph.slice_time(contract.window - 1 - lags, contract.window - 1, "recent")
    flat = graph.add("Flatten", [recent], "recent_flat", axis=1)
    newest = graph.affine(flat, weights.reshape(-1, len(sensors)), bias, "newest_row")
    graph.add("Unsqueeze", [newest, graph.constant("one", np.array([1]))], "newest")
    before = graph.add("Transpose", [graph.slice_time(0, contract.window - 1, "before")], "before_cm", perm=[0, 2, 1])
    kernel = graph.constant("kernel", weights.transpose(2, 1, 0).astype(np.float32))             # (S,I,p)
    offset = graph.constant("offset", bias.astype(np.float32))
    rolled = graph.add("Conv", [before, kernel, offset], "rolled", pads=[lags, 0])               # (b,S,T)
    graph.add("Transpose", [rolled], "rebuilt", perm=[0, 2, 1])
    graph.add("ReduceMean", [graph.scored(), graph.constant("time", np.array([1]))], "latent", keepdims=0)
    return graph.finish(len(sensors))


def _regress(windows: np.ndarray, contract: Contract) -> tuple[int, np.ndarray]:
    """Lags and ridge by the error on the last fifth of the windows, then the solution over all of them.

    Returns (p, (p*I+1, S) float64, the constant last).
    """
    target = windows[:, -1, contract.sensors_in_inputs].astype(np.float64)
    cut = max(1, int(len(windows) * 0.8))
    gap = min(cut + contract.window, len(windows) - 1)   # windows that overlap the learned ones judge nothing
    best: tuple[float, int, float] | None = None
    widest = [lags for lags in VAR_LAGS if lags < contract.window and lags * windows.shape[2] <= MOST_INPUTS]
    for lags in widest or [1]:
        past = _past(windows, lags)
        values, vectors = np.linalg.eigh(past[:cut].T @ past[:cut])
        moments = vectors.T @ (past[:cut].T @ target[:cut])
        ahead = past[gap:] @ vectors
        for ridge in RIDGES:
            guess = ahead @ (moments / (np.maximum(values, 0) + ridge)[:, None])
            error = float(np.square(guess - target[gap:]).mean())
            if best is None or error < 0.99 * best[0]:   # a longer look back must earn its place
                best = (error, lags, ridge)
    if best is None:
        raise BadInput("no window to fit a regression on")
    _, lags, ridge = best
    past = _past(windows, lags)
    return lags, np.linalg.solve(past.T @ past + ridge * np.eye(past.shape[1]), past.T @ target)


def _past(windows: np.ndarray, lags: int) -> np.ndarray:
    """The rows before the newest, flat, and a constant. (n, T, I) -> (n, p*I+1) float64."""
    flat = windows[:, -1 - lags : -1].reshape(len(windows), -1).astype(np.float64)
    return np.column_stack([flat, np.ones(len(flat))])


BASELINES: dict[str, Callable[[np.ndarray, Contract], bytes]] = {"raw": fit_raw, "pca": fit_pca, "var": fit_var}


def fit_baseline(kind: str, windows: np.ndarray, contract: Contract) -> bytes:
    """The ONNX file of a baseline. windows : (n, T, I) float32, scaled and filled. Raises BadInput on no window."""
    if kind not in BASELINES:
        raise BadInput(f"baseline {kind!r}: give one of {', '.join(BASELINES)}")
    if len(windows) == 0:
        raise BadInput(f"no run of {contract.window} rows without a gap: give more rows, or a shorter window")
    return BASELINES[kind](windows, contract)


def _some(windows: np.ndarray) -> np.ndarray:
    if len(windows) <= FIT_WINDOWS:
        return windows
    return windows[np.linspace(0, len(windows) - 1, FIT_WINDOWS).astype(np.int64)]
