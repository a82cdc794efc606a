"""`narrows inspect`: what a file of blocks holds, without decoding a block."""

from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import typer

from pipeline.cli import options as common
from pipeline.codec.block import KINDS, kind_of_block
from pipeline.codec.container import BlockFile


def inspect(
    file: Annotated[Path, typer.Argument(help="File of blocks.", show_default=False)],
    as_json: common.Json = False,
) -> None:
    """Say what a file of blocks holds: devices, times, channels with their bounds and summaries, blocks by kind.

    Example: narrows inspect pump.nrw
    """
    opened = BlockFile(file)
    facts = facts_of(opened)
    if as_json:
        print(msgspec.json.encode(facts).decode())
        return
    print(
        f"{file}: {facts['rows']} rows of {len(opened.header.channels)} channels, {len(facts['devices'])} devices, "
        f"{facts['bytes']:,} bytes ({facts['ratio']} times smaller than float32 with times)"
    )
    print(f"  {facts['first']} .. {facts['last']}")
    kinds = ", ".join(f"{count} {kind}" for kind, count in facts["blocks"].items())
    print(f"  blocks: {kinds}; codec model: {facts['model'] or 'none'}, {facts['model_bytes']} bytes")
    for channel in facts["channels"]:
        print(
            f"  {channel['name']}: bound {channel['bound']:g}, {channel['count']} values, "
            f"{channel['low']:g} .. {channel['high']:g}, mean {channel['mean']:g}"
        )


def facts_of(opened: BlockFile) -> dict[str, Any]:
    """Facts of a file, as `--json` prints them."""
    entries = opened.entries
    kinds = [KINDS[kind_of_block(opened.encoded(entry))] for entry in entries]
    rows = sum(entry.rows for entry in entries)
    size = opened.path.stat().st_size
    first = min((entry.first_ms for entry in entries), default=0)
    last = max((entry.last_ms for entry in entries), default=0)
    channels = []
    for c, (name, bound) in enumerate(zip(opened.header.channels, opened.header.bounds, strict=True)):
        count = np.array([entry.summary.counts[c] for entry in entries], np.int64)
        figures = np.array([
            (entry.summary.low[c], entry.summary.high[c], entry.summary.mean[c]) for entry in entries
        ], np.float64).reshape(-1, 3)[count > 0]
        total = int(count.sum())
        channels.append({
            "name": name, "bound": bound, "count": total,
            "low": float(figures[:, 0].min()) if total else 0.0, "high": float(figures[:, 1].max()) if total else 0.0,
            "mean": float(figures[:, 2] @ count[count > 0] / total) if total else 0.0,
        })
    return {
        "rows": rows, "devices": list(opened.header.devices), "channels": channels, "bytes": size,
        "ratio": round(rows * (4 * len(channels) + 8) / size, 2), "first_ms": first, "last_ms": last,
        "first": str(np.datetime64(first, "ms")), "last": str(np.datetime64(last, "ms")),
        "blocks": {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)},
        "model": None if opened.model is None else opened.model.id, "model_bytes": len(opened.model_bytes),
    }
