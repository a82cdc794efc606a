"""Bundles: whole or refused, and every refusal says what to do."""

import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from pipeline.core.contract import Channel, Contract
from pipeline.errors import BadBundle, BadInput
from pipeline.registry import bundle as bundles
from pipeline.registry.bundle import load_bundle, read_manifest, write_bundle
from pipeline.scoring.gate import check_weights, open_session
from training.make_baseline import make_baseline_bundle
from training.prepare import prepare

CONTRACT = Contract(channels=(Channel(name="a"), Channel(name="b")), window=4, memory=8)


@pytest.fixture
def folder(tmp_path):
    values = np.random.default_rng(0).normal(size=(400, 2))
    ready = prepare(CONTRACT, ["d"], np.zeros(400, dtype=int), np.arange(400) * 1000, values)
    make_baseline_bundle(ready, tmp_path / "bundle", "var")
    return tmp_path / "bundle"


def test_what_was_written_is_read(folder):
    bundle = load_bundle(folder, CONTRACT)
    assert bundle.manifest.family == "var"
    assert bundle.manifest.sensors == ("a", "b")
    assert read_manifest(folder).short == bundle.digest[:12]
    assert open_session(bundle, in_child=True).runs == 2


@pytest.mark.parametrize("name", bundles.FILES)
def test_a_flipped_bit_in_any_file_is_refused(folder, name):
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(BadBundle, match="altered"):
        load_bundle(folder)


@pytest.mark.parametrize("name", [*bundles.FILES, "manifest.json"])
def test_a_missing_or_cut_file_is_refused(folder, name):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(BadBundle):
        load_bundle(folder)
    (folder / name).unlink()
    with pytest.raises(BadBundle, match="again"):
        load_bundle(folder)


def test_an_altered_manifest_is_refused(folder):
    raw = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(raw | {"family": "dense"}))
    with pytest.raises(BadBundle, match="digest"):
        load_bundle(folder)


def test_a_newer_format_says_update(folder):
    raw = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(raw | {"format": 2}))
    with pytest.raises(BadBundle, match="update narrows"):
        load_bundle(folder)


def test_a_bundle_for_another_contract_is_refused(folder):
    other = Contract(channels=CONTRACT.channels, window=4, memory=9)
    with pytest.raises(BadBundle, match="another contract"):
        load_bundle(folder, other)


def test_people_files_are_outside_of_the_digest(folder):
    (folder / "card.md").write_text("changed")
    assert load_bundle(folder).digest == read_manifest(folder).digest


def test_a_weight_that_is_not_finite_is_refused(folder):
    model = onnx.load_model_from_string((folder / "model.onnx").read_bytes())
    weight = next(one for one in model.graph.initializer if one.data_type == onnx.TensorProto.FLOAT)
    array = numpy_helper.to_array(weight).copy()
    array.flat[0] = np.nan
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    with pytest.raises(BadBundle, match="not finite"):
        check_weights(model.SerializeToString(), "x")


@pytest.mark.parametrize("in_child", [False, True])
def test_a_model_that_does_not_give_its_golden_output_is_refused(folder, in_child):
    bundle = load_bundle(folder)
    model = onnx.load_model_from_string(bundle.model)
    weight = next(one for one in model.graph.initializer if one.data_type == onnx.TensorProto.FLOAT)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) + np.float32(0.1), weight.name))
    write_bundle(
        folder, contract=CONTRACT, scaling=bundle.scaling, scorer=bundle.scorer, model=model.SerializeToString(),
        golden=bundle.golden, family="var", members=("var",),
    )
    with pytest.raises(BadBundle, match="golden"):
        open_session(load_bundle(folder), in_child=in_child)


def test_a_folder_that_holds_something_else_is_not_replaced(folder, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    bundle = load_bundle(folder)
    with pytest.raises(BadInput, match="new folder"):
        write_bundle(
            tmp_path / "mine", contract=CONTRACT, scaling=bundle.scaling, scorer=bundle.scorer, model=bundle.model,
            golden=bundle.golden, family="var", members=("var",),
        )
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"
