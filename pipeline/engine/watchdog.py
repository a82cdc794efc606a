"""The watchdog: a worker that makes no progress ends with an exit code of its own, so that another takes over.

What it sees is passed in; it knows no Kafka. A broker that is away is no stall: then there is no known lag. It looks
from the event loop; whether the loop itself still runs is seen from a thread (`Pulse`).
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.errors import LoopStalled, NoAssignment, Stalled


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

    def look(self, seen: Seen) -> Stalled | None:
        """None while all is well, else why the worker has to end."""
        idle = not seen.joining and (seen.assigned == 0 or seen.lag == 0)
        if idle or self._progress_at is None or seen.position != self._position:
            self._position, self._progress_at = seen.position, seen.at
            return None
        stalled = seen.at - self._progress_at
        if stalled <= self._stall_s:
            return None
        if seen.joining:
            return NoAssignment(f"a rebalance did not end in {stalled:.0f} s; this worker ends, to join anew")
        return Stalled(
            f"{seen.lag} records wait and none was finished in {stalled:.0f} s; this worker ends, the next one goes on "
            "from the commit"
        )


class Pulse:
    """A thread that calls `end` when the event loop, which must call `beat` once a second, has not for `stall_s`.

    It counts its own looks, not time: a process that was stopped and goes on has missed none.
    """

    def __init__(self, stall_s: float, end: Callable[[Stalled], None], look_every_s: float = 1.0) -> None:
        self._stall_s, self._end, self._every_s = stall_s, end, look_every_s
        self._beaten = False
        self._over = threading.Event()

    def start(self) -> None:
        """From the first beat on."""
        threading.Thread(target=self._watch, name="narrows-pulse", daemon=True).start()

    def beat(self) -> None:
        self._beaten = True

    def stop(self) -> None:
        self._over.set()

    def _watch(self) -> None:
        missed, has_begun = 0, False
        while not self._over.wait(self._every_s):
            has_begun |= self._beaten
            missed = 0 if self._beaten or not has_begun else missed + 1
            self._beaten = False
            if missed * self._every_s > self._stall_s:
                self._end(LoopStalled(
                    f"the event loop stood still for {missed * self._every_s:.0f} s; this worker ends, the next one "
                    "goes on from the commit"
                ))
                return
