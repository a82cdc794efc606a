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
    """Say what a file of blocks holds: devices, times, channels, bounds, summaries, blocks by kind, errors by class.

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
    kinds = ", ".join(
        f"{count} {kind} ({facts['block_bytes'][kind]:,} bytes)" for kind, count in facts["blocks"].items()
    )
    print(f"  blocks: {kinds}; codec model: {facts['model'] or 'none'}, {facts['model_bytes']} bytes")
    for name, one in facts["classes"].items():
        print(
            f"  {name}: {one['rows']} rows, {one['bytes']:,} bytes, errors at most {one['largest_error']:.3f} of the "
            f"bound, {one['mean_error']:.3f} on average"
        )
    for channel in facts["channels"]:
        print(
            f"  {channel['name']}: bound {channel['bound']:g}, {channel['count']} values, "
            f"{channel['low']:g} .. {channel['high']:g}, mean {channel['mean']:g}"
        )
    for one in facts["latent_errors"]:
        print(
            f"  {one['name']}: {one['blocks']} latent blocks, errors at most {one['largest']:.3g}, "
            f"on average at most {one['mean']:.3g}"
        )


def _latent_errors(opened: BlockFile) -> list[dict[str, Any]]:
    """What the latent blocks state of each sensor: the largest error of all, and the largest mean of a block."""
    told = [block for entry in opened.entries if (block := opened.latent(entry)) is not None]
    if not told or opened.header.latents is None:
        return []
    found = []
    for place, c in enumerate(opened.header.latents.sensors):
        largest = np.array([block.largest[place] for block in told])
        mean = np.array([block.mean[place] for block in told])
        held = np.isfinite(largest)
        found.append({
            "name": opened.header.channels[c], "blocks": int(held.sum()),
            "largest": float(largest[held].max(initial=0.0)), "mean": float(mean[held].max(initial=0.0)),
        })
    return found


def _classes(opened: BlockFile) -> dict[str, dict[str, Any]]:
    """Rows, bytes and true errors (shares of the bound) outside and inside of episodes, where the file tells them."""
    found = {}
    for name, is_fine in (("normal", False), ("episode", True)):
        chosen = [entry for entry in opened.entries if entry.is_fine == is_fine]
        rows = sum(entry.rows for entry in chosen)
        if opened.tells_errors and (rows or opened.header.in_episode is not None):
            found[name] = {
                "rows": rows, "bytes": sum(entry.size for entry in chosen),
                "largest_error": max((entry.largest for entry in chosen), default=0) / 1000,
                "mean_error": round(sum(entry.mean * entry.rows for entry in chosen) / max(1000 * rows, 1), 4),
            }
    return found


def facts_of(opened: BlockFile) -> dict[str, Any]:
    """Facts of a file, as `--json` prints them."""
    entries = opened.entries
    parts = [opened.encoded(entry) for entry in entries]
    kinds = [KINDS[kind_of_block(part)] for frame in parts for part in frame]
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
        "block_bytes": {
            kind: sum(len(part) for frame in parts for part in frame if KINDS[kind_of_block(part)] == kind)
            for kind in dict.fromkeys(kinds)
        },
        "in_episode": opened.header.in_episode, "classes": _classes(opened), "latent_errors": _latent_errors(opened),
        "model": None if opened.model is None else opened.model.id, "model_bytes": len(opened.model_bytes),
    }
