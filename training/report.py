"""The report of a bundle: pictures, one HTML page over them, and the model card. One looks before one reads."""

from collections.abc import Mapping
from datetime import UTC, datetime

import numpy as np

from pipeline.registry.bundle import Bundle
from pipeline.scoring.session import Session
from training import data, pictures
from training.calibrate import filter_rows, residual_rows
from training.card import card, time_of
from training.evaluate import Scored, score_prepared
from training.history import History
from training.page import Page
from training.prepare import CALIBRATION, FIT, Prepared
from training.windows import Windows

MOST_POINTS = 3000    # windows of the latent map
STRETCH = 600         # rows of the picture of rebuilt channels


def make(
    bundle: Bundle, prepared: Prepared, history: History | None = None, label: np.ndarray | None = None,
    figures: Mapping[str, float] | None = None, classes: np.ndarray | None = None,
) -> Page:
    """A report on these rows.

    prepared : after a training all rows with their parts, else rows laid out under the bundle's scaling.
    label    : (n,) over `prepared`'s rows, 1 anomalous, NaN unknown; None where there is none.
    figures  : measures on labelled rows, for the card.   classes : (n,) kinds that colour the latent map.
    """
    scored = score_prepared(bundle, prepared)
    held_out = scored.is_scored & (prepared.part == CALIBRATION)
    made: dict[str, tuple[bytes, str]] = {}
    if history is not None and history.epochs:
        made["loss.png"] = (pictures.losses(history),
                            "Loss by epoch. The dotted line is the epoch whose weights were kept.")
    if are_pictures(prepared):
        made["pairs.png"] = (_pairs(bundle, prepared), "Held-out windows above what the model rebuilds of them.")
    else:
        made["rebuilt.png"] = (_rebuilt(bundle, scored, held_out),
                               "Each channel's newest value and what the model rebuilds of it, on held-out rows. "
                               "Shaded: anomalous by the model. The band holds 99 % of the held-out errors.")
    normal = held_out if label is None else held_out & ~(label > 0)
    wrong = None if label is None else scored.score[scored.is_scored & (label > 0)]
    made["scores.png"] = (pictures.scores(scored.score[normal], scored.threshold, wrong),
                          "Scores of held-out rows and the threshold.")
    made["latent.png"] = (_latent(bundle, prepared, label if classes is None else classes,
                                 "anomalous" if classes is None else "class"),
                          "Windows in the latent space, on its two main axes.")
    quality = {name: values for name, values in bundle.manifest.quality.items() if isinstance(values, dict)}
    made["channels.png"] = (pictures.channel_errors(_told_drifts(bundle), _by_channel(bundle, scored, held_out)),
                            "Where the error sits. `raw` predicts each channel's mean.")
    if quality:
        made["families.png"] = (
            pictures.families(quality, bundle.manifest.family),
            "Held-out error beside the baselines. A larger latent rebuilds more; compare it with D.")
    if label is not None and 0 < np.nanmean(label[scored.is_scored]) < 1:
        known = scored.is_scored & np.isfinite(label)
        curves = {name: score[known] for name, score in _by_member(bundle, scored).items()}
        made["precision_recall.png"] = (
            pictures.precision_recall(label[known] > 0, curves, scored.threshold),
            "Row by row, without any adjustment of points: the score, and each of its members by itself. In brackets "
            "the average precision.")
    made |= _neighbours(bundle, prepared)
    if are_pictures(prepared):
        made |= _imagined(bundle, prepared)
    probed = probe(bundle, prepared, label if classes is None else classes)
    judged = np.flatnonzero(held_out)
    first, last = (time_of(int(ts_ms)) for ts_ms in (prepared.ts_ms[judged].min(), prepared.ts_ms[judged].max()))
    lead = (f"On {len(judged):,} held-out rows of {len(np.unique(prepared.device[judged])):,} devices, {first} to "
            f"{last}.")
    return Page(made, card(bundle, figures, probed), f"{bundle.manifest.family} {bundle.manifest.short}", lead)


def are_pictures(prepared: Prepared) -> bool:
    """Whether the devices are single windows (pictures, recordings) rather than series."""
    starts = np.flatnonzero(np.diff(prepared.device, prepend=-1))
    lengths = np.diff(np.append(starts, len(prepared.device)))
    return float(np.median(lengths)) < 2 * prepared.contract.window


def _rebuilt(bundle: Bundle, scored: Scored, held_out: np.ndarray) -> bytes:
    prepared, contract = scored.prepared, bundle.contract
    rows = np.flatnonzero(held_out)
    rows = rows[prepared.device[rows] == prepared.device[rows[0]]][:STRETCH]
    places, sensors = prepared.index[rows], contract.sensors
    scale, location = prepared.scaling.scale[places][:, sensors], prepared.scaling.location[places][:, sensors]
    expected = (prepared.scaled[rows][:, sensors] - scored.residual[rows]) * scale + location
    band = np.quantile(np.abs(scored.residual[held_out]), 0.99, axis=0) * scale[0]
    ts_ms = prepared.ts_ms[rows]
    units = [contract.channels[place].unit for place in sensors]
    device = prepared.devices[int(prepared.device[rows[0]])]
    names = [name + " (drifts: not scored)" * bool(np.isnan(scale[0, place]))
             for place, name in enumerate(bundle.manifest.sensors)]
    begin = datetime.fromtimestamp(int(ts_ms[0]) / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    return pictures.rebuilt((ts_ms - ts_ms[0]) / 1000, prepared.values[rows][:, sensors], expected, band,
                            names, units, scored.is_anomaly[rows], f"{device} from {begin} UTC")


def _pairs(bundle: Bundle, prepared: Prepared) -> bytes:
    windows = data.windows_of(prepared, CALIBRATION).thinned(12)
    x = windows.inputs(slice(None))
    rebuilt = Session(bundle.model).rebuild(x)
    sensors = bundle.contract.sensors
    scale, location = (array[-1, sensors] for array in (prepared.scaling.scale, prepared.scaling.location))
    x = x[:, :, windows.scored] * scale + location
    return pictures.pairs(x, rebuilt * scale + location)


def _learned_and_held_out(prepared: Prepared) -> tuple[Windows, Windows]:
    """Windows of the fit part and of the calibration part; of rows that no part was learned from, the earlier and the
    later half of each device, a window apart (pictures: of the devices)."""
    held_out, known = data.windows_of(prepared, CALIBRATION), data.windows_of(prepared, FIT)
    if len(known) or len(held_out) < 2:
        return known, held_out
    device = prepared.device[held_out.ends]
    if are_pictures(prepared):
        is_early = device < np.median(device)
        return held_out.part(is_early), held_out.part(~is_early)
    begin = np.searchsorted(device, device)
    middle = (begin + np.searchsorted(device, device, side="right")) // 2
    place = np.arange(len(device))
    return held_out.part(place < middle - held_out.length), held_out.part(place >= middle)


def _neighbours(bundle: Bundle, prepared: Prepared) -> dict[str, tuple[bytes, str]]:
    """Held-out windows above those that are nearest to them in the latent space."""
    known, held_out = (windows.thinned(most) for windows, most in zip(
        _learned_and_held_out(prepared), (4000, 12 if are_pictures(prepared) else 6), strict=True))
    if len(known) < 3 or not len(held_out):
        return {}
    session = Session(bundle.model)
    x, others = held_out.inputs(slice(None)), known.inputs(slice(None))
    z, z_others = session.run(x).latent, session.run(others).latent
    apart = np.square((z[:, None] - z_others[None]) / (z_others.std(axis=0) + 1e-6)).sum(axis=2)
    near = np.argsort(apart, axis=1)[:, :3].T                        # (3, 12)
    rows = [one[:, :, held_out.scored] for one in (x, *(others[places] for places in near))]
    text = "Held-out windows, and under each the three earlier windows that are nearest to it in the latent space."
    if are_pictures(prepared):
        return {"neighbours.png": (pictures.gallery(np.concatenate(rows), "held-out windows (top row)"), text)}
    names = ("held out", "nearest", "second", "third")
    return {"neighbours.png": (pictures.curves(dict(zip(names, rows, strict=True)), "nearest windows", len(x)),
                               f"{text} Each line is a channel, scaled.")}


def probe(bundle: Bundle, prepared: Prepared, kinds: np.ndarray | None) -> dict[str, float]:
    """What a linear classifier reads of the windows' kinds from the latent, from PCA with as many numbers, and by
    always saying the commonest kind: accuracy on held-out windows by name; empty where there are no two kinds to tell.

    kinds : (n,) over `prepared`'s rows, NaN unknown.
    """
    if kinds is None:
        return {}
    learned, held_out = (windows.thinned(MOST_POINTS) for windows in _learned_and_held_out(prepared))
    learned, held_out = (one.part(np.isfinite(kinds[one.ends].astype(np.float64))) for one in (learned, held_out))
    known, truth = kinds[learned.ends], kinds[held_out.ends]
    if len(np.unique(known)) < 2 or len(np.unique(truth)) < 2:
        return {}
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    session = Session(bundle.model)
    x, y = learned.inputs(slice(None)), held_out.inputs(slice(None))
    latents = {bundle.manifest.family: (session.run(x).latent, session.run(y).latent)}
    flat = x.reshape(len(x), -1)
    size = min(latents[bundle.manifest.family][0].shape[1], *flat.shape)
    axes = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)[2][:size].T
    latents["PCA"] = (flat @ axes, y.reshape(len(y), -1) @ axes)
    found = {}
    for name, (before, after) in latents.items():
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(before, known)
        found[name] = float(classifier.score(after, truth))
    values, counts = np.unique(known, return_counts=True)
    return {**found, "always the commonest": float((truth == values[counts.argmax()]).mean())}


def _by_member(bundle: Bundle, scored: Scored) -> dict[str, np.ndarray]:
    """The score, and beside it what the model and the linear members would say alone. (n,) each."""
    names, scorer = bundle.manifest.members, bundle.scorer
    if len(names) < 2:
        return {bundle.manifest.family: scored.score}
    residuals, age = residual_rows(Session(bundle.model), scored.prepared)
    distances = scorer.distances(filter_rows(scorer, residuals, age), scored.prepared.index)
    alone = np.log1p(distances / scorer.member_threshold).mean(axis=2)                   # (n,M,K) -> (n,M)
    rivals = dict.fromkeys((bundle.manifest.family, "var", "raw"))
    return {"the score": scored.score,
            **{f"{name} alone": alone[:, names.index(name)] for name in rivals if name in names}}


def _told_drifts(bundle: Bundle) -> list[str]:
    gone = np.isnan(bundle.scaling.scale[:, bundle.contract.sensors]).all(axis=0)
    return [f"{name} (drifts: not scored)" if is_gone else name
            for name, is_gone in zip(bundle.manifest.sensors, gone, strict=True)]


def _imagined(bundle: Bundle, prepared: Prepared) -> dict[str, tuple[bytes, str]]:
    """For families made for it, samples and a path between two windows."""
    held_out, known = data.windows_of(prepared, CALIBRATION).thinned(12), data.windows_of(prepared, FIT).thinned(4000)
    x, others = held_out.inputs(slice(None)), known.inputs(slice(None))
    made: dict[str, tuple[bytes, str]] = {}
    if bundle.manifest.family not in ("vae", "adversarial") or bundle.weights is None or len(others) < 50:
        return made
    from training import generate
    from training.train import restore

    model = restore(bundle)
    samples = generate.fit_sampler(model, others).sample(36)
    path = generate.interpolate(model, x[0], x[1], 12)
    made["samples.png"] = (pictures.gallery(samples, "samples"), "Windows that were never measured.")
    made["path.png"] = (pictures.gallery(path, "from one window to another"),
                        "The straight line between two held-out windows in the latent space, decoded.")
    return made


def _latent(bundle: Bundle, prepared: Prepared, label: np.ndarray | None, kind: str) -> bytes:
    windows = data.windows_of(prepared, CALIBRATION).thinned(MOST_POINTS)
    latent = Session(bundle.model).run(windows.inputs(slice(None))).latent
    if label is not None and len(np.unique(label[np.isfinite(label)])) > 1:
        return pictures.latent_map(latent, np.nan_to_num(label[windows.ends], nan=-1.0), kind, is_category=True)
    device = prepared.device[windows.ends]
    if 1 < len(np.unique(device)) <= 10:
        return pictures.latent_map(latent, device.astype(np.float64), "device", is_category=True)
    hours = (prepared.ts_ms[windows.ends] - prepared.ts_ms[windows.ends].min()) / 3_600_000
    return pictures.latent_map(latent, hours, "hours", is_category=False)


def _by_channel(bundle: Bundle, scored: Scored, held_out: np.ndarray) -> dict[str, np.ndarray]:
    own = np.sqrt(np.mean(np.square(scored.residual[held_out], dtype=np.float64), axis=0))
    scaled = scored.prepared.scaled[held_out][:, bundle.contract.sensors]
    squares = np.nan_to_num(np.square(scaled, dtype=np.float64))
    plain = np.sqrt(squares.sum(axis=0) / np.maximum(np.isfinite(scaled).sum(axis=0), 1))
    return {bundle.manifest.family: own, "raw": plain}
