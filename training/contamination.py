"""Training rows that are not of one kind: found without labels, left out or refused, and told either way.

A model learns whatever it is shown; anomalies among the training rows become normal and raise the threshold too. What
can be seen without labels is a stretch of time whose level lies far outside of where the device mostly is. A state that
comes back three times or more is taken for a regime of normal work; one that comes once or twice for contamination.
Where most rows are anomalous the rest looks odd; the data are refused all the same. A fault that moves no channel's
level by some block deviations is not seen (SKAB's other/2, three quarters anomalous, looks like other files' drift);
where a file carries a column that is called like a label, that column is believed, though it was not asked for.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.core.contract import Contract
from pipeline.errors import BadInput
from pipeline.formats.files import LABEL_NAMES, Table
from training.prepare import spans

FAR = 8.0            # robust sd of block levels from which a block is odd
FLOOR_SHARE = 0.5    # least sd of block levels, as a share of the rows' own robust sd
REGIME_VISITS = 3    # odd stretches of a device from which they are a regime
LABELLED_SHARE = 0.05    # of rows that the file's own label column marks, from which training is refused
REFUSED_SHARE = 0.2      # of odd rows, from which nobody can say which rows are the normal ones
LEAST_BLOCKS = 8


@dataclass(frozen=True)
class Oddness:
    """What was found.

    rows : (n,) bool.   share : of all rows.   devices : names with odd rows, worst first, with their share and the
    channel that stands out most.
    """

    rows: np.ndarray
    share: float
    devices: tuple[tuple[str, float, str], ...]

    @property
    def is_contaminated(self) -> bool:
        """Whether training on these rows is refused."""
        return self.share > REFUSED_SHARE

    def sentence(self) -> str:
        """For people: how much, where."""
        name, share, channel = self.devices[0]
        more = f" and {len(self.devices) - 1} more devices" if len(self.devices) > 1 else ""
        where = f"{name}: {share:.0%} of its rows, most in {channel}{more}"
        return f"{self.share:.1%} of the rows are unlike the rest ({where})"


def find(
    contract: Contract, devices: tuple[str, ...], device: np.ndarray, values: np.ndarray,
    masked: np.ndarray | None = None,
) -> Oddness:
    """Odd rows of a table.

    device : (n,), rows of one device in time order (devices need not be together).   values : (n, C) in the contract's
    order.   masked : (n,) bool, rows that are left out of training anyway.
    """
    rows = np.zeros(len(device), dtype=bool)
    told = []
    order = np.argsort(device, kind="stable")
    usable = np.ones(len(device), dtype=bool) if masked is None else ~masked
    for span in spans(device[order]):
        mine = order[span]
        mine = mine[usable[mine]]
        odd, channel = _odd_rows(values[mine][:, contract.sensors], contract.window)
        if odd.any():
            rows[mine[odd]] = True
            told.append((devices[int(device[mine[0]])], float(odd.mean()), contract.names[contract.sensors[channel]]))
    told.sort(key=lambda one: -one[1])
    return Oddness(rows, float(rows.sum() / max(1, usable.sum())), tuple(told))


def labelled_shares(table: Table) -> dict[str, float]:
    """Share of the rows that each column called like a label marks."""
    return {
        name: float((np.nan_to_num(column.astype(np.float64)) > 0).mean()) for name, column in table.labels.items()
        if name.lower() in LABEL_NAMES and not name.lower().startswith("change")
        and np.issubdtype(column.dtype, np.number)
    }


def check_labels(shares: dict[str, float]) -> None:
    """Raises BadInput when the data's own label column marks more than 5 % of the rows. shares : `labelled_shares`."""
    name = max(shares, key=lambda name: shares[name], default="")
    if shares.get(name, 0.0) > LABELLED_SHARE:
        raise BadInput(f"column {name!r} marks {shares[name]:.1%} of these rows as anomalous, and they would be "
                       f"learned as normal: --label-column {name} leaves them out, --rows takes others, "
                       "--accept-shift keeps them")


def check(oddness: Oddness) -> None:
    """Raises BadInput when more than a fifth of the rows is odd; fewer are left out."""
    if oddness.is_contaminated:
        raise BadInput(f"{oddness.sentence()}: which of them are normal can't be told, and anomalies would be learned "
                       "as normal. Choose other rows (--rows), mark them (--label-column), leave the odd ones out with "
                       "--trim, or say that all are normal with --accept-shift")


def _odd_rows(values: np.ndarray, block: int) -> tuple[np.ndarray, int]:
    """Odd rows of one device, and the sensor that stands out most. values : (n, S)."""
    count = len(values) // block
    none = np.zeros(len(values), dtype=bool)
    if count < LEAST_BLOCKS:
        return none, 0
    cut = values[: count * block].reshape(count, block, -1)          # (n,S) -> (blocks,block,S)
    finite = np.isfinite(cut)
    level = np.where(finite, cut, 0).sum(axis=1) / np.maximum(finite.sum(axis=1), 1)
    level[~finite.any(axis=1)] = np.nan
    middle = np.nan_to_num(np.nanmedian(level, axis=0))
    within = 1.4826 * np.nanmedian(np.abs(cut - np.nanmedian(cut, axis=1, keepdims=True)), axis=(0, 1))
    between = 1.4826 * np.nanmedian(np.abs(level - middle), axis=0)
    spread = np.maximum(between, FLOOR_SHARE * within)
    spread = np.where(spread > 0, spread, np.inf)                    # stands still in most blocks: no scale to judge by
    far = np.nan_to_num(np.abs(level - middle) / spread)
    seeds, wide = (far > FAR).any(axis=1), (far > FAR / 2).any(axis=1)
    stretch = np.cumsum(np.diff(wide.astype(np.int8), prepend=0) == 1)   # number of this wide stretch or the last one
    visits = np.unique(stretch[seeds])
    odd = wide & np.isin(stretch, visits)                            # a stretch reaches to where it is half as far
    if not odd.any() or len(visits) >= REGIME_VISITS:
        return none, 0
    rows = np.repeat(odd, block)
    rows = np.concatenate([rows, np.full(len(values) - len(rows), bool(odd[-1]))])
    return rows, int(far[odd].max(axis=0).argmax())
