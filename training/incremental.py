"""The incremental step: train on from a champion with new windows, and replay old ones, lest they are forgotten.

Without replay a model follows the newest regime and forgets the one before (McCloskey and Cohen 1989). The buffer is a
uniform sample over every window ever seen (reservoir sampling, Vitter 1985); a quarter of each mini-batch comes from
it, and the early stop looks at held-out windows of both.
"""

import msgspec
import numpy as np

from pipeline.errors import BadInput
from training import loop
from training.history import History
from training.models import Autoencoder
from training.recipe import Recipe
from training.windows import Windows

HELD_OUT = 0.2
PASSES = 12
OLD_FOR_NEW = 1 / 3   # replayed windows for each new one
GOING_ON_RATE = 1.0   # share of the recipe's rate; the old windows beside the new hold the weights


class Replay:
    """A uniform sample of all windows that it was shown, at most `size` of them. (size, T, I) float32, scaled."""

    def __init__(self, size: int = 4096, seed: int = 0) -> None:
        self.size = size
        self.seen = 0
        self.windows = np.empty((0, 0, 0), dtype=np.float32)
        self._rng = np.random.default_rng(seed)

    def add(self, windows: np.ndarray) -> None:
        """windows : (n, T, I), NaN where missing; kept as they are."""
        room = max(0, self.size - len(self.windows))
        if not self.windows.size:
            self.windows = np.empty((0, *windows.shape[1:]), dtype=np.float32)
        self.windows = np.concatenate([self.windows, windows[:room].astype(np.float32)])
        self.seen += min(room, len(windows))
        rest = windows[room:]
        if len(rest):
            place = self._rng.integers(0, self.seen + 1 + np.arange(len(rest)))     # each later window with size / seen
            kept = np.flatnonzero(place < self.size)
            self.windows[place[kept]] = rest[kept]
            self.seen += len(rest)


def as_rows(windows: np.ndarray, scored: np.ndarray) -> Windows:
    """Loose windows as `Windows`. windows : (n, T, I)."""
    count, length, inputs = windows.shape
    ends = np.arange(1, count + 1, dtype=np.int64) * length - 1
    return Windows(np.ascontiguousarray(windows, dtype=np.float32).reshape(-1, inputs), ends, length, scored)


def train_on(
    model: Autoencoder, new: np.ndarray, replay: Replay, recipe: Recipe, *, max_steps: int | None = None, seed: int = 0
) -> History:
    """One incremental step; the best weights for old and new together are left in the model.

    new : (n, T, I) windows, scaled, NaN where missing; a fifth is held out to stop by. They join the replay at the end.
    max_steps : mini-batches; default PASSES times over the new windows and those replayed.
    """
    if len(new) < 2:
        raise BadInput(f"{len(new)} windows are too few for an incremental step: give at least 2")
    scored = np.array(model.shape.scored)
    # Each fifth stretch of T windows, not the last fifth: the newest windows are those that one wants to learn.
    stretch = np.arange(len(new)) // min(new.shape[1], max(1, len(new) // 5))
    held = stretch % 5 == 2
    if not held.any():
        held[-1] = True
    learn, judge = new[~held], new[held]
    old = replay.windows
    if len(old):
        rng = np.random.default_rng([seed, replay.seen])
        order = rng.permutation(len(old))
        kept = max(1, round(HELD_OUT * len(old)))
        old_judge, old_learn = old[order[:kept]], old[order[kept:]]
        if len(old_learn):
            wanted = max(1, round(OLD_FOR_NEW * len(learn)))
            drawn = rng.choice(len(old_learn), wanted, replace=len(old_learn) < wanted)
            learn = np.concatenate([learn, old_learn[drawn]])
        judge = np.concatenate([judge, old_judge[: len(judge)]])
    steps = max_steps or PASSES * -(-len(learn) // recipe.batch)
    per_epoch = max(1, steps // (2 * PASSES))                        # how often the held-out windows are looked at
    going_on = msgspec.structs.replace(
        recipe, rate=recipe.rate * GOING_ON_RATE, epochs=-(-steps // per_epoch), epoch_steps=per_epoch, warmup_steps=0,
        seed=recipe.seed + replay.seen)
    history = loop.fit(model, as_rows(learn, scored), as_rows(judge, scored), going_on, max_steps=steps)
    replay.add(new)
    return history
