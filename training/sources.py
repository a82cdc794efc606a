"""Where training's rows come from: files, a topic, an example; in memory, or on disk where they don't fit."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cli.files import read_told, told_blocks
from pipeline.core.contract import Contract
from pipeline.formats.files import FileOptions, Table, count_rows
from training import contamination, data, examples
from training.evaluate import any_label
from training.from_topic import Reach
from training.masks import Masks
from training.prepare import Prepared, prepare
from training.spool import Spool, free_memory_mb, most_rows, spool
from training.windows import Windows

SHARE_OF_FREE = 0.5       # of the free memory that rows may take where nothing else is asked for
HEAD = 100_000            # rows that a step is told from, and times in order


@dataclass(frozen=True)
class Source:
    """Rows to learn from, ready.

    table    : all rows, or a sample of those on disk, with the label columns of `labels`.
    prepared : the same, ready.   spool : all rows on disk; None where the table holds them.
    source   : what the manifest says of where they come from.
    """

    table: Table
    prepared: Prepared
    labels: tuple[str, ...]
    source: dict[str, Any]
    spool: Spool | None = None

    def windows(self, validation: float) -> tuple[Windows, Windows]:
        """Windows that move weights, and those that choose the epoch."""
        if self.spool is None:
            return data.learning_windows(self.prepared, validation)
        return self.spool.learn(self.prepared, validation)


@dataclass(frozen=True)
class Asked:
    """What was asked for. sizes : window, memory, hop and step_ms of a derived contract, those that were given.

    labels : columns that mark anomalous rows.   trim, accept : as `narrows train`.   memory_mb : None for a share of
    what is free.   folder : where rows are laid that don't fit.
    """

    contract: Contract | None
    sizes: dict[str, Any]
    labels: tuple[str, ...]
    folder: Path
    trim: bool = False
    accept: bool = False
    memory_mb: float | None = None

    def most_rows(self, channels: int) -> int:
        """How many rows may be in memory."""
        return rows_that_fit(channels, self.memory_mb)


def rows_that_fit(channels: int, memory_mb: float | None) -> int:
    """How many rows of so many channels may be in memory. memory_mb : None for a share of what is free."""
    return most_rows(channels, memory_mb or SHARE_OF_FREE * free_memory_mb())


@contextmanager
def from_files(paths: list[Path], options: FileOptions, asked: Asked) -> Iterator[Source]:
    """Rows of files."""
    source = {"files": [str(path) for path in paths], "rows_of_each": options.rows}
    count, columns = count_rows(paths, options)
    most = asked.most_rows(len(options.channels or ()) or columns)
    if count <= most:
        yield in_memory(read_told(paths, options), asked, source)
        return
    _say(f"about {count:,} rows of {columns} columns don't fit (--memory-mb): they are laid on disk, {asked.folder}")
    with spool(told_blocks(paths, options), asked.folder, asked.labels) as laid:
        yield on_disk(laid, asked, source, most)


@contextmanager
def from_topic(reach: Reach, asked: Asked) -> Iterator[Source]:
    """Rows of a topic, by the contract of the stream that reads it where none was given."""
    asked = replace(asked, contract=reach.contract)
    for sentence in reach.masks.missing:
        _say(sentence)
    most = asked.most_rows(len(reach.contract.channels))
    if reach.records <= most:
        yield in_memory(reach.table(), asked, reach.source, reach.masks)
        return
    _say(f"{reach.records:,} records don't fit (--memory-mb): their rows are laid on disk, {asked.folder}")
    with spool(reach.blocks(), asked.folder) as laid:
        yield on_disk(laid, asked, reach.source, most, reach.masks)


def from_example(name: str) -> tuple[Source, dict[str, Any]]:
    """Rows of an example, and settings that suit it."""
    made = examples.EXAMPLES[name]()
    prepared = prepare(made.contract, made.table.devices, made.table.device, made.table.ts_ms, made.table.values)
    return Source(made.table, prepared, (), {"example": name}), made.recipe


def in_memory(table: Table, asked: Asked, source: dict[str, Any], masks: Masks = Masks()) -> Source:
    """A table's rows, contaminated ones refused or left out. masks : rows to leave out besides."""
    data.check_order(table)
    contract = asked.contract or data.derive_contract(table, **asked.sizes)
    if asked.contract is None:
        _tell_constant(data.constant(table))
        _tell_stand_in(data.stand_in(table))
    masked = any_label(table, asked.labels) > 0 if asked.labels else np.zeros(len(table), bool)
    _tell_labelled(int(masked.sum()))
    if not (asked.labels or asked.accept):
        contamination.check_labels(contamination.labelled_shares(table))
    pardoned = data.rows_inside(table, masks.pardoned())
    known = data.rows_inside(table, masks.masked(table.devices))
    _tell_masked(masks, int(known.sum()), int(pardoned.sum()))
    masked |= known
    values = data.in_contract_order(table, contract)
    odd = contamination.find(contract, table.devices, table.device, values, masked)
    if _is_trimmed(odd, asked, source):
        masked |= odd.rows
    prepared = prepare(
        contract, table.devices, table.device, table.ts_ms, values, mask=masked, pardoned=pardoned)
    return Source(table, prepared, asked.labels, source)


def on_disk(laid: Spool, asked: Asked, source: dict[str, Any], most: int, masks: Masks = Masks()) -> Source:
    """The rows of a spool, a sample of them in memory. most : rows of the sample, about.   masks : as `in_memory`."""
    laid.check_order()
    if not (asked.labels or asked.accept):
        contamination.check_labels(laid.marked)
    contract = asked.contract
    if contract is None:
        sizes = {"step_ms": data.median_step(laid.head(HEAD)), **asked.sizes}
        contract = data.derive_contract(laid.thinned(most), ranges=(laid.low, laid.high), **sizes)
        _tell_constant([
            channel.name for channel, low, high in zip(contract.channels, laid.low, laid.high, strict=True)
            if low == high and channel.role == "sensor"
        ])
    _tell_labelled(laid.count(laid.label))
    known, pardoned = laid.inside(masks.masked(laid.devices), "masked"), laid.inside(masks.pardoned(), "pardoned")
    _tell_masked(masks, laid.count(known), laid.count(pardoned))
    odd, rows = laid.find_odd(contract, most, (known,))
    laid.cut(contract, (known, rows) if _is_trimmed(odd, asked, source) else (known,))
    table, prepared = laid.prepare(contract, most, pardoned)
    if asked.contract is None:
        _tell_stand_in(data.stand_in(table))
    _say(f"{len(laid):,} rows of {len(laid.devices)} devices lie on disk; constants, baselines and report come from "
         f"{len(table):,} of them")
    source |= {"rows": len(laid), "devices": len(laid.devices), "masked_rows": laid.count_masked(),
               "pardoned_rows": laid.count(pardoned), "sampled_rows": len(table), "first_ts_ms": laid.first_ms,
               "last_ts_ms": laid.last_ms}
    return Source(table, prepared, ("label",) if asked.labels else (), source, laid)


def _tell_labelled(rows: int) -> None:
    if rows:
        _say(f"{rows:,} rows marked anomalous are left out of training and calibration")


def _tell_masked(masks: Masks, rows: int, pardoned: int) -> None:
    if not masks.stream:
        return
    false = f", {pardoned:,} of them in episodes that were called false" if pardoned else ""
    _say(f"{rows:,} rows in alerted episodes or maintenance of stream {masks.stream} are left out of training and "
         f"calibration{false}")


def _is_trimmed(odd: contamination.Oddness, asked: Asked, source: dict[str, Any]) -> bool:
    """Whether odd rows are left out; raises BadInput where they are too many. What was found goes into the manifest."""
    if not odd.rows.any():
        return False
    if not (asked.trim or asked.accept):
        contamination.check(odd)
    kept = asked.accept and not asked.trim
    _say(f"{odd.sentence()}: {'kept, as normal' if kept else 'left out (--accept-shift learns them as normal)'}")
    source["odd_rows"] = {"share": odd.share, "left_out": not kept, "devices": [list(one) for one in odd.devices[:10]]}
    return not kept


def _tell_constant(names: list[str]) -> None:
    for name in names:
        _say(f"channel {name!r} never moves in these rows: any move of it will be an anomaly. For a command or set "
             f"point use --context-columns {name}; --ignore-columns {name} leaves it out")


def _tell_stand_in(found: tuple[float, list[str]] | None) -> None:
    if found is not None:
        value, names = found
        _say(f"{value:g} lies far from all other values of {', '.join(names)}: if it stands for a missing value, "
             f"train again with --missing {value:g}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
