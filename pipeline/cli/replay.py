"""`narrows replay`: recorded data as a live stream."""

import json as jsonlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import typer

from pipeline.cli.files import file_options, read_told
from pipeline.cli.options import (
    ConfigFile,
    ContextColumns,
    DeviceColumn,
    Files,
    IgnoreColumns,
    Json,
    Missing,
    Rows,
    Step,
    TimeColumn,
    TimeUnit,
)
from pipeline.config import load_config
from pipeline.core.ids import MOST_ROWS
from pipeline.errors import BadInput, Unreachable
from pipeline.formats.encode import encode_records
from pipeline.formats.files import Table
from pipeline.formats.spec import Format, read_encoding
from pipeline.topics import Settings, create
from pipeline.topics.client import address, keywords

CHUNK = 2000  # rows encoded at a time
MOST_CHUNK = 200_000  # of Arrow records, which gather rows of a device
TICK_S = 0.02  # sent together: a sleep a record would cost more than the record

Times = Literal["data", "now"]


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast rows go out, and what time they carry.

    rate    : rows a second over all devices; None follows the data's own clock.
    speedup : the data's clock runs this many times as fast; infinite is as fast as possible.
    times   : `data` keeps each row's own time; `now` shifts them all so that the last row is sent at its own time.
    loops   : how often the data are played, each time shifted behind the last; 0 is until stopped.
    """

    rate: float | None = None
    speedup: float = 1.0
    times: Times = "data"
    loops: int = 1


@dataclass(slots=True)
class Sent:
    """What has gone out so far."""

    rows: int = 0
    records: int = 0
    bytes: int = 0
    newest_ms: int = 0  # largest time that a row carried


def replay(
    files: Files,
    topic: Annotated[str, typer.Option(help="Topic to publish to; made where it is missing.")],
    rate: Annotated[float | None, typer.Option(help="Rows a second, of all devices; 0 as fast as possible.")] = None,
    speedup: Annotated[float | None, typer.Option(help="Times the data's own speed; 1 is real time.")] = None,
    device_column: DeviceColumn = None,
    times: Annotated[str, typer.Option(help="data: each row's own time; now: shifted to the present.")] = "data",
    loops: Annotated[int, typer.Option(min=0, help="How often; 0 until stopped.")] = 1,
    copies: Annotated[int, typer.Option(min=1, help="Devices made of each device, each further back in the data.")] = 1,
    partitions: Annotated[int, typer.Option(min=1, help="Partitions of a topic that is made.")] = 4,
    encoding: Annotated[
        str | None, typer.Option(help="json, msgpack, cbor or arrow; default that of the topic's stream, else json.")
    ] = None,
    rows_a_record: Annotated[
        int, typer.Option("--rows-a-record", min=1, max=MOST_ROWS, help="Arrow: most rows of a device in a record.")
    ] = 100,
    time_column: TimeColumn = None,
    time_unit: TimeUnit = None,
    step: Step = None,
    ignore_columns: IgnoreColumns = None,
    context_columns: ContextColumns = None,
    missing: Missing = None,
    rows: Rows = None,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Publish recorded data as a live stream: one record a row (Arrow: many), its key the device.

    Example: narrows replay pump.csv --topic readings --speedup 60
    """
    tree = load_config(config)
    if rate is not None and speedup is not None:
        raise BadInput("--rate and --speedup exclude each other; keep one")
    if times not in ("data", "now"):
        raise BadInput(f"--times {times}: give data or now")
    if (rate is not None and rate < 0) or (speedup is not None and speedup <= 0):
        raise BadInput("--rate and --speedup must be positive")
    options = file_options(
        time_column, time_unit, step, device_column, ignore_columns, context_columns, None, rows, missing
    )
    table = spread(read_told(files, options), copies)
    spec = next((stream.format for stream in tree.streams.values() if stream.topic == topic), Format())
    if encoding is not None:
        spec = msgspec.structs.replace(spec, encoding=read_encoding(encoding))
    settings = tree.kafka.client_settings()
    create(settings, [topic], partitions=partitions, outputs=())
    pace = Pace(
        rate=rate or None, speedup=float("inf") if rate == 0 else speedup or 1.0,
        times="now" if times == "now" else "data", loops=loops,
    )
    sent, begin = Sent(), time.monotonic()
    with _Progress(len(table) * loops) as show:
        try:
            for sent in publish(settings, topic, spec, table, pace, rows_a_record):
                show(sent)
        except KeyboardInterrupt:
            pass
    seconds = time.monotonic() - begin
    if json:
        facts = {"topic": topic, "rows": sent.rows, "records": sent.records, "bytes": sent.bytes,
                 "devices": len(table.devices), "seconds": round(seconds, 3)}
        print(jsonlib.dumps(facts))
    else:
        print(f"{sent.records} records of {len(table.devices)} devices to {topic} in {seconds:.1f} s")


def publish(
    settings: Settings, topic: str, spec: Format, table: Table, pace: Pace, rows_a_record: int = 1,
    clock: Callable[[], float] = time.time, sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Sent]:
    """Sends the rows at their pace, in the order of time between devices and of the file within one.

    rows_a_record : see `encode_records`; such a record goes out when its last row is due.
    Yields what has gone out, about fifty times a second. Every record is acknowledged when the last is yielded.
    Raises Unreachable when the broker does not take them.
    """
    from kafka import KafkaProducer
    from kafka.errors import KafkaError

    order, at_ms = arrange(table)
    chunk = min(MOST_CHUNK, max(CHUNK, rows_a_record * len(table.devices))) if spec.encoding == "arrow" else CHUNK
    span_ms = int(at_ms[-1] - at_ms[0]) + _step_ms(table)
    failed: list[BaseException] = []
    sent = Sent()
    try:
        producer: Any = KafkaProducer(**keywords(settings), acks="all", linger_ms=20, batch_size=1 << 17)
    except (KafkaError, OSError) as error:
        raise Unreachable(f"no Kafka answers at {address(settings)} ({error}); set kafka.bootstrap") from error
    try:
        begin = clock()
        shift_ms = _shift_ms(pace, begin, table, span_ms)
        loop = 0
        while pace.loops == 0 or loop < pace.loops:
            for first in range(0, len(order), chunk):
                index = order[first:first + chunk]
                ts_ms = table.ts_ms[index] + (shift_ms + loop * span_ms)
                if pace.rate is not None:
                    due = begin + (np.arange(first, first + len(index)) + loop * len(order)) / pace.rate
                else:
                    due = begin + (at_ms[first:first + len(index)] - at_ms[0] + loop * span_ms) / 1000 / pace.speedup
                names = [table.devices[place] for place in table.device[index].tolist()]
                encoded = encode_records(spec, table.channels, names, ts_ms, table.values[index], rows_a_record)
                for last, rows, time_ms, records in encoded:
                    name, moment = names[last], due[last]
                    if moment > clock() + TICK_S:
                        yield sent
                        while (wait := moment - clock()) > 0:
                            sleep(min(wait, 0.5))
                            yield sent
                    for value in records:
                        producer.send(topic, value, name.encode(), timestamp_ms=time_ms).add_errback(failed.append)
                        sent.bytes += len(value)
                    sent.records += len(records)
                    sent.rows += rows
                    sent.newest_ms = max(sent.newest_ms, time_ms)
                    if failed:
                        raise failed[0]
            loop += 1
        producer.flush()
        if failed:
            raise failed[0]
        yield sent
    except (KafkaError, OSError) as error:
        raise Unreachable(f"Kafka at {address(settings)} did not take a record of {topic}: {error}") from error
    finally:
        producer.close(timeout=5)


def arrange(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers in the order of sending, and the data's clock at each (ms, increasing).

    A device's rows keep the order of the file: a row that is late in the file is late in the stream.
    """
    order = np.argsort(table.device, kind="stable")
    clock = np.empty(len(table), np.int64)
    for rows in np.split(order, np.flatnonzero(np.diff(table.device[order])) + 1):
        clock[rows] = np.maximum.accumulate(table.ts_ms[rows])
    by_time = np.argsort(clock, kind="stable")
    return by_time, clock[by_time]


def spread(table: Table, copies: int) -> Table:
    """`copies` devices of each device, `NAME-01` and so on: the same rows, each begun further on and wrapped around."""
    if copies == 1:
        return table
    parts: list[Table] = []
    for place, name in enumerate(table.devices):
        rows = np.flatnonzero(table.device == place)
        for copy in range(copies):
            turned = np.roll(rows, -(len(rows) * copy // copies))
            part = table.take(turned)
            parts.append(replace(part, devices=(f"{name}-{copy + 1:02d}",), ts_ms=table.ts_ms[rows]))
    return replace(
        table, devices=tuple(part.devices[0] for part in parts),
        device=np.repeat(np.arange(len(parts)), [len(part) for part in parts]),
        ts_ms=np.concatenate([part.ts_ms for part in parts]),
        values=np.concatenate([part.values for part in parts]),
        labels={name: np.concatenate([part.labels[name] for part in parts]) for name in table.labels},
        reason=np.concatenate([part.reason for part in parts]),
    )


def _step_ms(table: Table) -> int:
    """Median time between two rows of a device, at least 1 ms."""
    steps = np.diff(table.ts_ms)[np.diff(table.device) == 0]
    return max(1, int(np.median(steps))) if len(steps) else 1000


def _shift_ms(pace: Pace, begin: float, table: Table, span_ms: int) -> int:
    """What is added to each row's time in the first loop."""
    if pace.times == "data":
        return 0
    loops = max(1, pace.loops)
    if pace.rate is not None:
        lasts_s = len(table) * loops / pace.rate
    else:
        lasts_s = span_ms * loops / 1000 / pace.speedup
    return round((begin + lasts_s) * 1000) - int(table.ts_ms.min()) - span_ms * loops


class _Progress:
    """A bar on standard error where it is a terminal, else nothing."""

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._bar = Progress(
            TextColumn("{task.completed:,.0f} rows"), BarColumn(), TextColumn("{task.fields[rate]:,.0f} records/s"),
            TimeElapsedColumn(), console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True,
        )
        self._task = self._bar.add_task("", total=total or None, rate=0.0)
        self._begin = time.monotonic()

    def __enter__(self) -> Callable[[Sent], None]:
        self._bar.start()
        return self._show

    def _show(self, sent: Sent) -> None:
        seconds = max(time.monotonic() - self._begin, 1e-3)
        self._bar.update(self._task, completed=sent.rows, rate=sent.records / seconds)

    def __exit__(self, *error: object) -> None:
        self._bar.stop()
