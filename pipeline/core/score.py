"""The score: residuals to filtered residuals to one number a row, and what each channel adds to it.

Invariant: a row's score is a function of its last L residual rows, its device and the bundle, to the last bit,
whatever else is in the batch and wherever in it the row stands. BLAS gives other last bits when a product's shape
depends on the batch, and on some processors (AVX2) to the last rows of a shape that does not. So each row has a product
of its own, (K, L) @ (L, M*S), and its distances are compiled loops whose order is written here.
Law: tests/laws/test_score_laws.py.

Axes: n rows, L filter length, M members, K filter constants, S scored channels, G groups of devices.
Source: Lowry et al. 1992 (MEWMA); Ledoit and Wolf 2004 for the covariance behind `whiten`. Truncating the EWMA to
L rows (semantics: finite memory), clipping before it and the mean of log1p over members are ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numba
import numpy as np

from pipeline.errors import BadInput

SHIFT_NEW, SHIFT_GAP, SHIFT_OLD = 25, 5, 45   # rows: mean of the newest 25 against 45 that end 5 rows before them


def ewma_weights(alphas: np.ndarray, length: int) -> np.ndarray:
    """Weights a(1-a)^j of the last L residuals, oldest first. (K, L) float32. Not renormalised: the rest is cut."""
    lag = np.arange(length)[::-1]
    alpha = np.asarray(alphas, dtype=np.float64)[:, None]
    return (alpha * (1 - alpha) ** lag).astype(np.float32)


def shift_weights(length: int) -> np.ndarray:
    """Mean of the newest rows minus the mean of the rows before them: a filter that answers to a change of level.

    (L,) float32, oldest first. A row sees a shift of 1 sd as 1 once the newest 25 rows lie behind the change.
    """
    weights = np.zeros(length)
    weights[-SHIFT_NEW:] = 1 / SHIFT_NEW
    end = length - SHIFT_NEW - SHIFT_GAP
    weights[end - SHIFT_OLD : end] = -1 / SHIFT_OLD
    return weights.astype(np.float32)


def residual(observed: np.ndarray, rebuilt: np.ndarray, clip: float) -> np.ndarray:
    """Signed residual of the scored channels for every member, clipped; 0 where the value is missing.

    observed : (n, S) float32, scaled and not filled.   rebuilt : (n, M, S) float32.
    Returns (n, M*S) float32, ready for `Scorer.filter`.
    """
    difference = observed[:, None, :] - rebuilt
    np.clip(difference, -clip, clip, out=difference)
    np.copyto(difference, np.float32(0), where=np.isnan(difference))
    return difference.reshape(len(observed), -1)   # (n,M,S) -> (n,M*S)


@dataclass(frozen=True)
class Scorer:
    """All constants of the score; they live in the bundle beside the ONNX file, under one digest.

    alphas    : (K,) EWMA constants.   length : L.   clip : of a residual, in sd of its channel.
    mean      : (G, M, K, S) of a normal filtered residual.
    whiten    : (G, M, K, S, S): |(f - mean) @ whiten| is the Mahalanobis distance.
    sd        : (G, M, K, S) of a normal filtered residual; for contributions.
    member_threshold : (M, K) distance at which a member alone would alarm.
    weight    : (M, K) >= 0, sums to 1: share of each member in the score.
    threshold : of the score.
    G is 1, or one group a device and one for the fleet, in the order of `Scaling.devices`.
    shift_*   : the same for the change-point filter, one member alone: mean (G, S), whiten (G, S, S); its threshold
                is infinite where the filter is too short to see a change.
    limits    : (2, S) of the guards, from `guards.learn_limits`; (2, 0) turns them off.
    """

    alphas: np.ndarray
    length: int
    clip: float
    mean: np.ndarray
    whiten: np.ndarray
    sd: np.ndarray
    member_threshold: np.ndarray
    weight: np.ndarray
    threshold: float
    shift_mean: np.ndarray
    shift_whiten: np.ndarray
    shift_threshold: float = float("inf")
    shift_member: int = 0
    limits: np.ndarray = field(default_factory=lambda: np.zeros((2, 0), dtype=np.int64))
    _filters: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        groups, members, constants, channels = self.mean.shape
        shapes = {
            "alphas": (constants,), "whiten": (groups, members, constants, channels, channels),
            "sd": self.mean.shape, "member_threshold": (members, constants), "weight": (members, constants),
            "shift_mean": (groups, channels), "shift_whiten": (groups, channels, channels),
        }
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array.shape != shape:
                raise BadInput(f"scorer: {name} is {array.shape} and should be {shape}")
            if not np.isfinite(array).all():
                raise BadInput(f"scorer: {name} holds a number that is not finite")
        if self.limits.shape not in ((2, 0), (2, channels)):
            raise BadInput(f"scorer: limits is {self.limits.shape} and should be {(2, channels)}")
        if not (self.threshold > 0 and (self.member_threshold > 0).all() and (self.sd > 0).all()):
            raise BadInput("scorer: thresholds and deviations must be positive")
        for name in ("mean", "whiten", "sd", "member_threshold", "weight", "shift_mean", "shift_whiten"):
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), dtype=np.float32))
        object.__setattr__(self, "_filters", self._make_filters())

    def _make_filters(self) -> np.ndarray:
        weights = ewma_weights(self.alphas, self.length)
        if not self.sees_changes:
            return weights
        return np.vstack([weights, shift_weights(self.length)])   # (K+1,L)

    @property
    def members(self) -> int:
        """M."""
        return int(self.mean.shape[1])

    @property
    def channels(self) -> int:
        """S."""
        return int(self.mean.shape[3])

    @property
    def groups(self) -> int:
        """G."""
        return int(self.mean.shape[0])

    @property
    def guarded(self) -> bool:
        """Whether the guards against stuck and missing channels are on."""
        return self.limits.shape[1] > 0

    @property
    def sees_changes(self) -> bool:
        """Whether the filter is long enough for change points."""
        return self.length >= SHIFT_NEW + SHIFT_GAP + SHIFT_OLD

    @property
    def filters(self) -> int:
        """K, and one more where changes are seen: the second axis of `filter`."""
        return len(self._filters)

    def filter(self, residuals: np.ndarray) -> np.ndarray:
        """Filtered residuals.

        residuals : (n, L, M*S) float32 from `residual`, oldest first, 0 before the device's run began. A view is fine
                    as long as each row's (L, M*S) block is contiguous.
        Returns (n, filters, M*S) float32.
        """
        inner = (residuals.shape[2] * residuals.itemsize, residuals.itemsize)
        if residuals.strides[1:] != inner:
            residuals = np.ascontiguousarray(residuals)
        return np.matmul(self._filters, residuals)   # one (filters,L) @ (L,M*S) of constant shape a row

    def score(self, filtered: np.ndarray, device: np.ndarray | None = None) -> np.ndarray:
        """One score a row, >= 0, high is anomalous. (n,) float32.

        filtered : (n, filters, M*S) from `filter`.   device : (n,) from `Scaling.index`, needed when G > 1.
        """
        ratios = self.distances(filtered, device) / self.member_threshold   # (n,M,K)
        blended = (np.log1p(ratios) * self.weight).reshape(-1, self.weight.size).sum(axis=1)
        return np.asarray(np.expm1(blended))

    def distances(self, filtered: np.ndarray, device: np.ndarray | None = None) -> np.ndarray:
        """Distance of each row from normal, a member and constant; what calibration needs. (n, M, K) float32."""
        out = np.empty((len(filtered), self.members, len(self.alphas)), dtype=np.float32)
        group = self._group(device, len(filtered))
        mahalanobis(np.ascontiguousarray(filtered), self.mean, self.whiten, group, out)
        return out

    def shift(self, filtered: np.ndarray, device: np.ndarray | None = None) -> np.ndarray:
        """How far the newest rows lie from those before them; a change point where it exceeds `shift_threshold`.

        (n,) float32; 0 everywhere where the filter is too short.
        """
        out = np.zeros((len(filtered), 1, 1), dtype=np.float32)
        if self.sees_changes:
            asked = slice(self.shift_member * self.channels, (self.shift_member + 1) * self.channels)
            mahalanobis(
                np.ascontiguousarray(filtered[:, -1:, asked]), self.shift_mean[:, None, None],
                self.shift_whiten[:, None, None], self._group(device, len(filtered)), out,
            )
        return out[:, 0, 0]

    def contributions(self, filtered: np.ndarray, score: np.ndarray, device: np.ndarray | None = None) -> np.ndarray:
        """Share of each channel in the score: >= 0, sums to the score. (n, S) float32.

        The share is |filtered residual - mean| / sd, summed over members and constants by weight.
        """
        shares = np.abs(self._standardised(filtered, device)).sum(axis=1) + np.float32(1e-12)
        return shares / shares.sum(axis=1, keepdims=True) * score[:, None]

    def directions(self, filtered: np.ndarray, device: np.ndarray | None = None) -> np.ndarray:
        """Whether each channel lies above (1) or below (-1) what was expected. (n, S) int8."""
        return np.sign(self._standardised(filtered, device).sum(axis=1)).astype(np.int8)

    def expected_spread(self, device: np.ndarray | None = None, count: int = 1) -> np.ndarray:
        """Standard deviation of the first member's residual in normal rows, scaled units. (n, S) float32.

        Taken back from its quickest average, as if residuals were independent: sd of an average with constant a is
        sqrt(a / (2 - a)) of it.   device : as in `score`.   count : n, where G is 1.
        """
        quickest = int(np.argmax(self.alphas))
        a = float(self.alphas[quickest])
        group = self._group(device, count if device is None else len(device))
        return np.asarray(self.sd[group, 0, quickest] * np.float32(np.sqrt((2 - a) / a)))

    def _standardised(self, filtered: np.ndarray, device: np.ndarray | None) -> np.ndarray:
        group = self._group(device, len(filtered))
        split = self._split(filtered)                                     # (n,M,K,S)
        weighted = (split - self.mean[group]) / self.sd[group] * self.weight[..., None]
        return weighted.reshape(len(filtered), -1, self.channels)         # (n,M*K,S)

    def _split(self, filtered: np.ndarray) -> np.ndarray:
        by_constant = filtered[:, : len(self.alphas)].reshape(len(filtered), len(self.alphas), self.members, -1)
        return by_constant.transpose(0, 2, 1, 3)                          # (n,K,M,S) -> (n,M,K,S)

    def _group(self, device: np.ndarray | None, count: int) -> np.ndarray:
        if self.groups == 1:
            return np.zeros(count, dtype=np.int64)
        if device is None:
            raise BadInput("this scorer has one group a device: pass `device`, from Scaling.index")
        return np.ascontiguousarray(device, np.int64)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """What `scorer.npz` holds; no pickled objects."""
        names = ("alphas", "mean", "whiten", "sd", "member_threshold", "weight", "shift_mean", "shift_whiten", "limits")
        arrays = {name: getattr(self, name) for name in names}
        scalars = (self.length, self.clip, self.threshold, self.shift_threshold, self.shift_member)
        return arrays | {"scalars": np.array(scalars, dtype=np.float64)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Scorer":
        """The reverse of `to_arrays`; KeyError where one is missing."""
        length, clip, threshold, shift_threshold, shift_member = (float(value) for value in arrays["scalars"])
        return cls(
            alphas=arrays["alphas"], length=int(length), clip=clip, mean=arrays["mean"], whiten=arrays["whiten"],
            sd=arrays["sd"], member_threshold=arrays["member_threshold"], weight=arrays["weight"], threshold=threshold,
            shift_mean=arrays["shift_mean"], shift_whiten=arrays["shift_whiten"], shift_threshold=shift_threshold,
            shift_member=int(shift_member), limits=arrays["limits"],
        )


@numba.njit(cache=True, error_model="numpy")
def mahalanobis(filtered, mean, whiten, group, out):  # type: ignore[no-untyped-def]
    """|(f - mean) @ whiten| of each row, member and constant, into `out`.

    filtered : (n, K or more, M*S).  mean : (G, M, K, S).  whiten : (G, M, K, S, S).  group : (n,).  out : (n, M, K).
    The inner loops run over channels that don't touch each other, so that they are vectors without changing an order.
    """
    channels = mean.shape[3]
    white = np.empty(channels, np.float32)
    for i in range(len(filtered)):
        g = group[i]
        for m in range(mean.shape[1]):
            for k in range(mean.shape[2]):
                white[:] = np.float32(0)
                for j in range(channels):
                    apart = filtered[i, k, m * channels + j] - mean[g, m, k, j]
                    for t in range(channels):
                        white[t] += apart * whiten[g, m, k, j, t]
                total = np.float32(0)
                for t in range(channels):
                    total += white[t] * white[t]
                out[i, m, k] = np.sqrt(total)
