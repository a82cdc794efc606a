"""The gate between a new bundle and the champion's place: not worse on rows that neither of them was fitted on.

Pure judgement over measured figures; the job measures both bundles on the same held-out rows. That weights are finite
and golden outputs come back is the load gate's matter (`pipeline.scoring.gate`) and comes before.

A reconstruction error alone can't compare two families: an autoencoder sees the row that it rebuilds, a predictor does
not. So the first measure is what both are for: faults of known size, planted into the same held-out rows, that come out
over the bundle's own threshold, beside the share of untouched rows that do. The error counts within one family.
"""

import math

import msgspec


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One bundle on the held-out rows.

    rows     : held-out rows that were scored.
    over     : share of them over the bundle's own threshold: false alarms, as far as the rows are normal.
    detected : share of planted faults that come over it.
    error    : mean absolute residual of the scored channels, in the champion's scaled units.
    family   : the bundle's family; errors are compared within one.
    """

    rows: int
    over: float
    detected: float
    error: float
    family: str


class GateRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How much worse than the champion is still not worse: held-out figures have noise.

    min_rows       : fewer held-out rows judge nothing.
    over_free      : share over the threshold that is never held against a challenger, thrice the nominal 1 % ...
    over_factor    : ... above it, at most this multiple of the champion's share.
    detected_slack : planted faults that it may miss beyond the champion, as a share of all.
    error_factor   : largest multiple of the champion's error, within one family.
    """

    min_rows: int = 200
    over_free: float = 0.03
    over_factor: float = 1.5
    detected_slack: float = 0.05
    error_factor: float = 1.1


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """`faults` says in words why a challenger is refused; empty: it passes."""

    faults: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether the challenger may take the champion's place."""
        return not self.faults


def judge(challenger: Figures, champion: Figures | None, rule: GateRule = GateRule()) -> Judgement:
    """Whether the challenger is not worse than the champion. Without a champion only that its figures are sound."""
    faults = []
    sound = all(math.isfinite(value) for value in (challenger.over, challenger.detected, challenger.error))
    if not sound:
        faults.append("a figure on the held-out rows is not finite")
    if challenger.rows < rule.min_rows:
        faults.append(f"only {challenger.rows} held-out rows could be scored, {rule.min_rows} are needed")
    if champion is None or not sound:
        return Judgement(faults=tuple(faults))
    over_limit = max(rule.over_free, rule.over_factor * champion.over)
    if challenger.over > over_limit:
        faults.append(f"{challenger.over:.2%} of held-out rows are over its threshold, the limit is {over_limit:.2%}")
    if challenger.detected < champion.detected - rule.detected_slack:
        faults.append(f"it sees {challenger.detected:.1%} of planted faults, the champion {champion.detected:.1%}")
    if challenger.family == champion.family and challenger.error > rule.error_factor * champion.error:
        faults.append(f"its error is {challenger.error:.4g}, the champion's {champion.error:.4g}")
    return Judgement(faults=tuple(faults))
