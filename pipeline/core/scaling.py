"""Scaling of rows, per device: (value - location) / scale, clipped; one code for training, backtest and the stream.

Invariant: the scaled row depends on the row, its device and the bundle alone, to the last bit, whatever else is in
the batch (elementwise float64 arithmetic, rounded once).
"""

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.errors import BadInput

CLIP = 10.0   # scaled values beyond this are cut: one wild reading must not swamp a window


@dataclass(frozen=True)
class Scaling:
    """Location and scale of every channel of every known device; the last row is the fleet's, for any other device.

    devices  : N names, sorted.
    location : (N + 1, C) float64, in the channel's unit.
    scale    : (N + 1, C) float64, > 0; NaN takes a channel out for this device (it drifts in its own normal rows):
               its scaled value is NaN, as if it were missing, so it never adds to a score.
    """

    devices: tuple[str, ...]
    location: np.ndarray
    scale: np.ndarray
    _places: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        shape = (len(self.devices) + 1, self.location.shape[-1])
        if self.location.shape != shape or self.scale.shape != shape:
            raise BadInput(f"scaling: location {self.location.shape} and scale {self.scale.shape} must both be {shape}")
        if not np.isfinite(self.location).all() or not (np.isnan(self.scale) | (self.scale > 0)).all():
            raise BadInput("scaling: locations must be finite and scales positive (or NaN, for a channel taken out)")
        object.__setattr__(self, "_places", {name: place for place, name in enumerate(self.devices)})

    def index(self, devices: Sequence[str]) -> np.ndarray:
        """Rows of `location` and `scale` for these devices; the fleet's for a device never seen. (n,) int64."""
        fleet = len(self.devices)
        return np.array([self._places.get(name, fleet) for name in devices], dtype=np.int64)

    def apply(self, values: np.ndarray, index: np.ndarray) -> np.ndarray:
        """Scaled rows.

        values : (n, C), in the channels' units, NaN where missing.   index : (n,) from `index`.
        Returns (n, C) float32 within [-10, 10]; NaN stays NaN.
        """
        scaled = (values - self.location[index]) / self.scale[index]
        return np.clip(scaled, -CLIP, CLIP).astype(np.float32)

    def invert(self, scaled: np.ndarray, index: np.ndarray) -> np.ndarray:
        """Back to the channels' units, for expected values. (n, C) float64; NaN for a channel taken out."""
        return scaled * self.scale[index] + self.location[index]

    def to_arrays(self) -> dict[str, np.ndarray]:
        """What `scaling.npz` holds; no pickled objects."""
        return {"devices": np.array(self.devices, dtype=np.str_), "location": self.location, "scale": self.scale}

    def to_bytes(self) -> bytes:
        """`scaling.npz`, the same bytes for the same figures."""
        out = io.BytesIO()
        np.savez(out, **self.to_arrays())  # type: ignore[arg-type]  # numpy's stub mistakes the names for its own flag
        return out.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Scaling":
        """The reverse of `to_bytes`. Raises BadInput."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                return cls.from_arrays(arrays)
        except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
            raise BadInput(f"a scaling can't be read: {error}") from error

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Scaling":
        """The reverse of `to_arrays`; KeyError where one is missing."""
        return cls(tuple(str(name) for name in arrays["devices"]), arrays["location"], arrays["scale"])


@dataclass(frozen=True)
class Moments:
    """How many values each device has in each channel, their mean, and their squares about it; each (N, C) float64."""

    count: np.ndarray
    mean: np.ndarray
    square: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, device: np.ndarray, devices: int) -> "Moments":
        """values : (n, C), NaN where missing.   device : (n,) index below `devices`."""
        values = np.asarray(values, dtype=np.float64)
        count = np.zeros((devices, values.shape[1]))
        total = np.zeros_like(count)
        finite = np.isfinite(values)
        np.add.at(count, device, finite)
        np.add.at(total, device, np.where(finite, values, 0.0))
        mean = total / np.maximum(count, 1)
        square = np.zeros_like(count)
        np.add.at(square, device, np.where(finite, values - mean[device], 0.0) ** 2)
        return cls(count, mean, square)

    def joined(self, other: "Moments") -> "Moments":
        """Those of both sets of values (Chan, Golub and LeVeque 1979)."""
        count = self.count + other.count
        share = other.count / np.maximum(count, 1)
        step = other.mean - self.mean
        return Moments(count, self.mean + share * step,
                       self.square + other.square + step**2 * self.count * share)


def fit(values: np.ndarray, device: np.ndarray, names: Sequence[str], floor: float = 1e-3) -> Scaling:
    """Mean and standard deviation of each device's own rows, and of the whole fleet: `of_moments` of these values.

    values : (n, C) normal rows, NaN where missing.   device : (n,) index into `names`.
    """
    return of_moments(Moments.of(values, device, len(names)), names, floor)


def of_moments(moments: Moments, names: Sequence[str], floor: float = 1e-3) -> Scaling:
    """Mean and standard deviation of each device, and of the whole fleet.

    floor  : least scale of a device, as a share of the fleet's: a channel that stood still in one device's rows must
             not turn its noise into an alarm. A channel that stood still everywhere gets scale 1 (or 1e-6 of its level,
             if that is larger).
    The fleet's scale is the deviation about each device's own mean, pooled, joined with the spread of those means.
    A device without a finite value in a channel gets the fleet's location and scale there.
    """
    order = np.argsort(np.asarray(names, dtype=np.str_), kind="stable")
    count, mean, square = moments.count, moments.mean, moments.square
    seen = np.maximum(count.sum(0), 1)
    fleet_mean = (count * mean).sum(0) / seen
    spread = (count * (mean - fleet_mean) ** 2).sum(0)
    fleet = np.sqrt((square.sum(0) + spread) / seen)
    still = fleet <= 1e-9 * np.maximum(np.abs(fleet_mean), 1e-9)
    fleet = np.where(still, np.maximum(1.0, 1e-6 * np.abs(fleet_mean)), fleet)
    within = np.sqrt(square.sum(0) / seen)
    least = np.where(still, fleet, np.maximum(floor * fleet, 0.1 * within))
    own = np.sqrt(square / np.maximum(count, 1))
    scale = np.where(count > 1, np.maximum(own, least), fleet)
    location = np.where(count > 0, mean, fleet_mean)
    return Scaling(
        tuple(str(names[place]) for place in order),
        np.vstack([location[order], fleet_mean]),
        np.vstack([scale[order], fleet]),
    )
