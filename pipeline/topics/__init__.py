"""Kafka topics outside of the stream: which there are, making them, reading them between offsets."""

from pipeline.topics.client import Settings
from pipeline.topics.definitions import TOPICS, Topic
from pipeline.topics.feedback import Feedback
from pipeline.topics.maintenance import follow_plans, read_plans
from pipeline.topics.making import Facts, check, create, describe, grow
from pipeline.topics.reader import (
    Record,
    begin_offsets,
    end_offsets,
    newest_by_key,
    offsets_at,
    partitions_of,
    read_range,
    read_tails,
    read_topic,
)
from pipeline.topics.rights import check_rights
from pipeline.topics.writer import write_record

__all__ = [
    "TOPICS", "Facts", "Feedback", "Record", "Settings", "Topic", "begin_offsets", "check", "check_rights", "create",
    "describe", "end_offsets", "follow_plans", "grow", "newest_by_key", "offsets_at", "partitions_of", "read_plans",
    "read_range", "read_tails", "read_topic", "write_record",
]
