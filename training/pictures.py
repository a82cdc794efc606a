"""The pictures of a report: each function draws one figure from plain arrays and returns PNG bytes.

Colours: what was measured is blue, what a model says orange, what is wrong red; grey is context.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter

from training.history import History

MEASURED, SAID, WRONG, GREY = "#2166ac", "#e08214", "#b2182b", "#999999"
GREEN, VIOLET = "#5aae61", "#762a83"
KINDS = {"normal": MEASURED, "anomalous": WRONG, "unknown": GREY}
LOSSES = {"mse": "mean squared error", "mae": "mean absolute error", "huber": "Huber loss", "cross_entropy":
          "cross entropy"}
STYLE: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10,
         "axes.titlelocation": "left", "legend.frameon": False}
MOST_CHANNELS = 12   # that have a row of their own
MOST_BARS = 40


def new_figure(width: float, height: float) -> Figure:
    with mpl.rc_context(STYLE):
        return Figure(figsize=(width, height), layout="constrained")


def png_of(figure: Figure) -> bytes:
    out = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(out, format="png", dpi=110)
    return out.getvalue()


def losses(history: History, loss: str = "mse") -> bytes:
    """Training and held-out loss by epoch, on a log axis where it spans much; the epoch whose weights were kept.

    loss : the recipe's, which names the axis.
    """
    with mpl.rc_context(STYLE):
        figure = new_figure(8, 3.2)
        axes = figure.subplots()
        numbers = [epoch.number for epoch in history.epochs]
        axes.plot(numbers, [epoch.train for epoch in history.epochs], ".-", color=MEASURED,
                  label="training, mean of the\nepoch, with penalties")
        axes.plot([0, *numbers], [history.first_loss, *(epoch.held_out for epoch in history.epochs)], ".-", color=SAID,
                  label="held out, after the epoch")
        kept = f"epoch {history.best}" if history.best else "the start, no epoch\nwas better held out"
        axes.axvline(history.best, color=GREY, linestyle=":", label=f"kept: {kept}")
        positive = [v for e in history.epochs for v in (e.train, e.held_out) if np.isfinite(v)]
        if positive and min(positive) > 0 and max(positive) >= 3 * min(positive):    # else plain steps read better
            axes.set_yscale("log")
            _plain_ticks(axes.yaxis, min(positive), max(positive))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="epoch (0: before the first)", ylabel=f"{LOSSES.get(loss, loss)},\nscaled units",
                 title="Loss by epoch")
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
        return png_of(figure)


def rebuilt(
    seconds: np.ndarray, observed: np.ndarray, expected: np.ndarray, band: np.ndarray, names: Sequence[str],
    units: Sequence[str], anomalous: np.ndarray, title: str, since: str = "the first row",
    labelled: np.ndarray | None = None,
) -> bytes:
    """Each channel over time, what was expected of its newest value, and the band of normal errors.

    seconds : (n,) from `since` on.   observed, expected : (n, S) in units.   band : (S,) half width that 99 % of
    normal errors keep.   anomalous : (n,) bool, shaded.   labelled : (n,) bool, a bar on top; None without labels.
    Of more than MOST_CHANNELS channels, those with the largest errors beside their band; lines break at gaps.
    """
    shown = _largest(np.abs(observed - expected), band)
    unit, length = time_unit(float(np.ptp(seconds)))
    at, observed, expected = _broken(seconds / length, observed, expected)
    with mpl.rc_context(STYLE):
        figure = new_figure(9, 0.7 + 1.25 * len(shown))
        rows = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
        for place, axes in zip(shown, rows, strict=True):
            low, high = expected[:, place] - band[place], expected[:, place] + band[place]
            axes.fill_between(at, low, high, color=SAID, alpha=0.25, linewidth=0, label="99 % of normal errors")
            axes.plot(at, observed[:, place], color=MEASURED, linewidth=0.9, label="measured")
            axes.plot(at, expected[:, place], color=SAID, linewidth=0.9, label="rebuilt")
            for begin, end in _spans(anomalous, seconds / length):
                axes.axvspan(begin, end, color=WRONG, alpha=0.15, linewidth=0)
            for begin, end in _spans(labelled, seconds / length):
                axes.axvspan(begin, end, 0.93, 1, color="black", linewidth=0)
            limits, is_cut = _limits(np.concatenate([observed[:, place], low, high]))
            room = 0.1 * (limits[1] - limits[0]) if labelled is not None else 0.0      # for the bar of the labels
            axes.set_ylim(limits[0], limits[1] + room)
            axes.margins(x=0.01)
            channel = f"{names[place]} [{units[place]}]" if units[place] else names[place]
            axes.set_title(channel + " (runs out of the frame)" * is_cut, fontsize=8)
        lines = rows[-1].get_legend_handles_labels()[0]
        lines += [Patch(color=WRONG, alpha=0.15, label="anomalous by the model")] * bool(anomalous.any())
        lines += [Patch(color="black", label="labelled anomalous")] * (labelled is not None and bool(labelled.any()))
        # Under the title, whose further lines are left free for it.
        figure.legend(handles=lines, ncols=len(lines), loc="upper left", fontsize=8,
                      bbox_to_anchor=(0, 1 - 0.22 / figure.get_figheight()))
        rows[-1].set_xlabel(f"{unit} since {since}")
        some = f"; {len(shown)} of {len(names)} channels" * (len(shown) < len(names))
        figure.suptitle(f"{title}{some}\n\n", x=0.01, ha="left", fontsize=10)
        return png_of(figure)


def scores(
    normal: np.ndarray, threshold: float, anomalous: np.ndarray | None = None, what: str = "rows"
) -> bytes:
    """Histogram of scores with the threshold. (n,) each.

    normal : where there are labels, of what is not labelled anomalous; anomalous : of what is; None without labels.
    what   : has a score: rows or windows, held-out ones where there were others.
    """
    with mpl.rc_context(STYLE):
        figure = new_figure(8, 3.6)
        axes = figure.subplots()
        every = normal if anomalous is None else np.concatenate([normal, anomalous])
        lowest, highest = max(1e-3, float(every.min())), max(float(every.max()), threshold)
        edges = np.geomspace(lowest, highest * 1.1, 60).tolist()
        told = what if anomalous is None else f"{what} not labelled anomalous"
        most = 1
        for values, name, colour in ((normal, told, MEASURED), (anomalous, f"{what} labelled anomalous", WRONG)):
            if values is not None and len(values):
                over = float((values > threshold).mean())
                axes.hist(np.maximum(values, lowest), edges, color=colour, alpha=0.65,
                          label=f"{name}: {len(values):,}, {over:.2%} over the threshold")
                most = max(most, int(np.histogram(values, edges)[0].max()))
        axes.axvline(threshold, color="black", linestyle="--", label=f"threshold {threshold:.3g}")
        axes.set(xscale="log", yscale="log", ylim=(0.7, 1.5 * most), xlabel="score", ylabel=what.split()[-1],
                 title=f"Scores of {what}")
        _plain_ticks(axes.xaxis, lowest, highest)
        _plain_ticks(axes.yaxis, 1, most)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2))
        return png_of(figure)


def latent_map(
    latent: np.ndarray, colour: np.ndarray, label: str, kinds: Mapping[float, str] | None = None
) -> bytes:
    """The latent space on its two main axes. latent : (n, D).   colour : (n,).

    kinds : names of colour's values; None where it is a quantity.
    """
    centred = latent - latent.mean(axis=0)
    _, strengths, axes_of = np.linalg.svd(centred, full_matrices=False)
    flat = centred @ axes_of[:2].T if latent.shape[1] > 1 else np.column_stack([centred[:, 0], np.zeros(len(latent))])
    share = strengths**2 / max(float((strengths**2).sum()), 1e-12)
    with mpl.rc_context(STYLE):
        figure = new_figure(7, 5)
        axes = figure.subplots()
        if kinds is not None:
            for place, (value, name) in enumerate(kinds.items()):
                mine = colour == value
                paint = KINDS.get(name) or mpl.colormaps["tab10"](place % 10)
                axes.scatter(flat[mine, 0], flat[mine, 1], s=8, color=paint, alpha=0.6, linewidth=0,
                             label=f"{name} ({int(mine.sum()):,})")
            axes.legend(title=label, markerscale=2, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        else:
            drawn = axes.scatter(flat[:, 0], flat[:, 1], c=colour, s=8, cmap="viridis", alpha=0.7, linewidth=0)
            figure.colorbar(drawn, label=label)
        limits = [_limits(column)[0] for column in flat.T]
        beyond = sum(not all(low <= x <= high for x, (low, high) in zip(point, limits, strict=True)) for point in flat)
        axes.set(xlabel=f"first main axis ({share[0]:.0%} of the variance)", xlim=limits[0], ylim=limits[1],
                 ylabel=f"second main axis ({share[1]:.0%})" if len(share) > 1 else "",
                 title=f"Windows in the latent space, D = {latent.shape[1]}"
                       + f"; {beyond} beyond the frame" * bool(beyond))
        return png_of(figure)


def channel_errors(names: Sequence[str], errors: Mapping[str, np.ndarray]) -> bytes:
    """Root mean squared error of the newest row by channel and model, in scaled units. errors : (S,) each.

    Of more than MOST_BARS channels, those with the largest errors of the first model.
    """
    first = next(iter(errors.values()))
    shown = np.sort(np.argsort(-first, kind="stable")[:MOST_BARS])
    with mpl.rc_context(STYLE):
        figure = new_figure(8, 1.2 + 0.32 * len(shown))
        axes = figure.subplots()
        height = 0.8 / len(errors)
        for rank, (model, values) in enumerate(errors.items()):
            places = np.arange(len(shown)) + (rank - (len(errors) - 1) / 2) * height
            axes.barh(places, values[shown], height * 0.9, color=[SAID, GREY, WRONG][rank % 3], label=model)
        axes.set_yticks(np.arange(len(shown)), [names[place] for place in shown])
        axes.set_ylim(len(shown) - 0.4, -0.6)
        if max(map(np.max, errors.values())) > 30 * float(np.median(first)) > 0:     # one channel would squash the rest
            axes.set_xscale("log")
        some = f", the {MOST_BARS} largest of {len(names)}" * (len(shown) < len(names))
        axes.set(xlabel="root mean squared error of the newest row, scaled units",
                 title=f"Error by channel{some}")
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
        return png_of(figure)


def families(figures: Mapping[str, Mapping[str, float]], ours: str) -> bytes:
    """Held-out reconstruction error of this model beside the baselines."""
    with mpl.rc_context(STYLE):
        figure = new_figure(9, 1.1 + 0.34 * len(figures))
        left, right = figure.subplots(1, 2, sharey=True)
        shown = ((left, "newest_mse", "Newest row (what is scored)"), (right, "window_mse", "Whole window"))
        order = sorted(figures, key=lambda name: (name != ours, name))
        names = [f"{name} (D={int(figures[name]['latent'])})" for name in order]
        for axes, key, title in shown:
            errors = np.array([figures[name][key] for name in order])
            axes.barh(names, errors, color=[SAID if name == ours else GREY for name in order])
            for place, error in enumerate(errors):
                axes.text(error, place, f" {error:.3g}", va="center", fontsize=8)
            if errors.min() > 0 and errors.max() > 100 * errors.min():
                axes.set_xscale("log")
            axes.margins(x=0.2)
            axes.set(title=title, xlabel="mean squared error, scaled units")
        left.invert_yaxis()
        return png_of(figure)


def precision_recall(label: np.ndarray, curves: Mapping[str, np.ndarray], threshold: float | None = None) -> bytes:
    """Precision against recall of scores. label : (n,) 0 or 1.   curves : (n,) scores by name, the first judged by
    `threshold`."""
    with mpl.rc_context(STYLE):
        figure = new_figure(7.5, 4)
        axes = figure.subplots()
        truth = np.asarray(label, dtype=bool)
        for rank, (name, score) in reversed(list(enumerate(curves.items()))):        # the first is drawn on top
            order = np.argsort(-score, kind="stable")
            hits = np.cumsum(truth[order])
            called = np.arange(1, len(hits) + 1)
            recall, precision = hits / max(1, hits[-1]), hits / called
            area = float((np.diff(recall, prepend=0) * precision).sum())
            line, colour = (("-", SAID), ("--", MEASURED), ("-.", GREEN), (":", VIOLET))[rank % 4]
            axes.plot(recall, precision, line, color=colour, linewidth=2 if rank == 0 else 1.2,
                      label=f"{name}: {area:.3f}")
            if rank == 0 and threshold is not None:
                at = int((score > threshold).sum()) - 1
                if at >= 0:
                    axes.plot(recall[at], precision[at], "o", color=WRONG, zorder=5,
                              label=f"{name} at its threshold:\nprecision {precision[at]:.2f}, recall {recall[at]:.2f}")
        axes.axhline(float(truth.mean()), color=GREY, linestyle=":", label=f"always alarm: {truth.mean():.3f}")
        axes.set(xlabel="recall", ylabel="precision", ylim=(0, 1.02), xlim=(0, 1.01),
                 title="Precision and recall, row by row")
        lines, told = axes.get_legend_handles_labels()
        axes.legend(lines[-2::-1] + lines[-1:], told[-2::-1] + told[-1:], title="average precision", fontsize=8,
                    loc="upper left", bbox_to_anchor=(1, 1))
        return png_of(figure)


def overlaid(
    windows: np.ndarray, near: np.ndarray, names: Sequence[str], heads: Sequence[str], seconds: float
) -> bytes:
    """Windows, one a column and one row a channel, each over those that are nearest to it.

    windows : (n, T, S) scaled.   near : (n, k, T, S).   heads : (n,) says of each which one it is.   seconds : a row's.
    """
    count = min(len(names), MOST_CHANNELS)
    unit, length = time_unit(seconds * windows.shape[1])
    at = np.arange(windows.shape[1]) * seconds / length
    with mpl.rc_context(STYLE):
        figure = new_figure(1.2 + 1.75 * len(windows), 1.1 + 0.8 * count)
        grid = figure.subplots(count, len(windows), sharex=True, sharey="row", squeeze=False)
        for channel in range(count):
            for place, axes in enumerate(grid[channel]):
                axes.plot(at, near[place, :, :, channel].T, color=GREY, linewidth=0.7, alpha=0.8)
                axes.plot(at, windows[place, :, channel], color=MEASURED, linewidth=1.1)
                axes.tick_params(labelsize=7)
            grid[channel, 0].set_ylabel(names[channel], rotation=0, ha="right", va="center", fontsize=8)
        for axes, head in zip(grid[0], heads, strict=True):
            axes.set_title(head, fontsize=8)
        for axes in grid[-1]:
            axes.set_xlabel(unit, fontsize=8)
        lines = [Line2D([], [], color=MEASURED, label="held-out window"),
                 Line2D([], [], color=GREY, label="the three nearest to it in the latent space")]
        figure.legend(handles=lines, ncols=2, loc="outside upper right", fontsize=8)
        some = f" ({count} of {len(names)} channels)" * (count < len(names))
        figure.suptitle(f"Held-out windows over their neighbours, scaled units{some}", x=0.01, ha="left", fontsize=10)
        return png_of(figure)


def time_unit(seconds: float) -> tuple[str, float]:
    """The unit in which a span of time has a readable number, and its seconds."""
    return next(one for one in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0),
                                ("milliseconds", 1e-3)) if seconds >= 2 * one[1] or one[1] < 1)


def _spans(marked: np.ndarray | None, at: np.ndarray) -> list[tuple[float, float]]:
    """Begin and end of each stretch of marked rows, half a step wider on both sides: one row alone is seen too."""
    if marked is None or not marked.any():
        return []
    half = float(np.median(np.diff(at))) / 2 if len(at) > 1 else 0.5
    edges = np.flatnonzero(np.diff(np.concatenate([[False], marked, [False]]))).reshape(-1, 2)
    return [(float(at[first]) - half, float(at[after - 1]) + half) for first, after in edges]


def _largest(errors: np.ndarray, band: np.ndarray) -> list[int]:
    """Places of at most MOST_CHANNELS channels, in order: those whose errors are largest beside their band. (n, S)"""
    ratio = np.nan_to_num(np.nan_to_num(errors).max(axis=0) / np.maximum(band, 1e-12), nan=-1)     # NaN: not scored
    return sorted(np.argsort(-ratio, kind="stable")[:MOST_CHANNELS].tolist())


def _broken(at: np.ndarray, *columns: np.ndarray) -> list[np.ndarray]:
    """The same with a NaN where time makes a leap, so that no line is drawn over a gap."""
    steps = np.diff(at)
    gaps = np.flatnonzero(steps > 5 * np.median(steps)) + 1 if len(steps) else np.zeros(0, int)
    return [np.insert(at, gaps, at[gaps] if len(gaps) else 0), *(
        np.insert(column.astype(np.float64), gaps, np.nan, axis=0) for column in columns)]


def _limits(values: np.ndarray) -> tuple[tuple[float, float], bool]:
    """Limits of an axis that a few wild values don't squash the rest in; and whether they cut any off."""
    values = values[np.isfinite(values)]
    if not len(values):
        return (0.0, 1.0), False
    low, middle, high = np.quantile(values, [0.01, 0.5, 0.99])
    span = max(float(high - low), 1e-9, 1e-6 * abs(float(middle)))
    least, most = max(float(values.min()), low - 2 * span), min(float(values.max()), high + 2 * span)
    pad = 0.05 * max(most - least, span)
    return (float(least - pad), float(most + pad)), bool(values.min() < least or values.max() > most)


def _plain_ticks(axis: Axis, low: float, high: float) -> None:
    """Ticks of a log axis as plain numbers, as many as the span needs."""
    decades = np.log10(max(high, low) / low)
    subs = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if decades < 1 else (1.0, 2.0, 5.0) if decades < 3 else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_formatter(NullFormatter())
