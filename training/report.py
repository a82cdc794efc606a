"""The report of a bundle: pictures, one HTML page over them, and the model card. One looks before one reads."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from pipeline.registry.bundle import Bundle
from pipeline.scoring.session import Session
from training import data, grids, pictures
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
    figures: Mapping[str, float] | None = None, classes: np.ndarray | None = None, kinds: Sequence[str] = (),
) -> Page:
    """A report on these rows; after a training, on those of them that were held out or marked anomalous.

    prepared : after a training all rows with their parts, else rows laid out under the bundle's scaling.
    label    : (n,) over `prepared`'s rows, 1 anomalous, NaN unknown; None where there is none.
    figures  : measures on labelled rows, for the card.   classes : (n,) that colour the latent map.
    kinds    : names of the classes; without them their numbers.
    """
    scored = score_prepared(bundle, prepared)
    held_out = scored.is_scored & (prepared.part == CALIBRATION)
    normal = held_out if label is None else held_out & ~(label > 0)
    normal = normal if normal.any() else held_out
    made: dict[str, tuple[bytes, str]] = {}
    if history is not None and history.epochs:
        made["loss.png"] = (pictures.losses(history, bundle.manifest.recipe.get("loss", "mse")),
                            "Loss by epoch. The dotted line is the epoch whose weights were kept.")
    if are_pictures(prepared):
        made["pairs.png"] = (_pairs(bundle, prepared), "Held-out windows above what the model rebuilds of them.")
    else:
        made["rebuilt.png"] = (_rebuilt(bundle, scored, held_out, normal, label),
                               "Each channel's newest value and what the model rebuilds of it. The band holds 99 % "
                               "of the errors of rows that nobody labelled anomalous.")
    marked = np.zeros(len(held_out), bool) if label is None else scored.is_scored & (label > 0)    # never learned from
    wrong = None if label is None else scored.score[marked]
    which = "held-out " if (prepared.part == FIT).any() else ""           # else the caller chose the rows
    what = which + ("windows" if are_pictures(prepared) else "rows")
    aside = bundle.manifest.calibration.get("set_aside") if history is not None else None
    made["scores.png"] = (
        pictures.scores(scored.score[normal], scored.threshold, wrong, what),
        f"Scores of {what} and the threshold."
        + (f" The {len(aside)} devices with the highest scores set no threshold, but are drawn." if aside else ""))
    made["latent.png"] = (_latent(bundle, prepared, label, classes, kinds),
                          "Windows in the latent space, on its two main axes: what lies near is alike to the model.")
    made["channels.png"] = _errors(bundle, scored, normal, label)
    quality = {name: values for name, values in bundle.manifest.quality.items() if isinstance(values, dict)}
    if quality:
        made["families.png"] = (
            pictures.families(quality, bundle.manifest.family),
            "Error beside the baselines on the rows that were held out of training. A larger latent rebuilds more; "
            "compare it with D.")
    known = np.zeros(0, bool) if label is None else (held_out | marked) & np.isfinite(label)
    if label is not None and 0 < np.mean(label[known]) < 1:
        curves = {name: score[known] for name, score in _by_member(bundle, scored).items()}
        made["precision_recall.png"] = (
            pictures.precision_recall(label[known] > 0, curves, scored.threshold),
            "Row by row, without any adjustment of points: the score, and each of its members by itself.")
    made |= _neighbours(bundle, prepared)
    if are_pictures(prepared):
        made |= _imagined(bundle, prepared)
    probed = probe(bundle, prepared, label if classes is None else classes)
    return Page(made, card(bundle, figures, probed), f"{bundle.manifest.family} {bundle.manifest.short}",
                _lead(prepared, np.flatnonzero(held_out), what))


def _lead(prepared: Prepared, rows: np.ndarray, what: str) -> str:
    """Which rows the pictures are of."""
    if are_pictures(prepared):                   # one row of each is scored, and its time is made up
        return f"On {len(rows):,} {what}."
    devices = len(np.unique(prepared.device[rows]))
    told = f"On {len(rows):,} {what} of {devices:,} device{'s' * (devices > 1)}"
    first, last = (time_of(int(ts_ms)) for ts_ms in (prepared.ts_ms[rows].min(), prepared.ts_ms[rows].max()))
    return f"{told}, {first} to {last}."


def are_pictures(prepared: Prepared) -> bool:
    """Whether the devices are single windows (pictures, recordings) rather than series."""
    starts = np.flatnonzero(np.diff(prepared.device, prepend=-1))
    lengths = np.diff(np.append(starts, len(prepared.device)))
    return float(np.median(lengths)) < 2 * prepared.contract.window


def _rebuilt(
    bundle: Bundle, scored: Scored, held_out: np.ndarray, normal: np.ndarray, label: np.ndarray | None
) -> bytes:
    prepared, contract = scored.prepared, bundle.contract
    rows = _stretch(prepared, np.flatnonzero(held_out), label)
    places, sensors = prepared.index[rows], contract.sensors
    scale, location = prepared.scaling.scale[places][:, sensors], prepared.scaling.location[places][:, sensors]
    windows = Windows(prepared.scaled[:, contract.inputs], rows, contract.window, contract.sensors_in_inputs)
    # Not from the residual, which is clipped: beside a far value it would follow that value.
    newest = Session(bundle.model).run(windows.inputs(slice(None))).newest[:, 0]
    band = np.quantile(np.abs(scored.residual[normal]), 0.99, axis=0) * scale[0]
    ts_ms = prepared.ts_ms[rows]
    units = [contract.channels[place].unit for place in sensors]
    device = prepared.devices[int(prepared.device[rows[0]])]
    names = [name + " (drifts: not scored)" * bool(np.isnan(scale[0, place]))
             for place, name in enumerate(bundle.manifest.sensors)]
    return pictures.rebuilt(
        (ts_ms - ts_ms[0]) / 1000, prepared.values[rows][:, sensors], newest * scale + location, band, names, units,
        scored.is_anomaly[rows], f"Measured and rebuilt by {bundle.manifest.family}, device {device}",
        time_of(int(ts_ms[0])), None if label is None else label[rows] > 0)


def _stretch(prepared: Prepared, rows: np.ndarray, label: np.ndarray | None) -> np.ndarray:
    """The rows that are drawn: of one device, STRETCH at most, from the first one on; with labels around the first row
    that is marked anomalous. rows : held out."""
    marked = np.zeros(0, int) if label is None else np.flatnonzero(label[rows] > 0)
    first = int(marked[0]) if len(marked) else 0
    mine = np.flatnonzero(prepared.device[rows] == prepared.device[rows[first]])
    begin = max(int(mine[0]), min(first - STRETCH // 3, int(mine[-1]) + 1 - STRETCH))
    return rows[begin : min(begin + STRETCH, int(mine[-1]) + 1)]


def _in_units(prepared: Prepared, windows: np.ndarray) -> np.ndarray:
    """Scaled windows of the scored channels in the channels' units, by the fleet's scaling. (n, T, S)"""
    sensors = prepared.contract.sensors
    return windows * prepared.scaling.scale[-1, sensors] + prepared.scaling.location[-1, sensors]


def _pairs(bundle: Bundle, prepared: Prepared) -> bytes:
    windows = data.windows_of(prepared, CALIBRATION).thinned(grids.COLUMNS)
    x = windows.inputs(slice(None))
    originals = _in_units(prepared, x[:, :, windows.scored])
    made = _in_units(prepared, Session(bundle.model).rebuild(x))
    return grids.grid({"original": originals, "rebuilt": made}, grids.frame_of(bundle.contract, originals),
                      f"Held-out windows above what {bundle.manifest.family} rebuilds of them")


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
        _learned_and_held_out(prepared), (4000, grids.COLUMNS if are_pictures(prepared) else 5), strict=True))
    if len(known) < 3 or not len(held_out):
        return {}
    session = Session(bundle.model)
    x, others = held_out.inputs(slice(None)), known.inputs(slice(None))
    z, z_others = session.run(x).latent, session.run(others).latent
    apart = np.square((z[:, None] - z_others[None]) / (z_others.std(axis=0) + 1e-6)).sum(axis=2)
    near = np.argsort(apart, axis=1)[:, :3]                          # (n, 3)
    x, others = x[:, :, held_out.scored], others[:, :, known.scored]
    if are_pictures(prepared):
        rows = [_in_units(prepared, one) for one in (x, *(others[places] for places in near.T))]
        drawn = grids.grid(dict(zip(("held out", "nearest", "second", "third"), rows, strict=True)),
                           grids.frame_of(bundle.contract, rows[0]), "Held-out windows, and those nearest to them in "
                           "the latent space")
        return {"neighbours.png": (drawn, "Held-out windows, and under each the three known windows that are nearest "
                                          "to it in the latent space.")}
    heads = [f"{prepared.devices[int(prepared.device[end])]}\n{time_of(int(prepared.ts_ms[end]))[:-4]}"
             for end in held_out.ends]
    kept = [place for place, scale in enumerate(bundle.scaling.scale[:, bundle.contract.sensors].T)
            if np.isfinite(scale).any()]
    names = [bundle.manifest.sensors[place] for place in kept]
    drawn = pictures.overlaid(x[:, :, kept], others[near][:, :, :, kept], names, heads, bundle.contract.step_ms / 1000)
    return {"neighbours.png": (drawn, "Held-out windows, named by device and the time (UTC) of their newest row, over "
                                      "the three earlier windows that are nearest in the latent space. Where these "
                                      "differ much from it, the latent tells little of that channel.")}


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


def _imagined(bundle: Bundle, prepared: Prepared) -> dict[str, tuple[bytes, str]]:
    """For families made for it, samples and a path between two windows."""
    held_out, known = data.windows_of(prepared, CALIBRATION).thinned(12), data.windows_of(prepared, FIT).thinned(4000)
    x, others = held_out.inputs(slice(None)), known.inputs(slice(None))
    if bundle.manifest.family not in ("vae", "adversarial") or bundle.weights is None or len(others) < 50:
        return {}
    from training import generate
    from training.train import restore

    model = restore(bundle)
    samples = _in_units(prepared, generate.fit_sampler(model, others).sample(3 * grids.COLUMNS))
    path = _in_units(prepared, generate.interpolate(model, x[0], x[1], grids.COLUMNS))
    measured = _in_units(prepared, x[:, :, held_out.scored])
    frame = grids.frame_of(bundle.contract, measured)
    rows = {f"samples {first + 1}-{first + 12}": samples[first : first + 12] for first in (0, 12, 24)}
    return {
        "samples.png": (grids.grid({"measured": measured, **rows}, frame, "Held-out windows above samples"),
                        "Held-out windows, and under them windows that were never measured."),
        "path.png": (grids.grid({"": path}, frame, "From one held-out window to another, through the latent space"),
                     "The straight line between two held-out windows in the latent space, decoded."),
    }


def _latent(
    bundle: Bundle, prepared: Prepared, label: np.ndarray | None, classes: np.ndarray | None, kinds: Sequence[str]
) -> bytes:
    windows = data.windows_of(prepared, CALIBRATION).thinned(MOST_POINTS)
    latent = Session(bundle.model).run(windows.inputs(slice(None))).latent
    if classes is not None:
        of_each = classes[windows.ends].astype(np.float64)
        told = {float(one): kinds[int(one)] if kinds else f"{one:g}" for one in np.unique(of_each)}
        return pictures.latent_map(latent, of_each, "class", told)
    if label is not None and len(np.unique(label[np.isfinite(label)])) > 1:
        marks = np.nan_to_num(label[windows.ends], nan=-1.0)
        marked = {0.0: "normal", 1.0: "anomalous", -1.0: "unknown"}
        return pictures.latent_map(latent, marks, "label", {one: name for one, name in marked.items() if one in marks})
    device = prepared.device[windows.ends]
    if 1 < len(np.unique(device)) <= 10 and not are_pictures(prepared):
        names = {float(one): prepared.devices[int(one)] for one in np.unique(device)}
        return pictures.latent_map(latent, device.astype(np.float64), "device", names)
    if are_pictures(prepared):                   # neither their devices nor their times tell a thing
        return pictures.latent_map(latent, np.zeros(len(latent)), "", {0.0: "windows"})
    since = (prepared.ts_ms[windows.ends] - prepared.ts_ms[windows.ends].min()) / 1000
    unit, length = pictures.time_unit(float(since.max()))
    first = time_of(int(prepared.ts_ms[windows.ends].min()))
    return pictures.latent_map(latent, since / length, f"{unit} since {first}")


def _errors(bundle: Bundle, scored: Scored, normal: np.ndarray, label: np.ndarray | None) -> tuple[bytes, str]:
    """Where the error sits: by channel, of the newest row; of pictures by place, of the whole window."""
    prepared, sensors, family = scored.prepared, bundle.contract.sensors, bundle.manifest.family
    if are_pictures(prepared):
        windows = data.windows_of(prepared, CALIBRATION).thinned(MOST_POINTS)
        x = windows.inputs(slice(None))
        originals = _in_units(prepared, x[:, :, windows.scored])
        own = _in_units(prepared, Session(bundle.model).rebuild(x)) - originals
        roots = [np.sqrt(np.square(one).mean(axis=0)) for one in (own, originals - originals.mean(axis=0))]
        frame = replace(grids.frame_of(bundle.contract, np.stack(roots)), low=0.0)
        drawn = grids.grid({"root mean\nsquared error": np.stack(roots)}, frame,
                           f"Error by place: {family}, and beside it the mean of all windows", "viridis")
        return drawn, f"Where the error sits. Left {family}, right what the mean of all windows would miss."
    scale = prepared.scaling.scale[:, sensors]
    kept = np.flatnonzero(np.isfinite(scale).any(axis=0))
    errors = {family: scored.residual[normal], "raw": prepared.scaled[normal][:, sensors]}
    text = "Where the error sits. `raw` predicts each channel's mean."
    if label is not None and (scored.is_scored & (label > 0)).any():
        errors = {f"{name}, normal rows": error for name, error in errors.items()}
        errors[f"{family}, rows labelled\nanomalous"] = scored.residual[scored.is_scored & (label > 0)]
        text += " Residuals are cut at 6, as the score cuts them."
    gone = [name for place, name in enumerate(bundle.manifest.sensors) if place not in kept]
    if gone:
        text += f" Not scored, since they drift in normal rows: {', '.join(gone)}."
    return pictures.channel_errors([bundle.manifest.sensors[place] for place in kept], {
        name: _root_mean_square(error[:, kept]) for name, error in errors.items()}), text


def _root_mean_square(error: np.ndarray) -> np.ndarray:
    """By column, NaN not counted. (n, S) -> (S,)"""
    squares = np.square(error, dtype=np.float64)
    return np.sqrt(np.nansum(squares, axis=0) / np.maximum(np.isfinite(error).sum(axis=0), 1))
