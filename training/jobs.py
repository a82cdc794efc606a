"""The retraining job: rows between recorded offsets, a challenger from the champion, figures for the gate.

`narrows trainer` finds `make_train` by the entry point group `narrows.jobs`; lease, gate, publishing and promotion are
`pipeline.retraining.run`'s.
"""

import contextlib
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import Config, Stream
from pipeline.core.maintenance import Plans
from pipeline.errors import BadInput
from pipeline.formats.files import Table
from pipeline.registry.bundle import Bundle, load_bundle
from pipeline.retraining.request import RetrainRequest
from pipeline.retraining.run import Challenger, Report, Train
from pipeline.topics.maintenance import read_plans
from pipeline.topics.reader import begin_offsets, end_offsets, newest_by_key
from training.calibrate import calibrate
from training.duel import cut, measure
from training.history import Epoch, History
from training.make_baseline import fit_without_torch, write_calibrated
from training.prepare import prepare
from training.recipe import FAMILIES, WITHOUT_TORCH, parse_recipe
from training.topic import Ranges, called_false, episodes, main_lane, mask, read_table

log = logging.getLogger(__name__)

MASKED = "masked"
"""Label column that carries the mask through cuts of the table."""
PARDONED = "pardoned"
"""The same for rows of alerts that people called false."""


def make_train(config: Config) -> Train:
    """The training run of a retrain job, for all streams of the configuration."""

    def train(request: RetrainRequest, champion: Path | None, work: Path, report: Report) -> Challenger:
        began = time.monotonic()
        stream = _stream(config, request)
        standing = load_bundle(champion, stream.contract) if champion is not None else None
        report("reading the topic", 0.0)
        table, masked, pardoned, source = _read(config, stream, request, report)
        if len(table) < stream.retrain.min_rows:
            raise BadInput(f"{len(table)} rows are fewer than streams.{request.stream}.retrain.min_rows, "
                           f"{stream.retrain.min_rows}: wait for more, or lower it")
        table = replace(table, labels={MASKED: masked, PARDONED: pardoned})
        learn, judge, lead = cut(table, stream.contract)
        source |= {"last_ts_ms": int(table.ts_ms.max()), "judged_rows": int((~lead).sum())}
        report("training", 0.0)
        challenger = _fit(stream, standing, learn, work / "bundle", source, report)
        report("judging", None)
        unit = (standing or challenger).scaling
        figures = measure(challenger, judge, lead, judge.labels[MASKED], unit)
        rival = None if standing is None else measure(standing, judge, lead, judge.labels[MASKED], unit)
        return Challenger(
            folder=work / "bundle", figures=figures, champion=rival,
            facts={"rows": len(table), "masked_rows": int(masked.sum()), "pardoned_rows": int(pardoned.sum()),
                   "seconds": round(time.monotonic() - began, 1)},
        )

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


def _read(
    config: Config, stream: Stream, request: RetrainRequest, report: Report,
) -> tuple[Table, np.ndarray, np.ndarray, dict[str, Any]]:
    """Rows of the main lane, which of them to leave out, which of those because of a false alert, and what the
    manifest says of it. Left out are rows of alerts and of maintenance."""
    settings = config.kafka.client_settings()
    table = main_lane(read_table(
        settings, request.topic, request.ranges, stream.contract, stream.format, matches=_matches(stream),
        progress=lambda share: report("reading the topic", share),
    ))
    alerts = config.kafka.topic("anomalies")
    ranges: Ranges = {}
    try:
        first, last = begin_offsets(settings, alerts), end_offsets(settings, alerts)
        ranges = {partition: (first[partition], last[partition]) for partition in last}
        spans = episodes(settings, alerts, ranges, request.stream)
    except BadInput as error:                            # a stream that writes no anomalies has nothing to mask
        log.warning("stream %s: no rows are masked: %s", request.stream, error)
        spans = {}
    false = called_false(_marks(config))
    plans = Plans()
    with contextlib.suppress(BadInput):                  # no such topic: nobody has declared anything
        read_plans(settings, config.kafka.topic("maintenance"), plans)
    plan = plans.wanted()
    masked = mask(table, spans.values()) | plan.of(request.stream).cover(table.devices, table.device, table.ts_ms)
    pardoned = mask(table, [span for name, span in spans.items() if name in false])
    source = {
        "topic": request.topic, "ranges": {str(partition): list(span) for partition, span in request.ranges.items()},
        "anomalies": {str(partition): list(span) for partition, span in ranges.items()}, "job": request.job_id,
        "maintenance": plan.end,
        "reason": request.reason,
    }
    return table, masked, pardoned, source


def _marks(config: Config) -> dict[bytes, bytes]:
    try:
        return newest_by_key(config.kafka.client_settings(), config.kafka.topic("feedback"))
    except BadInput:                                     # no such topic: nobody has said anything
        return {}


def _matches(stream: Stream) -> Any:
    match = stream.match
    if match.device_prefix is None and not match.devices:
        return None
    return lambda name: name in match.devices or (
        match.device_prefix is not None and name.startswith(match.device_prefix)
    )


def _fit(
    stream: Stream, champion: Bundle | None, learn: Table, out: Path, source: dict[str, Any], report: Report,
) -> Bundle:
    """The challenger: on from the champion's weights, or afresh where the family is another or has none."""
    masked = learn.labels[MASKED]
    family = stream.retrain.family or (champion.manifest.family if champion is not None else "dense")
    # `refuse` is off: a change of regime is what one retrains for, and the gate judges thresholds on later rows.
    if family in WITHOUT_TORCH and stream.retrain.family is not None:
        prepared = prepare(stream.contract, learn.devices, learn.device, learn.ts_ms, learn.values, mask=masked,
                           pardoned=learn.labels[PARDONED])
        model, members = fit_without_torch(prepared, family)
        made = calibrate(model, prepared, members=members, refuse=False)
        return write_calibrated(
            prepared, model, made, out, family=family, members=members,
            data=source, parent=champion.digest if champion is not None else "",
        )
    from training.train import retrain, train  # brings torch, for the families that need it

    def progress(epoch: Epoch, history: History) -> None:
        report(f"training, epoch {epoch.number}, loss {epoch.held_out:.4g}", None)

    start = champion.short if champion is not None else "new"
    common: dict[str, Any] = {
        "pardoned": learn.labels[PARDONED],
        "source": source, "progress": progress, "refuse": False, "resume": True,
        "state": out.parent / f"checkpoint-{start}",     # of this job and this start: a killed run goes on from it
    }
    if champion is not None and champion.weights is not None and champion.manifest.family == family:
        return retrain(learn, stream.contract, champion, out, masks=masked, **common).bundle
    recipe = parse_recipe({"model": family if family in FAMILIES else "dense"})
    return train(learn, stream.contract, recipe, out, masked=masked, **common).bundle
