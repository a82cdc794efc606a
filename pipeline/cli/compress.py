"""`narrows compress` and `narrows decompress`: a file of rows as bounded blocks, and back."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import typer

from pipeline.cli import options as common
from pipeline.cli.files import file_options, read_told
from pipeline.cli.tables import RowWriter, open_decoder
from pipeline.codec.container import BlockFile, Frame, Latents, Rows, Run, pack_graph, write_file
from pipeline.codec.latent import window_ends
from pipeline.codec.model import CodecModel
from pipeline.codec.train import train_codec
from pipeline.core.block_rules import BlockRules
from pipeline.core.windows import fill
from pipeline.errors import BadInput
from pipeline.formats.files import Table
from pipeline.registry.bundle import Bundle, load_bundle

LEAST_ROWS = 128             # fewer rows never earn a codec model
SURE_BYTES = 1 << 22         # of float32: so many always do
MOST_TRAINED_ROWS = 64       # of a block in training; longer ones are coded in stretches of as many


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
    episodes: Annotated[Path | None, typer.Option(
        help="Episodes of `narrows backtest --episodes`: their rows, and some before them, are kept finer.",
    )] = None,
    in_episode: Annotated[float, typer.Option(
        min=0, max=1, help="Bounds of an episode's rows, as a share of the bound; 0 keeps every bit.",
    )] = 0.1,
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
    blocks with missing values, episodes); each latent block states its own errors, see `narrows inspect`.

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
    if latent and made is None:
        raise BadInput("--latent needs --bundle: latents are those of its model")
    runs = _runs(table, np.zeros(len(table), bool) if episodes is None else _in_episodes(table, episodes))
    finer = None if episodes is None else in_episode
    if latent and made is not None:
        write_latent_file(out, table, runs, made, bounds, block_rows, finer)
    else:
        models = _models(table, bounds, block_rows) if made is None or made.codec is None else [
            CodecModel.from_bytes(made.codec)
        ]
        _write_smallest(out, models, lambda path, model: write_file(
            path, table.channels, table.devices, runs, bounds, model, block_rows=block_rows, in_episode=finer
        ))
    _tell(table, out, began, as_json)


def _in_episodes(table: Table, episodes: Path) -> np.ndarray:
    """Rows of episodes and those just before them, as a worker marks them. (n,) bool. Raises BadInput."""
    try:
        events = [msgspec.json.decode(line, type=_Event) for line in episodes.read_bytes().splitlines()]
    except msgspec.MsgspecError as error:
        raise BadInput(f"{episodes}: no episodes of `narrows backtest --episodes`: {error}") from error
    fine, before = np.zeros(len(table), bool), BlockRules().rows_before
    places = {name: np.flatnonzero(table.device == i) for i, name in enumerate(table.devices)}
    for event in {event.episode_id: event for event in events}.values():      # the last word on each
        rows = places.get(event.device, np.zeros(0, np.int64))
        last_ms = event.window_end if event.state == "closed" else np.inf
        inside = np.flatnonzero((table.ts_ms[rows] >= event.window_start) & (table.ts_ms[rows] <= last_ms))
        if len(inside):
            fine[rows[max(inside[0] - before, 0) : inside[-1] + 1]] = True
    return fine


class _Event(msgspec.Struct):
    """What is needed of a line of `narrows backtest --episodes`; an episode that never closed lasts to the end."""

    episode_id: str
    device: str
    state: str
    window_start: int
    window_end: int


def _runs(table: Table, fine: np.ndarray) -> list[Run]:
    """Each device's rows in the order of the file, cut where an episode begins or ends. fine : (n,) bool."""
    of_device = [np.flatnonzero(table.device == device) for device in range(len(table.devices))]
    return [
        Run(device, table.ts_ms[part], table.values[part], bool(fine[part[0]]))
        for device, rows in enumerate(of_device)
        for part in np.split(rows, np.flatnonzero(np.diff(fine[rows])) + 1) if len(part)
    ]


def _models(table: Table, bounds: np.ndarray, block_rows: int) -> Sequence[CodecModel | None]:
    """The codec models worth a trial: one learned from the rows for as many rows, and none."""
    whole = [run for run in _runs(table, np.zeros(len(table), bool)) if len(run.ts_ms) > 1]
    if len(table) < LEAST_ROWS or not whole:
        return [None]
    segments, deltas = [run.values for run in whole], np.concatenate([np.diff(run.ts_ms) for run in whole])
    model = train_codec(
        segments, bounds, step_ms=max(int(np.median(deltas)), 0), served_rows=len(table),
        block_rows=min(block_rows, MOST_TRAINED_ROWS),
    )
    return [model] if table.values.nbytes > SURE_BYTES else [None, model]


def _write_smallest(
    out: Path, models: Sequence[CodecModel | None], write: Callable[[Path, CodecModel | None], object],
) -> None:
    """The smallest of the files that `write` makes with each model."""
    trial = [out.with_name(f"{out.name}.{i}.part") for i in range(len(models))]
    for path, model in zip(trial, models, strict=True):
        write(path, model)
    min(trial, key=lambda path: path.stat().st_size).replace(out)
    for path in trial:
        path.unlink(missing_ok=True)


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


def write_latent_file(
    out: Path, table: Table, runs: Sequence[Run], bundle: Bundle, bounds: np.ndarray, block_rows: int,
    in_episode: float | None = None,
) -> None:
    """A file of latent blocks, through the coder that a worker uses. Raises BadInput where the bundle can't.

    runs : of `table`, a device's one behind the other.   bounds : (C,) of what latents can't hold.
    in_episode : as in `write_file`.
    """
    from pipeline.scoring.blocks import BlockCoder
    from pipeline.scoring.gate import open_session
    from pipeline.scoring.stream import Block, Model

    own = bundle.contract
    contract = msgspec.structs.replace(own, channels=tuple(
        msgspec.structs.replace(channel, bound=float(bound))
        for channel, bound in zip(own.channels, bounds, strict=True)
    ))
    session = open_session(bundle, "cpu")
    index, window, sensors = bundle.scaling.index(table.devices), own.window, own.sensors
    blocks: list[list[Block]] = []
    device, scaled = -1, np.zeros((0, len(own.inputs)), np.float32)
    for run in runs:
        rows = bundle.scaling.apply(run.values, np.full(len(run.values), index[run.device]))[:, own.inputs]
        scaled = np.concatenate([scaled[-window:], rows]) if run.device == device else rows
        device, blocks = run.device, [*blocks, []]
        for start in range(0, len(rows), block_rows):
            part = slice(start, min(start + block_rows, len(rows)))
            ends = len(scaled) - len(rows) + start + window_ends(part.stop - start, window)
            latents = None
            if not run.is_fine and (ends >= window).all():
                latents = session.run(fill(np.stack([scaled[end - window : end] for end in ends]))).latent
            blocks[-1].append(Block(
                0, 0, 0, False, False, run.ts_ms[part], run.values[part], bundle.digest, None, -1,
                np.full(part.stop - start, run.is_fine), latents,
            ))
    latent_codec = bundle.latent_codec
    seen = [[block.latents for block in of_run if block.latents is not None] for of_run in blocks]
    segments = [np.concatenate(latents) for latents in seen if sum(map(len, latents)) > 1]
    if latent_codec is not None and segments:
        latent_codec = train_codec(
            segments, CodecModel.from_bytes(latent_codec).bounds, served_rows=sum(map(len, segments)),
            block_rows=max(min(block_rows // window, MOST_TRAINED_ROWS), 2),
        ).to_bytes()
    scale = bundle.scaling.scale[index][:, sensors]

    def write(path: Path, codec: CodecModel | None) -> None:
        model = Model(
            bundle.digest, session, bundle.scaling, bundle.scorer, None if codec is None else codec.to_bytes(),
            bundle.model, latent_codec,
        )
        coder = BlockCoder(contract, model, BlockRules(kind="latent", in_episode=in_episode))
        if coder.refused or coder.decoder is None or latent_codec is None:
            raise BadInput(f"bundle {bundle.folder}: {coder.refused}")
        graph, ready = pack_graph(coder.decoder[1]), iter(blocks)

        def encode(run: Run, _: Sequence[Rows]) -> list[Frame]:
            of_run = next(ready)
            coded = coder.encode(of_run, [table.devices[run.device]] * len(of_run))
            told = [one.episode if run.is_fine else one.normal for one in coded]
            return [Frame(one.frame, kind.largest, kind.mean) for one, kind in zip(coded, told, strict=True)]

        write_file(
            path, table.channels, table.devices, runs, bounds, codec, block_rows=block_rows, in_episode=in_episode,
            latents=Latents(
                sensors=tuple(sensors.tolist()),
                location=tuple(map(tuple, bundle.scaling.location[index][:, sensors].tolist())),
                scale=tuple(tuple(None if one != one else one for one in row) for row in scale.tolist()),
                model_bytes=len(latent_codec), graph_bytes=len(graph),
            ),
            needs=latent_codec + graph, encode=encode,
        )

    _write_smallest(out, _models(table, bounds, block_rows), write)


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
