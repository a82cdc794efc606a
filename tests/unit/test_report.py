"""What the report tells beside its pictures: the worth of the latent, and the members beside the score."""

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

pytest.importorskip("sklearn")

from pipeline.registry.bundle import Bundle
from pipeline.scoring.session import Session
from training import card, examples, grids, page, pictures, report
from training.evaluate import lay_out
from training.make_baseline import make_baseline_bundle
from training.prepare import CALIBRATION, Prepared, prepare


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


def waves(rows: int = 1200, wild: slice = slice(1170, 1200)) -> tuple[Prepared, np.ndarray]:
    """Two waves of one device, one of them far off in some rows of the calibration part; and the mark of these."""
    steps = np.arange(rows)
    values = np.column_stack([np.sin(steps / 7), np.cos(steps / 9)])
    values += np.random.default_rng(0).normal(size=(rows, 2)) / 9
    values[wild, 1] += 40
    contract = msgspec.structs.replace(
        examples.tones(count=2).contract, channels=examples.channels("wave", 2), window=8, memory=40, step_ms=1000,
        max_gap_ms=10_000)
    mark = np.zeros(rows)
    mark[wild] = 1
    prepared = prepare(contract, ("pump",), np.zeros(rows, np.int64), 1_700_000_000_000 + steps * 1000, values)
    return prepared, mark


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Prepared, np.ndarray]:
    """A bundle, the rows that it came from, and their labels."""
    prepared, mark = waves()
    return make_baseline_bundle(prepared, tmp_path_factory.mktemp("b") / "b", "pca", refuse=False), prepared, mark


def test_the_picture_shows_what_the_model_said_beside_a_far_value_and_a_band_of_normal_errors(
    judged: tuple[Bundle, Prepared, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, prepared, mark = judged
    drawn: list[tuple[np.ndarray, ...]] = []

    def keep(*given: np.ndarray) -> bytes:
        drawn.append(given)
        return b""

    monkeypatch.setattr(pictures, "rebuilt", keep)
    report.make(bundle, prepared, label=mark)
    _, observed, expected, band, *_, labelled = drawn[0]
    rows = np.flatnonzero(np.isin(prepared.values[:, 0], observed[:, 0]))
    x = prepared.scaled[rows[labelled][0] + np.arange(-7, 1)][None]
    said = Session(bundle.model).run(x).newest[0, 0] * prepared.scaling.scale[0] + prepared.scaling.location[0]
    assert expected[labelled][0] == pytest.approx(said, abs=1e-4)
    assert band[1] < 1
    assert labelled.sum() == 30


def test_precision_and_recall_leave_out_the_rows_that_were_learned_from(
    judged: tuple[Bundle, Prepared, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, prepared, mark = judged
    masked = replace(prepared, part=np.where(mark > 0, -1, prepared.part).astype(np.int8))
    drawn: list[np.ndarray] = []
    monkeypatch.setattr(pictures, "precision_recall", lambda label, *_: drawn.append(label) or b"")
    report.make(bundle, masked, label=mark)
    assert drawn[0].sum() == 30
    assert len(drawn[0]) == 30 + (masked.part == CALIBRATION).sum()


def test_a_report_on_labelled_rows_begins_where_its_device_holds_a_marked_row() -> None:
    prepared, mark = waves(3000, slice(2500, 2510))
    rows = report._stretch(prepared, np.arange(1000, 3000), mark)
    assert len(rows) == report.STRETCH
    assert mark[rows].sum() == 10
    assert report._stretch(prepared, np.arange(1000, 3000), None).tolist() == list(range(1000, 1600))


def test_one_wild_value_does_not_squash_the_axis_and_no_line_crosses_a_gap() -> None:
    values = np.sin(np.arange(1000.0))
    (low, high), is_cut = pictures._limits(np.append(values, [1e6, np.nan]))
    assert is_cut
    assert -1.5 < low < -1
    assert 1 < high < 8
    assert not pictures._limits(values)[1]
    at, broken = pictures._broken(np.array([0.0, 1, 2, 3, 50, 51, 52]), np.ones((7, 1)))
    assert at.shape == (8,)
    assert np.isnan(broken[4]).all()
    assert np.isfinite(np.delete(broken, 4, axis=0)).all()


def test_a_single_marked_row_has_a_width() -> None:
    assert pictures._spans(np.array([False, True, False]), np.arange(3.0)) == [(0.5, 1.5)]
    assert pictures._spans(None, np.arange(3.0)) == []


@pytest.mark.parametrize(("seconds", "unit"), [(0.03, "milliseconds"), (60, "seconds"), (600, "minutes"),
                                               (18_000, "hours"), (2_000_000, "days")])
def test_a_span_of_time_is_told_in_a_readable_unit(seconds: float, unit: str) -> None:
    name, length = pictures.time_unit(seconds)
    assert name == unit
    assert 2 <= seconds / length < 200


def test_channels_with_the_largest_errors_are_drawn_before_those_that_are_not_scored() -> None:
    errors = np.zeros((5, 20))
    errors[:, 15:] = 3
    errors[:, 0] = np.nan
    shown = pictures._largest(errors, np.where(np.arange(20) == 0, np.nan, 1.0))
    assert len(shown) == pictures.MOST_CHANNELS
    assert set(range(15, 20)) <= set(shown)
    assert 0 not in shown


def test_digits_are_drawn_as_they_stand_and_recordings_with_time_to_the_right() -> None:
    digits, tones = examples.digits().contract, examples.tones(count=2).contract
    assert grids.frame_of(digits, np.ones((1, 8, 8))).is_picture
    frame = grids.frame_of(tones, np.ones((1, 32, 24)))
    assert not frame.is_picture
    assert frame.seconds == pytest.approx(tones.window * 0.032)
    assert grids.grid({"a": np.random.default_rng(0).normal(size=(3, 32, 24))}, frame, "t").startswith(b"\x89PNG")


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
