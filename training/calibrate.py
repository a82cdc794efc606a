"""From a model and held-out normal rows to the score's constants: one way for baselines and torch models alike.

Residuals come from `pipeline.scoring.session` over the stream's own windows, filters from `Scorer.filter`; the
covariance from rows that the model was not fitted on, the thresholds from rows that neither was.
No label is looked at.
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from pipeline.core.episode import Verdicts
from pipeline.core.guards import learn_limits
from pipeline.core.score import Scorer, residual
from pipeline.core.threshold import ledoit_wolf, left_out, tail_quantile, whitening
from pipeline.core.windows import fill, sliding, trailing
from pipeline.errors import BadInput
from pipeline.scoring.session import Session
from training.prepare import CALIBRATION, COVARIANCE, FIT, Prepared, spans

ALPHAS = (0.3, 0.1, 0.05)
CLIP_SD = 6.0
NOMINAL = 0.01             # share of normal rows over the threshold, where no alert rate is asked for
REFUSED_RATIO = 3.0        # held-out over nominal share from which export is refused
REFUSED_MOVED = 0.5        # share of the newest normal rows that lie far over nearly all earlier ones, likewise ...
MOVED_BY = 1.5             # ... far: so many times
OWN_ROWS = 100             # rows of a device at which its own covariance weighs as much as the fleet's
SETTLED_ROWS = 30          # residuals after which a filter has mostly filled up
STRETCHES = 4              # of a device's learned rows, between which its mean may wander
SET_ASIDE = 0.1            # share of the devices, those with the highest held-out scores, that set no threshold ...
MOST_ASIDE = 0.2           # ... and this share, where more of them lie mostly over the others' threshold ...
LEAST_FLEET = 10           # ... in fleets of at least so many
MOST_RAISED = 1.25         # a threshold is raised by a quarter at most for the few rows that it was taken from ...
MOST_LIFTED = 1.5          # ... and by half where held-out stretches of time disagree
WEIGHTS = {"swing": 0.5}   # members that count for less than one in the score
MOST_GROUPS = 1000         # devices that get a covariance of their own
FLOOR_SD = 0.05            # least sd of a filtered residual, scaled units
LEAST_DISTANCE = 0.5       # least threshold of a member, sd: rows in which nothing ever moves would set none
LEAST_THRESHOLD = 0.1      # of the score, likewise
WEEK_MS = 7 * 24 * 3600 * 1000


@dataclass(frozen=True)
class Calibrated:
    """A scorer, and what was found on the way; `facts` go into the manifest."""

    scorer: Scorer
    facts: dict[str, Any]


def calibrate(
    model: bytes, prepared: Prepared, *, alphas: tuple[float, ...] = ALPHAS, nominal: float = NOMINAL,
    alerts_per_device_week: float | None = None, members: tuple[str, ...] = (), refuse: bool = True,
) -> Calibrated:
    """Constants of the score for one model.

    model    : ONNX bytes.   nominal : share of normal rows that may lie over the threshold.
    alerts_per_device_week : the operator's knob; when given it is turned into such a share.
    members  : names of the model's members, which decide their weights and who is asked for change points (raw, else
               the first).
    refuse   : raise BadInput when the held-out share is over 3 x nominal; False only tells it in the facts.
    """
    session = Session(model)
    residuals, age = residual_rows(session, prepared)
    judged = (age > 0) & (prepared.part == CALIBRATION)
    unfitted = (age > 0) & (prepared.part == COVARIANCE)
    if not judged.any():
        raise BadInput("no whole window among the rows held out for calibration: give more rows")
    count = residuals.shape[1] // len(prepared.contract.sensors)
    if members and len(members) != count:
        raise BadInput(f"the model has {count} members, but {len(members)} names are given")
    blank = _blank(prepared, members or ("",) * count, np.array(alphas))
    filtered = filter_rows(blank, residuals, age)
    scorer = _fit_normal(blank, prepared, filtered, age)

    held = np.flatnonzero(judged)
    device = prepared.device[held]
    distances = scorer.distances(filtered[held], prepared.index[held])
    levels = [_level(column, device, nominal) for column in distances.reshape(len(distances), -1).T]
    level = np.maximum(np.array(levels), LEAST_DISTANCE).reshape(scorer.member_threshold.shape)
    scorer = replace(scorer, member_threshold=level, shift_threshold=float("inf"))
    if scorer.sees_changes:
        shift = scorer.shift(filtered[held], prepared.index[held])
        scorer = replace(scorer, shift_threshold=max(_level(shift, device, nominal), LEAST_DISTANCE))
    score = scorer.score(filtered[held], prepared.index[held]).astype(np.float64)
    aside = set_aside(score, device, nominal)
    counted = ~np.isin(device, aside)
    share = nominal
    alerts: dict[str, Any] = {}
    if alerts_per_device_week is not None:
        share, alerts = _share_for_alerts(alerts_per_device_week, score[counted], prepared, held[counted])
    threshold, extrapolated = tail_quantile(score[counted], share)
    unsure = margin(int(counted.sum()), min(alphas))
    raised, held_out = lift(score[counted], _blocks(device[counted]), share, min(unsure, MOST_RAISED))
    threshold *= raised
    scorer = replace(scorer, threshold=float(max(threshold, LEAST_THRESHOLD)), limits=_limits(prepared))
    far = np.zeros(len(score), dtype=bool)
    if unfitted.any():
        before = scorer.score(filtered[unfitted], prepared.index[unfitted]).astype(np.float64)
        far = score > MOVED_BY * unsure * tail_quantile(before, nominal)[0]
    moved = float(far.mean())
    facts = {
        "rows": len(score), "nominal_share": share, "held_out_share": held_out, "moved_share": moved,
        "share_of_all": float((score > threshold).mean()), "threshold": scorer.threshold, "raised": raised,
        "extrapolated": extrapolated, "lowest_verified_share": 3 / int(counted.sum()), "groups": scorer.groups,
        "set_aside": [prepared.devices[one] for one in aside], **alerts,
    }
    if refuse and held_out > REFUSED_RATIO * share and held_out * len(score) >= 10:
        over = held[score > threshold]
        raise BadInput(f"{held_out:.1%} of held-out normal rows lie over a threshold meant for {share:.1%}"
                       + _where(scorer, prepared, filtered, over if len(over) else held[score >= score.max()]))
    if refuse and moved > REFUSED_MOVED:
        raise BadInput(f"{moved:.0%} of the newest normal rows score above nearly all of those just before them"
                       + _where(scorer, prepared, filtered, held[far]))
    return Calibrated(scorer, facts)


def residual_rows(session: Session, prepared: Prepared) -> tuple[np.ndarray, np.ndarray]:
    """Residuals of all rows, as the stream makes them.

    Returns (residuals (n, M*S) float32, 0 where there is none; age (n,) int64: residual rows of the run so far, 0 where
    the row has no whole window).
    """
    contract = prepared.contract
    windows, ends = sliding(prepared.scaled[:, contract.inputs], prepared.run, contract.window)
    observed = prepared.scaled[:, contract.sensors]
    residuals = None
    for start in range(0, len(ends), 4096):
        rows = ends[start : start + 4096]
        newest = session.run(fill(np.ascontiguousarray(windows[start : start + 4096]))).newest
        part = residual(observed[rows], newest, CLIP_SD)
        if residuals is None:
            residuals = np.zeros((len(observed), part.shape[1]), dtype=np.float32)
        residuals[rows] = part
    if residuals is None:
        raise BadInput(f"no run of {contract.window} rows without a gap")
    return residuals, np.maximum(prepared.run - contract.window + 1, 0)


def filter_rows(scorer: Scorer, residuals: np.ndarray, age: np.ndarray) -> np.ndarray:
    """Filtered residuals of all rows. (n, M*S) -> (n, filters, M*S)."""
    filtered = np.empty((len(residuals), scorer.filters, residuals.shape[1]), dtype=np.float32)
    for rows, block in trailing(residuals, age, scorer.length):
        filtered[rows] = scorer.filter(block)
    return filtered


def lift(score: np.ndarray, block: np.ndarray, share: float, raised: float) -> tuple[float, float]:
    """What a threshold is raised by, and the held-out share then: of rows over a threshold from the other blocks' rows.

    score, block : (n,) held-out rows.   raised : by `margin` already; more, up to MOST_LIFTED times, where blocks
    disagree so much that one's threshold would let more than `share` of another's rows pass.
    """
    level = left_out(score, block, share)[block]
    factors = raised * np.linspace(1, MOST_LIFTED, 11)
    over = np.array([(score > factor * level).mean() for factor in factors])
    enough = np.flatnonzero(over <= share)
    place = int(enough[0]) if len(enough) else len(factors) - 1
    return float(factors[place]), float(over[place])


def _where(scorer: Scorer, prepared: Prepared, filtered: np.ndarray, rows: np.ndarray) -> str:
    """For people: which channels and device make these rows stand out, since when, and what to do about it."""
    index = prepared.index[rows]
    parts = scorer.contributions(filtered[rows], scorer.score(filtered[rows], index), index).sum(axis=0)
    parts = parts / max(float(parts.sum()), 1e-12)
    names = [prepared.contract.names[place] for place in prepared.contract.sensors]
    worst = np.argsort(-parts, kind="stable")[:3]
    channels = ", ".join(f"{names[one]} {parts[one]:.0%}" for one in worst)
    device = int(np.bincount(prepared.device[rows]).argmax())
    since = datetime.fromtimestamp(int(prepared.ts_ms[rows][prepared.device[rows] == device].min()) / 1000, UTC)
    leave_out = f", leave the channel out (--ignore-columns {names[worst[0]]})" * bool(parts[worst[0]] > 0.5)
    return (f" (their scores come from {channels}; most in device {prepared.devices[device]}, from "
            f"{since:%Y-%m-%d %H:%M:%S} UTC on): the training rows are not of one kind, by a change of regime or by "
            f"anomalies among them. Give rows that show such stretches earlier too, leave them out (--rows, "
            f"--label-column){leave_out}, or keep all with --accept-shift: the card then tells the share")


def _blank(prepared: Prepared, members: tuple[str, ...], alphas: np.ndarray) -> Scorer:
    """A scorer that can filter, with one group a device where there are not too many of them."""
    devices, sensors = len(prepared.scaling.devices), len(prepared.contract.sensors)
    groups = devices + 1 if 1 < devices <= MOST_GROUPS else 1
    shape = (groups, len(members), len(alphas), sensors)
    weight = np.repeat([[WEIGHTS.get(name, 1.0)] for name in members], len(alphas), axis=1)
    return Scorer(
        alphas=alphas, length=prepared.contract.filter_length, clip=CLIP_SD, mean=np.zeros(shape),
        whiten=np.zeros((*shape, sensors)), sd=np.ones(shape), member_threshold=np.ones(shape[1:3]),
        weight=weight / weight.sum(), threshold=1.0, shift_mean=np.zeros((groups, sensors)),
        shift_whiten=np.zeros((groups, sensors, sensors)), shift_member=members.index("raw") if "raw" in members else 0,
    )


def _fit_normal(blank: Scorer, prepared: Prepared, filtered: np.ndarray, age: np.ndarray) -> Scorer:
    """Means and covariances of normal filtered residuals, of the fleet and of each device."""
    rows = _learned_rows(blank, prepared, age)
    late = prepared.part[rows] == COVARIANCE
    if late.sum() < 20 * blank.channels:
        late[:] = True
    index = prepared.index[rows]
    block = _stretches(prepared.device[rows])
    pardoned = np.flatnonzero(np.zeros(len(age), bool) if prepared.pardoned is None else prepared.pardoned & (age > 0))
    mean, whiten, sd = np.empty_like(blank.mean), np.empty_like(blank.whiten), np.empty_like(blank.sd)
    shift_whiten = np.zeros_like(blank.shift_whiten)
    for member in range(blank.members):
        columns = slice(member * blank.channels, (member + 1) * blank.channels)
        for constant in range(len(blank.alphas)):
            samples = filtered[rows, constant, columns].astype(np.float64)
            mean[:, member, constant], covariance = _normal(samples, index, late, block, blank.groups)
            if len(pardoned):
                usual = mean[prepared.index[pardoned] if blank.groups > 1 else 0, member, constant]
                covariance = covariance + _pardon(filtered[pardoned, constant, columns] - usual)
            for group in range(blank.groups):
                whiten[group, member, constant] = whitening(covariance[group], FLOOR_SD)
                sd[group, member, constant] = np.sqrt(np.maximum(np.diag(covariance[group]), FLOOR_SD**2))
    if blank.sees_changes:
        asked = slice(blank.shift_member * blank.channels, (blank.shift_member + 1) * blank.channels)
        changes = filtered[rows, -1, asked].astype(np.float64)
        _, covariance = _normal(changes, index, late, block, blank.groups)
        for group in range(blank.groups):
            shift_whiten[group] = whitening(covariance[group], FLOOR_SD)
    return replace(blank, mean=mean, whiten=whiten, sd=sd, shift_whiten=shift_whiten)


def _limits(prepared: Prepared) -> np.ndarray:
    """Limits of the guards, from all rows that are not masked. (2, S)."""
    contract = prepared.contract
    kept = prepared.part >= 0
    run = np.where(np.r_[True, kept[:-1]], prepared.run, 1)[kept]
    return learn_limits(prepared.values[kept][:, contract.sensors], run, contract.window)


def _learned_rows(blank: Scorer, prepared: Prepared, age: np.ndarray) -> np.ndarray:
    """Rows before the calibration part whose filters have filled up, or nearly; all that have a residual if too few."""
    known = (age > 0) & ((prepared.part == FIT) | (prepared.part == COVARIANCE))
    settled = known & (age >= min(SETTLED_ROWS, blank.length))
    rows = np.flatnonzero(settled if settled.sum() >= 0.5 * known.sum() else known)
    if len(rows) < 2:
        raise BadInput("too few rows before the calibration part to learn what normal residuals look like")
    return rows


def _stretches(device: np.ndarray) -> np.ndarray:
    """Each device's rows in equal stretches of time. (n,) int64, STRETCHES numbers a device."""
    block = np.empty(len(device), dtype=np.int64)
    for place, span in enumerate(spans(device)):
        count = span.stop - span.start
        block[span] = place * STRETCHES + np.arange(count) * STRETCHES // count
    return block


def _normal(
    samples: np.ndarray, index: np.ndarray, late: np.ndarray, block: np.ndarray, groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean (G, S) and covariance (G, S, S) of normal samples.

    samples : (n, S).   index : (n,) group of each.   late : (n,) bool, rows whose spread counts (the model was not
    fitted on them).   block : (n,) from `_stretches`.
    A covariance is that about a device's late mean, drawn towards the fleet's where the device has few rows, and what
    a mean wanders from one stretch of time to the next: a channel that drifts in normal rows counts for less.
    """
    wander = _wander(samples, block)
    spread, owner = samples[late], index[late]
    if groups == 1:
        return samples.mean(axis=0)[None], (ledoit_wolf(spread) + wander)[None]
    mean = _group_means(samples, index, groups)
    fleet = ledoit_wolf(spread - _group_means(spread, owner, groups)[owner], centered=True)
    covariance = np.empty((groups, *fleet.shape))
    count = np.bincount(owner, minlength=groups)
    for group in range(groups):
        share = count[group] / (count[group] + OWN_ROWS)
        covariance[group] = fleet + wander
        if count[group] > 1:
            covariance[group] = share * ledoit_wolf(spread[owner == group]) + (1 - share) * fleet + wander
    seen = np.bincount(index, minlength=groups) > 0
    mean[~seen] = samples.mean(axis=0)
    covariance[-1] = ledoit_wolf(samples) + wander   # a device never seen: what lies between devices is its spread too
    return mean, covariance


def _pardon(apart: np.ndarray) -> np.ndarray:
    """What makes a pattern silent: its second moment, added to every covariance. (n, S) -> (S, S).

    A deviation along the pattern is then about one sd; along any other direction nothing has changed.
    """
    apart = apart.astype(np.float64)
    return apart.T @ apart / len(apart)


def _group_means(samples: np.ndarray, index: np.ndarray, groups: int) -> np.ndarray:
    total = np.zeros((groups, samples.shape[1]))
    np.add.at(total, index, samples)
    return total / np.maximum(np.bincount(index, minlength=groups), 1)[:, None]


def _wander(samples: np.ndarray, block: np.ndarray) -> np.ndarray:
    """Covariance of the steps that a device's mean makes from one stretch of time to the next. (S, S)."""
    means = _group_means(samples, block, int(block.max()) + 1)
    steps = np.diff(means, axis=0)
    steps = steps[np.arange(1, len(means)) % STRETCHES != 0]
    if len(steps) < steps.shape[1]:              # too few to shrink: it would spread their size over all directions
        return steps.T @ steps / len(steps)
    return ledoit_wolf(steps, centered=True)


def set_aside(score: np.ndarray, device: np.ndarray, share: float) -> np.ndarray:
    """Devices whose held-out rows set no threshold, of ten devices or more: the tenth with the highest scores, and any
    more (a fifth at most) that lie mostly over the threshold of the others.

    Anomalies in the training rows, or a regime that has just changed, would otherwise lift everybody's threshold.
    """
    names = np.unique(device)
    if len(names) < LEAST_FLEET:
        return names[:0]
    highest = np.array([np.quantile(score[device == name], 0.95) for name in names])
    aside = np.sort(names[np.argsort(-highest, kind="stable")[: round(SET_ASIDE * len(names))]])
    for _ in range(3):
        kept = ~np.isin(device, aside)
        rest, block = np.unique(device[kept], return_inverse=True)
        over = score[kept] > left_out(score[kept], block, share)[block]
        rates = np.bincount(block, over) / np.bincount(block)
        room = round(MOST_ASIDE * len(names)) - len(aside)
        moved = rest[np.argsort(-rates, kind="stable")[: max(room, 0)]]
        moved = moved[np.isin(moved, rest[rates > 0.5])]
        if not len(moved):
            break
        aside = np.union1d(aside, moved)
    return aside


def _level(values: np.ndarray, device: np.ndarray, share: float) -> float:
    return tail_quantile(values[~np.isin(device, set_aside(values, device, share))].astype(np.float64), share)[0]


def margin(rows: int, slowest: float) -> float:
    """What a threshold taken from few rows is raised by: 1 + 1 / sqrt(n), n the independent ones among them.

    rows : held-out rows.   slowest : the smallest EWMA constant a; its average forgets in (2 - a) / a rows.
    """
    return float(1 + 1 / np.sqrt(max(rows * slowest / (2 - slowest), 1.0)))


def _blocks(device: np.ndarray) -> np.ndarray:
    """Blocks for leaving out: the devices, or five stretches of time where there is but one. (n,) int64."""
    names, block = np.unique(device, return_inverse=True)
    if len(names) > 1:
        return block
    return np.minimum(np.arange(len(device)) * 5 // max(len(device), 1), 4)


def _share_for_alerts(
    wanted: float, score: np.ndarray, prepared: Prepared, rows: np.ndarray
) -> tuple[float, dict[str, Any]]:
    """The share of rows over the threshold at which held-out normal time gives the wanted alerts per device-week."""
    slots, ts_ms = prepared.device[rows], prepared.ts_ms[rows]
    weeks = len(rows) * prepared.contract.step_ms / WEEK_MS
    lowest = 3 / weeks
    shares = np.geomspace(3 / len(score), 0.2, 24)

    def rate(share: float) -> float:
        verdicts = Verdicts(prepared.contract.episode, int(slots.max()) + 1)
        level = tail_quantile(score, share)[0]
        told = verdicts.push(slots, np.arange(len(rows)), ts_ms, score.astype(np.float32), level)
        return sum(event.kind == "opened" for event in told.events) / weeks

    rates = np.maximum.accumulate([rate(share) for share in shares])
    facts = {"alerts_per_device_week": wanted, "lowest_verified_alerts": lowest, "alerts_verified": wanted >= lowest}
    fitting = np.flatnonzero(rates <= max(wanted, lowest))
    share = float(shares[fitting[-1]] if len(fitting) else shares[0])
    if wanted < lowest:
        share *= wanted / lowest            # beyond what the span can verify: the tail is continued
    return share, facts


