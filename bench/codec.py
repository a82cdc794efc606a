"""Size, error and speed of bounded blocks beside pcodec, zstd-19, SZ3 and zfp, on recorded series.

    python -m bench.codec [--json OUT] [--check] [--quick] [--docs]

A model is learned from the first half of each series (SKAB: from `anomaly-free.csv`) and judged on all whole blocks of
the rest, each block on its own, sizes with every header of ours against raw float32; bounds are shares of a channel's
range. A rival is its best variant on the same blocks. Gains over 1 mean that our blocks are smaller. --docs writes the
tables and the picture into docs/.
"""

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import zstandard

from bench.codec_data import Series, data_folder, real_series, single_series, telemetry_series
from bench.codec_rivals import Variant, bounded_rivals, lossless_rivals
from bench.results import Measurement, options, print_table, report, write_into
from pipeline.codec import CodecModel, decode_block, encode_block, encode_blocks, warm_up
from pipeline.codec.latent import coded_latents, encode_latent
from pipeline.codec.train import train_codec

PAGE = Path("docs/compression.md")
PICTURE = Path("docs/pictures/rate-distortion.svg")
DICTIONARY = "zstd-19 with dictionary"
GOALS = {64: 1.48, 256: 1.30, 1024: 1.15}
GOAL_EACH, GOAL_DICTIONARY, GOAL_SPEED = 1.25, 1.28, 15.0
WINDOW, LATENTS = 32, (2, 4, 8, 16, 32)
ToLatents = Callable[[np.ndarray], np.ndarray]
ToWindows = Callable[[np.ndarray], np.ndarray]
GOAL_EXCESS = 7
"""Bytes of one header."""


class Judged(NamedTuple):
    """One series at one bound and block length. ratio and rivals: raw bytes over coded bytes; excess in bytes."""

    series: Series
    share: float
    n: int
    ratio: float
    rivals: dict[str, float]
    out_of_bound: int
    excess: int

    def gain(self, *, with_dictionary: bool = False) -> float:
        """Ours over the best rival."""
        return self.ratio / max(r for name, r in self.rivals.items() if with_dictionary or name != DICTIONARY)


def judge(series: Series, share: float, n: int, model: CodecModel, most: int | None) -> Judged | None:
    """Sizes of ours and of every rival on the same blocks; None where the series is shorter than a block."""
    blocks = series.blocks(n, most)
    if not blocks:
        return None
    bounds = series.bounds(share) if share else np.zeros(series.channels)
    coded = encode_blocks([(None, block) for block in blocks], bounds, model)
    raw, outside = sum(block.nbytes for block in blocks), 0
    for block, data in zip(blocks, coded, strict=True):
        error = np.abs(decode_block(data, {model.id: model}).values.astype(np.float64) - block.astype(np.float64))
        outside += int((error > bounds).sum())
    if share:
        training = [series.train[i : i + n] for i in range(0, len(series.train) - n + 1, max(n // 2, 1))]
        variants = bounded_rivals(bounds, np.abs(series.everything).max(axis=0), n, training)
    else:
        variants = lossless_rivals(series.channels, n)
    sizes = _sizes(variants, blocks)
    rivals: dict[str, float] = {}
    for variant, size in zip(variants, sizes, strict=True):
        rivals[variant.family] = max(rivals.get(variant.family, 0.0), raw / size.sum())
    pcodec = np.min([s for v, s in zip(variants, sizes, strict=True) if v.family == "pcodec"], axis=0)
    excess = int(max(len(data) - size for data, size in zip(coded, pcodec, strict=True)))
    return Judged(series, share, n, raw / sum(map(len, coded)), rivals, outside, excess)


def _sizes(variants: list[Variant], blocks: list[np.ndarray]) -> list[np.ndarray]:
    return [np.array([len(variant.encode(block)) for block in blocks]) for variant in variants]


def mean(values: Iterable[float]) -> float:
    """Geometric mean; NaN of nothing."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else float("nan")


def speeds(series: Series, repeats: int) -> list[Measurement]:
    """Megabytes of float32 a second of one core's time, blocks of 64 x C, pcodec on the same deltas in the same run."""
    bounds, n = series.bounds(1e-3), 64
    model = train_codec([series.train], bounds, step_ms=1000)
    blocks = series.blocks(n)
    raw = sum(block.nbytes for block in blocks) / 1e6
    ts_ms = 1_700_000_000_000 + 1000 * np.arange(n)
    rows = [(ts_ms, block) for block in blocks]
    coded = encode_blocks(rows, bounds, model)
    models = {model.id: model}
    pcodec = next(v for v in bounded_rivals(bounds, np.abs(series.everything).max(axis=0), n, []) if v.name == "deltas")
    packed = [pcodec.encode(block) for block in blocks]
    runs = {
        "encode, many blocks a call": (lambda: encode_blocks(rows, bounds, model), GOAL_SPEED),
        "encode, one block a call": (lambda: [encode_block(*row, bounds, model) for row in rows], None),
        "decode": (lambda: [decode_block(data, models) for data in coded], GOAL_SPEED),
        "pcodec deltas, encode": (lambda: [pcodec.encode(block) for block in blocks], None),
        "pcodec deltas, decode": (lambda: [pcodec.decode(data) for data in packed], None),
    }
    found = []
    for name, (run, goal) in runs.items():
        run()
        samples = []
        for _ in range(repeats):
            began = time.thread_time()
            run()
            samples.append(raw / (time.thread_time() - began))
        what = f"{name}, 64 x {series.channels}"
        found.append(Measurement(what, max(samples), "MB/s", "higher", goal, tuple(samples)))
    return found


def stream_bytes(series: Series) -> list[Measurement]:
    """Bytes a row of the same stream as JSON, as a binary record, both in Kafka's zstd batches, and as blocks."""
    bounds, n = series.bounds(1e-3), 64
    rows = np.concatenate(series.blocks(n))[: 64 * 200]
    names = [f"channel_{c}" for c in range(series.channels)]
    ts_ms = 1_700_000_000_000 + 1000 * np.arange(len(rows))
    texts = [
        json.dumps({"device": "pump-1", "ts": t, "values": dict(zip(names, row, strict=True))}).encode()
        for t, row in zip(ts_ms.tolist(), rows.astype(float).round(6).tolist(), strict=True)
    ]
    records = [t.to_bytes(8, "little") + row.tobytes() for t, row in zip(ts_ms.tolist(), rows, strict=True)]
    zstd = zstandard.ZstdCompressor(level=3)

    def batches(values: list[bytes]) -> float:
        return sum(len(zstd.compress(b"".join(values[i : i + 500]))) for i in range(0, len(values), 500)) / len(rows)

    model = train_codec([series.train], bounds, step_ms=1000)
    coded = encode_blocks([(ts_ms[i : i + n], rows[i : i + n]) for i in range(0, len(rows), n)], bounds, model)
    return [
        Measurement("JSON", sum(map(len, texts)) / len(rows), "B", "lower"),
        Measurement("JSON in zstd batches of 500", batches(texts), "B", "lower"),
        Measurement("float32 records in zstd batches of 500", batches(records), "B", "lower"),
        Measurement("our blocks of 64, times included", sum(map(len, coded)) / len(rows), "B", "lower"),
    ]


def file_ratios(folder: Path) -> list[Measurement]:
    """Times smaller than float32 with times: whole files as `narrows compress` writes them, all that reads them inside.

    Latent files are of a dense model that `narrows train` made of SKAB's calm rows, or of the first half of ETTh1.
    """
    found = []
    inputs = {"skab": ("skab/anomaly-free.csv", []), "etth1": ("series/etth1.csv", ["--rows", ":8710"])}
    with tempfile.TemporaryDirectory() as work:
        for name, (file, rows) in inputs.items():
            bundle, packed = f"{work}/{name}", f"{work}/{name}.nrw"
            _narrows("train", str(folder / file), *rows, "--out", bundle)
            for n in (64, 512):
                for kind, more in (("bounded", []), ("latent", ["--latent", "--bundle", bundle])):
                    facts = json.loads(_narrows(
                        "compress", str(folder / file), "--out", packed, "--block-rows", str(n), "--json", *more
                    ))
                    found.append(Measurement(f"{name}, {kind} file, blocks of {n}", facts["ratio"], "x", "higher"))
    return found


def _narrows(*arguments: str) -> str:
    command = [sys.executable, "-m", "pipeline.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def goals(judged: Sequence[Judged], real: set[str]) -> list[Measurement]:
    """The figures that have goals."""
    found = []
    tight = [one for one in judged if one.share == 1e-3 and one.series.name in real]
    for n, goal in GOALS.items():
        gains = [one.gain() for one in tight if one.n == n]
        if gains:
            name = f"ours / best rival at 1e-3, n = {n}, geometric mean"
            found.append(Measurement(name, mean(gains), "x", "higher", goal, tuple(gains)))
    at_64 = [one for one in tight if one.n == 64]
    found.append(Measurement("the same with a trained zstd dictionary, n = 64",
                             mean(one.gain(with_dictionary=True) for one in at_64), "x", "higher", GOAL_DICTIONARY))
    wide = [one for one in judged if one.share == 1e-3 and one.n == 64 and one.series.channels >= 7]
    found += [Measurement(f"{one.series.name}, n = 64", one.gain(), "x", "higher", GOAL_EACH) for one in wide]
    found.append(Measurement("values out of bound", sum(one.out_of_bound for one in judged), "", "lower", 0))
    found.append(Measurement("bytes over pcodec's best, worst block at 1e-3",
                             max(one.excess for one in judged if one.share == 1e-3), "B", "lower", GOAL_EXCESS))
    return found


def table(judged: Sequence[Judged]) -> list[str]:
    """Markdown: one line a series, bound and block length."""
    families = ["pcodec", "zstd-19", DICTIONARY, "SZ3", "zfp"]
    lines = ["| series (channels) | bound | n | ours | " + " | ".join(families) + " | ours / best |",
             "|---|---|---|---|" + "---|" * (len(families) + 1)]
    for one in judged:
        rivals = " | ".join(f"{one.rivals[name]:.2f}" if name in one.rivals else "" for name in families)
        bound = f"{one.share:g}" if one.share else "lossless"
        lines.append(f"| {one.series.name} ({one.series.channels}) | {bound} | {one.n} | {one.ratio:.2f} | {rivals} | "
                     f"{one.gain():.2f} |")
    return lines


def rate_distortion(series: Series, out: Path) -> None:
    """Picture: bits a value against error (share of range) for bounded blocks, pcodec, latent blocks of two models."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FixedLocator, NullLocator

    n, spread = 64, np.ptp(series.everything.astype(np.float64), axis=0)
    blocks = series.blocks(n, 120)
    values = len(blocks) * n * series.channels
    lines: dict[str, list[tuple[float, float]]] = {"bounded blocks": [], "pcodec on quantised integers": []}
    for share in (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4):
        bounds = series.bounds(share)
        model = train_codec([series.train], bounds)
        coded = encode_blocks([(None, block) for block in blocks], bounds, model)
        rebuilt = [decode_block(data, {model.id: model}).values for data in coded]
        lines["bounded blocks"].append((8 * sum(map(len, coded)) / values, _error(blocks, rebuilt, spread)))
        variants = bounded_rivals(bounds, np.abs(series.everything).max(axis=0), n, [])
        best = min((v for v in variants if v.family == "pcodec"), key=lambda v: sum(len(v.encode(b)) for b in blocks))
        packed = [best.encode(block) for block in blocks]
        rebuilt = [best.decode(best.encode(block)) for block in blocks]
        bits = 8 * sum(map(len, packed)) / values
        lines["pcodec on quantised integers"].append((bits, _error(blocks, rebuilt, spread)))
    lines["latent blocks of a dense autoencoder, windows of 32"] = _latent(series, blocks, n, spread, _dense)
    lines["latent blocks of a PCA, the same sizes"] = _latent(series, blocks, n, spread, _pca)
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for name, points in lines.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set(xlabel="bits a value", ylabel="root mean square error, share of range", yscale="log", xscale="log",
             title=f"{series.name}, blocks of {n} rows")
    axes.xaxis.set_major_locator(FixedLocator([0.5, 1, 2, 4, 8]))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, bbox_inches="tight", metadata={"Date": None})


def _error(blocks: list[np.ndarray], rebuilt: list[np.ndarray], spread: np.ndarray) -> float:
    error = np.stack(blocks).astype(np.float64) - np.stack(rebuilt)
    return float(np.sqrt(np.mean(np.square(error / np.where(spread > 0, spread, 1)))))


def _pca(series: Series, size: int) -> tuple[ToLatents, ToWindows]:
    """Latents of windows (W, T, C) and back, by principal components of the first half's windows."""
    spread = np.ptp(series.everything.astype(np.float64), axis=0)
    scale = np.where(spread > 0, spread, 1)
    train = _windows(series.train) / scale
    centre = train.mean(axis=0)
    axes = np.linalg.svd((train - centre).reshape(len(train), -1), full_matrices=False)[2][:size]
    return (
        lambda windows: ((windows / scale - centre).reshape(len(windows), -1) @ axes.T).astype(np.float32),
        lambda latents: ((latents @ axes).reshape(len(latents), *centre.shape) + centre) * scale,
    )


def _dense(series: Series, size: int) -> tuple[ToLatents, ToWindows]:
    """The same by a dense autoencoder."""
    from training.estimator import AutoencoderModel

    model = AutoencoderModel(family="dense", window=WINDOW, latent=size, settings={"epochs": 30})
    model.fit(_windows(series.train))
    return model.transform, model.inverse_transform


def _windows(rows: np.ndarray, stride: int = 8) -> np.ndarray:
    return np.stack([rows[i : i + WINDOW] for i in range(0, len(rows) - WINDOW, stride)])


def _latent(
    series: Series, blocks: list[np.ndarray], n: int, spread: np.ndarray,
    make: Callable[[Series, int], tuple[ToLatents, ToWindows]],
) -> list[tuple[float, float]]:
    """(bits a value, error) of latent blocks of 2 to 32 latents a window, headers counted."""
    points = []
    for size in LATENTS:
        to_latents, to_windows = make(series, size)
        known = to_latents(_windows(series.train))
        model = train_codec([known[::4]], 0.2 * known.std(axis=0).astype(np.float64), block_rows=16)
        coded_bytes, rebuilt = 0, []
        for block in blocks:
            coded, read = coded_latents(to_latents(block.reshape(n // WINDOW, WINDOW, -1)), model)
            again = np.asarray(to_windows(read), np.float64).reshape(n, -1)
            coded_bytes += len(encode_latent(None, coded, n, WINDOW, "000000", again - block))
            rebuilt.append(again)
        points.append((8 * coded_bytes / (len(blocks) * n * series.channels), _error(blocks, rebuilt, spread)))
    return points


def main() -> int:
    """Runs the benchmark; 1 where a goal is missed under --check."""
    parser = options(__doc__ or "")
    parser.add_argument("--docs", action="store_true", help="write tables and picture into docs/")
    arguments = parser.parse_args()
    folder = data_folder()
    if not folder.exists():
        print(f"no recorded data at {folder}: set NARROWS_DATA to its folder", file=sys.stderr)
        return 3
    warm_up()
    real = list(real_series(folder))
    names = {series.name for series in real}
    everything = real if arguments.quick else [*real, *single_series(folder), *telemetry_series(folder)]
    shares = (1e-3,) if arguments.quick else (1e-2, 1e-3, 1e-4, 0.0)
    lengths = (64,) if arguments.quick else (16, 64, 256, 1024)
    judged: list[Judged] = []
    for series in everything:
        for share in shares:
            model = train_codec([series.train], series.bounds(share) if share else np.zeros(series.channels))
            for n in lengths:
                one = judge(series, share, n, model, 120 if arguments.quick or n < 64 else None)
                if one is not None:
                    judged.append(one)
                    print(table([one])[-1], flush=True)
    found = [*goals(judged, names), *speeds(real[0], 3 if arguments.quick else 9)]
    sizes = stream_bytes(real[0])
    files = [] if arguments.quick else file_ratios(folder)
    print_table([*found, *sizes, *files])
    if arguments.docs:
        write_into(PAGE, sizes, "bench.codec stream")
        write_into(PAGE, files, "bench.codec files")
        _write_lines(PAGE, table(judged), "bench.codec series")
        rate_distortion(real[1], PICTURE)
    page = PAGE if arguments.docs else None
    return report([*found, *sizes, *files], "bench.codec", arguments.json, arguments.check, page)


def _write_lines(page: Path, lines: list[str], command: str) -> None:
    text = page.read_text(encoding="utf-8")
    head, rest = text.split(f"<!-- table: {command} -->", 1)
    tail = rest.split("<!-- end of table -->", 1)[1]
    page.write_text(f"{head}<!-- table: {command} -->\n" + "\n".join(lines) + f"\n<!-- end of table -->{tail}",
                    encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
