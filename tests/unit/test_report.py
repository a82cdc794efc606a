"""What the report tells beside its pictures: the worth of the latent, and the members beside the score."""

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

pytest.importorskip("sklearn")

from training import card, examples, page, report
from training.evaluate import lay_out
from training.make_baseline import make_baseline_bundle
from training.prepare import prepare


def test_a_linear_probe_reads_the_kind_from_the_latent_and_not_from_shuffled_kinds(tmp_path: Path) -> None:
    example = examples.tones(count=160)
    table = example.table
    prepared = prepare(example.contract, table.devices, table.device, table.ts_ms, table.values)
    bundle = make_baseline_bundle(prepared, tmp_path / "b", "pca", refuse=False)
    _, order = lay_out(bundle, table)
    kinds = table.labels["class"][order]
    found = report.probe(bundle, prepared, kinds)
    assert found["pca"] > 0.7 > found["always the commonest"]
    assert found["pca"] == pytest.approx(found["PCA"], abs=0.1)
    window = example.contract.window
    shuffled = np.repeat(np.random.default_rng(0).permutation(kinds[::window]), window)
    assert report.probe(bundle, prepared, shuffled)["pca"] < 0.6
    assert report.probe(bundle, prepared, np.zeros(len(kinds))) == {}


def test_rows_that_no_part_was_learned_from_are_halved_by_time_a_window_apart() -> None:
    example = examples.tones(count=12)
    rows = 200
    contract = msgspec.structs.replace(example.contract, window=8, memory=8)
    values = np.random.default_rng(0).normal(size=(2 * rows, len(contract.channels)))
    device = np.repeat([0, 1], rows)
    prepared = prepare(contract, ("a", "b"), device, np.tile(np.arange(rows) * contract.step_ms, 2), values)
    prepared = replace(prepared, part=np.full(2 * rows, 2, np.int8))
    early, late = report._learned_and_held_out(prepared)
    for place in (0, 1):
        before = early.ends[prepared.device[early.ends] == place]
        after = late.ends[prepared.device[late.ends] == place]
        assert len(before) > 50
        assert before.max() < after.min() - contract.window + 1


def test_the_card_names_what_drifts_once_for_all_devices_and_counts_what_it_leaves_out() -> None:
    drifted = {str(place): ["Temperature"] for place in range(16)} | {"x": ["Flow"]}
    assert card._drifts(drifted) == "Temperature (0, 1, 2, 3, 4 and 11 more); Flow (x)"
    assert card._short([]) == "none"
    assert card._short(6400.0) == "6,400"


def test_the_card_on_the_page_is_html_and_nothing_in_it_is_markup_by_accident() -> None:
    made = page.markdown_to_html("# dense `ab`\n\n- a: <b>\n- c: **d**\n\n| m | n |\n|---|---|\n| 1 | 2 |\n")
    assert "<h2>dense <code>ab</code></h2>" in made
    assert "<li>a: &lt;b&gt;</li>" in made
    assert "<strong>d</strong>" in made
    assert "<td>1</td><td>2</td>" in made
