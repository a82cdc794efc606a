"""`narrows compress` and `narrows decompress`: a file of rows as bounded blocks, and back."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import typer

from pipeline.cli import options as common
from pipeline.cli.files import file_options, read_told
from pipeline.codec.container import BlockFile, write_file
from pipeline.codec.model import CodecModel
from pipeline.codec.train import train_codec
from pipeline.errors import BadInput
from pipeline.formats.files import Table
from pipeline.registry.bundle import load_bundle


def compress(
    files: common.Files,
    out: Annotated[Path, typer.Option(help="File of blocks to write.")],
    bound: Annotated[float, typer.Option(min=0, help="Largest error of a value; 0 keeps every bit.")] = 1e-3,
    bound_kind: Annotated[str, typer.Option(
        help="range: a share of each channel's range; absolute: in its unit; relative: a share of each value.",
    )] = "range",
    bundle: Annotated[Path | None, typer.Option(help="Take this bundle's codec model instead of training one.")] = None,
    block_rows: Annotated[int, typer.Option(min=1, max=1 << 16, help="Rows of a block.")] = 1024,
    time_column: common.TimeColumn = None,
    time_unit: common.TimeUnit = None,
    step: common.Step = None,
    device_column: common.DeviceColumn = None,
    ignore_columns: common.IgnoreColumns = None,
    missing: common.Missing = None,
    as_json: common.Json = False,
) -> None:
    """Write files of rows as bounded blocks: each value within its bound, missing ones and times exactly.

    Values are kept as float32. The codec model is learned from the files, unless --bundle gives one, and stored where
    it saves more than it takes.

    Example: narrows compress pump.csv --bound 1e-3 --out pump.nrw
    """
    began = time.perf_counter()
    made = None if bundle is None else load_bundle(bundle)
    table = read_told(files, file_options(
        time_column, time_unit, step, device_column, ignore_columns, missing=missing,
        channels=None if made is None else made.contract.names,
    ))
    if len(table) == 0:
        raise BadInput("the files hold no rows: nothing to compress")
    bounds = bounds_of(table.values, bound, bound_kind)
    if made is not None and made.codec is None:
        raise BadInput(f"bundle {bundle} holds no codec model: train it again, or leave --bundle away")
    devices = _by_device(table)
    if made is not None and made.codec is not None:
        models: list[CodecModel | None] = [CodecModel.from_bytes(made.codec)]
    else:
        models = [None] if len(table) < 128 else [None, _trained(devices, bounds)]
    if len(models) > 1 and table.values.nbytes > 1 << 22:
        models = models[1:]                                # on a large file the model's few kilobytes are earned
    trial = [out.with_name(f"{out.name}.{i}.part") for i in range(len(models))]
    for path, model in zip(trial, models, strict=True):
        write_file(path, table.channels, table.devices, devices, bounds, model, block_rows=block_rows)
    smallest = min(trial, key=lambda path: path.stat().st_size)
    smallest.replace(out)
    for path in trial:
        path.unlink(missing_ok=True)
    size = out.stat().st_size
    raw = table.values.nbytes + table.ts_ms.nbytes
    facts = {
        "rows": len(table), "channels": len(table.channels), "devices": len(table.devices), "raw_bytes": raw,
        "bytes": size, "ratio": round(raw / size, 2), "seconds": round(time.perf_counter() - began, 2), "out": str(out),
    }
    if as_json:
        print(msgspec.json.encode(facts).decode())
    else:
        print(
            f"{facts['rows']} rows of {facts['channels']} channels: {raw:,} bytes as float32 with times, {size:,} in "
            f"{out}: {facts['ratio']} times smaller, in {facts['seconds']} s"
        )


def bounds_of(values: np.ndarray, bound: float, kind: str) -> np.ndarray:
    """Bound of each channel as `encode_block` takes it. values (n, C) float32 -> (C,) float64. Raises BadInput."""
    if kind == "absolute":
        return np.full(values.shape[1], bound)
    if kind == "relative":
        return np.full(values.shape[1], -bound)
    if kind != "range":
        raise BadInput(f"--bound-kind {kind}: give range, absolute or relative")
    finite = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        low = np.where(finite, values, np.inf).min(axis=0).astype(np.float64)
        high = np.where(finite, values, -np.inf).max(axis=0).astype(np.float64)
        return np.where(finite.any(axis=0), bound * (high - low), 0.0)


def _by_device(table: Table) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """(device, ts_ms, values) of each device, its rows in the order of the file."""
    chosen = ((i, np.flatnonzero(table.device == i)) for i in range(len(table.devices)))
    return [(i, table.ts_ms[rows], table.values[rows]) for i, rows in chosen if len(rows)]


def _trained(devices: list[tuple[int, np.ndarray, np.ndarray]], bounds: np.ndarray) -> CodecModel | None:
    segments = [values for _, _, values in devices if len(values) > 1]
    deltas = [np.diff(ts_ms) for _, ts_ms, _ in devices if len(ts_ms) > 1]
    if not segments:
        return None
    return train_codec(segments, bounds, step_ms=max(int(np.median(np.concatenate(deltas))), 0))


def decompress(
    file: Annotated[Path, typer.Argument(help="File of blocks.", show_default=False)],
    out: Annotated[Path, typer.Option(help="CSV, .parquet or .arrow to write.")],
    device: Annotated[str | None, typer.Option(help="This device alone; other blocks stay unread.")] = None,
    since: Annotated[int | None, typer.Option(help="First time, epoch milliseconds.")] = None,
    until: Annotated[int | None, typer.Option(help="Time behind the last, epoch milliseconds.")] = None,
) -> None:
    """Read a file of blocks back: columns device, ts (epoch milliseconds) and the channels.

    Example: narrows decompress pump.nrw --out pump.parquet --device pump-7
    """
    opened = BlockFile(file)
    channels = [(name, pa.float32()) for name in opened.header.channels]
    schema = pa.schema([("device", pa.string()), ("ts", pa.int64()), *channels])
    rows = 0

    def tables() -> Iterator[pa.Table]:
        nonlocal rows
        for name, ts_ms, values in opened.read(device, since, until):
            rows += len(ts_ms)
            columns = [pa.array([name] * len(ts_ms)), pa.array(ts_ms)]
            yield pa.table([*columns, *(pa.array(column) for column in values.T.copy())], schema=schema)

    if out.suffix == ".parquet":
        with pa.parquet.ParquetWriter(out, schema) as parquet:
            for table in tables():
                parquet.write_table(table)
    elif out.suffix in (".arrow", ".feather"):
        with pa.ipc.new_file(out, schema) as arrow:
            for table in tables():
                arrow.write_table(table)
    else:
        with pa.csv.CSVWriter(out, schema) as csv:
            for table in tables():
                csv.write_table(table)
    print(f"{rows} rows: {out}")
