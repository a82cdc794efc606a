"""Loaded bundles of a worker: a new champion is taken, a bad one is refused and the old one scores on."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import StopWorker
from pipeline.registry.bundle import Bundle
from pipeline.registry.store import Registry
from pipeline.scoring.models import ModelShelf
from tests.support.models import small_contract, write_small_bundle

CONTRACT = small_contract(2)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


@pytest.fixture
def champion(registry: Registry, tmp_path: Path) -> Callable[..., Bundle]:
    """Publishes and promotes a bundle made from a seed."""

    def promote(seed: int, contract=CONTRACT) -> Bundle:
        bundle = write_small_bundle(tmp_path / f"bundle{seed}", contract, seed)
        registry.promote("pump", registry.publish("pump", bundle.folder), now_ms=seed)
        return bundle

    return promote


@pytest.fixture
def refusals() -> list[str]:
    return []


@pytest.fixture
def shelf(registry: Registry, refusals: list[str]) -> ModelShelf:
    return ModelShelf(registry, {"pump": CONTRACT}, {}, "cpu", refusals.append)


def test_a_stream_with_neither_champion_nor_bundle_waits_for_one_and_says_so(shelf, champion, caplog):
    shelf.open()
    assert shelf.wanted("pump").is_blank
    assert shelf.load("pump", "none").is_blank
    assert "stream pump" in caplog.text
    assert "no_model" in caplog.text
    first = champion(1)
    assert shelf.look("pump")
    assert shelf.wanted("pump").digest == first.digest


def test_the_fallback_scores_until_there_is_a_champion(registry, champion, tmp_path):
    first = write_small_bundle(tmp_path / "fallback", CONTRACT, 9)
    shelf = ModelShelf(registry, {"pump": CONTRACT}, {"pump": first.folder}, "cpu")
    shelf.open()
    assert shelf.wanted("pump").digest == first.digest
    second = champion(1)
    assert shelf.look("pump")
    assert not shelf.look("pump")
    assert shelf.wanted("pump").digest == second.digest
    assert shelf.load("pump", first.digest).digest == first.digest


def test_a_champion_for_another_contract_is_refused_once_and_the_old_one_scores_on(shelf, champion, refusals):
    first = champion(1)
    shelf.open()
    champion(2, small_contract(3))
    for _ in range(3):
        assert not shelf.look("pump")
    assert shelf.wanted("pump").digest == first.digest
    assert refusals == ["pump"]


@pytest.mark.parametrize("damage", ["altered", "cut", "missing"])
def test_a_damaged_champion_is_refused_and_the_old_one_scores_on(shelf, registry, champion, refusals, damage):
    first = champion(1)
    shelf.open()
    model = registry.path("pump", champion(2).digest) / "model.onnx"
    content = model.read_bytes()
    model.unlink()
    if damage != "missing":
        model.write_bytes(content[:-7] if damage == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    assert not shelf.look("pump")
    assert shelf.wanted("pump").digest == first.digest
    assert refusals == ["pump"]


@pytest.mark.parametrize("content", [b"", b'{"format": 1', b"[]", b"null", b'{"format": 99}'])
def test_a_damaged_pointer_is_refused_and_the_champion_scores_on(shelf, registry, champion, refusals, content):
    first = champion(1)
    shelf.open()
    (registry.root / "pump" / "champion.json").write_bytes(content)
    assert not shelf.look("pump")
    assert shelf.wanted("pump").digest == first.digest
    assert refusals == ["pump"]


def test_a_pointer_that_can_not_be_read_does_not_end_the_worker(shelf, registry, champion, refusals):
    champion(1)
    shelf.open()
    pointer = registry.root / "pump" / "champion.json"
    pointer.unlink()
    pointer.mkdir()
    assert not shelf.look("pump")
    assert refusals == ["pump"]


def test_a_commit_that_names_a_bundle_which_is_gone_stops_the_worker(shelf, champion):
    champion(1)
    shelf.open()
    with pytest.raises(StopWorker, match="put it back into the registry"):
        shelf.load("pump", "f" * 64)


def test_models_that_nothing_names_are_closed(shelf, champion):
    first = champion(1)
    shelf.open()
    second = champion(2)
    shelf.look("pump")
    third = champion(3)
    shelf.look("pump")
    shelf.keep({second.digest})
    assert set(shelf._models) == {second.digest, third.digest}
    assert shelf.load("pump", first.digest).digest == first.digest
