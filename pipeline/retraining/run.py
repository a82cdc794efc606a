"""One retraining job from request to champion, whatever is trained: lease, train, judge, publish, promote, tell.

Invariant: a job promotes at most once, however often it is killed and run again, and never over a champion that it was
not judged against (tests/faults/test_retraining.py). A kill before the pointer moved leaves the champion untouched; a
kill after it is seen by the next try in the pointer's history.
"""

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec
import redis

from pipeline.errors import TryAgain
from pipeline.registry.store import Pointer, Registry, Superseded
from pipeline.retraining.gate import Figures, GateRule, judge
from pipeline.retraining.lease import Lease, acquire
from pipeline.retraining.promotion import announce, promote
from pipeline.retraining.queue import Handler, TableJob
from pipeline.retraining.request import RetrainRequest, from_plain

log = logging.getLogger(__name__)

LEASE_MS = 15_000

Report = Callable[[str, float | None], None]
"""Called with what the run is doing and the share done, 0 to 1 or None."""


class Challenger(msgspec.Struct, frozen=True, kw_only=True):
    """What a training run made.

    folder   : the bundle, checked by the load gate.
    figures  : on the held-out rows.   champion : the champion's on the same rows; None where there is none.
    facts    : further lines for the job's result (rows, epochs, seconds).
    """

    folder: Path
    figures: Figures
    champion: Figures | None
    facts: dict[str, Any] = {}


class Train(Protocol):
    """Trains one challenger.

    champion : folder of the bundle to start from and to be judged against, None where there is none.
    work     : folder for the run's files, the same at each try of a job, so that a killed run may be resumed.
    """

    def __call__(
        self, request: RetrainRequest, champion: Path | None, work: Path, report: Report,
    ) -> Challenger: ...


def make_handler(
    train: Train, registry: Registry, client: "redis.Redis", *, fallback: Mapping[str, Path] | None = None,
    rule: GateRule = GateRule(), lease_ms: int = LEASE_MS, clock_ms: Callable[[], int] | None = None,
) -> Handler:
    """The function that the trainer runs for each job.

    fallback : stream -> bundle that scores it while its registry has no champion.
    """
    clock = clock_ms if clock_ms is not None else lambda: time.time_ns() // 1_000_000

    def handle(job: TableJob, request: object) -> dict[str, Any]:
        wish = from_plain(request)
        promoted = _promoted_before(registry, wish)
        if promoted is not None:
            announce(client, wish.stream)
            return _promoted(promoted, {})
        lease = _wait_for_lease(client, registry, wish, lease_ms, job.report)
        with lease.renewing():
            standing = registry.champion(wish.stream)
            champion = registry.path(wish.stream, standing.digest) if standing else (fallback or {}).get(wish.stream)
            work = registry.work_folder(wish.stream, wish.job_id)
            challenger = train(wish, champion, work, job.report)
            result = _settle(wish, challenger, lease, standing)
            shutil.rmtree(work, ignore_errors=True)
        return result

    def _settle(
        wish: RetrainRequest, challenger: Challenger, lease: Lease, standing: Pointer | None,
    ) -> dict[str, Any]:
        facts = {
            "figures": msgspec.to_builtins(challenger.figures), "champion": msgspec.to_builtins(challenger.champion),
            **challenger.facts,
        }
        judgement = judge(challenger.figures, challenger.champion, rule)
        if not judgement.passed:
            log.warning("stream %s: challenger refused: %s", wish.stream, "; ".join(judgement.faults))
            return {"outcome": "refused", "faults": list(judgement.faults), **facts}
        try:
            pointer = promote(
                registry, lease, wish.stream, challenger.folder, judged_revision=standing.revision if standing else 0,
                reason=wish.reason, job=wish.job_id, now_ms=clock(),
            )
        except Superseded as error:
            log.warning("%s", error)
            return {"outcome": "superseded", "faults": [str(error)], **facts}
        announce(client, wish.stream)
        log.info("stream %s: champion %s, revision %d", wish.stream, pointer.digest[:12], pointer.revision)
        return _promoted(pointer, facts)

    return handle


def _promoted(pointer: Pointer, facts: dict[str, Any]) -> dict[str, Any]:
    return {"outcome": "promoted", "digest": pointer.digest, "revision": pointer.revision, **facts}


def _promoted_before(registry: Registry, wish: RetrainRequest) -> Pointer | None:
    return next((pointer for pointer in registry.history(wish.stream) if pointer.job == wish.job_id), None)


def _wait_for_lease(
    client: "redis.Redis", registry: Registry, wish: RetrainRequest, lease_ms: int, report: Report,
) -> Lease:
    """The stream's lease; waits for a dead holder's to run out. Raises TryAgain when a living one keeps it."""
    deadline = time.monotonic() + 2 * lease_ms / 1000
    while True:
        tokens = [pointer.token for pointer in registry.history(wish.stream)]
        lease = acquire(client, f"train:{wish.stream}", lease_ms, above=max(tokens, default=0))
        if lease is not None:
            return lease
        if time.monotonic() > deadline:
            raise TryAgain(f"stream {wish.stream}: another trainer holds its lease; this job is tried again later")
        report("waiting for the lease of another run", None)
        time.sleep(min(0.5, lease_ms / 3000))
