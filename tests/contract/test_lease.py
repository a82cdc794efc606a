"""A lease on a real Redis: one holder at a time, tokens that only grow, and a stale holder that can be told."""

import time
import uuid
from collections.abc import Iterator

import pytest
from redis import Redis

from pipeline.errors import Unreachable
from pipeline.registry.store import Registry, Superseded
from pipeline.retraining.lease import acquire
from pipeline.retraining.queue import connect, reaching
from tests.support.small_bundle import write_small_bundle
from tests.support.waiting import until


@pytest.fixture
def client(redis) -> Iterator[Redis]:
    client = connect(redis.url)
    yield client
    client.close()


@pytest.fixture
def name() -> str:
    return f"test-{uuid.uuid4().hex}"


def test_a_second_holder_waits_until_the_first_gives_back(client, name):
    first = acquire(client, name, 60_000)
    assert acquire(client, name, 60_000) is None
    assert first.release()
    second = acquire(client, name, 60_000)
    assert second.token > first.token


def test_a_lease_that_ran_out_goes_to_the_next_and_its_old_holder_can_do_nothing(client, name):
    stale = acquire(client, name, 1)
    assert until(lambda: not client.exists(stale.key))
    holder = acquire(client, name, 60_000)
    assert holder.token > stale.token
    assert not stale.renew()
    assert not stale.release()
    assert acquire(client, name, 60_000) is None
    assert holder.renew()


def test_renewing_keeps_the_lease_and_gives_it_back_at_the_end(client, name):
    lease = acquire(client, name, 300)
    with lease.renewing():
        began = time.monotonic()
        assert until(lambda: time.monotonic() - began > 1.0)
        assert acquire(client, name, 300) is None
    assert acquire(client, name, 300) is not None


def test_tokens_go_on_above_the_registrys_when_redis_has_forgotten_its_counter(client, name):
    assert acquire(client, name, 60_000, above=41).token == 42
    client.delete(f"narrows:lease:{name}", f"narrows:fence:{name}")
    assert acquire(client, name, 60_000, above=42).token == 43


def test_a_stale_token_is_refused_at_the_pointer(client, name, tmp_path):
    registry = Registry(tmp_path)
    old, new = (registry.publish("pump", write_small_bundle(tmp_path / str(seed), seed).folder) for seed in (1, 2))
    stale = acquire(client, name, 1)
    assert until(lambda: not client.exists(stale.key))
    registry.promote("pump", new, now_ms=2, token=acquire(client, name, 60_000).token)
    with pytest.raises(Superseded):
        registry.promote("pump", old, now_ms=3, token=stale.token)
    assert registry.champion("pump").digest == new


def test_a_redis_that_is_not_there_is_told_in_one_line():
    with pytest.raises(Unreachable, match=r"redis\.url"), reaching():
        acquire(connect("redis://127.0.0.1:1/0", timeout_s=0.2), "any", 1)
