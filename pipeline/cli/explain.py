"""`narrows explain`: an alert scored again, from the input topic and the bundle that it names."""

from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from pipeline import topics
from pipeline.agent import Part
from pipeline.cli.options import ConfigFile, Json
from pipeline.config import Config, load_config
from pipeline.core.records import Records
from pipeline.core.scaling import Scaling
from pipeline.engine.transport import TP
from pipeline.errors import BadInput, StopWorker
from pipeline.formats.readings import Reason
from pipeline.line import Line, OutputTopics
from pipeline.registry.store import Registry
from pipeline.scoring.models import ModelShelf
from pipeline.scoring.stream import Result
from pipeline.sinks import Anomaly, read_anomaly, read_dead_letter

NORMAL_SHARE = 0.5     # of the threshold, below which a row is an example of a normal one
FIRST_REACH = 20_000   # records before the alert that are read at first; doubled until they hold what a score needs


def explain(
    alert: Annotated[str, typer.Argument(metavar="ALERT_ID", help="Id or episode id of an alert, or how it begins.")],
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Score an alert again, from the offsets and the bundle that it names, and show what it stands on.

    Example: narrows explain 0ca584a8bed0
    """
    tree = load_config(config)
    partition, anomaly = find_alert(tree, alert)
    again, start = score_again(tree, partition, anomaly)
    same = again is not None and np.float32(again["score"]) == np.float32(anomaly.score)
    facts: dict[str, Any] = {
        "alert": msgspec.to_builtins(anomaly), "partition": partition, "read_from": start,
        "again": again, "same": bool(same),
    }
    if as_json:
        print(msgspec.json.encode(facts).decode())
    else:
        _show(anomaly, again, bool(same), f"{partition} from offset {start} to {anomaly.trigger}")
    if not same:
        raise BadInput(
            "the score did not come back: the records that it stands on are no longer all in the topic (retention), or "
            "this machine computes in other last bits than the worker's"
        )


def find_alert(config: Config, alert: str) -> tuple[int, Anomaly]:
    """The partition and the newest event whose id, or whose episode's id, begins like this. Raises BadInput."""
    found = None
    settings = config.kafka.client_settings()
    for partition, record in topics.read_topic(settings, config.kafka.topic("anomalies")):
        anomaly = read_anomaly(record.value or b"")
        if anomaly.id.startswith(alert) or (anomaly.episode_id.startswith(alert) and anomaly.contributions):
            found = (partition, anomaly)
    if found is None:
        raise BadInput(f"no alert begins with {alert}: {config.kafka.topic('anomalies')} has them all")
    if not found[1].contributions:
        raise BadInput(
            f"alert {alert} was caused by silence, not by a row: there is no score behind it; name the episode's other "
            f"events ({found[1].episode_id})"
        )
    return found


def score_again(config: Config, partition: int, anomaly: Anomaly) -> tuple[dict[str, Any] | None, int]:
    """The alert's row as it scores now, None where it does not; and the offset that was read from."""
    stream = config.streams.get(anomaly.stream)
    if stream is None:
        raise BadInput(f"the alert is of stream {anomaly.stream}, which this configuration does not have")
    shelf = ModelShelf(
        Registry(config.registry.path), {anomaly.stream: stream.contract},
        {anomaly.stream: Path(stream.bundle)} if stream.bundle is not None else {}, config.worker.provider,
    )
    try:
        model = shelf.load(anomaly.stream, anomaly.digest)
    except StopWorker as error:
        raise BadInput(
            f"the alert was made by bundle {anomaly.digest[:12]}, which is neither in the registry nor configured "
            f"({error.__cause__}): put it back there"
        ) from error
    settings = config.kafka.client_settings()
    first = topics.begin_offsets(settings, stream.topic)[partition]
    crashed = _crashed(config, stream.topic, partition)
    reach = FIRST_REACH
    while True:
        start = max(first, anomaly.trigger - reach)
        line = Line(
            anomaly.stream, stream.topic, stream.contract, stream.format, stream.match,
            OutputTopics(None, None, None, None, "", ""),
        )
        line.stream.contributions = True
        line.assign(partition, model, start, -1, {})
        records = list(topics.read_range(settings, stream.topic, partition, start, anomaly.trigger + 1))
        results = _push(line, stream.topic, partition, records, start, crashed)
        again = _row(line, results, anomaly)
        if again is not None:
            again["nearest_normal"] = nearest_normal(line, results, anomaly, model.scaling)
        if start == first or (again is not None and np.float32(again["score"]) == np.float32(anomaly.score)):
            return again, start
        reach *= 4


def _crashed(config: Config, topic: str, partition: int) -> frozenset[int]:
    """Offsets of records that killed whoever read them: the worker left them out, and so do we."""
    settings, name = config.kafka.client_settings(), config.kafka.topic("dead-letters")
    begin, end = topics.begin_offsets(settings, name)[partition], topics.end_offsets(settings, name)[partition]
    letters = [read_dead_letter(record.headers) for record in topics.read_range(settings, name, partition, begin, end)]
    return frozenset(
        letter.offset for letter in letters if (letter.topic, letter.reason) == (topic, Reason.CRASHED.code)
    )


def _push(
    line: Line, topic: str, partition: int, records: list[topics.Record], emit_from: int, crashed: frozenset[int]
) -> list[Result]:
    """The records through the worker's own code, in batches."""
    results, now = [], -1
    for at in range(0, len(records), 5_000):
        part = Records.of((one.offset, one.ts_ms, one.key, one.value) for one in records[at : at + 5_000])
        running = np.maximum(np.maximum.accumulate(part.timestamp), now)
        now = int(running[-1])
        results.append(line.compute([Part(TP(topic, partition), part, running, emit_from, crashed)])[0])
    return results


def nearest_normal(
    line: Line, results: list[Result], anomaly: Anomaly, scaling: Scaling
) -> dict[str, Any] | None:
    """The row of the alert's device and lane, scored as normal before the alert, whose values lie nearest to the
    alerted row's in the device's own scale. None where no such row was read.

    Normal: below half of the threshold and outside of an episode. A missing value counts as one deviation apart.
    """
    rows, sensors = line.stream.rows, line.contract.sensors
    names = [line.contract.names[place] for place in sensors]
    values, ts_ms, offset = [], [], []
    for result in results:
        for scored in result.scored:
            if scored.observed is None:
                continue
            normal = (scored.score < NORMAL_SHARE * scored.threshold) & ~scored.verdict.is_anomaly
            for slot in np.unique(scored.slot).tolist():
                if rows.names[slot] == anomaly.device and rows.is_late(slot) == (anomaly.lane == "late"):
                    mine = normal & (scored.slot == slot) & (scored.trigger < anomaly.trigger)
                    values.append(scored.observed[mine])
                    ts_ms.append(scored.ts_ms[mine])
                    offset.append(scored.trigger[mine])
    known = np.concatenate(values) if values else np.empty((0, len(names)))
    if not len(known):
        return None
    asked = np.array([np.nan if anomaly.observed.get(name) is None else anomaly.observed[name] for name in names])
    scale = scaling.scale[scaling.index([anomaly.device])[0], sensors]
    apart = ((known - asked) / scale) ** 2
    nearest = int(np.where(np.isnan(apart), 1, apart).sum(axis=1).argmin())
    told = [None if value != value else value for value in known[nearest].tolist()]
    return {"ts": int(np.concatenate(ts_ms)[nearest]), "offset": int(np.concatenate(offset)[nearest]),
            "values": dict(zip(names, told, strict=True))}


def _row(line: Line, results: list[Result], anomaly: Anomaly) -> dict[str, Any] | None:
    """The scored row of the alert's device that its record completed; of several joined ones, the alert's score."""
    rows = line.stream.rows
    names = [line.contract.names[place] for place in line.contract.sensors]
    index = 0 if anomaly.index is msgspec.UNSET else anomaly.index
    found = None
    for result in results:
        for scored in result.scored:
            for i in np.flatnonzero(scored.trigger == anomaly.trigger).tolist():
                slot = int(scored.slot[i])
                late = rows.is_late(slot)
                is_index = line.unname(int(scored.offset[i]))[1] == index
                if rows.names[slot] == anomaly.device and late == (anomaly.lane == "late") and is_index:
                    shares = [] if scored.contributions is None else scored.contributions[i].tolist()
                    found = {
                        "score": float(scored.score[i]), "threshold": scored.threshold, "ts": int(scored.ts_ms[i]),
                        "contributions": dict(zip(names, shares, strict=False)), "digest": scored.digest,
                    }
                    if scored.score[i] == np.float32(anomaly.score):
                        return found
    return found


def _show(anomaly: Anomaly, again: dict[str, Any] | None, same: bool, where: str) -> None:
    console = Console()
    console.print(
        f"{anomaly.state} episode {anomaly.episode_id[:12]} of [bold]{anomaly.device}[/] ({anomaly.stream}, "
        f"{anomaly.lane} lane), {anomaly.kind}, severity {anomaly.severity}"
    )
    score = "does not come back" if again is None else f"{again['score']:.7g}"
    console.print(
        f"score {anomaly.score:.7g}, threshold {anomaly.threshold:.7g}; again {score}"
        + (", the same bits" if same else "")
    )
    console.print(f"bundle {anomaly.digest[:12]}, partition {where}")
    nearest = None if again is None else again["nearest_normal"]
    normal = {} if nearest is None else nearest["values"]
    if nearest is not None:
        console.print(f"nearest normal row: ts {nearest['ts']}, offset {nearest['offset']}")
    table = Table("channel", "share", "direction", "observed", "expected", "+-", "nearest normal")
    for name, share in sorted(anomaly.contributions.items(), key=lambda pair: -pair[1]):
        told = [anomaly.observed.get(name), anomaly.expected.get(name), anomaly.margin.get(name), normal.get(name)]
        table.add_row(name, f"{share:.4g}", anomaly.directions.get(name, ""),
                      *("" if value is None else f"{value:.6g}" for value in told))
    console.print(table)
