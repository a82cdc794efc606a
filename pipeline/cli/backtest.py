"""`narrows backtest`: the rows of a file through the worker's own code, as one partition."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.csv
import typer

from pipeline.cli import options as common
from pipeline.cli.files import file_options, read_told
from pipeline.core.ids import LANES, Kind, output_id
from pipeline.core.join import Joiner
from pipeline.core.maintenance import Window, Windows
from pipeline.core.rows import Clock, Columns
from pipeline.errors import BadInput
from pipeline.formats import Reason
from pipeline.formats.files import Table
from pipeline.registry.bundle import Bundle, load_bundle
from pipeline.scoring.gate import open_session
from pipeline.scoring.stream import NO_SLOT, Alarm, Model, Result, Stream

TOPIC = "backtest"


class Scores:
    """What became of each row of a table, in input order.

    score : NaN where unscored. reason : why, or `maintenance` of a scored row that could raise no alert.
    """

    def __init__(self, rows: int, sensors: int) -> None:
        self.score = np.full(rows, np.nan, np.float32)
        self.is_anomaly = np.zeros(rows, bool)
        self.is_change = np.zeros(rows, bool)
        self.is_late = np.zeros(rows, bool)
        self.episode = np.full(rows, -1, np.int64)
        self.contributions = np.zeros((rows, sensors), np.float32)
        self.reason = np.full(rows, "duplicate", dtype="<U16")

    def take(self, stream: Stream, result: Result) -> None:
        """Enter what one batch gave; a row's offset is its number."""
        for scored in result.scored:
            at = scored.offset
            self.score[at] = scored.score
            self.is_anomaly[at] = scored.verdict.is_anomaly
            self.is_change[at] = scored.verdict.is_change
            self.episode[at] = scored.verdict.episode_offset
            self.is_late[at] = stream.rows.main[scored.slot] != scored.slot
            if scored.contributions is not None:
                self.contributions[at] = scored.contributions
            warming = scored.run < stream.contract.window
            unscored = np.where(np.isnan(scored.score), "between hops", "")
            unscored[scored.verdict.is_muted] = "maintenance"
            self.reason[at] = np.where(warming, "warming", unscored)


def run_backtest(
    bundle: Bundle, table: Table, batch_rows: int, provider: str = "cpu", windows: Windows = Windows(),
    silence_ms: int | None = None,
) -> tuple[Scores, list[tuple[str, bool, Alarm]]]:
    """Scores of every row, and the events of episodes as (device, late lane, alarm), in the order of their triggers.

    Rows are taken in input order; a row's time is also its record's timestamp. batch_rows never changes a result.
    windows : of maintenance, known from the first row on.   silence_ms : see `Stream`.
    """
    contract = bundle.contract
    model = Model(bundle.digest, open_session(bundle, provider), bundle.scaling, bundle.scorer, bundle.codec)
    stream = Stream(
        contract, capacity=max(1, len(table.devices)), contributions=True, give_blocks=False, silence_ms=silence_ms
    )
    stream.assign(0, model, 0, -1)
    stream.heed(0, windows)
    joiner = Joiner(contract) if contract.resample else None
    scores = Scores(len(table), len(contract.sensors))
    alarms: list[tuple[str, bool, Alarm]] = []
    refused = (table.reason > 0) | np.asarray(np.isnan(table.values[:, contract.sensors]).all(axis=1))
    scores.reason[refused] = [Reason(code or Reason.NO_CHANNEL).code for code in table.reason[refused].tolist()]
    now = -1
    for part in _batches(len(table), batch_rows):
        offset = np.arange(part.start, part.stop)
        time = np.maximum(np.maximum.accumulate(table.ts_ms[part]), now)
        now = int(time[-1])
        clock = Clock(0, offset, time)
        stream.settle()
        kept = np.flatnonzero(~refused[part])
        names = [table.devices[place] for place in table.device[part][kept].tolist()]
        ts_ms, values, at, when = table.ts_ms[part][kept], table.values[part][kept], offset[kept], time[kept]
        if joiner is None:
            columns = Columns(stream.slots(0, names), ts_ms, at, at, when, at, when, values)
        else:
            joined = joiner.push(names, ts_ms, None, values, at, at, when, clock)
            columns = Columns(
                stream.slots(0, joined.device), joined.ts_ms, joined.name, joined.pin, joined.pin_time,
                joined.trigger, joined.stream_time, joined.values,
            )
        result = stream.push(columns, [clock])
        scores.take(stream, result)
        alarms += [(one.device, one.late, one) for one in result.alarms]
    return scores, sorted(alarms, key=lambda alarm: (alarm[2].event.trigger, alarm[0], alarm[1]))


def _batches(rows: int, batch_rows: int) -> Iterator[slice]:
    return (slice(start, min(start + batch_rows, rows)) for start in range(0, rows, batch_rows))


def backtest(
    files: common.Files,
    bundle: Annotated[Path, typer.Option(help="Bundle that scores.")],
    out: Annotated[Path, typer.Option(help="CSV to write: one line a row.")],
    batch_rows: Annotated[int, typer.Option(min=1, help="Rows of a batch; never changes a result.")] = 5000,
    episodes: Annotated[Path | None, typer.Option(help="JSON lines to write: one event of an episode each.")] = None,
    contributions: Annotated[bool, typer.Option("--contributions", help="Add a column c:CHANNEL each.")] = False,
    maintenance: Annotated[
        Path | None, typer.Option(help="Maintenance windows: what `narrows maintenance list --json` prints.")
    ] = None,
    silence_s: Annotated[
        float | None, typer.Option(help="A device that sends nothing for so long is told; default never.")
    ] = None,
    provider: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    time_column: common.TimeColumn = None,
    time_unit: common.TimeUnit = None,
    step: common.Step = None,
    device_column: common.DeviceColumn = None,
    rows: common.Rows = None,
    missing: common.Missing = None,
    as_json: common.Json = False,
) -> None:
    """Score a file with the worker's own code: what a live stream of these rows would have been told.

    Example: narrows backtest pump.csv --bundle bundles/pump --out scores.csv
    """
    made = load_bundle(bundle)
    given = file_options(
        time_column, time_unit, step, device_column, rows=rows, missing=missing, channels=made.contract.names,
    )
    table = read_told(files, given)
    silence_ms = None if silence_s is None else round(1000 * silence_s)
    scores, alarms = run_backtest(made, table, batch_rows, provider, _windows(maintenance), silence_ms)
    _write_scores(out, made, table, scores, contributions)
    if episodes is not None:
        _write_episodes(episodes, made, alarms)
    facts = {
        "rows": len(table), "scored": int((~np.isnan(scores.score)).sum()), "anomalous": int(scores.is_anomaly.sum()),
        "episodes": sum(alarm.event.kind == "opened" for _, _, alarm in alarms), "digest": made.digest, "out": str(out),
    }
    if as_json:
        print(msgspec.json.encode(facts).decode())
    else:
        print(
            f"{facts['rows']} rows, {facts['scored']} scored, {facts['anomalous']} anomalous in {facts['episodes']} "
            f"episodes by bundle {made.short}: {out}"
        )


def _windows(path: Path | None) -> Windows:
    """The windows of a file, whatever stream they are of."""
    if path is None:
        return Windows()
    try:
        return Windows(msgspec.json.decode(path.read_bytes(), type=list[Window]))
    except (OSError, msgspec.DecodeError) as error:
        raise BadInput(f"--maintenance {path}: {error}; give what `narrows maintenance list --json` prints") from error


def _write_scores(out: Path, bundle: Bundle, table: Table, scores: Scores, contributions: bool) -> None:
    names = [bundle.contract.names[place] for place in bundle.contract.sensors]
    scored = ~np.isnan(scores.score)
    ids = {
        (late, offset): output_id(TOPIC, 0, "episode", LANES[late], offset)
        for late, offset in set(zip(scores.is_late.tolist(), scores.episode.tolist(), strict=True)) if offset >= 0
    }
    episode = [
        ids.get((late, offset), "")
        for late, offset in zip(scores.is_late.tolist(), scores.episode.tolist(), strict=True)
    ]
    top = np.array(names, dtype=object)[scores.contributions.argmax(axis=1)]
    columns: dict[str, Any] = {
        "device": pa.array([table.devices[place] for place in table.device.tolist()], pa.string()),
        "row": pa.array(np.arange(len(table))),
        "ts": pa.array(table.ts_ms),
        "score": pa.array(scores.score, mask=~scored),
        "threshold": pa.array(np.full(len(table), bundle.scorer.threshold, np.float32)),
        "is_anomaly": pa.array(scores.is_anomaly.astype(np.int8)),
        "changepoint": pa.array(scores.is_change.astype(np.int8)),
        "episode_id": pa.array(episode, pa.string()),
        "top_channel": pa.array(np.where(scored, top, ""), pa.string()),
        "reason": pa.array(scores.reason.tolist(), pa.string()),
    }
    if contributions:
        columns |= {f"c:{name}": pa.array(scores.contributions[:, i], mask=~scored) for i, name in enumerate(names)}
    pyarrow.csv.write_csv(pa.table(columns), out, pyarrow.csv.WriteOptions(quoting_style="needed"))


def _write_episodes(out: Path, bundle: Bundle, alarms: list[tuple[str, bool, Alarm]]) -> None:
    names = [bundle.contract.names[place] for place in bundle.contract.sensors]
    with out.open("wb") as file:
        for device, late, alarm in alarms:
            event = alarm.event
            explained = [] if alarm.contributions is None else alarm.contributions.tolist()
            own: Kind = "silence" if event.slot == NO_SLOT else "episode"
            file.write(msgspec.json.encode({
                "episode_id": output_id(TOPIC, 0, own, LANES[late], event.start_offset), "device": device,
                "lane": LANES[late], "state": event.kind, "row": event.trigger, "window_start": event.start_ts,
                "window_end": event.end_ts, "score": event.score, "peak": event.peak, "threshold": alarm.threshold,
                "severity": event.severity, "kind": alarm.kind,
                "contributions": dict(zip(names, explained, strict=False)), "digest": alarm.digest,
            }) + b"\n")
