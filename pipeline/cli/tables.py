"""Decoded rows to a file, by its ending: CSV, Parquet, Arrow or JSON lines; and what decodes latent blocks."""

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from pipeline.codec.latent import Rebuilder
from pipeline.errors import BadInput, Unreachable
from pipeline.formats.encode import encode_rows
from pipeline.formats.spec import Format

TABLES = {".csv": "csv", ".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow"}


def open_decoder(graph: bytes) -> Rebuilder:
    """A decoder graph of latent blocks, ready to run. Raises Unreachable where ONNX Runtime is not installed."""
    try:
        from pipeline.scoring.latents import LatentDecoder
    except ImportError as error:
        raise Unreachable(f"latent blocks need ONNX Runtime: pip install 'narrows[cpu]' ({error})") from error
    return LatentDecoder(graph)


class RowWriter(AbstractContextManager["RowWriter"]):
    """Rows as columns device, ts (epoch ms) and the channels, or as JSON lines {"device", "ts", "values"}.

    out : by its ending .csv, .parquet or .arrow, else JSON lines; None is JSON lines on standard output.
    A table has the columns of its first rows; rows of other channels raise BadInput.
    """

    def __init__(self, out: Path | None) -> None:
        self.rows = 0
        self._kind = "lines" if out is None else TABLES.get(out.suffix, "lines")
        self._out = out
        self._stack = ExitStack()
        self._channels: tuple[str, ...] | None = None
        self._schema: Any = None
        self._writer: Any = None
        if self._kind == "lines":
            self._lines = sys.stdout.buffer if out is None else self._stack.enter_context(out.open("wb"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.begin(())
        self._stack.close()
        if self._kind == "lines" and self._out is None:
            self._lines.flush()

    def write(self, channels: Sequence[str], device: str, ts_ms: np.ndarray, values: np.ndarray) -> None:
        """ts_ms (n,) int64, values (n, C) float32."""
        self.rows += len(ts_ms)
        if self._kind == "lines":
            for records in encode_rows(Format(), channels, [device] * len(ts_ms), ts_ms, values):
                self._lines.write(records[0] + b"\n")
            return
        self.begin(channels)
        if tuple(channels) != self._channels:
            raise BadInput(
                f"{self._out}: {device} has other channels than the rows before; choose devices of one stream with "
                "--device, or write JSON lines (--out rows.jsonl)"
            )
        columns = [pa.array([device] * len(ts_ms)), pa.array(ts_ms)]
        self._writer.write_table(
            pa.table([*columns, *(pa.array(column) for column in values.T.copy())], schema=self._schema)
        )

    def begin(self, channels: Sequence[str]) -> None:
        """Fix a table's columns where no row has done it."""
        if self._kind == "lines" or self._channels is not None:
            return
        self._channels = tuple(channels)
        self._schema = pa.schema([
            ("device", pa.string()), ("ts", pa.int64()), *((name, pa.float32()) for name in channels)
        ])
        make = {"csv": pa.csv.CSVWriter, "parquet": pa.parquet.ParquetWriter, "arrow": pa.ipc.new_file}[self._kind]
        self._writer = self._stack.enter_context(make(self._out, self._schema))
