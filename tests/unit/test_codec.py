"""Blocks, models and files of blocks: one case each of what the laws say, and what the laws don't."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from pipeline.cli.inspect import facts_of
from pipeline.cli.main import app
from pipeline.codec import (
    BadBlock,
    CodecModel,
    decode_block,
    encode_block,
    encode_blocks,
    model_of_block,
    pack_frame,
    unpack_frame,
)
from pipeline.codec.container import BlockFile, Run, write_file
from pipeline.codec.lattice import find_lattice
from pipeline.codec.quantise import code_of_bound, code_of_step, from_ordered, step_of_code, tighten, to_ordered
from pipeline.codec.summary import put_summary, summarise, take_summary
from pipeline.codec.train import train_codec
from pipeline.codec.wire import Reader
from tests.golden.make_blocks import recording
from tests.support.models import latent_model, small_contract, write_small_bundle

BOUNDS = np.array([1e-2, 1e-2, 1e-4, 1e-3, 1e-3, 1e-1])
TS_MS = 1_700_000_000_000 + 1000 * np.arange(500)


@pytest.fixture(scope="module")
def model() -> CodecModel:
    """Learned from 2000 rows of the golden recording."""
    return train_codec([recording(2000, 1)], BOUNDS, step_ms=1000)


def test_training_twice_gives_the_same_bytes(model: CodecModel) -> None:
    assert train_codec([recording(2000, 1)], BOUNDS, step_ms=1000).to_bytes() == model.to_bytes()


def test_many_blocks_at_once_give_the_bytes_of_one_at_a_time(model: CodecModel) -> None:
    x = recording(500, 2)
    rows = [(TS_MS[i : i + n], x[i : i + n]) for i, n in ((0, 64), (64, 1), (65, 200), (300, 33))]
    assert encode_blocks(rows, BOUNDS, model) == [encode_block(*row, BOUNDS, model) for row in rows]


def test_a_learned_block_is_smaller_than_one_without_a_model(model: CodecModel) -> None:
    x = recording(64, 2)
    assert len(encode_block(TS_MS[:64], x, BOUNDS, model)) < 0.8 * len(encode_block(TS_MS[:64], x, BOUNDS))


def test_a_block_names_its_model_and_is_refused_without_it(model: CodecModel) -> None:
    data = encode_block(TS_MS[:64], recording(64, 2), BOUNDS, model)
    assert model_of_block(data) == model.id
    with pytest.raises(BadBlock, match=model.id):
        decode_block(data)
    other = train_codec([recording(1000, 5)], BOUNDS)
    with pytest.raises(BadBlock, match="check"):
        decode_block(data, {model.id: other})


@pytest.mark.parametrize("finer", [1.0, 3.0, 10.0, 1000.0, np.inf])
def test_tighter_bounds_than_the_models_are_kept(model: CodecModel, finer: float) -> None:
    x = recording(64, 2)
    values = decode_block(encode_block(None, x, BOUNDS / finer, model), {model.id: model}).values
    assert (np.abs(values.astype(np.float64) - x) <= BOUNDS / finer).all()


def test_an_episode_can_be_kept_finer_in_the_same_stream_at_its_own_cost(model: CodecModel) -> None:
    x = recording(64, 2)
    sizes = [len(encode_block(TS_MS[:64], x, BOUNDS / finer, model)) for finer in (1.0, 4.0, 16.0)]
    assert sizes == sorted(sizes)
    assert sizes[1] - sizes[0] <= 6 * 64 * 2 / 8 + 8           # two bits a value and a header at the most


@pytest.mark.parametrize("finer", [1.0, 10.0, np.inf])
def test_the_errors_that_the_encoder_tells_are_those_that_a_reader_finds(model: CodecModel, finer: float) -> None:
    x = recording(500, 2)
    x[3, 1], x[70, 3] = np.nan, np.inf
    x[100:164] = np.random.default_rng(0).normal(0, 1e9, (64, 6))    # off every rule: kept raw or as exceptions
    rows = [(TS_MS[i : i + 64], x[i : i + 64]) for i in range(0, 448, 64)]
    told = np.empty((len(rows), 6, 2))
    coded = encode_blocks(rows, BOUNDS / finer, model, errors=told)
    for (_, values), data, (largest, total) in zip(rows, coded, told.transpose(0, 2, 1), strict=True):
        with np.errstate(invalid="ignore"):
            miss = np.abs(decode_block(data, {model.id: model}).values.astype(np.float64) - values)
        miss = np.where(np.isfinite(values), miss, 0)
        assert np.allclose(largest, miss.max(axis=0), rtol=1e-12)
        assert np.allclose(total, miss.sum(axis=0), rtol=1e-9)


def test_a_relative_bound_keeps_a_share_of_each_value() -> None:
    x = np.exp(np.random.default_rng(0).normal(0, 20, (64, 6))).astype(np.float32)
    values = decode_block(encode_block(None, x, np.full(6, -1e-3))).values
    assert (np.abs(values.astype(np.float64) - x) <= 1e-3 * np.abs(x.astype(np.float64))).all()


@pytest.mark.parametrize("cut", [0, 3, 100, -1])
def test_a_cut_model_is_refused(model: CodecModel, cut: int) -> None:
    with pytest.raises(BadBlock):
        CodecModel.from_bytes(model.to_bytes()[:cut])


def test_a_block_of_too_many_rows_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="65536"):
        encode_block(None, np.zeros((65_537, 1), np.float32), np.zeros(1))


def test_a_frame_of_a_newer_version_says_so() -> None:
    frame = bytearray(pack_frame([b"x"]))
    frame[2] = 9
    with pytest.raises(BadBlock, match="version 9"):
        unpack_frame(bytes(frame))


def test_a_decimal_lattice_is_found_to_the_bit() -> None:
    values = np.round(np.random.default_rng(0).normal(20, 3, 2000), 2).astype(np.float32)
    assert find_lattice(values, 0.0) == (0.01, 0.0)


@pytest.mark.parametrize("step", [1e-30, 0.1, 0.12345, 7.0, 1e30])
def test_a_step_code_is_at_most_the_step_and_near_it(step: float) -> None:
    coded = step_of_code(code_of_step(step))
    assert step / 1.01 <= coded <= step
    assert step_of_code(tighten(code_of_step(step), 3)) == coded / 8


def test_a_bound_under_the_resolution_of_the_floats_is_lossless() -> None:
    assert code_of_bound(1e-9, 1000.0) == 0


def test_ordered_bits_come_back_for_every_kind_of_float() -> None:
    bits = np.array([0, 1, 0x80000000, 0x80000001, 0x7F800000, 0xFF800000, 0x7FC00001, 0xFFFFFFFF], np.uint32)
    assert (from_ordered(to_ordered(bits.view(np.float32))).view(np.uint32) == bits).all()


def test_a_summary_comes_back() -> None:
    x = recording(50, 1)
    x[:, 2] = np.nan
    there = summarise(x)
    back = take_summary(Reader(put_summary(there)))
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(there, back, strict=True))


def test_a_file_reads_only_the_blocks_asked_for(tmp_path: Path, model: CodecModel) -> None:
    path, x = tmp_path / "f.nrw", recording(500, 2)
    write_file(
        path, list("abcdef"), ["p1", "p2"], [Run(0, TS_MS, x), Run(1, TS_MS, 2 * x)], BOUNDS, model, block_rows=100,
    )
    opened = BlockFile(path)
    assert len(opened.entries) == 10
    pieces = list(opened.read("p2", int(TS_MS[150]), int(TS_MS[250])))
    assert [name for name, _, _ in pieces] == ["p2", "p2"]
    assert (np.concatenate([ts for _, ts, _ in pieces]) == TS_MS[150:250]).all()
    values = np.concatenate([values for _, _, values in pieces])
    assert (np.abs(values.astype(np.float64) - (2 * x)[150:250]) <= BOUNDS).all()
    with pytest.raises(BadBlock, match="p1, p2"):
        next(opened.read("p3"))


def test_summaries_in_a_file_are_within_the_bounds_and_times_exact(tmp_path: Path, model: CodecModel) -> None:
    path, x = tmp_path / "f.nrw", recording(500, 2)
    x[100:200, 3], x[7, 4] = np.nan, np.inf
    far = np.r_[-(2**62), TS_MS[1:100], 2**62, TS_MS[101:]]
    write_file(path, list("abcdef"), ["p"], [Run(0, far, x)], BOUNDS, model, block_rows=100)
    for entry, start in zip(BlockFile(path).entries, range(0, 500, 100), strict=True):
        told = summarise(x[start : start + 100])
        assert (entry.summary.counts == told.counts).all()
        assert (entry.first_ms, entry.last_ms) == (far[start : start + 100].min(), far[start : start + 100].max())
        for kept, exact in zip(entry.summary[1:], told[1:], strict=True):
            assert (np.isnan(kept) == np.isnan(exact)).all()
            assert (np.abs(kept.astype(float) - exact)[~np.isnan(exact)] <= BOUNDS[~np.isnan(exact)]).all()


def test_a_file_says_the_errors_that_it_makes_outside_and_inside_of_episodes(tmp_path: Path, model: CodecModel) -> None:
    path, x = tmp_path / "f.nrw", recording(500, 2)
    parts = [slice(0, 150), slice(150, 250), slice(250, 500)]
    runs = [Run(0, TS_MS[part], x[part], is_fine=part.start == 150) for part in parts]
    write_file(path, list("abcdef"), ["p"], runs, BOUNDS, model, block_rows=100, in_episode=0.1)
    opened = BlockFile(path)
    assert [entry.is_fine for entry in opened.entries] == [False, False, True, False, False, False]
    for entry in opened.entries:
        block = opened.block(entry)
        assert block.ts_ms is not None
        missed = np.abs(block.values.astype(float) - x[(block.ts_ms - TS_MS[0]) // 1000]) / BOUNDS
        assert missed.max() <= (0.1 if entry.is_fine else 1)
        assert missed.max() * 1000 <= entry.largest <= missed.max() * 1000 + 1
        assert missed.mean() * 1000 <= entry.mean <= missed.mean() * 1000 + 1
    classes = facts_of(opened)["classes"]
    assert classes["episode"]["rows"] == 100
    assert classes["episode"]["largest_error"] <= 0.1 < classes["normal"]["largest_error"]
    assert sum(one["bytes"] for one in classes.values()) == sum(entry.size for entry in opened.entries)


def test_a_model_for_few_rows_is_no_larger_than_what_it_saves(model: CodecModel) -> None:
    x = recording(600, 1)
    lean = train_codec([x], BOUNDS, step_ms=1000, served_rows=len(x))
    full = train_codec([x], BOUNDS, step_ms=1000)
    rows = [(None, x[i : i + 64]) for i in range(0, 576, 64)]
    taken = [len(one.to_bytes()) + sum(map(len, encode_blocks(rows, BOUNDS, one))) for one in (lean, full)]
    assert taken[0] < 0.8 * taken[1]
    assert CodecModel.from_bytes(lean.to_bytes()).id == lean.id
    long = train_codec([x], BOUNDS, step_ms=1000, served_rows=10**9)
    assert len(lean.to_bytes()) < len(long.to_bytes()) / 2


def test_a_file_cut_or_altered_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "f.nrw"
    write_file(path, ["a"], ["p"], [Run(0, TS_MS, np.zeros((500, 1), np.float32))], np.zeros(1))
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(BadBlock):
            list(BlockFile(path).read())
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 8]) + whole[at + 1 :])
        with pytest.raises(BadBlock):
            list(BlockFile(path).read())


@pytest.mark.parametrize("suffix", ["csv", "parquet", "arrow", "jsonl"])
def test_compress_inspect_decompress(tmp_path: Path, suffix: str) -> None:
    x = recording(300, 2)
    lines = [f"{t},{','.join(map(str, row))}" for t, row in zip(TS_MS[:300].tolist(), x.tolist(), strict=True)]
    (tmp_path / "in.csv").write_text("ts,a,b,c,d,e,f\n" + "\n".join(lines) + "\n")
    runner = CliRunner()
    packed, back = tmp_path / "in.nrw", tmp_path / f"back.{suffix}"
    made = runner.invoke(app, ["compress", str(tmp_path / "in.csv"), "--out", str(packed), "--bound", "1e-3"])
    assert made.exit_code == 0, made.output
    facts = runner.invoke(app, ["inspect", str(packed), "--json"])
    assert '"rows":300' in facts.output
    assert runner.invoke(app, ["decompress", str(packed), "--out", str(back)]).exit_code == 0
    assert back.stat().st_size > 0
    if suffix == "csv":
        rows = np.genfromtxt(back, delimiter=",", skip_header=1)[:, 2:]
        assert (np.abs(rows - x) <= 1.001e-3 * np.ptp(x.astype(np.float64), axis=0)).all()


def test_decompressing_bounded_blocks_loads_neither_onnxruntime_nor_torch(tmp_path: Path, model: CodecModel) -> None:
    path = tmp_path / "f.nrw"
    write_file(path, list("abcdef"), ["p1"], [Run(0, TS_MS, recording(500, 2))], BOUNDS, model)
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'onnxruntime', 'onnx', 'faust', 'aiokafka']));"
        "from pathlib import Path; from pipeline.cli.compress import decompress;"
        "decompress(Path(sys.argv[1]), Path(sys.argv[2]), None, None, None)"
    )
    made = subprocess.run(
        [sys.executable, "-c", code, str(path), str(tmp_path / "back.csv")], capture_output=True, text=True,
        check=False,
    )
    assert made.stdout.startswith("500 rows"), made.stderr


def test_compress_keeps_the_rows_of_episodes_finer(tmp_path: Path) -> None:
    x = recording(300, 2)
    lines = [f"{t},{','.join(map(str, row))}" for t, row in zip(TS_MS[:300].tolist(), x.tolist(), strict=True)]
    (tmp_path / "in.csv").write_text("ts,a,b,c,d,e,f\n" + "\n".join(lines) + "\n")
    events = [("one", "opened", 120, 121), ("one", "closed", 120, 140), ("two", "opened", 290, 291)]
    (tmp_path / "episodes.jsonl").write_text("".join(json.dumps({
        "episode_id": name, "device": "in", "state": state, "window_start": int(TS_MS[start]),
        "window_end": int(TS_MS[end]),
    }) + "\n" for name, state, start, end in events))
    runner, packed = CliRunner(), tmp_path / "in.nrw"
    made = runner.invoke(app, [
        "compress", str(tmp_path / "in.csv"), "--out", str(packed), "--bound", "1e-2", "--in-episode", "0",
        "--episodes", str(tmp_path / "episodes.jsonl"),
    ])
    assert made.exit_code == 0, made.output
    facts = json.loads(runner.invoke(app, ["inspect", str(packed), "--json"]).output)
    assert facts["in_episode"] == 0
    assert facts["classes"]["episode"]["rows"] == 21 + 32 + 10 + 32         # the second one never closed
    assert facts["classes"]["episode"]["largest_error"] == 0 < facts["classes"]["normal"]["largest_error"]
    assert "episode: 95 rows" in runner.invoke(app, ["inspect", str(packed)]).output
    read = np.concatenate([values for _, _, values in BlockFile(packed).read()])
    assert (read[88:141] == x[88:141]).all()
    assert (read[258:] == x[258:]).all()
    (tmp_path / "episodes.jsonl").write_text("no episodes\n")
    refused = runner.invoke(app, [
        "compress", str(tmp_path / "in.csv"), "--out", str(packed), "--episodes", str(tmp_path / "episodes.jsonl"),
    ])
    assert "backtest --episodes" in str(refused.exception)


def test_a_file_of_latent_blocks_carries_what_reads_it_and_says_its_errors(tmp_path: Path) -> None:
    contract = small_contract(2)
    codec = latent_model(contract)
    bundle = write_small_bundle(tmp_path / "bundle", contract, latent_codec=codec.latent_codec)
    x = np.random.default_rng(0).normal(0, 0.3, (100, 2)).astype(np.float32)
    x[40, 1] = np.nan
    lines = [f"{t},{a},{'' if b != b else b}" for t, (a, b) in zip(TS_MS.tolist(), x.tolist(), strict=False)]
    (tmp_path / "in.csv").write_text("ts,c0,c1\n" + "\n".join(lines) + "\n")
    runner, packed, back = CliRunner(), tmp_path / "f.nrw", tmp_path / "back.parquet"
    made = runner.invoke(app, [
        "compress", str(tmp_path / "in.csv"), "--latent", "--bundle", str(bundle.folder), "--out", str(packed),
        "--block-rows", "25", "--bound", "1e-2",
    ])
    assert made.exit_code == 0, made.output
    facts = json.loads(runner.invoke(app, ["inspect", str(packed), "--json"]).output)
    assert facts["blocks"]["latent"] == 4
    assert [one["blocks"] for one in facts["latent_errors"]] == [4, 3]
    assert runner.invoke(app, ["decompress", str(packed), "--out", str(back)]).exit_code == 0
    rows = parquet.read_table(back)
    stored = np.stack([rows[name].to_numpy() for name in ("c0", "c1")], axis=1)
    miss = np.abs(stored.astype(float) - x)
    assert (np.isnan(stored) == np.isnan(x)).all()
    assert (np.nanmax(miss, axis=0) <= [one["largest"] + 1e-6 for one in facts["latent_errors"]]).all()
    assert np.nanmax(miss[25:50, 1]) <= 1.01e-2 * np.ptp(x[np.isfinite(x[:, 1]), 1])     # kept bounded: one is missing
    refused = runner.invoke(app, ["compress", str(tmp_path / "in.csv"), "--latent", "--out", str(packed)])
    assert "--bundle" in str(refused.exception)
