"""Which rows of a topic are left out of training, in memory and on disk."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.core.contract import Channel, Contract
from pipeline.core.maintenance import Plan, Window
from pipeline.formats.files import Table
from training import sources
from training.data import rows_inside, windows_of
from training.masks import Masks
from training.prepare import CALIBRATION, COVARIANCE, FIT
from training.spool import spool

CONTRACT = Contract(channels=(Channel(name="a"), Channel(name="b")), window=4, memory=8)
ROWS = 400


def table_of(fault: slice = slice(0)) -> Table:
    """Devices one and two in turn, a row a second; `fault` rows of each lie far off."""
    steps = np.repeat(np.arange(ROWS), 2)
    values = np.random.default_rng(0).normal(size=(2 * ROWS, 2)).astype(np.float32)
    values[np.isin(steps, np.arange(ROWS)[fault])] += 50
    return Table(devices=("one", "two"), device=np.tile([0, 1], ROWS), ts_ms=1000 * steps, channels=CONTRACT.names,
                 values=values, reason=np.zeros(2 * ROWS, np.uint8))


def masks() -> Masks:
    """An alert of one, a false one of two, maintenance of both; and what is of other devices and streams."""
    windows = (Window(id="w", stream="pump", begin_ms=300_000, end_ms=310_000),
               Window(id="v", stream="fan", begin_ms=0, end_ms=900_000))
    alerted = {"e": ("one", 350_000, np.iinfo(np.int64).max), "f": ("two", 100_000, 119_000), "g": ("six", 0, 900_000)}
    return Masks("pump", alerted, frozenset({"f", "x"}), Plan(2, windows), {"maintenance": 2})


def test_spans_mark_their_device_from_the_first_to_the_last_millisecond() -> None:
    inside = rows_inside(table_of(), [("two", 10_000, 12_000), ("one", 11_500, 12_500), ("six", 0, 99_000)])
    assert np.flatnonzero(inside).tolist() == [21, 23, 24, 25]


@pytest.mark.parametrize("is_on_disk", [False, True])
def test_masked_rows_belong_to_no_part_and_stand_in_no_window_that_is_learned(tmp_path: Path, is_on_disk: bool) -> None:
    asked = sources.Asked(CONTRACT, {}, (), tmp_path / "s")
    source: dict = {}
    with spool([table_of()], asked.folder) as laid:
        ready = (sources.on_disk(laid, asked, source, 10_000, masks()) if is_on_disk
                 else sources.in_memory(table_of(), asked, source, masks()))
    prepared = ready.prepared
    wanted = np.zeros((2, ROWS), bool)
    wanted[0, 350:] = wanted[1, 100:120] = wanted[:, 300:310] = True
    np.testing.assert_array_equal(prepared.part < 0, wanted.ravel())
    assert prepared.pardoned is not None
    assert np.flatnonzero(prepared.pardoned).tolist() == list(range(ROWS + 100, ROWS + 120))
    for part in (FIT, COVARIANCE, CALIBRATION):
        ends = windows_of(prepared, part).ends
        assert len(ends)
        assert not any(wanted.ravel()[ends - back].any() for back in range(CONTRACT.window))
    if is_on_disk:
        assert (source["masked_rows"], source["pardoned_rows"]) == (wanted.sum(), 20)


@pytest.mark.parametrize("is_on_disk", [False, True])
def test_alerted_rows_are_not_refused_as_unlike_the_rest(tmp_path: Path, is_on_disk: bool) -> None:
    asked = sources.Asked(CONTRACT, {}, (), tmp_path / "s")
    known = Masks("pump", {name: (name, 150_000, 250_000) for name in ("one", "two")})
    source: dict = {}
    table = table_of(slice(150, 251))
    with spool([table], asked.folder) as laid:
        ready = (sources.on_disk(laid, asked, source, 10_000, known) if is_on_disk
                 else sources.in_memory(table, asked, source, known))
    assert "odd_rows" not in source
    assert np.abs(ready.prepared.values[ready.prepared.part >= 0]).max() < 10
