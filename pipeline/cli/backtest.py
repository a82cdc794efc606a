"""`narrows backtest`: the rows of files through the worker's own code, as one partition, a block at a time.

Invariant: neither the blocks of reading nor the batches of scoring change a result, and what is in memory is bounded by
a block and the state of the devices (with `resample`, by the blocks that an open row still waits in too).
"""

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.csv
import typer

from pipeline.cli import options as common
from pipeline.cli.files import file_options, told_blocks
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

    def take(self, stream: Stream, result: Result, first: int) -> None:
        """Enter what one batch gave for these rows; a row's offset is its number. first : number of the first one."""
        for scored in result.scored:
            at = scored.offset - first
            mine = (at >= 0) & (at < len(self.score))
            at = at[mine]
            self.score[at] = scored.score[mine]
            self.is_anomaly[at] = scored.verdict.is_anomaly[mine]
            self.is_change[at] = scored.verdict.is_change[mine]
            self.episode[at] = scored.verdict.episode_offset[mine]
            self.is_late[at] = (stream.rows.main[scored.slot] != scored.slot)[mine]
            if scored.contributions is not None:
                self.contributions[at] = scored.contributions[mine]
            warming = scored.run < stream.contract.window
            why = np.where(np.isnan(scored.score), "between hops", "")
            why[scored.verdict.is_muted] = "maintenance"
            self.reason[at] = np.where(warming, "warming", why)[mine]


@dataclass(frozen=True)
class Judged:
    """A block of rows with what the stream said of them.

    first  : number of its first row among all rows.
    alarms : events of episodes as (device, late lane, alarm), in the order of their triggers: those that rows read
             since the block before caused.
    """

    table: Table
    first: int
    scores: Scores
    alarms: list[tuple[str, bool, Alarm]] = field(default_factory=list)


def run_backtest(
    bundle: Bundle, table: Table, batch_rows: int, provider: str = "cpu", windows: Windows = Windows(),
    silence_ms: int | None = None,
) -> tuple[Scores, list[tuple[str, bool, Alarm]]]:
    """`judge` over one table in memory: its scores, and all events of episodes."""
    (judged,) = judge(bundle, [table], batch_rows, provider, windows, silence_ms)
    return judged.scores, judged.alarms


def judge(
    bundle: Bundle, blocks: Iterable[Table], batch_rows: int, provider: str = "cpu", windows: Windows = Windows(),
    silence_ms: int | None = None,
) -> Iterator[Judged]:
    """Scores of every row, and the events of episodes; a block is given when no later row can change what it holds.

    Rows are taken in input order; a row's time is also its record's timestamp. batch_rows never changes a result.
    windows : of maintenance, known from the first row on.   silence_ms : see `Stream`.
    """
    contract = bundle.contract
    model = Model(bundle.digest, open_session(bundle, provider), bundle.scaling, bundle.scorer, bundle.codec)
    stream = Stream(contract, contributions=True, give_blocks=False, silence_ms=silence_ms)
    stream.assign(0, model, 0, -1)
    stream.heed(0, windows)
    joiner = Joiner(contract) if contract.resample else None
    waiting: deque[Judged] = deque()
    first, now = 0, -1
    for table in blocks:
        scores = Scores(len(table), len(contract.sensors))
        refused = (table.reason > 0) | np.asarray(np.isnan(table.values[:, contract.sensors]).all(axis=1))
        scores.reason[refused] = [Reason(code or Reason.NO_CHANNEL).code for code in table.reason[refused].tolist()]
        waiting.append(Judged(table, first, scores))
        alarms: list[tuple[str, bool, Alarm]] = []
        for part in _batches(len(table), batch_rows):
            offset = first + np.arange(part.start, part.stop)
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
            for one in waiting:
                one.scores.take(stream, result, one.first)
            alarms += [(one.device, one.late, one) for one in result.alarms]
        waiting[-1].alarms.extend(sorted(alarms, key=lambda alarm: (alarm[2].event.trigger, alarm[0], alarm[1])))
        first += len(table)
        is_open = None if joiner is None else joiner.mark(0, first)     # rows from there on may still be named
        while waiting and (is_open is None or waiting[0].first + len(waiting[0].table) <= is_open[0]):
            yield waiting.popleft()
    yield from waiting


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
    silence_ms = None if silence_s is None else round(1000 * silence_s)
    windows = _windows(maintenance)
    rows_read = scored_rows = anomalous = opened = 0
    with ExitStack() as files_out:
        lines = files_out.enter_context(_ScoreFile(out, made, contributions))
        events = None if episodes is None else files_out.enter_context(episodes.open("wb"))
        for judged in judge(made, told_blocks(files, given), batch_rows, provider, windows, silence_ms):
            lines.write(judged)
            if events is not None:
                events.write(_episode_lines(made, judged.alarms))
            rows_read += len(judged.table)
            scored_rows += int((~np.isnan(judged.scores.score)).sum())
            anomalous += int(judged.scores.is_anomaly.sum())
            opened += sum(alarm.event.kind == "opened" for _, _, alarm in judged.alarms)
    facts = {"rows": rows_read, "scored": scored_rows, "anomalous": anomalous, "episodes": opened,
             "digest": made.digest, "out": str(out)}
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


class _ScoreFile:
    """scores.csv, a block at a time; removed where a later block can't be read, as half of it would look whole."""

    def __init__(self, out: Path, bundle: Bundle, contributions: bool) -> None:
        self._out, self._bundle, self._contributions = out, bundle, contributions
        self._names = [bundle.contract.names[place] for place in bundle.contract.sensors]
        columns = {
            "device": pa.string(), "row": pa.int64(), "ts": pa.int64(), "score": pa.float32(),
            "threshold": pa.float32(), "is_anomaly": pa.int8(), "changepoint": pa.int8(), "episode_id": pa.string(),
            "top_channel": pa.string(), "reason": pa.string(),
        }
        if contributions:
            columns |= {f"c:{name}": pa.float32() for name in self._names}
        self._schema = pa.schema(list(columns.items()))
        options = pyarrow.csv.WriteOptions(quoting_style="needed")
        self._file = pyarrow.csv.CSVWriter(out, self._schema, write_options=options)

    def __enter__(self) -> "_ScoreFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        if kind is not None and self._out.is_file():
            self._out.unlink()

    def write(self, judged: Judged) -> None:
        """One line for each row of the block."""
        table, scores = judged.table, judged.scores
        unscored = np.isnan(scores.score)
        late, offset = scores.is_late.tolist(), scores.episode.tolist()
        ids = {
            (is_late, at): output_id(TOPIC, 0, "episode", LANES[is_late], at)
            for is_late, at in set(zip(late, offset, strict=True)) if at >= 0
        }
        top = np.array(self._names, dtype=object)[scores.contributions.argmax(axis=1)]
        columns: list[Any] = [
            pa.array([table.devices[place] for place in table.device.tolist()], pa.string()),
            judged.first + np.arange(len(table)), table.ts_ms, pa.array(scores.score, mask=unscored),
            np.full(len(table), self._bundle.scorer.threshold, np.float32), scores.is_anomaly.astype(np.int8),
            scores.is_change.astype(np.int8),
            pa.array([ids.get(one, "") for one in zip(late, offset, strict=True)], pa.string()),
            pa.array(np.where(unscored, "", top), pa.string()), pa.array(scores.reason.tolist(), pa.string()),
        ]
        if self._contributions:
            columns += [pa.array(column, mask=unscored) for column in scores.contributions.T]
        self._file.write_table(pa.table(columns, schema=self._schema))


def _episode_lines(bundle: Bundle, alarms: list[tuple[str, bool, Alarm]]) -> bytes:
    """One JSON line for each event of an episode."""
    names = [bundle.contract.names[place] for place in bundle.contract.sensors]
    lines = []
    for device, late, alarm in alarms:
        event = alarm.event
        explained = [] if alarm.contributions is None else alarm.contributions.tolist()
        own: Kind = "silence" if event.slot == NO_SLOT else "episode"
        lines.append(msgspec.json.encode({
            "episode_id": output_id(TOPIC, 0, own, LANES[late], event.start_offset), "device": device,
            "lane": LANES[late], "state": event.kind, "row": event.trigger, "window_start": event.start_ts,
            "window_end": event.end_ts, "score": event.score, "peak": event.peak, "threshold": alarm.threshold,
            "severity": event.severity, "kind": alarm.kind,
            "contributions": dict(zip(names, explained, strict=False)), "digest": alarm.digest,
        }) + b"\n")
    return b"".join(lines)
