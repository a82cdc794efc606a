"""8 bits: the same sizes and a free batch, near the float model, and refused where fewer planted faults are seen."""

from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("torch")

from pipeline.core.contract import Channel, Contract
from pipeline.formats.files import Table
from pipeline.scoring.session import Session
from training import quantise, train
from training.recipe import Recipe

CONTRACT = Contract(channels=tuple(Channel(name=name) for name in "abc"), window=8, memory=40)


def table_of(rows: int = 900) -> Table:
    rng = np.random.default_rng(0)
    steps = np.arange(rows)
    values = np.stack([np.sin(steps / 9 + k) for k in range(3)], axis=1) + 0.05 * rng.normal(size=(rows, 3))
    return Table(devices=("one",), device=np.zeros(rows, np.int64), ts_ms=1_700_000_000_000 + 1000 * steps,
                 channels=CONTRACT.names, values=values.astype(np.float32), reason=np.zeros(rows, np.uint8))


def test_an_accepted_8_bit_model_streams_and_its_manifest_says_so(tmp_path: Path) -> None:
    recipe = Recipe(epochs=4, latent=4, hidden=(32,))
    made = train.train(table_of(), CONTRACT, recipe, tmp_path / "b", is_quantised=True, refuse=False)
    facts = made.bundle.manifest.training["int8"]
    graph = onnx.load_from_string(made.bundle.model).graph
    has_8_bits = any(node.op_type == "DequantizeLinear" for node in graph.node)
    assert facts["accepted"] == has_8_bits
    assert facts["accepted"] == (facts["detected"] >= facts["detected_float"] - quantise.ALLOWED_LOSS)


def test_the_8_bit_graph_keeps_sizes_and_batch_and_stays_near(tmp_path: Path) -> None:
    recipe = Recipe(epochs=4, latent=4, hidden=(32,), profile="alone")
    made = train.train(table_of(), CONTRACT, recipe, tmp_path / "b", refuse=False)
    windows = made.prepared.windows(0)
    small = Session(quantise.quantise(made.bundle.model, windows))
    for count in (1, 200):
        said, wanted = small.run(windows[:count]), Session(made.bundle.model).run(windows[:count])
        assert said.newest.shape == wanted.newest.shape == (count, 1, 3)
        assert float(np.abs(said.newest - wanted.newest).mean()) < 0.1
