"""What people said of alerts, and which episodes it leaves out."""

import msgspec
import pytest

from pipeline.cli import feedback as command
from pipeline.errors import BadInput
from pipeline.topics import TOPICS, Feedback
from training.topic import called_false


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
