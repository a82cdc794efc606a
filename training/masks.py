"""Rows of a stream that nobody should learn from: those in alerted episodes, and those in maintenance.

The retraining job and `narrows train --from-topic` both ask `read_masks`, so that a bundle made by hand and one made by
a job leave out the same rows. Masked rows are neither learned nor judged, and no window that is learned holds one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from pipeline.config import Kafka
from pipeline.core.maintenance import Plan, Plans
from pipeline.errors import BadInput
from pipeline.topics import Feedback
from pipeline.topics.client import Settings
from pipeline.topics.maintenance import read_plans
from pipeline.topics.reader import begin_offsets, end_offsets, newest_by_key, partitions_of, read_range
from training.data import Span
from training.topic import Ranges, as_json


class _Alert(msgspec.Struct, frozen=True, gc=False):
    """What a mask needs of an event in the anomalies topic; the rest of the message is stepped over."""

    stream: str
    device: str
    episode_id: str
    state: str
    window_start: int
    window_end: int
    kind: str = ""


@dataclass(frozen=True)
class Masks:
    """What is known of a stream's rows. As made without anything, it masks none.

    alerted : id of an episode -> its span.   false : ids of those that people called false: they are masked too, and
              calibration makes their pattern silent.
    plan    : maintenance.   source : which offsets all of it was read from, for the manifest.
    missing : what could not be read, a sentence each.
    """

    stream: str = ""
    alerted: Mapping[str, Span] = field(default_factory=dict)
    false: frozenset[str] = frozenset()
    plan: Plan = field(default_factory=Plan)
    source: Mapping[str, Any] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    def masked(self, devices: Sequence[str]) -> list[Span]:
        """Spans of these devices in which rows are masked, and perhaps some of others."""
        return [*self.alerted.values(), *self.plan.of(self.stream).spans(devices)]

    def pardoned(self) -> list[Span]:
        """Spans of the episodes that people called false."""
        return [span for name, span in self.alerted.items() if name in self.false]


def read_masks(kafka: Kafka, stream: str) -> Masks:
    """Episodes, feedback and maintenance of a stream, as far as their topics go now.

    A topic that is not there masks nothing and is named in `missing`.
    Raises BadInput for a maintenance window of a newer version, Unreachable, TryAgain.
    """
    settings = kafka.client_settings()
    there = {name: _is_there(settings, kafka.topic(name)) for name in ("anomalies", "feedback", "maintenance")}
    ranges: Ranges = {}
    if there["anomalies"]:
        first, last = (offsets(settings, kafka.topic("anomalies")) for offsets in (begin_offsets, end_offsets))
        ranges = {partition: (first[partition], last[partition]) for partition in last}
    plans = Plans()
    if there["maintenance"]:
        read_plans(settings, kafka.topic("maintenance"), plans)
    marks = newest_by_key(settings, kafka.topic("feedback")) if there["feedback"] else {}
    missing = [kafka.topic(name) for name in ("anomalies", "maintenance") if not there[name]]   # silence is no feedback
    return Masks(
        stream, episodes(settings, kafka.topic("anomalies"), ranges, stream), frozenset(called_false(marks)),
        plans.wanted(),
        {"anomalies": as_json(ranges), "maintenance": plans.end},
        tuple(f"there is no topic {topic}, and no row is masked by it" for topic in missing))


def _is_there(settings: Settings, topic: str) -> bool:
    try:
        partitions_of(settings, topic)
    except BadInput:
        return False
    return True


def episodes(settings: Settings, topic: str, ranges: Ranges, stream: str) -> dict[str, Span]:
    """Alerted episodes of a stream: episode id -> span. Those of silence have no rows.

    topic, ranges : of the anomalies. An episode that never closed has no last ms but the greatest there is.
    """
    read = msgspec.json.Decoder(_Alert).decode
    spans: dict[str, Span] = {}
    silent: set[str] = set()
    for partition, (start, end) in sorted(ranges.items()):
        for record in read_range(settings, topic, partition, start, end):
            try:
                alert = read(record.value or b"")
            except msgspec.DecodeError:
                continue
            if alert.kind == "silence" and alert.state == "opened":
                silent.add(alert.episode_id)
            elif alert.stream == stream and alert.episode_id not in silent:
                until = alert.window_end if alert.state == "closed" else np.iinfo(np.int64).max
                spans[alert.episode_id] = (alert.device, alert.window_start, until)
    return spans


def called_false(marks: Mapping[bytes, bytes]) -> set[str]:
    """Episodes that people called false. marks : newest record of each key of the feedback topic."""
    read = msgspec.json.Decoder(Feedback).decode
    found = set()
    for value in marks.values():
        try:
            mark = read(value)
        except msgspec.DecodeError:
            continue
        if not mark.is_true:
            found.add(mark.episode_id)
    return found

