"""`narrows compress` and `narrows decompress`: a file of rows as bounded blocks, and back."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import typer

from pipeline.cli import options as common
from pipeline.cli.files import file_options, read_told
from pipeline.cli.tables import RowWriter, open_decoder
from pipeline.codec.container import BlockFile, Latents, Rows, pack_graph, write_file
from pipeline.codec.latent import window_ends
from pipeline.codec.model import CodecModel
from pipeline.codec.train import train_codec
from pipeline.core.block_rules import BlockRules
from pipeline.core.windows import fill
from pipeline.errors import BadInput
from pipeline.formats.files import Table
from pipeline.registry.bundle import Bundle, load_bundle


def compress(
    files: common.Files,
    out: Annotated[Path, typer.Option(help="File of blocks to write.")],
    bound: Annotated[float, typer.Option(min=0, help="Largest error of a value; 0 keeps every bit.")] = 1e-3,
    bound_kind: Annotated[str, typer.Option(
        help="range: a share of each channel's range; absolute: in its unit; relative: a share of each value.",
    )] = "range",
    bundle: Annotated[Path | None, typer.Option(help="Take this bundle's codec model instead of training one.")] = None,
    block_rows: Annotated[int, typer.Option(min=1, max=1 << 16, help="Rows of a block.")] = 1024,
    latent: Annotated[bool, typer.Option(
        "--latent", help="Keep the sensors as latents of the bundle's model: far smaller, with the error that is made.",
    )] = False,
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
    it saves more than it takes. With --latent the bound holds for what latents can't hold alone (context channels,
    blocks with missing values); each latent block states its own errors, see `narrows inspect`.

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
    if made is not None and made.codec is None and not latent:
        raise BadInput(f"bundle {bundle} holds no codec model: train it again, or leave --bundle away")
    devices = _by_device(table)
    if latent and made is None:
        raise BadInput("--latent needs --bundle: latents are those of its model")
    if latent and made is not None:
        _write_latent(out, table, devices, made, bounds, block_rows)
        _tell(table, out, began, as_json)
        return
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
    _tell(table, out, began, as_json)


def _tell(table: Table, out: Path, began: float, as_json: bool) -> None:
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


def _write_latent(
    out: Path, table: Table, devices: list[tuple[int, np.ndarray, np.ndarray]], bundle: Bundle, bounds: np.ndarray,
    block_rows: int,
) -> None:
    """A file of latent blocks, through the coder that a worker uses. Raises BadInput where the bundle can't."""
    from pipeline.scoring.blocks import BlockCoder
    from pipeline.scoring.gate import open_session
    from pipeline.scoring.stream import Block, Model

    own = bundle.contract
    contract = msgspec.structs.replace(own, channels=tuple(
        msgspec.structs.replace(channel, bound=float(bound))
        for channel, bound in zip(own.channels, bounds, strict=True)
    ))
    session = open_session(bundle, "cpu")
    model = Model(
        bundle.digest, session, bundle.scaling, bundle.scorer, bundle.codec, bundle.model, bundle.latent_codec
    )
    coder = BlockCoder(contract, model, BlockRules(kind="latent"))
    if coder.refused or coder.decoder is None or bundle.latent_codec is None:
        raise BadInput(f"bundle {bundle.folder}: {coder.refused}")
    index, window = bundle.scaling.index(table.devices), own.window

    def encode(device: int, blocks: Sequence[Rows]) -> list[bytes]:
        rows = np.concatenate([values for _, values in blocks])
        scaled = bundle.scaling.apply(rows, np.full(len(rows), index[device]))[:, own.inputs]
        starts = np.cumsum([0, *(len(values) for _, values in blocks)])
        ends = [start + window_ends(len(values), window) for start, (_, values) in zip(starts, blocks, strict=False)]
        known = [bool((end >= window).all()) for end in ends]
        places = np.concatenate([end for end, is_known in zip(ends, known, strict=True) if is_known] or [starts[:0]])
        latents = iter(session.run(fill(np.stack([scaled[end - window : end] for end in places]))).latent) \
            if len(places) else iter(())
        made = [
            Block(
                0, 0, 0, False, False, ts_ms, values, bundle.digest, None, -1, np.zeros(len(values), bool),
                np.stack([next(latents) for _ in end]) if is_known else None,
            )
            for (ts_ms, values), end, is_known in zip(blocks, ends, known, strict=True)
        ]
        return [one.frame for one in coder.encode(made, [table.devices[device]] * len(made))]

    sensors = own.sensors
    scale = bundle.scaling.scale[index][:, sensors]
    graph = pack_graph(coder.decoder[1])
    write_file(
        out, table.channels, table.devices, devices, bounds,
        None if bundle.codec is None else CodecModel.from_bytes(bundle.codec), block_rows=block_rows,
        latents=Latents(
            sensors=tuple(sensors.tolist()),
            location=tuple(map(tuple, bundle.scaling.location[index][:, sensors].tolist())),
            scale=tuple(tuple(None if one != one else one for one in row) for row in scale.tolist()),
            model_bytes=len(bundle.latent_codec), graph_bytes=len(graph),
        ),
        needs=bundle.latent_codec + graph, encode=encode,
    )


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
    out: Annotated[Path, typer.Option(help="File to write: .csv, .parquet, .arrow, else JSON lines.")],
    device: Annotated[str | None, typer.Option(help="This device alone; other blocks stay unread.")] = None,
    since: Annotated[int | None, typer.Option(help="First time, epoch milliseconds.")] = None,
    until: Annotated[int | None, typer.Option(help="Time behind the last, epoch milliseconds.")] = None,
) -> None:
    """Read a file of blocks back: columns device, ts (epoch milliseconds) and the channels.

    Bounded blocks need neither the model nor ONNX Runtime; latent ones carry their decoder and need ONNX Runtime.

    Example: narrows decompress pump.nrw --out pump.parquet --device pump-7
    """
    opened = BlockFile(file)
    decoder = open_decoder(opened.graph) if opened.graph else None
    with RowWriter(out) as writer:
        for name, ts_ms, values in opened.read(device, since, until, decoder):
            writer.write(opened.header.channels, name, ts_ms, values)
        if not writer.rows:
            writer.begin(opened.header.channels)
    print(f"{writer.rows} rows: {out}")
