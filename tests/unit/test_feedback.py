"""What people said of alerts, and which episodes it leaves out."""

from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from pipeline.cli import feedback as command
from pipeline.cli.backtest import run_backtest
from pipeline.core.contract import Channel, Contract
from pipeline.errors import BadInput
from pipeline.formats.files import Table
from pipeline.registry.bundle import Bundle
from pipeline.topics import TOPICS, Feedback
from training.jobs import _fit
from training.make_baseline import make_baseline_bundle
from training.masks import called_false
from training.prepare import prepare
from training.spool import spool


def record(episode: str, is_true: bool) -> tuple[bytes, bytes]:
    return episode.encode(), msgspec.json.encode(Feedback(episode_id=episode, is_true=is_true))


def test_only_episodes_called_false_are_pardoned_and_broken_records_are_stepped_over():
    marks = dict([record("a", False), record("b", True), (b"c", b"no json")])
    assert called_false(marks) == {"a"}


def test_the_topic_keeps_the_newest_of_each_episode():
    assert TOPICS["feedback"].cleanup == "compact"


@pytest.mark.parametrize("how", [{}, {"is_true": True, "forget": True}])
def test_one_of_true_false_and_forget_is_needed(how):
    with pytest.raises(BadInput, match="one of"):
        command.feedback("e1", **how)


def test_feedback_reaches_the_topic(kafka, tmp_path):
    from pipeline.config import load_config
    from pipeline.topics import create, newest_by_key

    path = tmp_path / "narrows.yaml"
    path.write_text(f"kafka: {{bootstrap: '{kafka.bootstrap}', topic_prefix: 'fb{tmp_path.name}.'}}\n")
    tree = load_config(path)
    settings = tree.kafka.client_settings()
    create(settings, [], tree.kafka.topic_prefix, outputs=[TOPICS["feedback"]])
    command.feedback("e1", is_true=False, config=path)
    command.feedback("e2", is_true=True, config=path)
    command.feedback("e2", forget=True, config=path)
    assert called_false(newest_by_key(settings, tree.kafka.topic("feedback"))) == {"e1"}


def test_twenty_false_alarms_of_a_pattern_silence_it_after_a_retraining_and_other_faults_are_still_found(tmp_path):
    """From alerts of the stream's own code over their marks to the retraining job's bundle, and the stream again."""
    contract = Contract(channels=tuple(Channel(name=name) for name in "abcd"), window=8, memory=40)

    def table_of(seed: int, rows: int, starts: range, channel: int) -> Table:
        """Correlated rows of one device, with a step of five deviations for 40 rows at each start."""
        rng = np.random.default_rng(seed)
        shocks = rng.normal(size=(rows, 4)) @ np.random.default_rng(0).normal(size=(4, 4)) * 0.5
        values = np.zeros_like(shocks)
        for row in range(1, rows):
            values[row] = 0.6 * values[row - 1] + shocks[row]
        spread = values[:, channel].std()
        for start in starts:
            values[start : start + 40, channel] += 5 * spread
        return Table(("d",), np.zeros(rows, np.int64), np.arange(rows) * 1000, contract.names,
                     values.astype(np.float32), reason=np.zeros(rows, np.uint8))

    def found(bundle: Bundle, table: Table, starts: range) -> int:
        """How many of the steps raise an alert."""
        opened = [one.event.start_ts // 1000 for _, _, one in run_backtest(bundle, table, 5000)[1]
                  if one.event.kind == "opened"]
        return sum(any(start - 5 <= row < start + 60 for row in opened) for start in starts)

    clean = table_of(1, 3000, range(0), 1)
    ready = prepare(contract, clean.devices, clean.device, clean.ts_ms, clean.values)
    first = make_baseline_bundle(ready, tmp_path / "first", refuse=False)
    twenty, later = range(300, 6300, 300), range(200, 2000, 300)
    seen = table_of(2, 6500, twenty, 1)
    spans = {}
    for _, _, alarm in run_backtest(first, seen, 5000)[1]:
        spans[str(alarm.event.start_offset).encode()] = ("d", alarm.event.start_ts, alarm.event.end_ts)
    false = [name for name, (_, began, _) in spans.items() if any(0 <= began // 1000 - at < 60 for at in twenty)]
    assert len(false) >= 20
    marks = dict(record(name.decode(), False) for name in false)
    stream = SimpleNamespace(contract=contract, retrain=SimpleNamespace(family="linear"))
    with spool([seen], tmp_path / "rows") as laid:
        pardoned = laid.inside([spans[name.encode()] for name in called_false(marks)], "pardoned")
        masks = (laid.inside(spans.values(), "masked"), pardoned)
        second = _fit(stream, first, laid, masks, len(seen), tmp_path / "second", {}, lambda *told: None)

    again, fault = table_of(3, 2200, later, 1), table_of(3, 2200, later, 2)
    assert found(first, again, later) == len(later)
    assert found(second, again, later) == 0
    assert found(second, fault, later) == len(later)
