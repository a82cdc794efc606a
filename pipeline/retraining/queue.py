"""The job queue: retrain requests in Redis, by RQ, with nothing in it that could run code of an intruder's choice.

RQ's defaults trust whoever can write to Redis: arguments, results and metadata are pickles, a job names any importable
function, and callbacks and webhooks stand in the job's own hash. Here everything is JSON, RQ's pickle serializer
refuses to work in this process (two of RQ's own look-ups fall back to it), a job's function is a key into a table that
the trainer filled, and callbacks and webhooks are not read. There is one queue: a worker of several can lose a job.

Redis is never the truth: a lost queue costs a retraining that is asked for again, never a model or a record.
"""

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Literal, NoReturn

import msgspec
import redis
import rq.serializers
from rq import Queue, Retry
from rq.command import send_stop_job_command
from rq.exceptions import DuplicateJobError, InvalidJobOperation, NoSuchJobError
from rq.job import Job, JobStatus
from rq.registry import (
    CanceledJobRegistry,
    FailedJobRegistry,
    FinishedJobRegistry,
    ScheduledJobRegistry,
    StartedJobRegistry,
)

from pipeline.errors import BadInput, Unreachable
from pipeline.retraining.request import RetrainRequest, from_plain, job_prefix, to_plain

QUEUE = "narrows-retrain"
RETRAIN = "training.jobs.retrain"
"""The one function that a job may name; `narrows trainer` knows which code stands behind it."""
ALLOWED = frozenset({RETRAIN})
RETRY_AFTER_S = (10, 60, 300)
JOB_TIMEOUT_S = 6 * 3600
KEEP_RESULT_S = 7 * 86_400
KEEP_FAILURE_S = 30 * 86_400
MAINTENANCE_S = 30
REGISTRIES = (StartedJobRegistry, ScheduledJobRegistry, FinishedJobRegistry, FailedJobRegistry, CanceledJobRegistry)
UNDERWAY = ("queued", "scheduled", "started", "deferred")

Handler = Callable[..., dict[str, Any]]
"""Called as handler(job, request=plain request); returns what JSON can hold."""


class NotAllowed(BadInput):
    """A job that names a function which no trainer runs; it fails at once and is not tried again."""


def _refuse_pickle(*_: object) -> NoReturn:
    raise pickle.UnpicklingError("narrows reads and writes jobs as JSON; a pickle from Redis is never loaded")


rq.serializers.DefaultSerializer.dumps = _refuse_pickle
rq.serializers.DefaultSerializer.loads = _refuse_pickle


class TableJob(Job):
    """A job whose function comes from `handlers` and nowhere else; callbacks and webhooks in Redis are not read."""

    handlers: Mapping[str, Handler] = {}

    def __init__(self, id: str | None = None, connection: Any = None, serializer: Any = None) -> None:  # noqa: A002
        super().__init__(id, connection, serializer or rq.serializers.JSONSerializer)

    def restore(self, raw_data: Any) -> Any:
        super().restore(raw_data)
        self._success_callback_name = self._failure_callback_name = self._stopped_callback_name = None
        self._success_callback = self._failure_callback = self._stopped_callback = None
        self.webhooks: list[Any] = []
        self.repeats_left = None

    @property
    def func(self) -> Handler:
        name = self.func_name
        if self.instance is not None or name not in ALLOWED or name not in self.handlers:
            raise NotAllowed(f"job {self.id} names the function {name!r}; this trainer runs {sorted(self.handlers)}")
        return self.handlers[name]

    def _execute(self) -> Any:
        """Runs the handler, which gets the job for its progress; bad input fails alike each time, so it ends here."""
        try:
            return self.func(self, **self.kwargs)
        except BadInput:
            self.retries_left = 0
            raise

    def report(self, stage: str, progress: float | None = None) -> None:
        """Shows what the run is doing in `narrows jobs list`; Redis away just now costs only this line of it."""
        self.meta = {"stage": stage, "progress": progress}
        with suppress(redis.RedisError):
            self.save_meta()


class TableQueue(Queue):
    """A queue whose maintenance lock, when its holder is killed, ends in seconds and not in a quarter of an hour."""

    def acquire_maintenance_lock(self) -> bool:
        return bool(self.connection.set(self.registry_cleaning_key, 1, nx=True, ex=MAINTENANCE_S))


class JobFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One job, as `narrows jobs list` shows it.

    state    : queued, started, scheduled (waits for its next try), finished, failed, stopped or canceled.
    stage    : what the trainer says it is doing; progress is its share done, 0 to 1, None where unknown.
    outcome  : `promoted`, `refused` or `superseded` of a finished job, with the detail in `result`.
    """

    id: str
    stream: str
    state: str
    reason: str = ""
    records: int = 0
    requested_ms: int = 0
    started_ms: int | None = None
    ended_ms: int | None = None
    retries_left: int | None = None
    stage: str = ""
    progress: float | None = None
    outcome: str = ""
    result: dict[str, Any] | None = None
    error: str = ""


class Submitted(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a request.

    state : `queued`; `known` (this very job is there already); `underway` (another job of the stream is);
            `paused` (the stream asked within its cooldown).
    """

    job_id: str
    state: Literal["queued", "known", "underway", "paused"]


def connect(url: str, password: str | None = None, timeout_s: float = 5.0) -> "redis.Redis":
    """A Redis client that never waits longer than `timeout_s` for a connection or an answer; it connects at first use.

    url : redis://, rediss:// (TLS; `?ssl_ca_certs=FILE` names the authority) or unix://.
    """
    options: dict[str, Any] = {"socket_timeout": timeout_s, "health_check_interval": 30}
    if not url.startswith("unix://"):
        options["socket_connect_timeout"] = timeout_s
    if password is not None:
        options["password"] = password
    try:
        return redis.Redis.from_url(url, **options)
    except ValueError as error:
        raise BadInput(f"redis.url: {error}") from error


@contextmanager
def reaching() -> Iterator[None]:
    """Turns redis-py's errors into Unreachable, with what to do."""
    try:
        yield
    except redis.AuthenticationError as error:
        raise Unreachable(f"Redis refuses us ({error}): check redis.url and redis.password") from error
    except redis.RedisError as error:
        raise Unreachable(f"Redis can't be reached ({error}): `narrows local up` starts one, redis.url names another") \
            from error


class JobQueue:
    """Retraining jobs of all streams.

    client : from `connect`.
    name   : RQ's queue name; one for all streams.
    """

    def __init__(self, client: "redis.Redis", name: str = QUEUE) -> None:
        self.client = client
        self.queue = TableQueue(name, connection=client, job_class=TableJob, serializer="json")

    def submit(
        self, request: RetrainRequest, *, cooldown_s: float | None = None, retry_after_s: Sequence[int] = RETRY_AFTER_S,
        timeout_s: int = JOB_TIMEOUT_S,
    ) -> Submitted:
        """Puts a job into the queue, unless it or another of the same stream is there.

        cooldown_s    : a trigger gives it: then all workers together ask once in this time. A person gives None: then
                        only the same job is refused, and one that failed, was stopped or cancelled is made anew.
        retry_after_s : waits before the second, third ... try.
        Raises Unreachable.
        """
        with reaching():
            job_id = request.job_id
            if cooldown_s is not None:
                if self._underway(request.stream):
                    return Submitted(job_id=job_id, state="underway")
                asked = f"narrows:asked:{request.stream}"
                if not self.client.set(asked, job_id, nx=True, px=max(1, round(cooldown_s * 1000))):
                    return Submitted(job_id=job_id, state="paused")
            else:
                self._forget_ended(job_id)
            try:
                self.queue.enqueue_call(
                    RETRAIN, kwargs={"request": to_plain(request)}, job_id=job_id, unique=True,
                    retry=Retry(max=len(retry_after_s), interval=list(retry_after_s)) if retry_after_s else None,
                    timeout=timeout_s, result_ttl=KEEP_RESULT_S, failure_ttl=KEEP_FAILURE_S,
                    description=f"retrain {request.stream}: {request.reason}",
                )
            except DuplicateJobError:
                return Submitted(job_id=job_id, state="known")
            return Submitted(job_id=job_id, state="queued")

    def jobs(self, stream: str | None = None) -> list[JobFacts]:
        """Every job that Redis still knows, newest request first. Raises Unreachable."""
        with reaching():
            ids = [job_id for job_id in self._ids() if stream is None or job_id.startswith(job_prefix(stream))]
            jobs = TableJob.fetch_many(ids, self.client, serializer="json")
            facts = [_facts(job) for job in jobs if job is not None]
        return sorted(facts, key=lambda fact: (-fact.requested_ms, fact.id))

    def job(self, job_id: str) -> JobFacts:
        """One job. Raises BadInput when Redis knows none of this id, Unreachable."""
        with reaching():
            return _facts(self._fetch(job_id))

    def cancel(self, job_id: str) -> str:
        """Takes a waiting job out of the queue, or stops the trainer's run of a started one; returns its new state.

        A stopped run can't promote any more once this returns with `stopping` and the trainer has killed it; the
        champion stays as it is. Raises BadInput when the job has ended or is unknown, Unreachable.
        """
        with reaching():
            job = self._fetch(job_id)
            state = job.get_status().value
            if state == JobStatus.STARTED:
                send_stop_job_command(self.client, job_id, serializer="json")
                return "stopping"
            if state not in UNDERWAY:
                raise BadInput(f"job {job_id} is {state}; only a waiting or running job can be cancelled")
            try:
                job.cancel()
            except InvalidJobOperation as error:
                raise BadInput(f"job {job_id}: {error}") from error
            return "canceled"

    def enqueue_due(self) -> int:
        """Moves jobs whose wait before the next try is over back into the queue; returns how many.

        RQ has a scheduler process for this; one Lua step in the trainer's own loop leaves nothing behind when it is
        killed. Takes a job out of the waiting list and into the queue in one step, so that two trainers move it once.
        """
        registry = ScheduledJobRegistry(queue=self.queue)
        return sum(
            int(self.client.eval(ENQUEUE_DUE, 3, registry.key, self.queue.key, TableJob.key_for(job_id), job_id))
            for job_id in registry.get_jobs_to_schedule()
        )

    def _fetch(self, job_id: str) -> Job:
        try:
            return TableJob.fetch(job_id, self.client, serializer="json")
        except (NoSuchJobError, ValueError, TypeError) as error:
            raise BadInput(f"no job {job_id!r}: `narrows jobs list` shows those that there are") from error

    def _ids(self) -> list[str]:
        ids = list(self.queue.job_ids)
        for kind in REGISTRIES:
            ids += kind(queue=self.queue).get_job_ids(cleanup=False)
        return list(dict.fromkeys(ids))

    def _underway(self, stream: str) -> bool:
        return any(fact.state in UNDERWAY for fact in self.jobs(stream))

    def _forget_ended(self, job_id: str) -> None:
        """A job that ended without a model makes way for a person's second try."""
        try:
            job = TableJob.fetch(job_id, self.client, serializer="json")
        except NoSuchJobError:
            return
        facts = _facts(job)
        if facts.state in ("failed", "stopped", "canceled") or facts.outcome in ("refused", "superseded"):
            job.delete()


# KEYS: scheduled registry, queue, job hash; ARGV: job id.
ENQUEUE_DUE = """
if redis.call('ZREM', KEYS[1], ARGV[1]) == 0 or redis.call('EXISTS', KEYS[3]) == 0 then return 0 end
redis.call('HSET', KEYS[3], 'status', 'queued')
redis.call('RPUSH', KEYS[2], ARGV[1])
return 1
"""


def _facts(job: Job) -> JobFacts:
    try:
        request: RetrainRequest | None = from_plain(job.kwargs.get("request"))
    except Exception:                                    # whatever an intruder put there, the list still shows the rest
        request = None
    result = job.return_value() if job.get_status(refresh=False) == JobStatus.FINISHED else None
    result = result if isinstance(result, dict) else None
    failure = job.latest_result() if job.get_status(refresh=False) in (JobStatus.FAILED, JobStatus.STOPPED) else None
    error = (failure.exc_string or "").strip().rpartition("\n")[2] if failure is not None else ""
    meta = job.meta if isinstance(job.meta, dict) else {}
    progress = meta.get("progress")
    return JobFacts(
        id=job.id, stream=request.stream if request else "", state=job.get_status(refresh=False).value,
        reason=request.reason if request else "", records=request.records if request else 0,
        requested_ms=request.requested_ms if request else 0,
        started_ms=round(job.started_at.timestamp() * 1000) if job.started_at else None,
        ended_ms=round(job.ended_at.timestamp() * 1000) if job.ended_at else None,
        retries_left=job.retries_left, stage=str(meta.get("stage", "")),
        progress=float(progress) if isinstance(progress, int | float) else None,
        outcome=str(result.get("outcome", "")) if result else "", result=result, error=error,
    )

