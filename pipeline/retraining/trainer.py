"""The trainer's loop: one RQ worker that runs one job at a time in a child process, and leaves nothing behind.

RQ's own worker, when killed, leaves its training child running beside the retry; its lost jobs are found after
minutes; its retries need a scheduler process. Here the child dies with its parent (the kernel's parent-death signal), a
job whose trainer is gone is taken up after 15 s, and waits between tries are looked after in the worker's own
loop. A child that survives all the same is fenced: its lease has passed on, its token is old (see lease.py).
"""

import ctypes
import logging
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any

import redis
from rq import Queue, Worker
from rq.executions import Execution
from rq.job import Job

from pipeline.errors import BadInput
from pipeline.retraining.queue import ALLOWED, Handler, JobQueue, TableJob, TableQueue

log = logging.getLogger(__name__)

LOST_AFTER_S = 15
RQ_MARGIN_S = 15
"""RQ waits for a job 15 s less than its worker's time to live."""
PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Asks the kernel to kill this process when its parent dies, and ends it when the parent is gone already.

    parent : process id before the fork. Linux only; elsewhere the fencing token alone keeps a survivor harmless.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


class Trainer(Worker):
    """`narrows trainer`: takes jobs from the one queue until SIGTERM, which lets the running job end first.

    handlers     : function name -> function; names outside of ALLOWED are refused here, others in Redis at each job.
    lost_after_s : a job without a heartbeat for so long has lost its trainer; there are five heartbeats in this time.
    """

    def __init__(
        self, jobs: JobQueue, handlers: Mapping[str, Handler], name: str | None = None,
        lost_after_s: int = LOST_AFTER_S,
    ) -> None:
        unknown = sorted(set(handlers) - ALLOWED)
        if unknown:
            raise BadInput(f"a trainer may run {sorted(ALLOWED)}; {unknown[0]} is not among them")
        table = type("TrainerJob", (TableJob,), {"handlers": dict(handlers)})
        heartbeat_s = max(1, lost_after_s // 5)
        queue = TableQueue(jobs.queue.name, connection=jobs.client, job_class=table, serializer="json")
        super().__init__(
            [queue], name=name, connection=jobs.client, job_class=table, queue_class=TableQueue, serializer="json",
            worker_ttl=heartbeat_s + RQ_MARGIN_S, job_monitoring_interval=heartbeat_s, maintenance_interval=heartbeat_s,
            log_job_description=False,
        )
        self._lost_after_s = lost_after_s
        self._jobs = jobs

    @property
    def was_told_to_stop(self) -> bool:
        """Whether a signal or a command ended the loop, not a fault."""
        return self._shutdown_requested_date is not None

    def main_work_horse(self, job: Job, queue: Queue) -> None:
        die_with(self.pid or 0)
        super().main_work_horse(job, queue)

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:
        return self._lost_after_s

    def maintain_heartbeats(self, job: Job, execution: Execution) -> None:
        """Redis away for a moment does not end a training run; without heartbeats the job is taken up again later."""
        try:
            super().maintain_heartbeats(job, execution)
        except redis.RedisError as error:
            log.warning("job %s: no heartbeat, Redis is away (%s)", job.id, error)

    def run_maintenance_tasks(self) -> None:
        super().run_maintenance_tasks()
        self._jobs.enqueue_due()

    def procline(self, message: Any) -> None:
        """RQ puts job names into the process title; ours stays as it is."""
