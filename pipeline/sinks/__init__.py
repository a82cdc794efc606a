"""Outputs to records, and records back to outputs."""

from pipeline.sinks.messages import (
    Anomaly,
    BlockLabel,
    DeadLetter,
    Feature,
    Score,
    read_anomaly,
    read_block_label,
    read_dead_letter,
    read_feature,
    read_score,
)
from pipeline.sinks.reader import SeenOnce
from pipeline.sinks.records import (
    Record,
    anomaly_record,
    block_record,
    codec_record,
    contract_key,
    contract_record,
    dead_letter_record,
    feature_record,
    find_whole,
    score_record,
    whole_records,
)

__all__ = [
    "Anomaly",
    "BlockLabel",
    "DeadLetter",
    "Feature",
    "Record",
    "Score",
    "SeenOnce",
    "anomaly_record",
    "block_record",
    "codec_record",
    "contract_key",
    "contract_record",
    "dead_letter_record",
    "feature_record",
    "find_whole",
    "read_anomaly",
    "read_block_label",
    "read_dead_letter",
    "read_feature",
    "read_score",
    "score_record",
    "whole_records",
]
