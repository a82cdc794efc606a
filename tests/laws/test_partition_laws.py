"""Partitions of one line know nothing of each other: side by side they give what each gives alone, swaps included."""

import numpy as np
import pytest

from pipeline.agent import Part
from pipeline.config import Match
from pipeline.core.records import Records
from pipeline.core.rows import MAX_DEVICES
from pipeline.engine.transport import TP
from pipeline.line import Line
from tests.laws.test_line_laws import KINDS, TOPICS, Kind, Raw, id_of, make_log
from tests.support.models import small_model

STORIES = 10


def make_line(kind: Kind, logs: dict[int, list[Raw]], max_devices: int) -> Line:
    line = Line("pump", "t", kind.contract, kind.spec, Match(), TOPICS, max_devices=max_devices)
    for partition in logs:
        line.assign(partition, small_model(kind.contract, 0, kind.members[0], 1.0), 0, -1, {})
    return line


def outputs_of(
    kind: Kind, logs: dict[int, list[Raw]], swaps: dict[int, int], rng: np.random.Generator, max_devices: int,
) -> dict[tuple[int, str, str], bytes]:
    """(partition, topic, id) -> content, in batches of any size over all partitions. swaps : partition -> offset."""
    line = make_line(kind, logs, max_devices)
    other = small_model(kind.contract, 1, kind.members[1], 1.0)
    position, stream_time = dict.fromkeys(logs, 0), dict.fromkeys(logs, -1)
    found: dict[tuple[int, str, str], bytes] = {}
    while any(position[partition] < len(log) for partition, log in logs.items()):
        batch = []
        for partition, log in logs.items():
            at = position[partition]
            end = min(len(log), at + int(rng.integers(0, 12)))
            if at == swaps[partition]:
                line.swap(partition, other)
            elif at < swaps[partition]:
                end = min(end, swaps[partition])
            records = log[at:end]
            if records:
                stamps = np.array([record.timestamp for record in records])
                running = np.maximum(np.maximum.accumulate(stamps), stream_time[partition])
                batch.append(Part(TP("t", partition), Records.of(records), running, 0))
                position[partition], stream_time[partition] = end, int(running[-1])
        for output in line.take(batch) if batch else ():
            if output.topic != "codecs":
                found[output.partition, output.topic, id_of(output)] = output.value or b""
    return found


@pytest.mark.parametrize("name", sorted(KINDS))
def test_partitions_side_by_side_give_what_each_gives_alone(name):
    kind = KINDS[name]
    for seed in range(STORIES):
        rng = np.random.default_rng(1_000 + seed)
        logs = {partition: make_log(kind, rng) for partition in (0, 2, 5)}
        swaps = {partition: int(rng.integers(1, len(log))) for partition, log in logs.items()}
        most = (1, 2, MAX_DEVICES)[seed % 3]
        together = outputs_of(kind, logs, swaps, rng, most)
        alone = [outputs_of(kind, {partition: log}, swaps, rng, most) for partition, log in logs.items()]
        assert together == alone[0] | alone[1] | alone[2], f"{name}, seed {seed}"
