"""The pictures of a report: each function draws one figure from plain arrays and returns PNG bytes.

Colours: what was measured is blue, what a model says orange, what is wrong red; grey is context.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from training.history import History

MEASURED, SAID, WRONG, GREY = "#2166ac", "#e08214", "#b2182b", "#999999"
STYLE: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10,
         "axes.titlelocation": "left", "legend.frameon": False}
MOST_CHANNELS = 12


def _figure(width: float, height: float) -> Figure:
    with mpl.rc_context(STYLE):
        return Figure(figsize=(width, height), layout="constrained")


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(out, format="png", dpi=110)
    return out.getvalue()


def losses(history: History) -> bytes:
    """Training and held-out loss by epoch, on a log axis; the epoch whose weights were kept."""
    with mpl.rc_context(STYLE):
        figure = _figure(7, 3.2)
        axes = figure.subplots()
        numbers = [epoch.number for epoch in history.epochs]
        axes.plot(numbers, [epoch.train for epoch in history.epochs], color=MEASURED, label="training (with penalties)")
        axes.plot([0, *numbers], [history.first_loss, *(epoch.held_out for epoch in history.epochs)], color=SAID,
                  label="held out")
        kept = f"epoch {history.best}" if history.best else "the start, no epoch was better held out"
        axes.axvline(history.best, color=GREY, linestyle=":", label=f"kept: {kept}")
        positive = [v for e in history.epochs for v in (e.train, e.held_out) if np.isfinite(v)]
        if positive and min(positive) > 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
            axes.yaxis.set_minor_formatter(NullFormatter())
            if max(positive) < 3 * min(positive):                    # hardly a decade: plain steps read better
                axes.set_yscale("linear")
        axes.set(xlabel="epoch", ylabel="loss", title="Loss")
        axes.legend()
        return _png(figure)


def rebuilt(
    seconds: np.ndarray, observed: np.ndarray, expected: np.ndarray, band: np.ndarray, names: Sequence[str],
    units: Sequence[str], anomalous: np.ndarray, title: str,
) -> bytes:
    """Each channel over time, what was expected of its newest value, and the band of normal errors.

    seconds : (n,).   observed, expected : (n, S) in units.   band : (S,) half width that 99 % of normal errors keep.
    anomalous : (n,) bool, shaded.
    """
    count = min(len(names), MOST_CHANNELS)
    with mpl.rc_context(STYLE):
        figure = _figure(9, 0.5 + 1.25 * count)
        rows = figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]
        for place, axes in enumerate(rows):
            low, high = expected[:, place] - band[place], expected[:, place] + band[place]
            axes.fill_between(seconds, low, high, color=SAID, alpha=0.25, linewidth=0, label="99 % of normal errors")
            axes.plot(seconds, observed[:, place], color=MEASURED, linewidth=0.9, label="measured")
            axes.plot(seconds, expected[:, place], color=SAID, linewidth=0.9, label="rebuilt")
            for first, last in _runs(anomalous):
                axes.axvspan(seconds[first], seconds[last], color=WRONG, alpha=0.15, linewidth=0)
            unit = f" [{units[place]}]" if units[place] else ""
            axes.set_title(f"{names[place]}{unit}", fontsize=8)
        rows[0].legend(ncols=3, loc="lower right", bbox_to_anchor=(1, 1.02), fontsize=8)
        rows[-1].set_xlabel("seconds")
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
        return _png(figure)


def scores(
    normal: np.ndarray, threshold: float, anomalous: np.ndarray | None = None, held: str = "normal rows"
) -> bytes:
    """Histogram of scores with the threshold; of rows labelled anomalous beside it. (n,) each."""
    with mpl.rc_context(STYLE):
        figure = _figure(7, 3.2)
        axes = figure.subplots()
        every = normal if anomalous is None or not len(anomalous) else np.concatenate([normal, anomalous])
        lowest, highest = max(1e-3, float(every.min())), max(float(every.max()), threshold)
        edges = np.geomspace(lowest, highest * 1.1, 60).tolist()
        axes.hist(normal, edges, color=MEASURED, alpha=0.7, label=f"{held} ({len(normal)})")
        if anomalous is not None and len(anomalous):
            axes.hist(anomalous, edges, color=WRONG, alpha=0.6, label=f"rows labelled anomalous ({len(anomalous)})")
        over = float((normal > threshold).mean())
        axes.axvline(threshold, color="black", linestyle="--", label=f"threshold {threshold:.3g}; {over:.2%} above")
        axes.set(xscale="log", yscale="log", xlabel="score", ylabel="rows", title="Scores")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
        return _png(figure)


def latent_map(latent: np.ndarray, colour: np.ndarray, label: str, is_category: bool) -> bytes:
    """The latent space on its two main axes. latent : (n, D).   colour : (n,)."""
    centred = latent - latent.mean(axis=0)
    _, strengths, axes_of = np.linalg.svd(centred, full_matrices=False)
    flat = centred @ axes_of[:2].T if latent.shape[1] > 1 else np.column_stack([centred[:, 0], np.zeros(len(latent))])
    share = strengths**2 / max(float((strengths**2).sum()), 1e-12)
    with mpl.rc_context(STYLE):
        figure = _figure(6, 5)
        axes = figure.subplots()
        if is_category:
            for place, value in enumerate(np.unique(colour)):
                mine = colour == value
                axes.scatter(flat[mine, 0], flat[mine, 1], s=6, color=mpl.colormaps["tab10"](place % 10), alpha=0.7,
                             label=f"{value:g}")
            axes.legend(title=label, markerscale=2, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        else:
            drawn = axes.scatter(flat[:, 0], flat[:, 1], c=colour, s=6, cmap="viridis", alpha=0.7)
            figure.colorbar(drawn, label=label)
        axes.set(xlabel=f"first axis ({share[0]:.0%} of the variance)",
                 ylabel=f"second axis ({share[1]:.0%})" if len(share) > 1 else "",
                 title=f"Latent space, D = {latent.shape[1]}")
        return _png(figure)


def channel_errors(names: Sequence[str], errors: Mapping[str, np.ndarray]) -> bytes:
    """Held-out root mean square error of the newest row by channel and model, in scaled units. errors : (S,) each."""
    with mpl.rc_context(STYLE):
        figure = _figure(8, 1.2 + 0.32 * len(names))
        axes = figure.subplots()
        height = 0.8 / len(errors)
        colours = [SAID, MEASURED, "#5aae61", GREY, "#762a83"]
        for rank, (model, values) in enumerate(errors.items()):
            places = np.arange(len(names)) + (rank - (len(errors) - 1) / 2) * height
            axes.barh(places, values, height * 0.9, color=colours[rank % len(colours)], label=model)
        axes.set_yticks(np.arange(len(names)), names)
        axes.invert_yaxis()
        axes.set(xlabel="root mean square error, in sd of the channel", title="Error by channel, held out")
        axes.legend()
        return _png(figure)


def families(figures: Mapping[str, Mapping[str, float]], ours: str) -> bytes:
    """Held-out reconstruction error of this model beside the baselines."""
    with mpl.rc_context(STYLE):
        figure = _figure(8, 2.6)
        left, right = figure.subplots(1, 2)
        shown = ((left, "newest_mse", "Newest row (what is scored)"), (right, "window_mse", "Whole window"))
        for axes, key, title in shown:
            names = [f"{name} (D={int(values['latent'])})" for name, values in figures.items()]
            axes.barh(names, [values[key] for values in figures.values()],
                      color=[SAID if name == ours else GREY for name in figures])
            for place, values in enumerate(figures.values()):
                axes.text(values[key], place, f" {values[key]:.3f}", va="center", fontsize=8)
            axes.invert_yaxis()
            axes.margins(x=0.2)
            axes.set(title=title, xlabel="mean square error, scaled units")
        return _png(figure)


def precision_recall(label: np.ndarray, curves: Mapping[str, np.ndarray], threshold: float | None = None) -> bytes:
    """Precision against recall of scores. label : (n,) 0 or 1.   curves : (n,) scores by name."""
    with mpl.rc_context(STYLE):
        figure = _figure(5.5, 4)
        axes = figure.subplots()
        truth = np.asarray(label, dtype=bool)
        for rank, (name, score) in enumerate(curves.items()):
            order = np.argsort(-score, kind="stable")
            hits = np.cumsum(truth[order])
            called = np.arange(1, len(hits) + 1)
            recall, precision = hits / max(1, hits[-1]), hits / called
            area = float((np.diff(recall, prepend=0) * precision).sum())
            colour = [SAID, MEASURED, "#5aae61", GREY][rank % 4]
            axes.plot(recall, precision, color=colour, label=f"{name} ({area:.3f})")
            if rank == 0 and threshold is not None:
                at = int((score > threshold).sum()) - 1
                if at >= 0:
                    axes.plot(recall[at], precision[at], "o", color=WRONG, label="at the threshold")
        axes.axhline(float(truth.mean()), color=GREY, linestyle=":", label="always alarm")
        axes.set(xlabel="recall", ylabel="precision", ylim=(0, 1.02), xlim=(0, 1))
        axes.set_title("Precision and recall, row by row")
        axes.legend(fontsize=8)
        return _png(figure)


def pairs(
    originals: np.ndarray, made: np.ndarray, upper: str = "original", lower: str = "rebuilt", most: int = 12
) -> bytes:
    """Windows as pictures: originals above rebuilt ones. originals, made : (n, T, S)."""
    count = min(most, len(originals))
    low, high = float(np.nanmin(originals[:count])), float(np.nanmax(originals[:count]))
    with mpl.rc_context(STYLE):
        figure = _figure(1 + 0.75 * count, 2.2)
        grid = figure.subplots(2, count, squeeze=False)
        for row, (pictures, name) in enumerate(((originals, upper), (made, lower))):
            for place in range(count):
                axes = grid[row, place]
                axes.imshow(pictures[place], cmap="gray_r", vmin=low, vmax=high, aspect="auto")
                axes.set(xticks=[], yticks=[])
                for spine in axes.spines.values():
                    spine.set_visible(False)
            grid[row, 0].set_ylabel(name)
        return _png(figure)


def gallery(pictures: np.ndarray, title: str, columns: int = 12) -> bytes:
    """Windows as pictures in a grid. pictures : (n, T, S)."""
    rows = -(-len(pictures) // columns)
    low, high = float(np.nanmin(pictures)), float(np.nanmax(pictures))
    with mpl.rc_context(STYLE):
        figure = _figure(1 + 0.75 * columns, 0.4 + 0.8 * rows)
        for place, axes in enumerate(figure.subplots(rows, columns, squeeze=False).ravel()):
            axes.axis("off")
            if place < len(pictures):
                axes.imshow(pictures[place], cmap="gray_r", vmin=low, vmax=high, aspect="auto")
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
        return _png(figure)


def curves(sets: Mapping[str, np.ndarray], title: str, columns: int = 6) -> bytes:
    """Windows as lines, one column a window, one row a set: windows above their neighbours. sets : (n, T, S) each."""
    with mpl.rc_context(STYLE):
        figure = _figure(1.7 * columns, 0.4 + 1.5 * len(sets))
        grid = figure.subplots(len(sets), columns, sharey=True, squeeze=False)
        for row, (name, windows) in enumerate(sets.items()):
            for place in range(columns):
                axes = grid[row, place]
                axes.set(xticks=[], yticks=[])
                if place < len(windows):
                    axes.plot(windows[place], linewidth=0.7)
            grid[row, 0].set_ylabel(name)
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
        return _png(figure)


def _runs(marked: np.ndarray) -> list[tuple[int, int]]:
    padded = np.concatenate([[False], marked, [False]])
    edges = np.flatnonzero(padded[1:] != padded[:-1]).reshape(-1, 2)
    return [(int(first), int(last) - 1) for first, last in edges]
