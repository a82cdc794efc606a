"""Retraining jobs over a Redis with a password, and through TLS.

The embedded Redis is built without TLS: a TLS end of ours stands before it, as stunnel does in front of older servers.
"""

import asyncio
import ssl
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import Unreachable
from pipeline.local import LocalRedis
from pipeline.retraining.lease import acquire
from pipeline.retraining.queue import RETRAIN, JobQueue, connect, reaching
from pipeline.retraining.request import RetrainRequest
from pipeline.retraining.trainer import Trainer
from tests.support.certificates import make_certificates

PASSWORD = "secret"
REQUEST = RetrainRequest(
    stream="pump", topic="t", ranges={0: (0, 1)}, contract_hash="c", champion=None, reason="test", requested_ms=1,
)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[LocalRedis]:
    with LocalRedis(tmp_path_factory.mktemp("redis"), password=PASSWORD) as server:
        yield server


@pytest.fixture(scope="module")
def certificates(tmp_path_factory) -> tuple[Path, Path, Path]:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def tls_port(server: LocalRedis, certificates: tuple[Path, Path, Path]) -> Iterator[int]:
    """Port of a TLS end before the server."""
    _, chain, key = certificates
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    loop = asyncio.new_event_loop()
    ports: list[int] = []
    ready = threading.Event()

    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(1 << 16):
                target.write(data)
                await target.drain()
        except OSError:
            pass
        finally:
            target.close()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", server.port)
        await asyncio.gather(copy(reader, inner_writer), copy(inner_reader, writer))

    async def serve() -> None:
        end = await asyncio.start_server(forward, "127.0.0.1", 0, ssl=context)
        ports.append(end.sockets[0].getsockname()[1])
        ready.set()

    def run() -> None:
        loop.run_until_complete(serve())
        loop.run_forever()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(20)
    yield ports[0]
    loop.call_soon_threadsafe(loop.stop)
    thread.join(20)


def run_one_job(jobs: JobQueue) -> str:
    """Submits a job, has it run by a trainer, and returns its outcome."""
    job_id = jobs.submit(REQUEST).job_id
    Trainer(jobs, {RETRAIN: lambda job, request: {"outcome": "promoted"}}).work(burst=True, logging_level="CRITICAL")
    return jobs.job(job_id).outcome


def test_a_job_runs_over_tls_with_a_password(tls_port, certificates):
    client = connect(f"rediss://127.0.0.1:{tls_port}/0?ssl_ca_certs={certificates[0]}", PASSWORD)
    assert run_one_job(JobQueue(client, f"test-{uuid.uuid4().hex}")) == "promoted"
    lease = acquire(client, f"test-{uuid.uuid4().hex}", 60_000)
    assert lease is not None
    assert lease.renew()
    client.close()


def test_a_certificate_of_a_stranger_is_refused(tls_port, certificates):
    client = connect(f"rediss://127.0.0.1:{tls_port}/0", PASSWORD)
    with pytest.raises(Unreachable, match="certificate"), reaching():
        client.ping()


@pytest.mark.parametrize("password", [None, "wrong"])
def test_a_wrong_or_missing_password_is_told_as_such(server, password):
    with pytest.raises(Unreachable, match=r"redis\.password"):
        JobQueue(connect(f"redis://127.0.0.1:{server.port}/0", password)).submit(REQUEST)


def test_no_message_shows_the_password(server, tls_port):
    for url in (f"rediss://:{PASSWORD}@127.0.0.1:{tls_port}/0", f"redis://:{PASSWORD}x@127.0.0.1:{server.port}/0"):
        with pytest.raises(Unreachable) as told, reaching():
            connect(url).ping()
        assert PASSWORD not in str(told.value)
