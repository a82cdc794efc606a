"""Recorded files to columns: CSV with any separator, Parquet, JSON lines.

Everything that was guessed (separator, unit of time, columns left out) stands in the table's `notes`, for the command
to print; whatever can't be guessed safely is refused with the option that settles it.
"""

import csv
import gzip
import io
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from pipeline.errors import BadInput
from pipeline.formats.readings import LAST_MS, Float, Int, Reason

EpochUnit = Literal["s", "ms", "us", "ns"]
TIME_NAMES = ("ts", "timestamp", "datetime", "date", "time")
LABEL_NAMES = frozenset(
    ("label", "labels", "anomaly", "anomalies", "is_anomaly", "changepoint", "changepoints", "outlier", "is_outlier")
)
FIRST_MS = 946_684_800_000  # 2000-01-01, from where on units are told apart by size; also where made times begin
_PER_MS: dict[str, float] = {"s": 1e-3, "ms": 1.0, "us": 1e3, "ns": 1e6}  # units in one millisecond
_CSV = (".csv", ".tsv", ".txt", ".dat")
_JSON = (".jsonl", ".ndjson", ".json")
_PARQUET = (".parquet", ".pq")


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """How to read the columns of a file; the commands' options of the same names.

    time_columns    : joined with a blank; empty takes the first of TIME_NAMES; ("none",) makes times from `step_s`.
    time_unit       : of numeric times; None tells them apart by size.
    step_s          : seconds between two rows where times are made.
    device_column   : None takes the file's stem.
    ignore_columns  : never channels, kept as labels.
    context_columns : channels that are input and not scored.
    label_columns   : never channels either; a missing one is refused.
    rows            : first row and the one behind the last, of each file; None for an open end.
    missing         : a number that stands for a missing value.
    channels        : a contract's channel names: these columns and no others, in this order; None takes every number.
    """

    time_columns: tuple[str, ...] = ()
    time_unit: EpochUnit | None = None
    step_s: float | None = None
    device_column: str | None = None
    ignore_columns: tuple[str, ...] = ()
    context_columns: tuple[str, ...] = ()
    label_columns: tuple[str, ...] = ()
    rows: tuple[int | None, int | None] = (None, None)
    missing: float | None = None
    channels: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Table:
    """Rows of one or more files, in input order.

    devices  : D names.
    device   : (n,) int64, place in `devices`.
    ts_ms    : (n,) int64.
    channels : C names.
    values   : (n, C) float32, NaN where missing.
    context  : those of `channels` that are input and not scored.
    labels   : columns that are no channels, by name, each (n,).
    reason   : (n,) uint8, 0 where the row is fine, else the Reason that would send it to the dead letters.
    notes    : what was guessed, in words.
    """

    devices: tuple[str, ...]
    device: Int
    ts_ms: Int
    channels: tuple[str, ...]
    values: Float
    context: tuple[str, ...] = ()
    labels: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    reason: npt.NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ts_ms)

    def take(self, index: slice | Int | npt.NDArray[np.bool_]) -> "Table":
        """The table of these rows."""
        return replace(
            self, device=self.device[index], ts_ms=self.ts_ms[index], values=self.values[index],
            labels={name: column[index] for name, column in self.labels.items()}, reason=self.reason[index],
        )


def read_tables(paths: Sequence[Path], options: FileOptions | None = None) -> Table:
    """All files as one table, one after the other; their channels must be the same.

    Raises BadInput naming the file, the column or row, and the option that helps.
    """
    if not paths:
        raise BadInput("no file given")
    options = options or FileOptions()
    tables = [read_table(path, options, name) for path, name in zip(paths, _stems(paths), strict=True)]
    first = tables[0]
    for path, table in zip(paths, tables, strict=True):
        if set(table.channels) != set(first.channels):
            odd = sorted(set(table.channels) ^ set(first.channels))
            raise BadInput(f"{path}: channel `{odd[0]}` is not in all files; --ignore-columns {','.join(odd)}")
    names = tuple(dict.fromkeys(name for table in tables for name in table.devices))
    place = {name: index for index, name in enumerate(names)}
    shared = [name for name in first.labels if all(name in table.labels for table in tables)]
    return Table(
        devices=names,
        device=np.concatenate([np.array([place[name] for name in t.devices], np.int64)[t.device] for t in tables]),
        ts_ms=np.concatenate([table.ts_ms for table in tables]),
        channels=first.channels,
        values=np.concatenate([t.values[:, [t.channels.index(name) for name in first.channels]] for t in tables]),
        context=first.context,
        labels={name: np.concatenate([table.labels[name] for table in tables]) for name in shared},
        reason=np.concatenate([table.reason for table in tables]),
        notes=tuple(dict.fromkeys(note for table in tables for note in table.notes)),
    )


def read_table(path: Path, options: FileOptions | None = None, device: str | None = None) -> Table:
    """One file as a table.

    device : name for all rows where no column names them; default the file's stem.
    Raises BadInput as `read_tables`.
    """
    options = options or FileOptions()
    notes: list[str] = []
    arrow = _read(path, options, notes)
    begin, end, _ = slice(*options.rows).indices(arrow.num_rows)
    arrow = arrow.slice(begin, max(0, end - begin))
    if arrow.num_rows == 0:
        raise _no_rows(path, options)
    return _to_table(path, arrow, options, device, notes, {})


def read_blocks(
    paths: Sequence[Path], options: FileOptions | None = None, block_bytes: int = 16 << 20
) -> Iterator[Table]:
    """The rows of `read_tables` in the same order, a block at a time: files that need not fit into memory.

    Columns of whole numbers are read as such with a point, since a later block may hold one; everything else is read
    as `read_tables` does, and the channels of each block stand in the same order.
    block_bytes : about what one block takes; of a CSV or JSON lines file, its text.
    Raises BadInput as `read_tables`; for --rows that count from the end too, which is not known here.
    """
    if not paths:
        raise BadInput("no file given")
    options = options or FileOptions()
    begin, end = options.rows
    if min(begin or 0, end or 0) < 0:
        raise BadInput("--rows that count from a file's end need it in memory: raise --memory-mb, or count from 0")
    channels: tuple[str, ...] = ()
    for path, name in zip(paths, _stems(paths), strict=True):
        at, told, made = 0, False, dict[str, int]()
        for arrow in _stream(path, options, block_bytes):
            low, high = max(begin or 0, at) - at, (arrow.num_rows if end is None else min(end - at, arrow.num_rows))
            at += arrow.num_rows
            if high > low:
                table = _to_table(path, arrow.slice(low, high - low), options, name, [], made)
                channels = channels or table.channels
                if set(table.channels) != set(channels):
                    odd = sorted(set(table.channels) ^ set(channels))
                    raise BadInput(f"{path}: channel `{odd[0]}` is not in all files; --ignore-columns {','.join(odd)}")
                if table.channels != channels:
                    order = [table.channels.index(one) for one in channels]
                    table = replace(table, channels=channels, values=table.values[:, order])
                told = True
                yield table
            if end is not None and at >= end:
                break
        if not told:
            raise _no_rows(path, options)


def count_rows(paths: Sequence[Path], options: FileOptions | None = None) -> tuple[int, int]:
    """About how many rows and columns these files hold, without reading them: (rows, the most columns of one).

    Exact for Parquet; for text, the file's size over the length of its first lines (eight times that where it is
    compressed).
    """
    begin, end = (options or FileOptions()).rows
    rows = columns = 0
    for path in paths:
        if not path.is_file():
            raise BadInput(f"{path}: no such file")
        if _suffix(path) in _PARQUET:
            with _told_errors(path):
                facts = pa.parquet.read_metadata(path)
            count, width = facts.num_rows, facts.num_columns
        else:
            is_packed = path.suffix == ".gz"
            with gzip.open(path) if is_packed else path.open("rb") as file:
                head = file.read(64 * 1024)
            lines = head.count(b"\n") or 1
            count = int(path.stat().st_size * (8 if is_packed else 1) * lines / max(len(head), 1))
            width = max(head.split(b"\n", 1)[0].count(mark) for mark in (b",", b";", b"\t", b"|", b" ")) + 1
        low, high, _ = slice(begin, end).indices(count)
        rows, columns = rows + max(0, high - low), max(columns, width)
    return rows, columns


def _stems(paths: Sequence[Path]) -> list[str]:
    """What each file's device is called: its stem, with its folder where two would be the same."""
    stems = [path.name.split(".")[0] for path in paths]
    if len(set(stems)) == len(stems):
        return stems
    return [f"{path.parent.name}/{stem}" for path, stem in zip(paths, stems, strict=True)]


def _no_rows(path: Path, options: FileOptions) -> BadInput:
    return BadInput(f"{path}: no rows" + ("" if options.rows == (None, None) else " within --rows"))


def _to_table(
    path: Path, arrow: pa.Table, options: FileOptions, device: str | None, notes: list[str], made: dict[str, int]
) -> Table:
    """Rows of one file as a table. made : rows of each device that have made times; brought up."""
    names = arrow.column_names
    for name in set(names):
        if names.count(name) > 1:
            raise BadInput(f"{path}: the column `{name}` stands in it twice; rename one")
    device_column = options.device_column
    if device_column is None and path.suffix in _JSON and "device" in names and options.channels is None:
        device_column = "device"
    apart = (*options.ignore_columns, *options.label_columns, *([device_column] if device_column else []))
    for name in (*apart, *options.context_columns):
        if name not in names:
            raise BadInput(f"{path}: no column `{name}`; it has {', '.join(names)}")
    time_columns = _time_columns(path, arrow, options, notes)
    devices, index = _devices(path, arrow, device_column, device or path.name.split(".")[0])
    if time_columns is None:
        ts_ms = _made_times(devices, index, options, made)
    else:
        ts_ms = _times(path, arrow, time_columns, options, notes)
    channels = _channels(path, arrow, options, {*(time_columns or ()), *apart}, notes)
    values, reason = _values(path, arrow, channels, options)
    labels = {
        name: _label(arrow.column(name))
        for name in names if name not in channels and name not in (time_columns or ()) and name != device_column
    }
    return Table(
        devices=devices, device=index, ts_ms=ts_ms, channels=channels, values=values,
        context=tuple(name for name in channels if name in options.context_columns), labels=labels, reason=reason,
        notes=tuple(notes),
    )


def _read(path: Path, options: FileOptions, notes: list[str]) -> pa.Table:
    suffix = _suffix(path)
    with _told_errors(path):
        if suffix in _PARQUET:
            return _flatten(pa.parquet.read_table(path))
        if suffix in _JSON:
            return _flatten(pa.json.read_json(path))
        return _read_csv(path, options, notes)


def _stream(path: Path, options: FileOptions, block_bytes: int) -> Iterator[pa.Table]:
    """The file's rows in order, a block at a time, all with the columns and kinds of the first one."""
    suffix = _suffix(path)
    with _told_errors(path):
        if suffix in _PARQUET:
            file = pa.parquet.ParquetFile(path)
            rows = max(1000, block_bytes // (8 * max(1, file.metadata.num_columns)))
            for batch in file.iter_batches(rows):
                yield _flatten(pa.Table.from_batches([batch]))
        elif suffix in _JSON:
            reading = pa.json.ReadOptions(block_size=block_bytes)
            with pa.json.open_json(path, read_options=reading) as first:
                schema = pa.schema([pa.field(field.name, _with_a_point(field.type)) for field in first.schema])
            parsing = pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error")
            with pa.json.open_json(path, read_options=reading, parse_options=parsing) as batches:
                for batch in batches:
                    yield _flatten(pa.Table.from_batches([batch]))
        else:
            parsing, converting, _ = _csv_options(path, options)
            reading = pa.csv.ReadOptions(block_size=block_bytes)
            with pa.csv.open_csv(path, reading, parsing, converting) as first:
                head = pa.Table.from_batches([first.read_next_batch()])
            if parsing.delimiter != "," and _has_decimal_commas(head, converting):
                converting.decimal_point = ","
                with pa.csv.open_csv(path, reading, parsing, converting) as first:
                    head = pa.Table.from_batches([first.read_next_batch()])
            kinds = {field.name: _with_a_point(field.type) for field in head.schema}
            converting.column_types = kinds
            with pa.csv.open_csv(path, reading, parsing, converting) as batches:
                for batch in batches:
                    yield pa.Table.from_batches([batch]).select([name for name in kinds if name])


def _with_a_point(kind: pa.DataType) -> pa.DataType:
    """The kind that a column of the first block is read as: a later block may hold a fraction, or the first value."""
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _with_a_point(field.type)) for field in kind])
    return pa.float64() if pa.types.is_integer(kind) or pa.types.is_null(kind) else kind


def _suffix(path: Path) -> str:
    """What kind of file it is, by its name. Raises BadInput for another kind, or where there is no file."""
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    if suffix not in (*_PARQUET, *_JSON, *_CSV):
        raise BadInput(f"{path}: the name should end in .csv, .tsv, .txt, .dat, .parquet, .pq, .jsonl, .ndjson or "
                       ".json")
    return suffix


@contextmanager
def _told_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowKeyError, UnicodeDecodeError, OSError) as error:
        raise BadInput(f"{path} can't be read: {' '.join(str(error).split())[:300]}") from error


def _flatten(arrow: pa.Table) -> pa.Table:
    """Nested objects as columns: those of `values` by their own names, others as `outer.inner`."""
    while any(pa.types.is_struct(kind) for kind in arrow.schema.types):
        arrow = arrow.flatten()
        arrow = arrow.rename_columns([name.removeprefix("values.") for name in arrow.column_names])
    return arrow


def _read_csv(path: Path, options: FileOptions, notes: list[str]) -> pa.Table:
    parsing, converting, told = _csv_options(path, options)
    notes += told
    arrow = pa.csv.read_csv(path, parse_options=parsing, convert_options=converting)
    if parsing.delimiter != "," and _has_decimal_commas(arrow, converting):
        notes.append("decimal comma")
        converting.decimal_point = ","
        arrow = pa.csv.read_csv(path, parse_options=parsing, convert_options=converting)
    # A line that ends in separators has columns without a name; they hold nothing.
    keep = [name for name, column in zip(arrow.column_names, arrow.columns, strict=True)
            if name or column.null_count < len(column)]
    return arrow.select(keep) if len(keep) < arrow.num_columns and len(set(keep)) == len(keep) else arrow


def _csv_options(path: Path, options: FileOptions) -> tuple[pa.csv.ParseOptions, pa.csv.ConvertOptions, list[str]]:
    """How this file is to be read, by its first lines, and what was guessed."""
    with pa.input_stream(str(path)) as stream:
        head = stream.read(64 * 1024).decode("utf-8-sig", errors="replace")
    lines = [line for line in head.splitlines()[:50] if line.strip()]
    if not lines:
        raise BadInput(f"{path}: empty")
    separator = _separator(lines if len(head) < 64 * 1024 else lines[:-1] or lines)
    header = next(csv.reader(io.StringIO(lines[0]), delimiter=separator))
    if all(_is_number(cell) for cell in header):
        raise BadInput(f"{path}: the first line holds numbers; a line with the columns' names is needed")
    texts = {name for name in header if name.lower() in TIME_NAMES} | {*options.time_columns}
    texts |= {options.device_column} if options.device_column else set()
    converting = pa.csv.ConvertOptions(
        column_types=dict.fromkeys(texts, pa.string()), strings_can_be_null=True, quoted_strings_can_be_null=False)
    told = [f"separator {separator!r}"] if separator != "," else []
    return pa.csv.ParseOptions(delimiter=separator), converting, told


def _has_decimal_commas(arrow: pa.Table, converting: pa.csv.ConvertOptions) -> bool:
    return any(
        pc.any(pc.match_substring_regex(column, r"^-?\d+,\d+$")).as_py()
        for name, column in zip(arrow.column_names, arrow.columns, strict=True)
        if pa.types.is_string(column.type) and name not in converting.column_types
    )


def _separator(lines: list[str]) -> str:
    """The separator that cuts every line into the same number of cells, the most cells first."""
    best, cells = ",", 1
    for separator in (",", ";", "\t", "|", " "):
        counts = {len(row) for row in csv.reader(lines, delimiter=separator)}
        if len(counts) == 1 and (count := counts.pop()) > cells:
            best, cells = separator, count
    return best


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _time_columns(path: Path, arrow: pa.Table, options: FileOptions, notes: list[str]) -> tuple[str, ...] | None:
    """Columns that hold the time; None where times are to be made."""
    names = arrow.column_names
    if options.time_columns == ("none",):
        if options.step_s is None or not options.step_s > 0:
            raise BadInput("--time-column none makes the times: give --step SECONDS between two rows")
        return None
    for name in options.time_columns:
        if name not in names:
            raise BadInput(f"{path}: no column `{name}` for --time-column; it has {', '.join(names)}")
    if options.time_columns:
        return options.time_columns
    lower = {name.lower(): name for name in reversed(names)}
    found = next((lower[name] for name in TIME_NAMES if name in lower), None)
    if found is None:
        raise BadInput(
            f"{path}: none of its columns is called {', '.join(TIME_NAMES)}; name the one that holds the time with "
            f"--time-column, or make times with --time-column none --step SECONDS. It has {', '.join(names)}"
        )
    if found.lower() == "date" and "time" in lower:
        notes.append(f"time is `{found}` and `{lower['time']}` joined")
        return found, lower["time"]
    return (found,)


def _devices(path: Path, arrow: pa.Table, column: str | None, default: str) -> tuple[tuple[str, ...], Int]:
    if column is None:
        return (default,), np.zeros(arrow.num_rows, np.int64)
    texts = arrow.column(column).cast(pa.string()).combine_chunks()
    if texts.null_count:
        row = int(np.flatnonzero(texts.is_null().to_numpy(zero_copy_only=False))[0])
        raise BadInput(f"{path}: row {row} has no device in `{column}`")
    encoded = texts.dictionary_encode()
    return tuple(encoded.dictionary.to_pylist()), encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)


def _made_times(names: tuple[str, ...], device: Int, options: FileOptions, made: dict[str, int]) -> Int:
    """Each device's rows one step apart, from 2000-01-01 on, after those that were made before."""
    assert options.step_s is not None
    order = np.argsort(device, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(device[order]) != 0])
    count = np.empty(len(device), np.int64)
    count[order] = np.arange(len(device)) - np.repeat(starts, np.diff(np.r_[starts, len(device)]))
    count += np.array([made.get(name, 0) for name in names], np.int64)[device]
    for name, rows in zip(names, np.bincount(device, minlength=len(names)).tolist(), strict=True):
        made[name] = made.get(name, 0) + rows
    return FIRST_MS + np.rint(count * (options.step_s * 1000)).astype(np.int64)


def _times(path: Path, arrow: pa.Table, columns: tuple[str, ...], options: FileOptions, notes: list[str]) -> Int:
    joined = [arrow.column(name).combine_chunks() for name in columns]
    for name, column in zip(columns, joined, strict=True):
        if column.null_count:
            row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
            raise BadInput(f"{path}: row {row} has no time in `{name}`; mend it, or choose another --time-column")
    column = joined[0]
    if len(joined) == 1 and pa.types.is_temporal(column.type) and not pa.types.is_time(column.type):
        return column.cast(pa.timestamp("ns")).to_numpy(zero_copy_only=False).astype("datetime64[ms]").astype(np.int64)
    if len(joined) == 1:
        numbers = _numbers(column)
        if numbers is not None:
            return _epoch_ms(path, columns[0], numbers, options.time_unit, notes)
    texts = pc.binary_join_element_wise(*[part.cast(pa.string()) for part in joined], " ")
    return _iso_ms(path, columns, texts)


def _numbers(column: pa.Array) -> npt.NDArray[Any] | None:
    """A column of numbers as int64 where they are whole, else float64; None where it holds anything else."""
    if pa.types.is_integer(column.type):
        return column.to_numpy(zero_copy_only=False).astype(np.int64)
    if pa.types.is_floating(column.type):
        return column.to_numpy(zero_copy_only=False).astype(np.float64)
    if pa.types.is_string(column.type):
        for kind in (pa.int64(), pa.float64()):
            try:
                return column.cast(kind).to_numpy(zero_copy_only=False)
            except pa.ArrowInvalid:
                continue
    return None


def _epoch_ms(path: Path, column: str, numbers: npt.NDArray[Any], unit: str | None, notes: list[str]) -> Int:
    low, high = float(numbers.min()), float(numbers.max())
    if unit is None:
        unit = next((u for u, per in _PER_MS.items() if FIRST_MS * per <= low and high < FIRST_MS * 5 * per), None)
        if unit is None:
            raise BadInput(
                f"{path}: `{column}` holds {numbers.min()} to {numbers.max()}, which is no time from 2000 on in one "
                "unit; say --time-unit s, ms, us or ns, or --time-column none --step SECONDS"
            )
        notes.append(f"`{column}` is in {unit}")
    per = _PER_MS[unit]
    if not (low >= 0 and high / per <= LAST_MS):
        span = f"{numbers.min()} to {numbers.max()}"
        raise BadInput(f"{path}: `{column}` holds {span}, in {unit} not between 1970 and 2109; see --time-unit")
    if numbers.dtype == np.int64:
        return numbers * 1000 if unit == "s" else numbers // int(per)
    return np.rint(numbers / per).astype(np.int64)


def _iso_ms(path: Path, columns: tuple[str, ...], texts: pa.Array) -> Int:
    plain = texts
    for pattern, mended in ((r"^(\d{4})/(\d+)/", r"\1-\2-"), (r"^(\d{4})-(\d)-", r"\1-0\2-"),
                            (r"^(\d{4}-\d\d)-(\d)\b", r"\1-0\2")):
        plain = pc.replace_substring_regex(plain, pattern, mended)
    readers: list[Callable[[], pa.Array]] = [
        lambda: plain.cast(pa.timestamp("ns")),
        lambda: plain.cast(pa.timestamp("ns", "UTC")),
    ]
    for read in readers:
        try:
            return read().to_numpy(zero_copy_only=False).astype("datetime64[ms]").astype(np.int64)
        except pa.ArrowInvalid:
            continue
    out = np.empty(len(plain), np.int64)
    for row, text in enumerate(plain.to_pylist()):
        try:
            moment = datetime.fromisoformat(text)
        except ValueError as error:
            raise BadInput(
                f"{path}: row {row} has {text!r} in {' + '.join(columns)}, which is neither a number nor ISO 8601 "
                "(2025-01-31 08:00:00); rewrite it, or choose other columns with --time-column"
            ) from error
        out[row] = round((moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    return out


def _channels(
    path: Path, arrow: pa.Table, options: FileOptions, taken: set[str], notes: list[str]
) -> tuple[str, ...]:
    names = arrow.column_names
    if options.channels is not None:
        missing = [name for name in options.channels if name not in names]
        if missing:
            raise BadInput(f"{path}: no column `{missing[0]}`, a channel of the contract; it has {', '.join(names)}")
        return options.channels
    channels: list[str] = []
    left: list[str] = []
    for name, kind in zip(names, arrow.schema.types, strict=True):
        if name in taken:
            continue
        if name.lower() in LABEL_NAMES and name not in options.context_columns:
            notes.append(f"`{name}` looks like a label and was left out")
        elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
            channels.append(name)
        else:
            _refuse_spoilt(path, name, arrow.column(name))
            left.append(name)
    if left:
        notes.append(f"no numbers, so no channels: {', '.join(left)}")
    wrong = [name for name in options.context_columns if name not in channels]
    if wrong:
        raise BadInput(f"{path}: `{wrong[0]}` of --context-columns holds no numbers, or is the time or the device")
    if all(name in options.context_columns for name in channels):
        raise BadInput(f"{path}: no column of numbers is left to score; it has {', '.join(names)}")
    return tuple(channels)


def _refuse_spoilt(path: Path, name: str, column: pa.ChunkedArray) -> None:
    """Raises BadInput for a column of numbers that some other text made a column of texts."""
    if not pa.types.is_string(column.type):
        return
    texts = column.drop_null()
    odd = pc.invert(pc.match_substring_regex(texts, r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$"))
    if len(texts) and pc.sum(odd).as_py() * 2 < len(texts):
        text = texts.filter(odd)[0].as_py()
        raise BadInput(
            f"{path}: the column `{name}` holds numbers and {text!r}; leave the cell empty where a value is missing, "
            f"or --ignore-columns {name}"
        )


def _values(
    path: Path, arrow: pa.Table, channels: tuple[str, ...], options: FileOptions
) -> tuple[Float, npt.NDArray[np.uint8]]:
    values = np.empty((arrow.num_rows, len(channels)), np.float32)
    beyond = np.zeros(arrow.num_rows, bool)
    for place, name in enumerate(channels):
        column = arrow.column(name)
        try:
            exact = column.cast(pa.float64(), safe=False).to_numpy()
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise BadInput(f"{path}: the column `{name}` holds no numbers: {str(error)[:200]}") from error
        with np.errstate(over="ignore"):
            values[:, place] = exact if options.missing is None else np.where(exact == options.missing, np.nan, exact)
        beyond |= np.isinf(values[:, place])
    values[np.isinf(values)] = np.nan
    scored = [place for place, name in enumerate(channels) if name not in options.context_columns]
    empty = np.isnan(values[:, scored]).all(axis=1)
    reason = np.zeros(arrow.num_rows, np.uint8)
    reason[empty] = Reason.NO_CHANNEL
    reason[beyond] = Reason.OVERFLOW
    return values, reason


def _label(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    return column.to_numpy()


def parse_rows(text: str) -> tuple[int | None, int | None]:
    """`A:B` with either end open, as in `--rows 0:400`. Raises BadInput."""
    found = re.fullmatch(r"\s*(-?\d+)?\s*:\s*(-?\d+)?\s*", text)
    if found is None:
        raise BadInput(f"--rows {text!r}: give FIRST:LAST, for example 0:400 or 400:")
    first, last = (None if part is None else int(part) for part in found.groups())
    return first, last


def split_columns(texts: Sequence[str]) -> tuple[str, ...]:
    """Names from options like `a,b`, given once or more often."""
    return tuple(itertools.chain.from_iterable(re.split(r"\s*,\s*", text.strip()) for text in texts if text.strip()))
