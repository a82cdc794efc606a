"""A trainer killed at any moment: the champion is whole, the job is run again, and is promoted exactly once."""

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.registry.store import Registry, Superseded
from pipeline.retraining.lease import acquire
from pipeline.retraining.queue import JobFacts, JobQueue, connect
from pipeline.retraining.request import RetrainRequest
from tests.support.small_bundle import write_small_bundle
from tests.support.waiting import gone, until

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 60


@dataclass
class Place:
    """A queue, a registry with a champion, and the trainers that work on them."""

    url: str
    jobs: JobQueue
    registry: Registry
    traces: Path
    stream: str
    trainers: list[subprocess.Popen]

    def start_trainer(self) -> subprocess.Popen:
        trainer = subprocess.Popen(
            [sys.executable, "-m", "tests.support.fake_trainer", self.url, self.jobs.queue.name,
             str(self.registry.root), str(self.traces)], cwd=ROOT,
        )
        self.trainers.append(trainer)
        return trainer

    def submit(self, end: int = 100) -> str:
        request = RetrainRequest(
            stream=self.stream, topic="readings", ranges={0: (0, end)}, contract_hash="c" * 64, champion=None,
            reason="test", requested_ms=end,
        )
        return self.jobs.submit(request, retry_after_s=(1, 1, 1)).job_id

    def runs(self) -> list[int]:
        """Process ids of the training runs so far."""
        file = self.traces / "runs"
        return [int(line) for line in file.read_text().split()] if file.exists() else []

    def fact(self, job_id: str) -> JobFacts:
        return self.jobs.job(job_id)


@pytest.fixture
def place(redis, tmp_path: Path) -> Iterator[Place]:
    registry = Registry(tmp_path / "registry")
    traces = tmp_path / "traces"
    traces.mkdir()
    stream = f"pump-{uuid.uuid4().hex[:8]}"
    champion = registry.publish(stream, write_small_bundle(tmp_path / "champion", 1).folder)
    registry.promote(stream, champion, now_ms=1)
    client = connect(redis.url)
    place = Place(redis.url, JobQueue(client, f"test-{uuid.uuid4().hex}"), registry, traces, stream, [])
    yield place
    for trainer in place.trainers:
        trainer.kill()
        trainer.wait()
    client.close()


def test_a_job_promotes_and_the_next_goes_on_from_there(place):
    place.start_trainer()
    first = place.submit(100)
    assert until(lambda: place.fact(first).state == "finished", TIMEOUT_S)
    second = place.submit(200)
    assert until(lambda: place.fact(second).state == "finished", TIMEOUT_S)
    assert [place.fact(job).outcome for job in (first, second)] == ["promoted", "promoted"]
    assert [pointer.job for pointer in place.registry.history(place.stream)] == [None, first, second]
    assert place.fact(first).stage == "training"


def test_a_killed_trainer_leaves_no_orphan_and_its_job_is_promoted_once_by_the_next(place):
    (place.traces / "hold").touch()
    trainer = place.start_trainer()
    job = place.submit()
    assert until(lambda: len(place.runs()) == 1, TIMEOUT_S)
    before = place.registry.champion(place.stream)
    trainer.kill()
    trainer.wait()
    assert until(lambda: gone(place.runs()[0]), TIMEOUT_S)
    assert place.registry.champion(place.stream) == before
    (place.traces / "hold").unlink()
    place.start_trainer()
    assert until(lambda: place.fact(job).state == "finished", TIMEOUT_S)
    assert place.fact(job).outcome == "promoted"
    assert [pointer.job for pointer in place.registry.history(place.stream)] == [None, job]


def test_a_killed_training_run_alone_is_tried_again_by_the_same_trainer(place):
    (place.traces / "hold").touch()
    place.start_trainer()
    job = place.submit()
    assert until(lambda: len(place.runs()) == 1, TIMEOUT_S)
    os.kill(place.runs()[0], signal.SIGKILL)
    (place.traces / "hold").unlink()
    assert until(lambda: place.fact(job).state == "finished", TIMEOUT_S)
    assert len(place.runs()) == 2
    assert [pointer.job for pointer in place.registry.history(place.stream)] == [None, job]


def test_a_run_that_slept_past_its_lease_beside_its_retry_promotes_nothing(place):
    """The trainer and its run are stopped (a laptop lid, a swapped-out container), a second one takes the job up."""
    (place.traces / "hold").touch()
    stopped = place.start_trainer()
    job = place.submit()
    assert until(lambda: len(place.runs()) == 1, TIMEOUT_S)
    sleeper = place.runs()[0]
    stopped.send_signal(signal.SIGSTOP)
    os.kill(sleeper, signal.SIGSTOP)
    place.start_trainer()
    assert until(lambda: len(place.runs()) == 2, TIMEOUT_S)
    (place.traces / "hold").unlink()
    assert until(lambda: place.fact(job).state == "finished", TIMEOUT_S)
    standing = place.registry.champion(place.stream)
    os.kill(sleeper, signal.SIGCONT)
    stopped.send_signal(signal.SIGCONT)
    assert until(lambda: gone(sleeper), TIMEOUT_S)
    assert place.registry.champion(place.stream) == standing
    assert [pointer.job for pointer in place.registry.history(place.stream)] == [None, job]


def test_a_champion_moved_by_a_person_meanwhile_is_not_overwritten(place, tmp_path):
    (place.traces / "hold").touch()
    place.start_trainer()
    job = place.submit()
    assert until(lambda: len(place.runs()) == 1, TIMEOUT_S)
    other = place.registry.publish(place.stream, write_small_bundle(tmp_path / "other", 9).folder)
    place.registry.promote(place.stream, other, now_ms=2)
    (place.traces / "hold").unlink()
    assert until(lambda: place.fact(job).state == "finished", TIMEOUT_S)
    assert place.fact(job).outcome == "superseded"
    assert place.registry.champion(place.stream).digest == other


def test_a_cancelled_run_stops_and_promotes_nothing(place):
    (place.traces / "hold").touch()
    place.start_trainer()
    job = place.submit()
    assert until(lambda: len(place.runs()) == 1, TIMEOUT_S)
    assert place.jobs.cancel(job) == "stopping"
    assert until(lambda: place.fact(job).state == "stopped", TIMEOUT_S)
    assert until(lambda: gone(place.runs()[0]), TIMEOUT_S)
    assert [pointer.job for pointer in place.registry.history(place.stream)] == [None]
    (place.traces / "hold").unlink()
    assert place.submit() == job
    assert until(lambda: place.fact(job).state == "finished", TIMEOUT_S)
    assert place.fact(job).outcome == "promoted"


def test_a_run_that_always_fails_is_given_up_and_the_champion_stays(place):
    (place.traces / "raise").touch()
    place.start_trainer()
    job = place.submit()
    assert until(lambda: place.fact(job).state == "failed", TIMEOUT_S)
    assert len(place.runs()) == 4
    assert "told to" in place.fact(job).error
    assert place.registry.champion(place.stream).revision == 1


@pytest.mark.parametrize("step", ["publish", "promote", "after"])
def test_a_kill_around_the_promotion_promotes_once_all_the_same(place, step, tmp_path):
    """What the job does around the pointer, with a kill in between, then the job's second run on a trainer."""
    request = RetrainRequest(
        stream=place.stream, topic="readings", ranges={0: (0, 100)}, contract_hash="c" * 64, champion=None,
        reason="test", requested_ms=100,
    )
    before = place.registry.champion(place.stream)
    lease = acquire(place.jobs.client, f"train:{place.stream}", 500, above=1)
    if step != "publish":
        digest = place.registry.publish(place.stream, write_small_bundle(tmp_path / "made", 100).folder)
    if step == "after":
        place.registry.promote(
            place.stream, digest, now_ms=2, token=lease.token, expected_revision=1, job=request.job_id,
        )
    place.start_trainer()
    job = place.submit()
    assert until(lambda: place.fact(job).state == "finished", TIMEOUT_S)
    assert place.fact(job).outcome == "promoted"
    assert [pointer.job for pointer in place.registry.history(place.stream)] == [None, job]
    with pytest.raises(Superseded):
        place.registry.promote(
            place.stream, before.digest, now_ms=3, token=lease.token, expected_revision=before.revision,
        )


def test_sigterm_lets_the_running_job_end_and_takes_no_other(place):
    (place.traces / "hold").touch()
    trainer = place.start_trainer()
    job = place.submit(100)
    assert until(lambda: len(place.runs()) == 1, TIMEOUT_S)
    waiting = place.submit(200)
    trainer.terminate()
    assert not until(lambda: trainer.poll() is not None, 1), "it waits for its job"
    (place.traces / "hold").unlink()
    assert trainer.wait(TIMEOUT_S) == 0
    assert place.fact(job).outcome == "promoted"
    assert place.fact(waiting).state == "queued"


def test_two_trainers_never_train_one_stream_at_once(place):
    (place.traces / "hold").touch()
    place.start_trainer()
    place.start_trainer()
    jobs = [place.submit(100), place.submit(200)]
    assert until(lambda: [place.fact(job).state for job in jobs] == ["started", "started"], TIMEOUT_S)
    assert until(lambda: "waiting for the lease" in {place.fact(job).stage[:21] for job in jobs}, TIMEOUT_S)
    assert len(place.runs()) == 1
    (place.traces / "hold").unlink()
    assert until(lambda: [place.fact(job).outcome for job in jobs] == ["promoted", "promoted"], TIMEOUT_S)
    assert [pointer.revision for pointer in place.registry.history(place.stream)] == [1, 2, 3]
