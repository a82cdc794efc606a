"""Windows drawn as images: pictures as they stand, recordings with time to the right and channels upward.

A window is a picture where its channels are called column0, column1 and so on: its rows run downward, as they are
drawn. Every other window that is drawn as an image is a stretch of time, as a spectrogram is.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np

from pipeline.core.contract import Contract
from training.pictures import STYLE, new_figure, png_of, time_unit

COLUMNS = 12


@dataclass(frozen=True)
class Frame:
    """How windows are drawn. low, high : of the colours.   unit : of the values.   names : of the channels.

    is_picture : rows run downward, ink is dark.   seconds : of a window.
    """

    low: float
    high: float
    unit: str
    names: tuple[str, ...]
    is_picture: bool
    seconds: float


def frame_of(contract: Contract, windows: np.ndarray) -> Frame:
    """The frame whose colours span these windows. windows : (n, T, S) in units."""
    scored = [contract.channels[place] for place in contract.sensors]
    return Frame(
        float(np.nanmin(windows)), float(np.nanmax(windows)), scored[0].unit, tuple(one.name for one in scored),
        all(one.name.startswith("column") for one in scored), contract.window * contract.step_ms / 1000)


def grid(rows: Mapping[str, np.ndarray], frame: Frame, title: str, colours: str | None = None) -> bytes:
    """Windows side by side, each row with its name. rows : (n, T, S) each, n at most COLUMNS of them drawn."""
    columns = min(COLUMNS, max(map(len, rows.values())))
    wide, tall = next(iter(rows.values())).shape[:0:-1] if frame.is_picture else (1.0, 1.0)
    side = 10.0 / COLUMNS if columns > 4 else 3.0
    with mpl.rc_context(STYLE):
        figure = new_figure(1.6 + side * columns, 0.9 + side * tall / wide * len(rows))
        drawn = None
        cells = figure.subplots(len(rows), columns, squeeze=False)
        for line, (name, windows) in zip(cells, rows.items(), strict=True):
            for place, axes in enumerate(line):
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
                if place < len(windows):
                    # (T,S): a picture's rows run downward; else time runs to the right, the first channel lies below
                    drawn = axes.imshow(windows[place] if frame.is_picture else windows[place].T, vmin=frame.low,
                                        vmax=frame.high, cmap=colours or ("gray_r" if frame.is_picture else "magma"),
                                        aspect="equal" if frame.is_picture else "auto",
                                        origin="upper" if frame.is_picture else "lower", interpolation="nearest")
            line[0].set_ylabel(name, fontsize=8)
        if drawn is not None:
            bar = figure.colorbar(drawn, ax=cells, aspect=12 * len(rows), pad=0.01)
            bar.ax.set_title(frame.unit, fontsize=8)
        if not frame.is_picture:
            unit, length = time_unit(2 * frame.seconds)
            cells[-1, 0].set_xlabel(f"time, {frame.seconds / length:.3g} {unit}", fontsize=8, loc="left")
            title += f"; upward {frame.names[0]} to {frame.names[-1]}"
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
        return png_of(figure)
