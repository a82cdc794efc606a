"""CPU of this process a record, after a warm-up; printed as one JSON line when enough records have passed.

BENCH_WARM and BENCH_END, both counts of records, come from the environment.
"""

import gc
import json
import os
import resource
import threading
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path
from typing import Any


class Meter:
    """Count records; at `end` the process prints its figure and ends.

    stages : CPU seconds in each method given to `time`, without those in the timed methods that it calls.
    """

    def __init__(self) -> None:
        self.warm, self.end = int(os.environ["BENCH_WARM"]), int(os.environ["BENCH_END"])
        self.seen = 0
        self._at: tuple[int, float, float, dict[str, float]] | None = None
        self.stages: defaultdict[str, float] = defaultdict(float)
        self._local = threading.local()

    def ends_with(self, records: int) -> bool:
        """Whether counting these would end the process: what is on its way must arrive before."""
        return self.seen + records >= self.end

    def count(self, records: int) -> None:
        """records : finished, their outputs delivered."""
        self.seen += records
        if self._at is None:
            if self.seen >= self.warm:
                self._at = (self.seen, cpu_s(), time.monotonic(), threads_s())
                self.stages.clear()
        elif self.seen >= self.end:
            seen, cpu, wall, before = self._at
            passed = self.seen - seen
            line = {
                "records": passed, "cpu_us": (cpu_s() - cpu) / passed * 1e6,
                "per_s": passed / (time.monotonic() - wall),
                "stages": {name: spent / passed * 1e6 for name, spent in self.stages.items()},
                "threads": {
                    name: (spent - before.get(name, 0.0)) / passed * 1e6 for name, spent in threads_s().items()
                },
                "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
            os.write(1, json.dumps(line).encode() + b"\n")   # past whoever redirected sys.stdout
            os._exit(0)

    # ---------------------------------------------------------------- stages

    def time(self, owner: Any, name: str, stage: str) -> None:
        """Add the thread's CPU inside a function or method to a stage."""
        inner = getattr(owner, name)

        def outer(*args: Any, **kwargs: Any) -> Any:
            began = self._enter()
            try:
                return inner(*args, **kwargs)
            finally:
                self._leave(began, stage)

        setattr(owner, name, outer)

    def time_coroutine(self, owner: Any, name: str, stage: str) -> None:
        """As `time`, for a coroutine function: its own steps alone, not what the loop does while it waits."""
        inner = getattr(owner, name)

        def outer(*args: Any, **kwargs: Any) -> Awaitable[Any]:
            return _Steps(inner(*args, **kwargs), self, stage)

        setattr(owner, name, outer)

    def time_collector(self) -> None:
        """The garbage collector is a stage of its own, in whatever thread it runs."""
        began: list[float] = []

        def look(phase: str, _: dict[str, int]) -> None:
            if phase == "start":
                began.append(self._enter())
            elif began:
                self._leave(began.pop(), "garbage collector")

        gc.callbacks.append(look)

    def _enter(self) -> float:
        stack = self._local.__dict__.setdefault("stack", [])
        stack.append(0.0)
        return time.thread_time()

    def _leave(self, began: float, stage: str) -> None:
        spent = time.thread_time() - began
        stack = self._local.stack
        self.stages[stage] += spent - stack.pop()
        if stack:
            stack[-1] += spent


class _Steps:
    """A coroutine, timed step by step."""

    def __init__(self, inner: Any, meter: Meter, stage: str) -> None:
        self._inner, self._meter, self._stage = inner, meter, stage

    def __await__(self) -> Generator[Any, Any, Any]:
        step: Callable[[], Any] = lambda: self._inner.send(None)  # noqa: E731  the first step
        while True:
            began = self._meter._enter()
            try:
                waits_for = step()
            except StopIteration as done:
                return done.value
            finally:
                self._meter._leave(began, self._stage)
            try:
                answer = yield waits_for
            except BaseException as error:
                step = lambda error=error: self._inner.throw(error)  # type: ignore[misc]  # noqa: E731
            else:
                step = lambda answer=answer: self._inner.send(answer)  # type: ignore[misc]  # noqa: E731


def cpu_s() -> float:
    """User and system seconds of this process, all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def threads_s() -> dict[str, float]:
    """CPU seconds of each living thread: by its class where that is not Python's own, by name, in C by the system's."""
    names = {
        thread.native_id: type(thread).__name__ if type(thread).__module__ != "threading" else thread.name
        for thread in threading.enumerate()
    }
    spent: defaultdict[str, float] = defaultdict(float)
    for task in Path("/proc/self/task").iterdir():
        try:
            on_cpu_ns = int((task / "schedstat").read_text().split()[0])
            spent[names.get(int(task.name)) or (task / "comm").read_text().strip()] += on_cpu_ns / 1e9
        except OSError:   # it has ended meanwhile
            continue
    return dict(spent)
