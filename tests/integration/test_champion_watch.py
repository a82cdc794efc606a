"""Workers hear of a new champion: through Redis at once, without Redis by polling, never of a damaged one."""

from pathlib import Path

import pytest

from pipeline.registry.store import Pointer, Registry
from pipeline.retraining.promotion import ChampionWatch, announce
from pipeline.retraining.queue import connect
from tests.support.small_bundle import write_small_bundle
from tests.support.waiting import until


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


@pytest.fixture
def digests(registry: Registry, tmp_path: Path) -> list[str]:
    return [registry.publish("pump", write_small_bundle(tmp_path / str(seed), seed).folder) for seed in range(3)]


def test_the_standing_champion_comes_first_and_each_new_one_once(registry, digests):
    registry.promote("pump", digests[0], now_ms=1)
    told: list[Pointer] = []
    watch = ChampionWatch(registry, ["pump", "fan"], told.append, poll_s=0.02)
    assert until(lambda: len(told) == 1)
    registry.promote("pump", digests[1], now_ms=2)
    assert until(lambda: len(told) == 2)
    registry.rollback("pump", now_ms=3)
    assert until(lambda: len(told) == 3)
    watch.close()
    assert [pointer.digest for pointer in told] == [digests[0], digests[1], digests[0]]


def test_a_notice_through_redis_cuts_the_wait_short(registry, digests, redis):
    client = connect(redis.url)
    told: list[Pointer] = []
    watch = ChampionWatch(registry, ["pump"], told.append, poll_s=3_600, client=client)
    registry.promote("pump", digests[0], now_ms=1)

    def heard() -> bool:
        announce(client, "pump")                          # the subscription may not stand yet at the first
        return bool(told)

    assert until(heard)
    watch.close()
    client.close()


def test_without_redis_polling_goes_on_and_announcing_raises_nothing(registry, digests):
    away = connect("redis://127.0.0.1:1/0", timeout_s=0.2)
    told: list[Pointer] = []
    watch = ChampionWatch(registry, ["pump"], told.append, poll_s=0.02, client=away)
    registry.promote("pump", digests[0], now_ms=1)
    announce(away, "pump")
    assert until(lambda: told)
    watch.close()


def test_a_damaged_pointer_is_no_new_champion_and_the_next_whole_one_is(registry, digests):
    told: list[Pointer] = []
    registry.promote("pump", digests[0], now_ms=1)
    watch = ChampionWatch(registry, ["pump"], told.append, poll_s=0.02)
    assert until(lambda: told)
    (registry.root / "pump" / "champion.json").write_bytes(b'{"format": 1, "stream": "pu')
    registry.promote("pump", digests[1], now_ms=2)
    assert until(lambda: len(told) == 2)
    watch.close()
    assert [pointer.revision for pointer in told] == [1, 2]


def test_a_callback_that_raises_is_called_again(registry, digests):
    calls: list[int] = []

    def changed(pointer: Pointer) -> None:
        calls.append(pointer.revision)
        if len(calls) < 3:
            raise RuntimeError("the bundle is on its way")

    registry.promote("pump", digests[0], now_ms=1)
    watch = ChampionWatch(registry, ["pump"], changed, poll_s=0.02)
    assert until(lambda: len(calls) == 3)
    watch.close()
    assert calls == [1, 1, 1]
