"""A challenger takes the champion's place only where it is not worse on held-out rows."""

import msgspec
import pytest

from pipeline.retraining.gate import Figures, judge

CHAMPION = Figures(rows=1_000, over=0.01, detected=0.9, error=0.5, family="dense")


def challenger(**changes: object) -> Figures:
    return msgspec.structs.replace(CHAMPION, **changes)


def test_an_equal_challenger_passes():
    assert judge(CHAMPION, CHAMPION).passed


def test_without_a_champion_sound_figures_are_enough():
    assert judge(challenger(over=0.5, detected=0.0), None).passed


@pytest.mark.parametrize("field", ["over", "detected", "error"])
@pytest.mark.parametrize("champion", [CHAMPION, None])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_figure_that_is_not_finite_never_passes(field, champion, value):
    assert not judge(challenger(**{field: value}), champion).passed


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"rows": 199}, "held-out rows"),
        ({"over": 0.031}, "over its threshold"),
        ({"detected": 0.84}, "planted faults"),
        ({"error": 0.56}, "error"),
    ],
)
def test_each_figure_that_is_worse_is_named(changes, fault):
    judgement = judge(challenger(**changes), CHAMPION)
    assert not judgement.passed
    assert fault in judgement.faults[0]


def test_errors_of_two_families_are_not_compared():
    assert judge(challenger(family="var", error=5.0), CHAMPION).passed
