"""Options that several commands share, under the same names and with the same meaning."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.config import parse_time_ms

ConfigFile = Annotated[Path | None, typer.Option("--config", help="Configuration file; default narrows.yaml.")]
Json = Annotated[bool, typer.Option("--json", help="Print facts as JSON.")]
Files = Annotated[list[Path], typer.Argument(help="CSV, Parquet or JSON lines.", show_default=False)]
TimeColumn = Annotated[
    list[str] | None,
    typer.Option("--time-column", help="Column of the time; more than one are joined; `none` makes times from --step.",
                 show_default="ts, timestamp, datetime, date or time"),
]
TimeUnit = Annotated[
    str | None, typer.Option("--time-unit", help="s, ms, us or ns of a numeric time.", show_default="by its size"),
]
Step = Annotated[float | None, typer.Option("--step", help="Seconds between two rows, with --time-column none.")]
DeviceColumn = Annotated[
    str | None, typer.Option("--device-column", help="Column of the device's name.", show_default="the file's stem"),
]
IgnoreColumns = Annotated[
    list[str] | None, typer.Option("--ignore-columns", help="Columns that are never channels: labels, a,b.")
]
ContextColumns = Annotated[
    list[str] | None, typer.Option("--context-columns", help="Commands and set points: input, not scored: a,b.")
]
Rows = Annotated[str | None, typer.Option("--rows", help="FIRST:LAST rows of each file, either end open.")]
Missing = Annotated[float | None, typer.Option("--missing", help="A number that stands for a missing value.")]


def time_ms(option: str, text: str) -> int:
    """Milliseconds of an option's time: epoch milliseconds, or ISO 8601. Raises BadInput naming the option."""
    return int(text) if text.lstrip("-").isdigit() else parse_time_ms(option, text)
