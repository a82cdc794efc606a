"""The watchdog: a worker that makes no progress ends with an exit code of its own, so that another takes over.

What it sees is passed in; it knows no Kafka. A broker that is away is no stall: then there is no known lag.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Seen:
    """One look at a worker. Times in seconds of a monotonic clock.

    position : sum of positions over all partitions; any change is progress.
    lag      : records known to wait in the assigned partitions.
    assigned : partitions held.  joining : a rebalance is under way.
    """

    at: float
    position: int
    lag: int
    assigned: int
    joining: bool


class Watchdog:
    """Says what is wrong after `stall_s` seconds without progress.

    A worker without partitions is idle by right (more workers than partitions), unless it never leaves a rebalance.
    """

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self._position: int | None = None
        self._progress_at: float | None = None

    def look(self, seen: Seen) -> str | None:
        """None while all is well, else what stalls."""
        idle = not seen.joining and (seen.assigned == 0 or seen.lag == 0)
        if idle or self._progress_at is None or seen.position != self._position:
            self._position, self._progress_at = seen.position, seen.at
            return None
        stalled = seen.at - self._progress_at
        if stalled <= self._stall_s:
            return None
        if seen.joining:
            return f"a rebalance did not end in {stalled:.0f} s"
        return f"{seen.lag} records wait and none was finished in {stalled:.0f} s"
