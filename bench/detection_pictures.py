"""Pictures of scored series: what the detector said, beside what was true. No input values are drawn."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

mpl.use("agg")


def draw(
    out: Path, title: str, label: np.ndarray, score: np.ndarray, called: np.ndarray, change: np.ndarray,
    contributions: np.ndarray, channels: tuple[str, ...], threshold: float,
) -> None:
    """One PNG: score over its threshold (log scale) with labels, episodes and change points; contributions below.

    label, score, called, change : (n,).   contributions : (n, S), they sum to the score.
    """
    rows = np.arange(len(score))
    figure = Figure(figsize=(10, 5.2), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    ratio = score / threshold
    top.fill_between(rows, 0, 1, where=label > 0, color="tab:orange", alpha=0.25, lw=0, label="labelled anomalous",
                     transform=top.get_xaxis_transform())
    top.fill_between(rows, 0.0, 0.06, where=called, color="tab:red", lw=0, label="episode",
                     transform=top.get_xaxis_transform())
    top.plot(rows, np.maximum(ratio, 0.05), color="black", lw=1, label="score / threshold")
    top.axhline(1, color="tab:blue", lw=1, label="threshold")
    for place, row in enumerate(np.flatnonzero(change)):
        top.axvline(row, color="tab:green", lw=1, ls=":", label="change point announced" if place == 0 else None)
    top.set_yscale("log")
    top.set_ylim(0.1, max(10.0, 3 * float(ratio.max())))
    top.set_ylabel("score / threshold")
    top.set_title(title)
    top.legend(loc="upper left", fontsize=8, ncols=3)
    bottom.stackplot(rows, *(contributions / threshold).T, labels=channels)
    bottom.set_ylabel("contributions")
    bottom.set_xlabel("row after the training rows (about 1 s each)")
    bottom.legend(loc="upper right", fontsize=7, ncols=2)
    figure.savefig(out, dpi=90)
