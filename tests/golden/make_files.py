"""Writes the golden files of blocks of the present version, once: `python -m tests.golden.make_files`.

files/vN.nrw holds two devices with missing values, files/vN-latent.nrw latent blocks of a small bundle and a frame that
they can't hold; NAME.npz what a reader must make of it. Never for an old version: theirs were written by its code.
"""

import tempfile
from pathlib import Path

import numpy as np

from pipeline.cli.compress import write_latent_file
from pipeline.cli.tables import open_decoder
from pipeline.codec.container import VERSION, BlockFile, Run, write_file
from pipeline.codec.train import train_codec
from pipeline.formats.files import Table
from tests.golden.make_blocks import recording
from tests.support.models import latent_model, small_contract, write_small_bundle

FOLDER = Path(__file__).parent / "files"
BOUNDS = np.array([1e-2, 1e-2, 1e-4, 1e-3, 0.0, -1e-3])


def rows_of(path: Path) -> dict[str, np.ndarray]:
    """All rows of a file: device names, times, values; and the counts and figures of its summaries."""
    opened = BlockFile(path)
    read = list(opened.read(decoder=open_decoder(opened.graph) if opened.graph else None))
    figures = [np.stack([entry.summary.low, entry.summary.high, entry.summary.mean]) for entry in opened.entries]
    return {
        "device": np.repeat([name for name, _, _ in read], [len(ts_ms) for _, ts_ms, _ in read]),
        "ts_ms": np.concatenate([ts_ms for _, ts_ms, _ in read]),
        "values": np.concatenate([values for _, _, values in read]),
        "counts": np.stack([entry.summary.counts for entry in opened.entries]), "figures": np.stack(figures),
    }


def main() -> None:
    """Writes the files of the present version."""
    FOLDER.mkdir(exist_ok=True)
    ts_ms, values = 1_700_000_000_000 + 1000 * np.arange(300), recording(300, 2)
    values[40:60, 1] = np.nan
    values[:100, 3] = np.nan
    model = train_codec([recording(1000, 1)], BOUNDS, step_ms=1000)
    path = FOLDER / f"v{VERSION}.nrw"
    write_file(
        path, list("abcdef"), ["p1", "p2"], [
            Run(0, ts_ms[:200], values[:200]), Run(0, ts_ms[200:], values[200:], is_fine=True),
            Run(1, ts_ms[:150] + 7, 2 * values[:150]),
        ], BOUNDS, model, block_rows=100, in_episode=0.1,
    )
    np.savez_compressed(path.with_suffix(".npz"), **rows_of(path))  # type: ignore[arg-type]
    contract = small_contract(2)
    x = np.random.default_rng(0).normal(0, 0.3, (100, 2)).astype(np.float32)
    x[40, 1] = np.nan
    path = FOLDER / f"v{VERSION}-latent.nrw"
    table = Table(("one",), np.zeros(100, np.int64), ts_ms[:100], ("c0", "c1"), x)
    with tempfile.TemporaryDirectory() as folder:
        bundle = write_small_bundle(
            Path(folder) / "bundle", contract, latent_codec=latent_model(contract).latent_codec
        )
        write_latent_file(path, table, [Run(0, ts_ms[:100], x)], bundle, np.full(2, 1e-2), block_rows=25)
    np.savez_compressed(path.with_suffix(".npz"), **rows_of(path))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
