"""Guards beside the model: what a sensor does that no machine does. And what kind of thing an episode is.

A stuck sensor looks perfectly normal to a model that scores surprise, so it is looked for by itself. Like the score,
every answer is a function of the device's last rows, the contract and the bundle.
"""

from typing import Literal

import numpy as np

OK, OUT_OF_RANGE, DROPOUT, STUCK = 0, 1, 2, 3
Kind = Literal["machine", "out of range", "dropout", "stuck", "silence", "eviction", "fleet"]
KINDS: dict[int, Kind] = {OUT_OF_RANGE: "out of range", DROPOUT: "dropout", STUCK: "stuck"}

FIRING_RATIO = 2.0    # a guard that fires counts as a score of this many thresholds towards the verdict
NEVER = 0             # a limit of a guard that is off
LEAST_LIMIT = 8       # rows
FLEET_SHARE = 0.5     # of the devices with an episode that began within one merge time: it is no single machine
FLEET_LEAST = 4       # devices


def learn_limits(values: np.ndarray, run: np.ndarray, longest: int) -> np.ndarray:
    """Rows after which a channel that stands still, or is missing, is at fault: twice what normal rows show.

    values : (n, S) normal rows.   run : (n,) rows of the run so far, from `run_lengths`.
    longest : rows that a guard can look back on; a limit beyond it is NEVER.
    Returns (2, S) int64: stuck, missing. A channel that never moved is never stuck; one that is always missing, never
    missing.
    """
    fresh = np.asarray(run) <= 1
    missing = np.isnan(values)
    still = np.zeros_like(missing)
    still[1:] = (values[1:] == values[:-1]) & ~fresh[1:, None]
    limits = np.stack([_longest(still, fresh) + 1, _longest(missing, fresh)]) * 2
    limits = np.maximum(limits, LEAST_LIMIT)
    limits[0, still[~fresh].all(axis=0)] = NEVER
    limits[1, missing.all(axis=0)] = NEVER
    return np.where(limits > longest, NEVER, limits)


def _longest(marked: np.ndarray, fresh: np.ndarray) -> np.ndarray:
    """Longest run of marked rows in each column, not over the start of a device's run. (S,) int64."""
    places = np.arange(1, len(marked) + 1)[:, None]
    starts = np.where(marked & ~fresh[:, None], 0, places - marked)
    return np.asarray((places - np.maximum.accumulate(starts, axis=0)).max(axis=0, initial=0))


def check(
    windows: np.ndarray, newest: np.ndarray, used: np.ndarray, low: np.ndarray, high: np.ndarray, limits: np.ndarray
) -> np.ndarray:
    """What is wrong with each scored channel at the newest row. (n, S) uint8, OK where nothing is.

    windows : (n, T, S) scaled rows, NaN where missing, the newest last.   newest : (n, S) in the channels' units.
    used : (n, S) bool, false where the channel is taken out for the device: it is always missing in `windows`.
    low, high : (S,) hard range, infinite where there is none.   limits : (2, S) from `learn_limits`.
    """
    codes = np.zeros(newest.shape, dtype=np.uint8)
    if limits.any():
        here = windows[:, -1]
        for stuck, code in ((True, STUCK), (False, DROPOUT)):
            for channel in np.flatnonzero(limits[0 if stuck else 1]):
                last = windows[:, -int(limits[0 if stuck else 1, channel]) :, channel]
                if stuck:
                    hit = (last == here[:, channel, None]).all(axis=1) & (np.abs(here[:, channel]) < 10)   # not clipped
                else:
                    # A channel that was taken out for its device is NaN when scaled, and there all the same.
                    hit = np.isnan(last).all(axis=1) & np.isnan(newest[:, channel])
                codes[hit, channel] = code
        codes[~used] = OK
    with np.errstate(invalid="ignore"):
        codes[(newest < low) | (newest > high)] = OUT_OF_RANGE
    return codes


def fire(score: np.ndarray, codes: np.ndarray, threshold: float) -> np.ndarray:
    """Scores as the verdict sees them: a row with a faulty channel counts as two thresholds at least. (n,) float32.

    An unscored row (NaN) stays unscored.
    """
    fired = codes.any(axis=1) & ~np.isnan(score)
    return np.where(fired, np.maximum(score, np.float32(FIRING_RATIO * threshold)), score)


def kind_of(codes: np.ndarray, contributions: np.ndarray) -> Kind:
    """What an episode's row is: a sensor's fault where a guard fires, else the machine.

    codes, contributions : (S,). Where several fire, the channel that contributes most decides.
    """
    faulty = np.flatnonzero(codes)
    if not len(faulty):
        return "machine"
    return KINDS[int(codes[faulty[np.argmax(contributions[faulty])]])]


def is_fleet_wide(started_ms: np.ndarray, at_ms: int, devices: int, within_ms: int) -> bool:
    """Whether an episode is one thing that befell the fleet: half of its devices began theirs at about that time.

    started_ms : (k,) start of every open episode, one a device, this one's too.   at_ms : its start.
    devices : that are live.   within_ms : how far apart two starts may lie.
    """
    near = int((np.abs(started_ms - at_ms) <= within_ms).sum())
    return devices >= FLEET_LEAST and near >= FLEET_SHARE * devices
