"""Windows as training reads them: gathered from rows by index, batch by batch, never laid out whole.

Invariant: a window is T rows of one run of one device; nothing of another part of the data is in it. Rows may be a
memory map, so data larger than memory costs a batch at a time.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.core.windows import every, fill


@dataclass(frozen=True)
class Windows:
    """A part of the data: rows, and the rows that its windows end with.

    rows   : (n, I) float32, scaled, NaN where missing; an array or a memory map.
    ends   : (m,) int64, index of each window's newest row.
    length : T.
    scored : (S,) places of the scored channels among the I.
    """

    rows: np.ndarray
    ends: np.ndarray
    length: int
    scored: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)

    def part(self, keep: np.ndarray | slice) -> "Windows":
        """Some of these windows, by mask, index or slice over `ends`."""
        return Windows(self.rows, self.ends[keep], self.length, self.scored)

    def raw(self, which: np.ndarray | slice) -> np.ndarray:
        """(b, T, I) float32 with NaN where missing."""
        return np.asarray(every(self.rows, self.length)[self.ends[which] - (self.length - 1)])

    def inputs(self, which: np.ndarray | slice) -> np.ndarray:
        """(b, T, I) float32, filled: what the model sees."""
        return fill(self.raw(which))

    def thinned(self, most: int) -> "Windows":
        """At most that many windows, evenly spread; for pictures, starts and probes."""
        if len(self) <= most:
            return self
        return self.part(np.linspace(0, len(self) - 1, most).astype(np.int64))


def fold_by_time(
    windows: Windows, order: np.ndarray, folds: int, purge: int
) -> list[tuple[Windows, Windows]]:
    """Blocked cross-validation: contiguous blocks by time, with a purge gap on both sides of the held-out block.

    order : (m,) time of each window, any unit that sorts.   purge : windows left out next to the held-out block;
    at least T - 1 so that no row is in both. Source: de Prado 2018 for the purge.
    Returns (train, held out) for each of `folds` blocks; a block that leaves nothing to train on is left out.
    """
    ranked = np.argsort(order, kind="stable")
    parts = []
    for block in np.array_split(np.arange(len(ranked)), folds):
        if not len(block):
            continue
        low, high = block[0] - purge, block[-1] + purge
        kept = np.concatenate([ranked[: max(low, 0)], ranked[high + 1 :]])
        if len(kept):
            parts.append((windows.part(np.sort(kept)), windows.part(np.sort(ranked[block]))))
    return parts
