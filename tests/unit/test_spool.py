"""Rows that don't fit into memory: the same blocks and windows as from memory, and memory stays bounded."""

import json
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet
import pytest

pytest.importorskip("torch")

from pipeline.core.scaling import Moments
from pipeline.errors import BadInput
from pipeline.formats.files import FileOptions, Table, count_rows, read_blocks, read_tables
from pipeline.registry.bundle import load_bundle
from tests.unit.test_training_cli import call
from training import data, duel, jobs, loop, sources, spool
from training.models import BY_NAME, Shape
from training.prepare import prepare
from training.recipe import Recipe
from training.windows import Windows


def rows_of(count: int, seed: int = 0, channels: int = 2) -> np.ndarray:
    rng = np.random.default_rng(seed)
    steps = np.arange(count)[:, None] / (7 + 3 * np.arange(channels)) + seed
    return (np.sin(steps) + 0.1 * rng.normal(size=(count, channels))).astype(np.float32)


def blocks_of(counts: tuple[int, ...], channels: int = 2, size: int = 501) -> list[Table]:
    """Devices whose rows come in turn, in blocks; a device's clock misses an hour in its middle."""
    device = np.concatenate([np.full(count, place) for place, count in enumerate(counts)])
    ts_ms = np.concatenate([
        1000 * np.arange(count) + 3_600_000 * (np.arange(count) > max(50, count // 2)) for count in counts])
    values = np.concatenate([rows_of(count, place, channels) for place, count in enumerate(counts)])
    order = np.argsort(ts_ms, kind="stable")
    names = tuple(f"d{place}" for place in range(len(counts)))
    table = Table(names, device[order], ts_ms[order] + 1_700_000_000_000, tuple("abcdefgh"[:channels]), values[order],
                  labels={"bad": (order % 97 == 0).astype(float)}, reason=np.zeros(len(order), np.uint8))
    return [table.take(slice(start, start + size)) for start in range(0, len(table), size)]


def joined(blocks: list[Table]) -> Table:
    first = blocks[0]
    return replace(
        first, device=np.concatenate([one.device for one in blocks]),
        ts_ms=np.concatenate([one.ts_ms for one in blocks]), values=np.concatenate([one.values for one in blocks]),
        labels={"bad": np.concatenate([one.labels["bad"] for one in blocks])},
        reason=np.concatenate([one.reason for one in blocks]))


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
@pytest.mark.parametrize("options", [
    FileOptions(label_columns=("anomaly",)), FileOptions(rows=(700, 2100)), FileOptions(device_column="who"),
    FileOptions(time_columns=("none",), step_s=0.3, device_column="who", ignore_columns=("ts",)),
], ids=["labels", "rows", "devices", "made times"])
def test_the_blocks_of_a_file_are_its_rows(suffix: str, options: FileOptions, tmp_path: Path) -> None:
    values = np.round(rows_of(3000), 3)
    values[2500:, 0] = values[2500:, 0] + 0.5
    whole = pa.table({"ts": 1_700_000_000 + np.arange(3000), "who": [f"p{one % 3}" for one in range(3000)],
                      "x": np.r_[np.arange(2990), np.arange(10) + 0.5], "y": values[:, 1].astype(float),
                      "anomaly": (np.arange(3000) > 2800).astype(int)})
    path = tmp_path / f"one.{suffix}"
    if suffix == "parquet":
        pyarrow.parquet.write_table(whole, path)
    elif suffix == "csv":
        path.write_text("\n".join([";".join(whole.column_names), *(
            ";".join(map(str, row.values())) for row in whole.to_pylist())]))
    else:
        path.write_text("\n".join(map(json.dumps, whole.to_pylist())))
    if options.device_column is None:
        options = replace(options, ignore_columns=(*options.ignore_columns, "who"))
    wanted = read_tables([path], options)
    blocks = list(read_blocks([path], options, block_bytes=16 << 10))
    assert len(blocks) > 2
    np.testing.assert_array_equal(np.concatenate([one.ts_ms for one in blocks]), wanted.ts_ms)
    np.testing.assert_allclose(np.concatenate([one.values for one in blocks]), wanted.values, rtol=1e-6)
    names = [name for one in blocks for name in np.array(one.devices)[one.device]]
    assert names == np.array(wanted.devices)[wanted.device].tolist()
    np.testing.assert_array_equal(np.concatenate([one.labels["anomaly"] for one in blocks]), wanted.labels["anomaly"])
    assert count_rows([path], options)[0] == pytest.approx(len(wanted), rel=0.1)


def test_what_is_wrong_in_a_later_block_is_told_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "one.csv"
    path.write_text("ts,x\n" + "".join(f"{1_700_000_000 + one},{one}\n" for one in range(3000)) + "1700003000,wet\n")
    with pytest.raises(BadInput, match=r"one\.csv.*wet"):
        list(read_blocks([path], block_bytes=4096))
    with pytest.raises(BadInput, match="--memory-mb"):
        list(read_blocks([path], FileOptions(rows=(-5, None))))


def test_rows_lie_by_device_and_late_ones_are_left_out(tmp_path: Path) -> None:
    blocks = blocks_of((900, 700))
    late = replace(blocks[2].take(slice(0, 2)), ts_ms=blocks[0].ts_ms[:2])
    with spool.spool([*blocks[:3], late, *blocks[3:]], tmp_path / "s", ("bad",)) as laid:
        assert (len(laid), laid.dropped) == (1600, 2)
        for place in (0, 1):
            every = joined(blocks).take(joined(blocks).device == place)
            span = slice(laid.starts[place], laid.stops[place])
            np.testing.assert_array_equal(laid.values[span], every.values)
            np.testing.assert_array_equal(laid.ts_ms[span], every.ts_ms)
            np.testing.assert_array_equal(laid.label[span], every.labels["bad"])
    assert not (tmp_path / "s").exists()


def test_time_that_goes_backwards_is_refused_on_disk_too(tmp_path: Path) -> None:
    blocks = blocks_of((900,))
    with (spool.spool([*blocks, *blocks], tmp_path / "s") as laid,
          pytest.raises(BadInput, match=r"time goes backwards.*--device-column")):
        laid.check_order()


@pytest.mark.parametrize("counts", [(3000, 1100), (12,) * 40], ids=["series", "pictures"])
def test_the_windows_on_disk_are_those_of_memory(
    counts: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "CHUNK", 257)
    blocks = blocks_of(counts)
    table = joined(blocks)
    contract = data.derive_contract(table, window=8, memory=16)
    wanted_prepared = prepare(
        contract, table.devices, table.device, table.ts_ms, table.values, mask=table.labels["bad"] > 0)
    wanted = data.learning_windows(wanted_prepared, 0.2)
    with spool.spool(blocks, tmp_path / "s", ("bad",)) as laid:
        laid.cut(contract)
        np.testing.assert_array_equal(laid.part, wanted_prepared.part)
        _, prepared = laid.prepare(contract, len(table) // 2 if len(counts) == 2 else len(table))
        got = laid.learn(prepared, 0.2)
        np.testing.assert_allclose(prepared.scaling.location, wanted_prepared.scaling.location, rtol=1e-9)
        np.testing.assert_allclose(prepared.scaling.scale, wanted_prepared.scaling.scale, rtol=1e-9)
        for one, other in zip(got, wanted, strict=True):
            np.testing.assert_array_equal(one.ends, other.ends)
            np.testing.assert_allclose(one.raw(slice(None)), other.raw(slice(None)), atol=1e-6)


def test_no_window_of_the_sample_spans_a_hole_and_each_part_is_in_it(tmp_path: Path) -> None:
    blocks = blocks_of((9000, 4000))
    contract = data.derive_contract(joined(blocks), window=8, memory=16)
    with spool.spool(blocks, tmp_path / "s") as laid:
        laid.cut(contract)
        table, prepared = laid.prepare(contract, 2500)
        assert 1500 < len(table) < 3500
        assert {0, 1, 2} <= set(prepared.part)
        whole = prepared.run >= contract.window
        spans = prepared.ts_ms[whole] - prepared.ts_ms[np.flatnonzero(whole) - contract.window + 1]
        assert spans.max() == 1000 * (contract.window - 1)


def test_an_odd_stretch_is_found_on_disk_and_its_rows_are_masked(tmp_path: Path) -> None:
    blocks = blocks_of((6000,))
    for block in blocks[6:8]:
        block.values[:, 1] += 20
    contract = data.derive_contract(joined(blocks), window=8)
    with spool.spool(blocks, tmp_path / "s") as laid:
        odd, rows = laid.find_odd(contract, 1500)
        assert 0.1 < odd.share < 0.2
        assert rows[6 * 501 + 50 : 8 * 501 - 50].all()
        assert not rows[: 6 * 501 - 50].any()


def test_moments_join_as_if_they_were_of_all_values() -> None:
    values = rows_of(300)
    values[5, 1] = np.nan
    device = np.arange(300) % 3
    whole = Moments.of(values, device, 3)
    parts = Moments.of(values[:100], device[:100], 3).joined(Moments.of(values[100:], device[100:], 3))
    for name in ("count", "mean", "square"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-9)


def test_a_lap_shows_every_window_once_also_where_their_order_is_drawn_in_rounds(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SHUFFLED", 64)
    windows = Windows(np.zeros((310, 1), np.float32), np.arange(7, 307), 8, np.array([0]))
    recipe = Recipe(batch=10, hidden=(4,), latent=1)
    runner = loop.Runner(BY_NAME["dense"](Shape(8, 1, (0,), 1), recipe), windows, recipe, loop.pick_device(recipe))
    shown = np.concatenate(list(runner._batches(1, 10_000)))
    assert sorted(shown.tolist()) == list(range(300))
    assert shown.tolist() != np.concatenate(list(runner._batches(2, 10_000))).tolist()


def test_memory_stays_under_what_was_given_however_many_rows_come(tmp_path: Path) -> None:
    values = rows_of(20_000, channels=8)

    def blocks() -> Iterator[Table]:
        for part in range(60):
            steps = 20_000 * part + np.arange(20_000)
            yield Table(("d",), np.zeros(20_000, np.int64), 1_700_000_000_000 + 1000 * steps, tuple("abcdefgh"),
                        values, reason=np.zeros(20_000, np.uint8))

    asked = sources.Asked(None, {"window": 8, "memory": 16}, (), tmp_path / "s", accept=True, memory_mb=10)
    tracemalloc.start()
    with spool.spool(blocks(), asked.folder) as laid:              # 1 200 000 rows of 8 channels: 38 MB as float32
        ready = sources.on_disk(laid, asked, {}, asked.most_rows(8))
        learn, held_out = ready.windows(0.2)
        learn.inputs(np.arange(0, len(learn), 1000))
        assert len(learn) + len(held_out) > 0.58 * 1_200_000
        peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6                                              # in memory its arrays take 1.5 GB


def test_train_lays_rows_on_disk_that_do_not_fit_and_says_so(tmp_path: Path) -> None:
    lines = ["ts,a,b,anomaly"]
    values = rows_of(6000)
    lines += [f"{1_700_000_000 + one},{row[0]:.4f},{row[1]:.4f},{int(3000 <= one < 3030)}"
              for one, row in enumerate(values)]
    (tmp_path / "pump.csv").write_text("\n".join(lines))
    done = call("train", tmp_path / "pump.csv", "--out", tmp_path / "bundle", "--window", 8, "--memory", 40, "--epochs",
                2, "--label-column", "anomaly", "--memory-mb", 2, "--accept-shift", "--no-report",
                "--set", "profile=alone")
    assert "laid on disk" in done.stderr
    facts = load_bundle(tmp_path / "bundle").manifest.data
    assert (facts["rows"], facts["masked_rows"]) == (6000, 30)
    assert facts["sampled_rows"] < 4500
    assert not list(tmp_path.glob("*.spool"))


def test_a_retraining_holds_no_more_rows_than_fit_and_says_how_many_it_looked_at(tmp_path: Path) -> None:
    contract = data.derive_contract(joined(blocks_of((6000,))), window=8, memory=40)
    stream = SimpleNamespace(contract=contract, topic="t", retrain=SimpleNamespace(family="linear"))
    with spool.spool(blocks_of((6000,)), tmp_path / "s") as laid:
        earlier, places, lead = duel.cut(laid, contract, 1500)
        none = laid.inside((), "none")
        bundle = jobs._fit(stream, None, earlier, (none, none), 1500, tmp_path / "b", {}, lambda *_: None)  # type: ignore[arg-type]
        figures = duel.measure(bundle, laid.take(places), lead, np.zeros(len(places), bool), bundle.scaling)
    assert bundle.manifest.data["rows"] == 4800
    assert bundle.manifest.data["sampled_rows"] < 2000
    assert figures.rows == 1200
