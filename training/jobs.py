"""The retraining job: rows between recorded offsets, a challenger from the champion, figures for the gate.

Rows are laid on disk as they are read; what learns and judges holds as many in memory as fit (`training.spool`).

`narrows trainer` finds `make_train` by the entry point group `narrows.jobs`; lease, gate, publishing and promotion are
`pipeline.retraining.run`'s.
"""

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from pipeline.config import Config, Stream
from pipeline.errors import BadInput
from pipeline.formats.files import Table
from pipeline.registry.bundle import Bundle, load_bundle
from pipeline.retraining.request import RetrainRequest
from pipeline.retraining.run import Challenger, Report, Train
from training.calibrate import calibrate
from training.duel import cut, measure
from training.history import Epoch, History
from training.make_baseline import fit_without_torch, write_calibrated
from training.masks import read_masks
from training.recipe import FAMILIES, WITHOUT_TORCH, parse_recipe
from training.sources import rows_that_fit
from training.spool import Spool, spool
from training.topic import as_json, matches_of, read_blocks

log = logging.getLogger(__name__)


def make_train(config: Config) -> Train:
    """The training run of a retrain job, for all streams of the configuration."""

    def train(request: RetrainRequest, champion: Path | None, work: Path, report: Report) -> Challenger:
        began = time.monotonic()
        stream = _stream(config, request)
        standing = load_bundle(champion, stream.contract) if champion is not None else None
        report("reading the topic", 0.0)
        most = rows_that_fit(len(stream.contract.names), None)
        blocks = _blocks(config, stream, request, report)
        # Not in `work`: that is the registry's, on a disk that others share; a run that lost its lease may be there.
        with TemporaryDirectory(prefix="narrows-") as folder, spool(blocks, Path(folder) / "rows") as laid:
            if len(laid) < stream.retrain.min_rows:
                raise BadInput(f"{len(laid)} rows are fewer than streams.{request.stream}.retrain.min_rows, "
                               f"{stream.retrain.min_rows}: wait for more, or lower it")
            masked, pardoned, source = _masks(config, request, laid)
            earlier, places, lead = cut(laid, stream.contract, most)
            source |= {"last_ts_ms": laid.last_ms, "judged_rows": int((~lead).sum())}
            report("training", 0.0)
            challenger = _fit(stream, standing, earlier, (masked, pardoned), most, work / "bundle", source, report)
            report("judging", None)
            unit, alerted = (standing or challenger).scaling, np.asarray(masked[places]) > 0
            judge = laid.take(places)
            figures = measure(challenger, judge, lead, alerted, unit)
            rival = None if standing is None else measure(standing, judge, lead, alerted, unit)
            facts = {"rows": len(laid), "masked_rows": laid.count(masked), "pardoned_rows": laid.count(pardoned),
                     "seconds": round(time.monotonic() - began, 1)}
        return Challenger(folder=work / "bundle", figures=figures, champion=rival, facts=facts)

    return train


def _stream(config: Config, request: RetrainRequest) -> Stream:
    stream = config.streams.get(request.stream)
    if stream is None:
        raise BadInput(f"no stream {request.stream!r} in this trainer's configuration: give it the workers' file")
    if stream.contract.hash != request.contract_hash:
        raise BadInput(
            f"stream {request.stream}: the request was made for contract {request.contract_hash[:12]}, this trainer "
            f"has {stream.contract.hash[:12]}: give it the workers' configuration, then submit again"
        )
    if stream.topic != request.topic:
        raise BadInput(f"stream {request.stream}: the request names topic {request.topic}, this trainer {stream.topic}")
    return stream


def _blocks(config: Config, stream: Stream, request: RetrainRequest, report: Report) -> Iterator[Table]:
    """The stream's rows in the ranges of the request, a batch of records at a time."""
    return read_blocks(
        config.kafka.client_settings(), request.topic, request.ranges, stream.contract, stream.format,
        matches=matches_of(stream), progress=lambda share: report("reading the topic", share))


def _masks(
    config: Config, request: RetrainRequest, laid: Spool
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Which rows were alerted or in maintenance, which were alerted falsely ((n,) uint8 on disk), and what the manifest
    says of it all."""
    known = read_masks(config.kafka, request.stream)
    for sentence in known.missing:
        log.warning("stream %s: %s", request.stream, sentence)
    source = {
        "topic": request.topic, "ranges": as_json(request.ranges), "job": request.job_id, "reason": request.reason,
        **known.source,
    }
    masked = laid.inside(known.masked(laid.devices), "masked")
    return masked, laid.inside(known.pardoned(), "pardoned"), source


def _fit(
    stream: Stream, champion: Bundle | None, laid: Spool, masks: tuple[np.ndarray, np.ndarray], most: int, out: Path,
    source: dict[str, Any], report: Report,
) -> Bundle:
    """The challenger: on from the champion's weights, or afresh where the family is another or has none.

    laid : the rows to learn from.   masks : alerted rows, and those alerted falsely.   most : rows in memory at once.
    """
    contract, pardoned = stream.contract, masks[1]
    laid.cut(contract, masks)
    table, prepared = laid.prepare(contract, most, pardoned)
    source |= {"rows": len(laid), "devices": len(laid.devices), "first_ts_ms": laid.first_ms,
               "masked_rows": laid.count_masked(), "pardoned_rows": laid.count(pardoned)}
    if len(table) < len(laid):
        source["sampled_rows"] = len(table)
        log.info("stream %s: constants come from %d of %d rows, as many as fit into memory", stream.topic, len(table),
                 len(laid))
    family = stream.retrain.family or (champion.manifest.family if champion is not None else "dense")
    # `refuse` is off: a change of regime is what one retrains for, and the gate judges thresholds on later rows.
    if family in WITHOUT_TORCH and stream.retrain.family is not None:
        model, members = fit_without_torch(prepared, family)
        made = calibrate(model, prepared, members=members, refuse=False)
        return write_calibrated(
            prepared, model, made, out, family=family, members=members,
            data=source, parent=champion.digest if champion is not None else "",
        )
    from training.train import going_on, train_on_windows  # brings torch, for the families that need it

    def progress(epoch: Epoch, history: History) -> None:
        report(f"training, epoch {epoch.number}, loss {epoch.held_out:.4g}", None)

    parent = champion
    if champion is not None and champion.weights is not None and champion.manifest.family == family:
        recipe = going_on(champion)
    else:
        parent, recipe = None, parse_recipe({"model": family if family in FAMILIES else "dense"})
    start = champion.short if champion is not None else "new"
    return train_on_windows(
        prepared, laid.learn(prepared, recipe.validation), recipe, out, source=source, parent=parent, refuse=False,
        progress=progress, resume=True,
        state=out.parent / f"checkpoint-{start}",        # of this job and this start: a killed run goes on from it
    ).bundle
