"""The job queue on a real Redis: one job a request, JSON alone, nothing that an intruder could have run."""

import json
import os
import pickle
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress

import msgspec
import pytest
from rq import Callback
from rq.job import Job

from pipeline.errors import BadInput, TryAgain, Unreachable
from pipeline.retraining.asking import Asker
from pipeline.retraining.queue import RETRAIN, JobQueue, TableJob, connect
from pipeline.retraining.request import RetrainRequest, to_plain
from pipeline.retraining.trainer import Trainer
from tests.support.waiting import until


def request_for(stream: str, end: int = 100) -> RetrainRequest:
    return RetrainRequest(
        stream=stream, topic="readings", ranges={0: (0, end)}, contract_hash="c" * 64, champion=None, reason="volume",
        requested_ms=end,
    )


@pytest.fixture
def jobs(redis) -> Iterator[JobQueue]:
    client = connect(redis.url)
    yield JobQueue(client, f"test-{uuid.uuid4().hex}")
    client.close()


@pytest.fixture
def stream() -> str:
    return f"pump-{uuid.uuid4().hex[:8]}"


def work(jobs: JobQueue, handler: Callable[..., dict]) -> None:
    """Runs every waiting job in this process' child, as the trainer does."""
    Trainer(jobs, {RETRAIN: handler}).work(burst=True, logging_level="CRITICAL")


def finish(job: TableJob, request: dict) -> dict:
    return {"outcome": "promoted", "stream": request["stream"]}


def report_and_finish(job: TableJob, request: dict) -> dict:
    job.report("training", 0.5)
    return finish(job, request)


def test_a_job_goes_through_redis_and_back(jobs, stream):
    assert jobs.submit(request_for(stream)).state == "queued"
    assert [fact.state for fact in jobs.jobs(stream)] == ["queued"]
    work(jobs, finish)
    (fact,) = jobs.jobs(stream)
    assert (fact.state, fact.outcome, fact.result["stream"], fact.records) == ("finished", "promoted", stream, 100)


def test_the_same_request_is_one_job(jobs, stream):
    assert jobs.submit(request_for(stream)).state == "queued"
    assert jobs.submit(request_for(stream)).state == "known"
    assert len(jobs.jobs(stream)) == 1


def test_triggers_of_all_workers_together_ask_once_in_a_cooldown(jobs, stream):
    assert jobs.submit(request_for(stream, 1), cooldown_s=60).state == "queued"
    assert jobs.submit(request_for(stream, 2), cooldown_s=60).state == "underway"
    work(jobs, finish)
    assert jobs.submit(request_for(stream, 3), cooldown_s=60).state == "paused"
    assert len(jobs.jobs(stream)) == 1


def test_a_person_may_ask_again_after_a_failure_but_not_after_a_promotion(jobs, stream):
    def fail(job: TableJob, request: dict) -> dict:
        raise BadInput("no rows")

    jobs.submit(request_for(stream))
    work(jobs, fail)
    assert jobs.submit(request_for(stream)).state == "queued"
    work(jobs, finish)
    assert jobs.submit(request_for(stream)).state == "known"


def test_bad_input_is_not_tried_again_and_its_message_is_shown(jobs, stream):
    def fail(job: TableJob, request: dict) -> dict:
        raise BadInput("the contract changed: submit again")

    jobs.submit(request_for(stream))
    work(jobs, fail)
    (fact,) = jobs.jobs(stream)
    assert fact.state == "failed"
    assert "the contract changed: submit again" in fact.error


def test_another_fault_waits_and_is_tried_again(jobs, stream):
    def fail(job: TableJob, request: dict) -> dict:
        raise TryAgain("Kafka is away")

    jobs.submit(request_for(stream), retry_after_s=(1, 60))
    work(jobs, fail)
    assert [fact.state for fact in jobs.jobs(stream)] == ["scheduled"]
    assert until(lambda: jobs.enqueue_due())
    assert jobs.enqueue_due() == 0
    work(jobs, finish)
    assert [fact.outcome for fact in jobs.jobs(stream)] == ["promoted"]


def test_a_waiting_job_can_be_cancelled_once(jobs, stream):
    job_id = jobs.submit(request_for(stream)).job_id
    assert jobs.cancel(job_id) == "canceled"
    work(jobs, finish)
    assert [fact.state for fact in jobs.jobs(stream)] == ["canceled"]
    with pytest.raises(BadInput, match="canceled"):
        jobs.cancel(job_id)


@pytest.mark.parametrize("job_id", ["retrain-none", "", "../x", "a b"])
def test_an_unknown_job_is_bad_input(jobs, job_id):
    with pytest.raises(BadInput, match="narrows jobs list"):
        jobs.cancel(job_id)


def test_a_function_outside_the_allow_list_is_refused(jobs, tmp_path):
    for number, name in enumerate(("os.system", "pipeline.retraining.queue.connect", "training.jobs.handlers")):
        target = tmp_path / str(number)
        job_id = f"evil-{uuid.uuid4().hex}"
        jobs.queue.enqueue_call(name, args=(f"touch {target}",), job_id=job_id)
        work(jobs, finish)
        job = TableJob.fetch(job_id, jobs.client)
        assert job.get_status() == "failed"
        assert "this trainer runs ['training.jobs.retrain']" in job.latest_result().exc_string
        assert not target.exists()


def test_a_trainer_with_a_function_outside_the_allow_list_does_not_start(jobs):
    with pytest.raises(BadInput, match=r"os\.system"):
        Trainer(jobs, {"os.system": finish})


def test_callbacks_and_webhooks_in_the_jobs_hash_are_not_read(jobs, stream):
    job_id = f"evil-{uuid.uuid4().hex}"
    name = Callback("os.abort")
    jobs.queue.enqueue_call(
        RETRAIN, kwargs={"request": to_plain(request_for(stream))}, job_id=job_id, on_success=name, on_failure=name,
    )
    jobs.client.hset(Job.key_for(job_id), "webhooks", '[{"url": "http://127.0.0.1:1/", "job_status": "finished"}]')
    work(jobs, finish)
    job = TableJob.fetch(job_id, jobs.client)
    assert job.get_status() == "finished"
    assert job.success_callback is None
    assert job.failure_callback is None
    assert job.webhooks == []


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("field", ["data", "meta", "result"])
def test_a_pickle_in_redis_is_never_loaded(jobs, stream, tmp_path, field):
    target = tmp_path / "boom"
    job_id = jobs.submit(request_for(stream)).job_id
    jobs.client.hset(Job.key_for(job_id), field, pickle.dumps(Bomb(str(target))))
    jobs.jobs(stream)
    work(jobs, finish)
    jobs.jobs()
    with suppress(Exception):                            # RQ's own default look-up, as two of its registries use it
        print(Job.fetch(job_id, jobs.client).func_name)
    assert not target.exists()
    pickle.loads(pickle.dumps(Bomb(str(target))))
    assert target.exists(), "the bomb is a dud, this test proves nothing"


def test_what_a_job_leaves_in_redis_is_json(jobs, stream):
    job_id = jobs.submit(request_for(stream)).job_id
    work(jobs, report_and_finish)
    fields = jobs.client.hgetall(Job.key_for(job_id))
    assert json.loads(zlib.decompress(fields[b"data"]))[0] == RETRAIN
    assert json.loads(fields[b"meta"]) == {"stage": "training", "progress": 0.5}
    assert TableJob.fetch(job_id, jobs.client).return_value() == {"outcome": "promoted", "stream": stream}


def test_asking_returns_at_once_and_survives_a_redis_that_is_away(stream):
    away = JobQueue(connect("redis://127.0.0.1:1/0", timeout_s=0.2))
    asker = Asker(away, backoff_s=(0.05,))
    tries: list[float] = []

    def make() -> RetrainRequest:
        tries.append(time.monotonic())
        return request_for(stream)

    began = time.monotonic()
    asker.ask(stream, make, cooldown_s=60)
    assert time.monotonic() - began < 0.1
    assert until(lambda: len(tries) >= 3)
    assert asker.waiting == 1
    asker.close()


def test_what_was_asked_while_redis_was_away_arrives_later(jobs, stream):
    asker = Asker(jobs, backoff_s=(0.05,))
    fails = iter([Unreachable("Kafka is away"), RuntimeError("a bug"), None])

    def make() -> RetrainRequest:
        error = next(fails)
        if error is not None:
            raise error
        return msgspec.structs.replace(request_for(stream), reason="third try")

    asker.ask(stream, make, cooldown_s=60)
    assert until(lambda: not asker.waiting)
    assert [fact.reason for fact in jobs.jobs(stream)] == ["third try"]
    asker.close()


def test_a_request_that_can_never_be_right_is_dropped(jobs, stream):
    asker = Asker(jobs, backoff_s=(0.05,))
    asker.ask(stream, lambda: msgspec.structs.replace(request_for(stream), ranges={}), cooldown_s=60)
    assert until(lambda: not asker.waiting)
    assert jobs.jobs(stream) == []
    asker.close()
