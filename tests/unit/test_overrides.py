"""The pinned Faust and aiokafka are those that the overrides were written for."""

import pytest

from pipeline.engine import overrides
from pipeline.engine.overrides import Symbol
from pipeline.engine.transport import install_fetch
from pipeline.errors import StopWorker


def test_nothing_moved_under_the_overrides() -> None:
    assert overrides.moved() == []


def test_our_own_class_in_place_of_aiokafkas_is_looked_through() -> None:
    install_fetch()
    assert overrides.moved() == []


def test_a_symbol_that_moved_is_named_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = Symbol("faust.transport.consumer:Consumer.getmany", "000000000000", "one message a poll")
    gone = Symbol("faust.transport.consumer:Consumer.no_such_thing", "000000000000", "it was there")
    monkeypatch.setattr(overrides, "SYMBOLS", (moved, gone))
    with pytest.raises(StopWorker, match=r"getmany \(one message a poll\).*no_such_thing \(it was there\)"):
        overrides.check()
