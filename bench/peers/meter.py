"""CPU of this process a record, after a warm-up; printed as one JSON line when enough records have passed."""

import json
import os
import resource
import time


class Meter:
    """Count records; at `end` the process prints its figure and ends.

    WARM and END come from the environment: BENCH_WARM, BENCH_END.
    """

    def __init__(self) -> None:
        self.warm, self.end = int(os.environ["BENCH_WARM"]), int(os.environ["BENCH_END"])
        self.seen = 0
        self.at: tuple[int, float, float] | None = None
        self.stages: dict[str, float] = {}

    def count(self, records: int) -> None:
        self.seen += records
        if self.at is None:
            if self.seen >= self.warm:
                self.at = (self.seen, cpu_s(), time.monotonic())
                self.stages.clear()
        elif self.seen >= self.end:
            seen, cpu, wall = self.at
            passed = self.seen - seen
            line = {
                "records": passed, "cpu_us": (cpu_s() - cpu) / passed * 1e6,
                "per_s": passed / (time.monotonic() - wall),
                "stages": {name: spent / passed * 1e6 for name, spent in self.stages.items()},
                "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
            os.write(1, json.dumps(line).encode() + b"\n")   # past whoever redirected sys.stdout
            os._exit(0)


def cpu_s() -> float:
    """User and system seconds of this process, all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
