"""From a bundle that passed the gate to the champion's place, and the word of it to the workers.

The pointer in the registry is the truth. Redis only shortens the wait: a worker that hears nothing reads the pointer
every few seconds all the same.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

import redis

from pipeline.errors import NarrowsError
from pipeline.registry.store import Pointer, Registry, Superseded
from pipeline.retraining.lease import Lease

log = logging.getLogger(__name__)

CHANNEL = "narrows:champions"
"""Redis channel whose messages are the names of streams with a new champion; no key, nothing stays there."""


def promote(
    registry: Registry, lease: Lease, stream: str, bundle: Path, *, judged_revision: int, reason: str, job: str,
    now_ms: int,
) -> Pointer:
    """Publishes a bundle and moves the champion pointer to it, if we are still the ones to do so.

    judged_revision : revision of the champion that the bundle was judged against, 0 where there was none.
    Raises Superseded when the lease ran out meanwhile or the champion moved: the bundle is dropped.
    Redis away just now means that we can't know whether the lease still holds: redis.RedisError, try again.
    """
    digest = registry.publish(stream, bundle)
    if not lease.renew():
        raise Superseded(f"stream {stream}: the lease (token {lease.token}) ran out while the model was trained")
    return registry.promote(
        stream, digest, now_ms=now_ms, token=lease.token, expected_revision=judged_revision, reason=reason, job=job,
    )


def announce(client: "redis.Redis", stream: str) -> None:
    """Tells every listening worker to read the pointer now; Redis away is logged and costs only a few seconds."""
    try:
        client.publish(CHANNEL, stream)
    except redis.RedisError as error:
        log.warning("stream %s: Redis did not take the notice of a new champion (%s); workers find it by polling",
                    stream, error)


class ChampionWatch:
    """Calls `changed(pointer)` from a thread of its own for every new champion of the given streams.

    poll_s : longest wait until a pointer is read again; a notice through Redis cuts it short.
    client : for the notices; None: polling alone.
    The callback gets each stream's standing pointer first. A damaged pointer is logged and the old one stays; a
    callback that raises is logged and called again at the next poll.
    """

    def __init__(
        self, registry: Registry, streams: Collection[str], changed: Callable[[Pointer], None], *, poll_s: float = 5.0,
        client: "redis.Redis | None" = None,
    ) -> None:
        self._registry = registry
        self._told: dict[str, int] = dict.fromkeys(streams, 0)
        self._changed = changed
        self._poll_s = poll_s
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._threads = [threading.Thread(target=self._poll, name="champion watch", daemon=True)]
        if client is not None:
            self._threads.append(threading.Thread(target=self._listen, args=(client,), name="notices", daemon=True))
        for thread in self._threads:
            thread.start()

    def close(self, timeout_s: float = 5.0) -> None:
        """Stops both threads."""
        self._closed.set()
        self._wake.set()
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _poll(self) -> None:
        while not self._closed.is_set():
            self._wake.clear()
            for stream in self._told:
                try:
                    self._look(stream)
                except NarrowsError as error:
                    log.warning("stream %s: the champion stays: %s", stream, error)
                except Exception:
                    log.exception("stream %s: the champion stays", stream)
            self._wake.wait(self._poll_s)

    def _look(self, stream: str) -> None:
        pointer = self._registry.champion(stream)
        if pointer is not None and pointer.revision > self._told[stream]:
            self._changed(pointer)
            self._told[stream] = pointer.revision

    def _listen(self, client: "redis.Redis") -> None:
        while not self._closed.is_set():
            with suppress(redis.RedisError, OSError), client.pubsub(ignore_subscribe_messages=True) as channel:
                channel.subscribe(CHANNEL)
                while not self._closed.is_set():
                    if channel.get_message(timeout=1.0) is not None:
                        self._wake.set()
            self._closed.wait(self._poll_s)
