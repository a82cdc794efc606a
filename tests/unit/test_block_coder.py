"""What a worker writes as blocks, by the stream's rules, and that anybody can read it with `narrows.codecs` alone."""

from collections import namedtuple
from collections.abc import Iterator
from itertools import combinations

import msgspec
import numpy as np
import pytest

from pipeline.agent import Part
from pipeline.codec import unpack_frame
from pipeline.codec.block import LATENT, kind_of_block
from pipeline.codec.summary import take_summary
from pipeline.codec.train import train_codec
from pipeline.codec.wire import Reader
from pipeline.config import Match
from pipeline.core.block_rules import BlockRule, BlockRules
from pipeline.core.contract import Channel, Contract
from pipeline.core.records import Records
from pipeline.core.scaling import Scaling
from pipeline.engine.transport import TP
from pipeline.errors import BadInput
from pipeline.formats import Format
from pipeline.line import Line, OutputTopics
from pipeline.scoring.blocks import BlockCoder
from pipeline.scoring.latents import LatentDecoder
from pipeline.scoring.session import Session
from pipeline.scoring.stream import Block, Model
from pipeline.sinks import Record, find_whole, whole_records
from pipeline.sinks.blocks import BlockReader, LabelledBlock, each_once
from tests.support.models import latent_model, small_contract, small_model, small_scorer
from tests.unit.test_codec_latent import waves
from training.baselines import fit_pca

Raw = namedtuple("Raw", "offset timestamp key value")
TOPICS = OutputTopics(None, None, "blocks", None, "dead", "codecs")
NAMES = ("c0", "c1", "c2")


def contract_with(*bounds: float) -> Contract:
    channels = tuple(Channel(name=name, bound=bound) for name, bound in zip(NAMES, bounds, strict=True))
    return msgspec.structs.replace(small_contract(), channels=channels)


def readings(rows: int, hot: slice = slice(0, 0)) -> np.ndarray:
    """(rows, 3) float32: small noise, far away in `hot`."""
    values = np.random.default_rng(0).normal(0, 0.3, (rows, 3)).astype(np.float32)
    values[hot] += 40 * np.resize([1, -1], len(values[hot]))[:, None]
    return values


def run(contract: Contract, values: np.ndarray, rules: BlockRules, models: list[Model]) -> list[Record]:
    """All records of one device's rows; the second half of `models`, if any, scores the second half of the rows."""
    line = Line("pump", "t", contract, Format(), Match(), TOPICS, rules=rules)
    line.assign(0, models[0], 0, -1, {})
    records = [
        Raw(i, 1000 * i, b"one", msgspec.json.encode(
            {"device": "one", "ts": 1000 * i, "values": dict(zip(NAMES, row, strict=True))}
        )) for i, row in enumerate(values.astype(float).tolist())
    ]
    outputs: list[Record] = []
    parts = np.array_split(np.arange(len(records)), len(models))
    for model, part in zip(models, parts, strict=True):
        if model is not models[0]:
            line.swap(0, model)
        chosen = Records.of(records[i] for i in part)
        outputs += line.take([Part(TP("t", 0), chosen, chosen.timestamp, 0)])
    return outputs


def blocks_of(outputs: list[Record]) -> Iterator[LabelledBlock]:
    return each_once(output for output in outputs if output.topic == "blocks")


def read(outputs: list[Record]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of every block, from the records alone."""
    held = {output.key or b"": output.value or b"" for output in outputs if output.topic == "codecs"}
    reader = BlockReader(lambda: held, {}, LatentDecoder)
    rows = [reader.rows(label, frame) for label, frame, _ in blocks_of(outputs)]
    return np.concatenate([ts for ts, _ in rows]), np.concatenate([values for _, values in rows])


@pytest.mark.parametrize("share", [0.1, 0.0])
def test_rows_of_an_episode_and_those_before_it_are_kept_finer(share: float) -> None:
    contract, values = contract_with(0.1, 0.1, 0.1), readings(120, slice(50, 60))
    outputs = run(contract, values, BlockRules(in_episode=share, rows_before=4), [small_model(contract)])
    ts_ms, stored = read(outputs)
    miss = np.abs(stored.astype(float) - values[ts_ms // 1000])
    assert (miss <= 0.1).all()
    told = [label for label, _, _ in blocks_of(outputs)]
    fine = [label for label in told if label.fine]
    assert fine
    assert sum(label.fine_rows for label in fine) < len(ts_ms) / 2
    episode = (ts_ms >= 50_000) & (ts_ms < 58_000)
    assert (miss[episode] <= share * 0.1).all()
    assert miss[~episode].max() > 0.02
    for label in fine:
        largest, _, finer, mean = label.errors
        assert finer <= 1000 * share
        assert mean <= finer
        assert 0 <= largest <= 1000
    before = (ts_ms >= 46_000) & (ts_ms < 50_000)
    spans = {label.span for label in fine}
    same = next(label for label in told if label.first_ts <= 50_000 <= label.last_ts)
    assert same.span in spans
    assert (miss[before & (ts_ms >= same.first_ts)] <= share * 0.1).all()


def test_without_a_rule_an_episode_is_kept_as_the_rest_but_told() -> None:
    contract = contract_with(0.1, 0.1, 0.1)
    outputs = run(contract, readings(120, slice(50, 60)), BlockRules(in_episode=None), [small_model(contract)])
    assert {len(unpack_frame(frame)) for _, frame, _ in blocks_of(outputs)} == {1}
    assert any(label.fine_rows for label, _, _ in blocks_of(outputs))


@pytest.mark.parametrize("kind", ["latent", "both"])
def test_latent_blocks_are_read_from_the_topics_and_make_the_errors_that_they_state(kind: str) -> None:
    contract, values = contract_with(5.0, 5.0, 1e-3), readings(120)
    rules = BlockRules(kind=kind, summaries=True)  # type: ignore[arg-type]
    outputs = run(contract, values, rules, [latent_model(contract)])
    ts_ms, stored = read(outputs)
    latents = [
        [part for part in unpack_frame(frame) if kind_of_block(part) == LATENT] for _, frame, _ in blocks_of(outputs)
    ]
    assert sum(map(len, latents)) >= 3
    left = {label.latent for label, _, _ in blocks_of(outputs)}
    assert left & {{"latent": (0, 1, 2), "both": ()}[kind]}
    miss = np.abs(stored.astype(float) - values[ts_ms // 1000]) / contract.bounds
    assert (miss <= 1).all() == (kind != "latent")
    for label, _, summary in blocks_of(outputs):
        rows = (ts_ms >= label.first_ts) & (ts_ms <= label.last_ts)
        if label.latent:
            assert miss[rows].max() * 1000 <= label.errors[0]
            assert label.errors[0] <= miss[rows].max() * 1000 + 2
        assert summary is not None
        told = take_summary(Reader(summary))
        assert np.array_equal(told.high, values[ts_ms[rows] // 1000].max(axis=0))


def waving(*bounds: float) -> tuple[Contract, Model, Block]:
    """Eight channels that move together, a PCA of them with its latents' codec, and a block of 64 rows."""
    contract = Contract(
        channels=tuple(Channel(name=f"c{c}", bound=bound) for c, bound in enumerate(bounds)), window=32, memory=64,
        span_ms=64_000,
    )
    known, values = waves(3000, 1), waves(64, 2)
    windows = np.stack([known[i : i + 32] for i in range(0, 2900, 3)])
    graph = fit_pca(windows, contract, kept=0.999)
    session = Session(graph)
    latents = session.run(np.ascontiguousarray(windows[::10])).latent
    latent_codec = train_codec([latents], 0.1 * latents.std(axis=0).astype(np.float64), block_rows=4)
    model = Model(
        "d" * 64, session, Scaling((), np.zeros((1, 8)), np.ones((1, 8))), small_scorer(contract),
        train_codec([known], contract.bounds, step_ms=1000).to_bytes(), graph, latent_codec.to_bytes(),
    )
    return contract, model, Block(
        0, 0, 0, False, False, 1000 * np.arange(64), values, model.digest, None, -1, np.zeros(64, bool),
        session.run(np.stack([values[:32], values[32:]])).latent,
    )


@pytest.mark.parametrize(("bounds", "left"), [
    ([1e-3] * 8, ()), ([0.22] * 8, tuple(range(8))), ([1.0] * 8, ()),
    ([0.22, 1e-3] * 4, ()),       # the tight channels tell the loose ones for nothing
])
def test_auto_is_the_smallest_of_all_the_ways_that_keep_the_bounds(bounds: list[float], left: tuple[int, ...]) -> None:
    contract, model, block = waving(*bounds)
    [chosen] = BlockCoder(contract, model, BlockRules(kind="auto")).encode([block], ["one"])
    assert chosen.latent == left
    assert chosen.normal.largest <= 1
    able = [f"c{c}" for c, bound in enumerate(bounds) if bound > 0.1]
    sizes = [0, 1, len(able) - 1, len(able)] if len(able) > 4 else range(len(able) + 1)
    ways = [BlockRules(rules=(BlockRule(channels=some, kind="latent"),)) if some else BlockRules()
            for size in sizes for some in combinations(able, size)]
    frames = [BlockCoder(contract, model, rules).encode([block], ["one"])[0].frame for rules in ways]
    assert len(chosen.frame) == min(map(len, frames))


def test_a_missing_value_and_an_episode_are_never_left_to_latents() -> None:
    contract, values = contract_with(5.0, 5.0, 5.0), readings(120, slice(80, 90))
    values[45, 1] = np.nan
    outputs = run(contract, values, BlockRules(kind="latent", in_episode=0), [latent_model(contract)])
    ts_ms, stored = read(outputs)
    assert np.isnan(stored[ts_ms == 45_000, 1]).all()
    hot = (ts_ms >= 80_000) & (ts_ms < 88_000)
    assert (stored[hot] == values[ts_ms[hot] // 1000]).all()


def test_one_pass_of_the_model_serves_scores_and_latent_blocks() -> None:
    contract, values = contract_with(5.0, 5.0, 5.0), readings(120)
    runs = []
    for rules in (BlockRules(), BlockRules(kind="both"), BlockRules(kind="latent")):
        model = latent_model(contract)
        before = model.session.runs
        run(contract, values, rules, [model])
        runs.append(model.session.runs - before)
    assert runs[0] == runs[1] == runs[2]


def test_blocks_of_an_old_model_stay_readable_after_a_refit_and_a_swap() -> None:
    contract, values = contract_with(0.1, 0.1, 0.1), readings(160)
    codecs = [train_codec([readings(300) * scale], contract.bounds, step_ms=1000) for scale in (1, 3)]
    assert codecs[0].id != codecs[1].id
    models = [
        with_codec(latent_model(contract, seed), codec.to_bytes()) for seed, codec in enumerate(codecs)
    ]
    outputs = run(contract, values, BlockRules(kind="both"), models)
    assert {label.digest for label, _, _ in blocks_of(outputs)} == {model.digest for model in models}
    ts_ms, stored = read(outputs)
    assert (np.abs(stored.astype(float) - values[ts_ms // 1000]) <= 0.1).all()


def with_codec(model: Model, codec: bytes) -> Model:
    """The model with another codec model."""
    return Model(
        model.digest, model.session, model.scaling, model.scorer, codec, model.graph, model.latent_codec
    )


def test_a_bundle_without_latents_is_refused_by_name() -> None:
    contract = contract_with(0.1, 0.1, 0.1)
    assert "train it again" in BlockCoder(contract, small_model(contract), BlockRules(kind="latent")).refused
    block = Block(
        0, 0, 0, False, False, np.arange(8), readings(8), "d", None, -1, np.zeros(8, bool), np.zeros((1, 4), np.float32)
    )
    [coded] = BlockCoder(contract, small_model(contract), BlockRules(kind="latent")).encode([block], ["one"])
    assert coded.latent == ()


def test_the_first_rule_that_fits_device_and_channel_holds() -> None:
    rules = BlockRules(kind="both", rules=(
        BlockRule(devices=("spare-*",), channels=("c0",), kind="latent"), BlockRule(channels=("c0",), kind="auto"),
    ))
    assert rules.kinds("spare-1", NAMES) == ["latent", "both", "both"]
    assert rules.kinds("pump-1", NAMES) == ["auto", "both", "both"]


def test_what_is_larger_than_a_record_comes_back_from_its_parts_or_not_at_all() -> None:
    data = np.random.default_rng(0).bytes(1_300_000)
    parts = {record.key or b"": record.value or b"" for record in whole_records("codecs", "decoder", "abc", data)}
    assert len(parts) == 3
    assert find_whole(parts, "decoder", "abc") == data
    assert find_whole(parts, "decoder", "ab") is None
    altered = dict.fromkeys(parts, b"x")
    with pytest.raises(BadInput, match="altered"):
        find_whole(altered, "decoder", "abc")
    del parts[b"decoder/abc/1/3"]
    assert find_whole(parts, "decoder", "abc") is None
