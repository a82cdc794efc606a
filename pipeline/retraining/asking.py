"""The asking side of retraining: what a request covers, and how it leaves scoring at once whatever became of Redis."""

import logging
import threading
from collections.abc import Callable, Sequence

from pipeline.errors import BadInput, NarrowsError
from pipeline.retraining.queue import JobQueue
from pipeline.retraining.request import RetrainRequest
from pipeline.topics.client import Settings
from pipeline.topics.reader import begin_offsets, end_offsets

log = logging.getLogger(__name__)


def newest_ranges(settings: Settings, topic: str, max_rows: int) -> dict[int, tuple[int, int]]:
    """The newest `max_rows` records that the topic still holds, as many from each partition; ends are fixed now."""
    first, last = begin_offsets(settings, topic), end_offsets(settings, topic)
    share = -(-max_rows // max(1, len(last)))
    return {partition: (max(first[partition], end - share), end) for partition, end in last.items()}


class Asker:
    """Hands retrain requests to Redis from a thread of its own, so that scoring never waits for it nor fails by it.

    A stream has at most one request waiting, its newest. Redis away, or a request that can't be made just now, is
    logged and tried again after `backoff_s`, the last of them for ever.
    """

    def __init__(self, jobs: JobQueue, backoff_s: Sequence[float] = (1, 2, 5, 10, 30, 60)) -> None:
        self._jobs = jobs
        self._backoff_s = backoff_s
        self._waiting: dict[str, tuple[Callable[[], RetrainRequest], float]] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="retrain requests", daemon=True)
        self._thread.start()

    def ask(self, stream: str, make: Callable[[], RetrainRequest], cooldown_s: float) -> None:
        """Returns at once. `make` is called in the thread, at each try; it may take its time and may raise."""
        with self._changed:
            self._waiting[stream] = (make, cooldown_s)
            self._changed.notify()

    @property
    def waiting(self) -> int:
        """Streams whose request is not in Redis yet."""
        with self._changed:
            return len(self._waiting)

    def close(self, timeout_s: float = 5.0) -> None:
        """Stops the thread; what still waits is dropped: the trigger asks again."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        tries = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or bool(self._waiting))
                if self._closed:
                    return
                waiting = dict(self._waiting)
            failed = False
            for stream, wish in waiting.items():
                handed_over = self._submit(stream, *wish)
                failed |= not handed_over
                with self._changed:
                    if handed_over and self._waiting.get(stream) is wish:
                        del self._waiting[stream]
            tries = tries + 1 if failed else 0
            if failed:
                wait_s = self._backoff_s[min(tries, len(self._backoff_s)) - 1]
                with self._changed:
                    self._changed.wait_for(lambda: self._closed, wait_s)

    def _submit(self, stream: str, make: Callable[[], RetrainRequest], cooldown_s: float) -> bool:
        """Whether the request needs no further try."""
        try:
            request = make()
            submitted = self._jobs.submit(request, cooldown_s=cooldown_s)
        except BadInput as error:
            log.warning("stream %s: retrain request dropped: %s", stream, error)
            return True
        except NarrowsError as error:
            log.warning("stream %s: retrain request waits: %s", stream, error)
            return False
        except Exception:
            log.exception("stream %s: retrain request waits", stream)
            return False
        log.info("stream %s: retrain %s (%s): %s", stream, submitted.state, submitted.job_id, request.reason)
        return True
