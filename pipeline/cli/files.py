"""From the shared options of files to a table, what was guessed told on standard error."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.errors import BadInput
from pipeline.formats.files import FileOptions, Table, parse_rows, read_blocks, read_tables, split_columns

BLOCK_BYTES = 2 << 20   # of a block; Arrow reads some 70 blocks of text ahead, so that this sets what is in memory


def file_options(
    time_column: Sequence[str] | None = None, time_unit: str | None = None, step: float | None = None,
    device_column: str | None = None, ignore_columns: Sequence[str] | None = None,
    context_columns: Sequence[str] | None = None, label_columns: Sequence[str] | None = None, rows: str | None = None,
    missing: float | None = None, channels: tuple[str, ...] | None = None,
) -> FileOptions:
    """The options of `pipeline.cli.options` as `pipeline.formats.files` takes them. Raises BadInput."""
    if time_unit not in (None, "s", "ms", "us", "ns"):
        raise BadInput(f"--time-unit {time_unit}: give s, ms, us or ns")
    return FileOptions(
        time_columns=tuple(time_column or ()), time_unit=time_unit, step_s=step,  # type: ignore[arg-type]
        device_column=device_column, ignore_columns=split_columns(ignore_columns or ()),
        context_columns=split_columns(context_columns or ()), label_columns=split_columns(label_columns or ()),
        rows=(None, None) if rows is None else parse_rows(rows), missing=missing, channels=channels,
    )


def read_told(paths: Sequence[Path], options: FileOptions) -> Table:
    """The files as one table; what was guessed is printed."""
    table = read_tables(paths, options)
    for note in table.notes:
        print(f"{note}", file=sys.stderr)
    return table


def told_blocks(paths: Sequence[Path], options: FileOptions) -> Iterator[Table]:
    """The rows of `read_told` in the same order, a block at a time; what was guessed is printed once.

    Rows that are counted from a file's end need it whole: then there is one block.
    """
    if min(end or 0 for end in options.rows) < 0:
        yield read_told(paths, options)
        return
    told: set[str] = set()
    for block in read_blocks(paths, options, BLOCK_BYTES):
        for note in block.notes:
            if note not in told:
                print(note, file=sys.stderr)
                told.add(note)
        yield block
