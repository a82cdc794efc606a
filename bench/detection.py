"""Quality of detection on labelled public series, through the streaming path, record by record in meaning.

    python -m bench.detection [--json OUT] [--check] [--quick] [--docs] [--only SET] [--with EARLIER.json]

Every bundle is trained and calibrated on rows before the test rows of its own set, without a label; scores, verdicts
and change points are those of `narrows backtest`, which is the worker's own code. One configuration for all series of a
set. --docs writes the table into docs/detection.md.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench import nab
from bench.detection_data import (
    SKAB_CHANNELS,
    TEP_CHANNELS,
    TEP_FAULT_ROW,
    TEP_STEP_MS,
    Series,
    Telemetry,
    data_folder,
    skab,
    table_of,
    telemetry,
    tep,
)
from bench.detection_kinds import bench_kinds
from bench.nab import NabSeries, nab_score
from bench.plain import SHARE, plain_scores, plain_threshold
from bench.results import Measurement, print_table, report
from pipeline.cli.backtest import Scores, run_backtest
from pipeline.core.contract import Channel, Contract, EpisodeRule
from pipeline.core.episode import Verdicts
from pipeline.core.windows import trailing
from pipeline.formats.files import Table
from pipeline.registry.bundle import Bundle
from pipeline.scoring.session import Session
from training.calibrate import calibrate
from training.ensemble import Profile, assemble
from training.make_baseline import write_calibrated
from training.metrics import RowCounts, change_points, count_events, count_rows, vus_pr
from training.prepare import Prepared, prepare

SKAB_TRAIN = 400
SKAB_BUFFER = 60        # VUS-PR's buffer, rows; and what a change point may take, seconds
SKAB_KNOWN = {          # channels that the fault of a file is known to be in
    **{f"valve1/{i}": ("Volume Flow RateRMS",) for i in range(16)},
    **{f"other/{i}": ("Accelerometer1RMS", "Accelerometer2RMS") for i in (5, 6, 7)},
}
SETTLED, ASKED = 90, 60   # attribution: rows after onset, then rows whose contributions are averaged
HOUR_MS, WEEK_H = 3_600_000, 168


@dataclass(frozen=True)
class Judged:
    """Test rows of one series: score (n,), 0 where unscored; called, change (n,) bool; contributions (n, S)."""

    series: Series
    score: np.ndarray
    called: np.ndarray
    change: np.ndarray
    contributions: np.ndarray


def contract_of(channels: tuple[str, ...], context: tuple[str, ...] = (), **changes: int) -> Contract:
    """Defaults of the product but for what is named."""
    roles = [Channel(name=name, role="context" if name in context else "sensor") for name in channels]
    return Contract(channels=tuple(roles), **changes)


def make_bundle(
    prepared: Prepared, folder: Path, profile: Profile, body: Callable[[Prepared], tuple[str, bytes]] | None = None
) -> Bundle:
    """A calibrated ensemble. body : trains the autoencoder; None for the linear members alone."""
    family, content = ("var", None) if body is None else body(prepared)
    model, members = assemble(prepared, content, family, profile)
    made = calibrate(model, prepared, members=members, refuse=False)
    return write_calibrated(prepared, model, made, folder, family=family, members=members)


def prepared_from(contract: Contract, table: Table, mask: np.ndarray | None = None) -> Prepared:
    """A table's rows made ready for training. mask : (n,) bool, rows to leave out."""
    return prepare(contract, table.devices, table.device, table.ts_ms, table.values, mask=mask)


def autoencoder(family: str) -> Callable[[Prepared], tuple[str, bytes]]:
    """Trains one with the product's own recipe; torch is imported here and nowhere else."""

    def train(prepared: Prepared) -> tuple[str, bytes]:
        from training import data, export, loop
        from training.recipe import Recipe
        from training.train import begin, build

        recipe = Recipe(model=family, device="cpu")   # type: ignore[arg-type]
        model = build(prepared.contract, recipe)
        learn, held_out = data.learning_windows(prepared, recipe.validation)
        begin(model, learn, recipe)
        loop.fit(model, learn, held_out, recipe)
        return family, export.to_onnx(model)

    return train


def judge(bundle: Bundle, series: list[Series], channels: tuple[str, ...]) -> list[Judged]:
    """Backtest of whole series, one device each; what became of the rows after its training rows."""
    scores, _ = run_backtest(bundle, table_of(series, channels), batch_rows=5000)
    starts = np.cumsum([0, *(len(one.ts_ms) for one in series)])
    return [_judged(one, scores, int(start)) for one, start in zip(series, starts, strict=False)]


def _judged(series: Series, scores: Scores, start: int) -> Judged:
    rows = slice(start + series.train, start + len(series.ts_ms))
    tested = Series(
        series.name, series.ts_ms[series.train :], series.values[series.train :], series.label[series.train :],
        series.change[series.train :], 0,
    )
    return Judged(
        tested, np.nan_to_num(scores.score[rows]).astype(np.float64), scores.is_anomaly[rows], scores.is_change[rows],
        scores.contributions[rows],
    )


def pooled(judged: list[Judged]) -> RowCounts:
    """Rows of all series together."""
    label = np.concatenate([one.series.label for one in judged])
    return count_rows(label, np.concatenate([one.called for one in judged]))


def mean_vus(judged: list[Judged], window: int) -> float:
    """Mean over the series that hold both kinds of rows."""
    both = [one for one in judged if 0 < one.series.label.sum() < len(one.series.label)]
    return float(np.mean([vus_pr(one.series.label, one.score, window) for one in both]))


# ------------------------------------------------------------------------------------------------------------- SKAB


def bench_skab(folder: Path, work: Path, quick: bool) -> list[Measurement]:
    """Pump test bed: light and default profile, the plain scorer and always alarm beside them."""
    series = skab(folder)
    contract = contract_of(SKAB_CHANNELS)
    prepared = prepared_from(contract, table_of(series, SKAB_CHANNELS, slice(0, SKAB_TRAIN)))
    found = []
    bodies: list[tuple[str, Callable[[Prepared], tuple[str, bytes]] | None]] = [("light", None)]
    if not quick:
        bodies += [("default, dense", autoencoder("dense"))]
    for name, body in bodies:
        bundle = make_bundle(prepared, work / f"skab-{name}", "default", body)
        judged = judge(bundle, series, SKAB_CHANNELS)
        found += _skab_figures(f"SKAB {name}", bundle, judged)
    found += _skab_alone(contract, series, work)
    found += _skab_plain(series)
    every = count_rows(np.concatenate([one.label[one.train :] for one in series]),
                       np.ones(sum(len(one.label) - one.train for one in series)))
    return [*found, Measurement("SKAB always alarm: F1", every.f1, "", "higher")]


def _skab_figures(name: str, bundle: Bundle, judged: list[Judged]) -> list[Measurement]:
    rows = pooled(judged)
    changes = [change_points(np.flatnonzero(one.change), np.flatnonzero(one.series.change), SKAB_BUFFER)
               for one in judged]
    hits = 2 * sum(one.found for one in changes)
    wanted = hits + sum(one.missed + one.false for one in changes)
    events = [count_events(one.series.label, one.called, merge=SKAB_BUFFER) for one in judged]
    normal_h = sum(int((one.series.label == 0).sum()) for one in judged) / 3600
    delays = [delay for one in events for delay in one.delays]
    return [
        Measurement(f"{name}: F1", rows.f1, "", "higher", 0.85),
        Measurement(f"{name}: FAR", rows.far, "%", "lower", 16),
        Measurement(f"{name}: MAR", rows.mar, "%", "lower", 16),
        Measurement(f"{name}: mean VUS-PR", mean_vus(judged, SKAB_BUFFER), "", "higher", 0.915),
        Measurement(f"{name}: change points F1 within 60 s", hits / max(wanted, 1), "", "higher", 0.70),
        Measurement(f"{name}: attribution hit@1", attribution(judged), "", "higher", 0.92),
        Measurement(f"{name}: events found", 100 * sum(one.found for one in events) / len(judged), "%", "higher"),
        Measurement(f"{name}: false alerts a normal device-week", WEEK_H * sum(one.false for one in events) / normal_h,
                    "", "lower"),
        Measurement(f"{name}: median delay", float(np.median(delays)), "s", "lower"),
        _held_out(name, bundle),
    ]


def _skab_alone(contract: Contract, series: list[Series], work: Path) -> list[Measurement]:
    """Each file by a bundle of its own 400 rows, beside the plain scorer with a threshold a file.

    other/2 is not in it: `narrows train` refuses its rows.
    """
    judged, plain_called = [], []
    for one in (one for one in series if one.name != "other/2"):
        prepared = prepared_from(contract, table_of([one], SKAB_CHANNELS, slice(0, SKAB_TRAIN)))
        bundle = make_bundle(prepared, work / f"alone-{one.name.replace('/', '-')}", "default")
        judged += judge(bundle, [one], SKAB_CHANNELS)
        score = plain_scores(one.values.astype(np.float64), one.train)
        plain_called.append(score[one.train :] > plain_threshold([score[int(one.train * SHARE) : one.train]]))
    rows = pooled(judged)
    plain = count_rows(np.concatenate([one.series.label for one in judged]), np.concatenate(plain_called))
    return [
        Measurement("SKAB light, a bundle a file: F1", rows.f1, "", "higher"),
        Measurement("SKAB light, a bundle a file: FAR", rows.far, "%", "lower"),
        Measurement("SKAB light, a bundle a file: MAR", rows.mar, "%", "lower"),
        Measurement("SKAB light, a bundle a file: mean VUS-PR", mean_vus(judged, SKAB_BUFFER), "", "higher"),
        Measurement("SKAB plain scorer, a threshold a file: F1", plain.f1, "", "higher"),
        Measurement("SKAB plain scorer, a threshold a file: FAR", plain.far, "%", "lower"),
        Measurement("SKAB plain scorer, a threshold a file: MAR", plain.mar, "%", "lower"),
    ]


def _held_out(name: str, bundle: Bundle) -> Measurement:
    facts = bundle.manifest.calibration
    return Measurement(f"{name}: held-out over nominal share", facts["held_out_share"] / facts["nominal_share"], "",
                       "lower", 3)


def attribution(judged: list[Judged]) -> float:
    """Share of the files with a known faulty channel whose largest mean contribution, once settled, is of that one."""
    right = []
    for one in judged:
        known = SKAB_KNOWN.get(one.series.name)
        onset = np.flatnonzero(one.series.label)
        if known is None or not len(onset):
            continue
        rows = slice(int(onset[0]) + SETTLED, int(onset[0]) + SETTLED + ASKED)
        right.append(SKAB_CHANNELS[int(one.contributions[rows].mean(axis=0).argmax())] in known)
    return float(np.mean(right))


def _skab_plain(series: list[Series]) -> list[Measurement]:
    scores = [plain_scores(one.values.astype(np.float64), one.train) for one in series]
    both = list(zip(series, scores, strict=True))
    level = plain_threshold([score[int(one.train * SHARE) : one.train] for one, score in both])
    label = [one.label[one.train :] for one in series]
    tested = [score[one.train :] for one, score in both]
    rows = count_rows(np.concatenate(label), np.concatenate(tested) > level)
    volumes = [vus_pr(y, s, SKAB_BUFFER) for y, s in zip(label, tested, strict=True) if 0 < y.sum() < len(y)]
    return [
        Measurement("SKAB plain scorer: F1", rows.f1, "", "higher"),
        Measurement("SKAB plain scorer: FAR", rows.far, "%", "lower"),
        Measurement("SKAB plain scorer: MAR", rows.mar, "%", "lower"),
        Measurement("SKAB plain scorer: mean VUS-PR", float(np.mean(volumes)), "", "higher"),
    ]


PICTURED = ("valve1/12", "valve1/5", "other/5")   # a plain fault, a slow one, one whose normal rows move


def draw_skab(folder: Path, out: Path) -> None:
    """Three files of the light profile: score and threshold, episodes, labels, contributions."""
    from bench.detection_pictures import draw

    series = skab(folder)
    prepared = prepared_from(contract_of(SKAB_CHANNELS), table_of(series, SKAB_CHANNELS, slice(0, SKAB_TRAIN)))
    with tempfile.TemporaryDirectory() as work:
        bundle = make_bundle(prepared, Path(work) / "skab", "default")
        judged = {one.series.name: one for one in judge(bundle, series, SKAB_CHANNELS)}
    out.mkdir(parents=True, exist_ok=True)
    for name in PICTURED:
        one = judged[name]
        draw(out / f"skab-{name.replace('/', '-')}.png", f"SKAB {name}", one.series.label, one.score, one.called,
             one.change, one.contributions, SKAB_CHANNELS, bundle.scorer.threshold)


# --------------------------------------------------------------------------------------------------------- MSL, SMAP


def bench_telemetry(folder: Path, work: Path, quick: bool) -> list[Measurement]:
    """Spacecraft telemetry: full profile with a frozen memory, one channel scored, its commands as context."""
    channels = telemetry(folder)
    found = []
    for craft, goal in (("MSL", 0.60), ("SMAP", 0.50)):
        mine = [one for one in channels if one.craft == craft][: 2 if quick else None]
        figures = [_telemetry_figures(one, work) for one in mine]
        ours, plain, best, ratio, default = np.mean(figures, axis=0)
        found += [
            Measurement(f"{craft} default window and profile, no network: mean VUS-PR", default, "", "higher"),
            Measurement(f"{craft} full, memory frozen: mean VUS-PR", ours, "", "higher", None if quick else goal),
            Measurement(f"{craft} plain scorer: mean VUS-PR", plain, "", "higher"),
            Measurement(f"{craft} best published a file (sees the future): mean VUS-PR", best, "", "higher"),
            Measurement(f"{craft} full: held-out over nominal share", ratio, "", "lower", 3),
        ]
    return found


def _telemetry_figures(channel: Telemetry, work: Path) -> tuple[float, float, float, float, float]:
    one = channel.series
    plain = vus_pr(one.label, plain_scores(one.values[:, :1].astype(np.float64), one.train), channel.window)
    ours, ratio = _telemetry_run(channel, work / one.name, "full", window=100, memory=228)
    default, _ = _telemetry_run(channel, work / f"{one.name}-default", "default")
    return ours, plain, channel.best_published, ratio, default


def _telemetry_run(channel: Telemetry, folder: Path, profile: Profile, **sizes: int) -> tuple[float, float]:
    """VUS-PR, and held-out over nominal share."""
    one = channel.series
    contract = contract_of(channel.columns, channel.columns[1:], step_ms=60_000, max_gap_ms=600_000,
                           span_ms=6_000_000, **sizes)
    prepared = prepared_from(contract, table_of([one], channel.columns, slice(0, one.train)))
    bundle = make_bundle(prepared, folder, profile)
    scores, _ = run_backtest(bundle, table_of([one], channel.columns), batch_rows=5000)
    facts = bundle.manifest.calibration
    volume = vus_pr(one.label, np.nan_to_num(scores.score).astype(np.float64), channel.window)
    return volume, facts["held_out_share"] / facts["nominal_share"]


# --------------------------------------------------------------------------------------------------------------- TEP


def bench_tep(folder: Path, work: Path, quick: bool) -> list[Measurement]:
    """Tennessee Eastman: detection rate of rows after the fault, false alarms verified on the rows before it."""
    normal, faults = tep(folder)
    contract = contract_of(TEP_CHANNELS, step_ms=TEP_STEP_MS, max_gap_ms=10 * TEP_STEP_MS, span_ms=64 * TEP_STEP_MS)
    prepared = prepared_from(contract, table_of(normal, TEP_CHANNELS))
    bundle = make_bundle(prepared, work / "tep", "default")
    scores, _ = run_backtest(bundle, table_of(faults, TEP_CHANNELS), batch_rows=5000)
    over = (scores.score > bundle.scorer.threshold).reshape(len(faults), -1)
    scored = np.isfinite(scores.score).reshape(len(faults), -1)
    quiet = np.vstack([run.values for run in normal]).astype(np.float64)
    level = plain_threshold([plain_scores(quiet, len(quiet))[int(SHARE * len(quiet)) :]])
    plain_score = np.array([plain_scores(np.vstack([quiet, one.values]), len(quiet))[len(quiet) :] for one in faults])
    plain_over = plain_score > level
    ours = np.where(scored, scores.score.reshape(len(faults), -1), -np.inf)
    after, before = slice(TEP_FAULT_ROW, None), slice(0, TEP_FAULT_ROW)
    episodes = scores.is_anomaly.reshape(len(faults), -1)
    return [
        Measurement("TEP light: detection rate", 100 * float(over[:, after].mean()), "%", "higher", 92.5),
        Measurement("TEP light: false alarms before the fault", 100 * float(over[:, before][scored[:, before]].mean()),
                    "%", "lower", 1.5),
        Measurement("TEP light: detection rate at 1.5 % false alarms", _rate_at(ours, scored), "%", "higher", 92.5),
        Measurement("TEP plain scorer: detection rate at 1.5 % false alarms", _rate_at(plain_score, scored), "%",
                    "higher"),
        Measurement("TEP light: rows inside of an episode after the fault", 100 * float(episodes[:, after].mean()), "%",
                    "higher"),
        Measurement("TEP light: rows inside of an episode before it", 100 * float(episodes[:, before].mean()), "%",
                    "lower"),
        Measurement("TEP plain scorer: detection rate", 100 * float(plain_over[:, after].mean()), "%", "higher"),
        Measurement("TEP plain scorer: false alarms before the fault", 100 * float(plain_over[:, before].mean()), "%",
                    "lower"),
        _held_out("TEP light", bundle),
    ]


def _rate_at(score: np.ndarray, counted: np.ndarray, far: float = 0.015) -> float:
    """Rows after the fault over the level that this share of the counted rows before it exceeds, per cent."""
    level = np.quantile(score[:, :TEP_FAULT_ROW][counted[:, :TEP_FAULT_ROW]], 1 - far)
    return 100 * float((score[:, TEP_FAULT_ROW:] > level).mean())


# --------------------------------------------------------------------------------------------------------------- NAB


def bench_nab(folder: Path, work: Path, quick: bool) -> list[Measurement]:
    """Univariate series: a regression test of the general design, not what it is made for. Detections are openings.

    Frozen is a bundle of the probation's rows alone. Retrained is what the stream does: each time that as many rows as
    those have come, a bundle of all rows so far, but for those that were alerted, takes over; no gate is asked.
    """
    series = nab.load(folder / "nab")[: 2 if quick else None]
    told = json.loads((folder / "nab" / "profiles.json").read_text())["standard"]["CostMatrix"]
    profile = {"tp": told["tpWeight"], "fp": told["fpWeight"], "fn": told["fnWeight"]}
    scored = [_nab_scores(one, work) for one in series]

    def marks(factor: float) -> list[np.ndarray]:
        return [_openings(scores, level * factor, rule) for scores, level, rule in scored]

    best = max(nab_score(series, marks(factor), profile) for factor in np.geomspace(0.5, 8, 25))
    retrained = [_nab_retrained(one, work) for one in series]
    return [
        Measurement("NAB standard profile, retrained, threshold without labels", nab_score(series, retrained, profile),
                    "", "higher", 53),
        Measurement("NAB standard profile, frozen, threshold without labels", nab_score(series, marks(1), profile), "",
                    "higher"),
        Measurement("NAB standard profile, frozen, best factor for all series", best, "", "higher"),
    ]


def _nab_rows(series: NabSeries) -> tuple[Contract, Table]:
    step_ms = int(np.median(np.diff(series.ts_ms)))
    contract = contract_of(("value",), step_ms=step_ms, max_gap_ms=200 * step_ms, span_ms=64 * step_ms)
    one = Series(series.name, series.ts_ms, series.value[:, None].astype(np.float32), np.zeros(0), np.zeros(0), 0)
    return contract, table_of([one], ("value",))


def _nab_scores(series: NabSeries, work: Path) -> tuple[np.ndarray, float, EpisodeRule]:
    contract, table = _nab_rows(series)
    prepared = prepared_from(contract, table.take(slice(0, series.probation)))
    bundle = make_bundle(prepared, work / series.name, "default")
    scores, _ = run_backtest(bundle, table, batch_rows=5000)
    return scores.score, bundle.scorer.threshold, contract.episode


def _nab_retrained(series: NabSeries, work: Path) -> np.ndarray:
    """Rows at which an episode opens, of a stream that is retrained as it goes."""
    contract, table = _nab_rows(series)
    verdicts, alerted = Verdicts(contract.episode, 1), np.zeros(len(table), bool)
    opened: list[int] = []
    for start in range(series.probation, len(table), series.probation):
        prepared = prepared_from(contract, table.take(slice(0, start)), alerted[:start])
        bundle = make_bundle(prepared, work / f"{series.name}-{start}", "default")
        first = max(0, start - contract.memory)                       # what a score stands on
        rows = np.arange(start, min(start + series.probation, len(table)))
        scores, _ = run_backtest(bundle, table.take(slice(first, int(rows[-1]) + 1)), batch_rows=5000)
        ratio = scores.score[start - first :] / np.float32(bundle.scorer.threshold)
        verdict = verdicts.push(np.zeros(len(rows), np.int64), rows, rows * 1000, ratio, 1.0)
        alerted[rows] = verdict.is_anomaly
        opened += [event.trigger for event in verdict.events if event.kind == "opened"]
    return np.array(opened, np.int64)


def _openings(score: np.ndarray, threshold: float, rule: EpisodeRule) -> np.ndarray:
    rows = np.arange(len(score))
    verdict = Verdicts(rule, 1).push(np.zeros(len(score), dtype=np.int64), rows, rows * 1000, score, threshold)
    return np.array([event.row for event in verdict.events if event.kind == "opened"], dtype=np.int64)


# -------------------------------------------------------------------------------------------------------------- cost


def bench_cost(folder: Path, work: Path, quick: bool) -> list[Measurement]:
    """Model and score of one row, one core, 8 channels, window 32; microseconds, best of several runs."""
    prepared = prepared_from(
        contract_of(SKAB_CHANNELS), table_of(skab(folder), SKAB_CHANNELS, slice(0, SKAB_TRAIN))
    )
    found = []
    cases: list[tuple[str, Profile, Callable[[Prepared], tuple[str, bytes]] | None, float | None]] = [
        ("light", "default", None, 8), ("full", "full", None, None),
    ]
    if not quick:
        cases += [("default, dense", "default", autoencoder("dense"), 25)]
    for name, profile, body, goal in cases:
        bundle = make_bundle(prepared, work / f"cost-{name}", profile, body)
        samples = _costs(bundle, prepared.windows(0)[:1280], 3 if quick else 9)
        found.append(Measurement(f"cost {name}: model and score a row", min(samples), "us", "lower", goal, samples))
    return found


def _costs(bundle: Bundle, x: np.ndarray, times: int) -> tuple[float, ...]:
    """Microseconds a row, of several runs: the model's pass, the filters, score and change points."""
    session, scorer = Session(bundle.model), bundle.scorer
    flat = np.random.default_rng(0).normal(size=(len(x), scorer.members * scorer.channels)).astype(np.float32)
    blocks = [block for _, block in trailing(flat, np.full(len(x), scorer.length), scorer.length, 128)]
    samples = []
    for _ in range(times):
        began = time.perf_counter()
        session.run(x)
        for block in blocks:
            filtered = scorer.filter(block)
            group = np.zeros(len(block), dtype=np.int64)
            scorer.score(filtered, group)
            scorer.shift(filtered, group)
        samples.append((time.perf_counter() - began) * 1e6 / len(x))
    return tuple(samples)


SETS: dict[str, Callable[[Path, Path, bool], list[Measurement]]] = {
    "skab": bench_skab, "tep": bench_tep, "nab": bench_nab, "cost": bench_cost, "telemetry": bench_telemetry,
    "kinds": bench_kinds,
}


def main() -> int:
    """Runs the sets and reports."""
    parser = argparse.ArgumentParser(prog="python -m bench.detection", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the measurements here")
    parser.add_argument("--check", action="store_true", help="exit 1 where a goal is missed")
    parser.add_argument("--quick", action="store_true", help="a minute's look")
    parser.add_argument("--only", choices=SETS, action="append", help="these sets alone")
    parser.add_argument("--with", dest="earlier", action="append", type=Path, default=[], metavar="JSON",
                        help="figures of an earlier run of other sets, for the table; repeatable")
    parser.add_argument("--pictures", type=Path, help="draw three SKAB files into this folder")
    parser.add_argument("--docs", action="store_true", help="write the table into docs/detection.md")
    arguments = parser.parse_args()
    folder = data_folder()
    if not folder.is_dir():
        print(f"{folder} does not exist: set NARROWS_DATA to the folder with skab/, smap_msl/, tep/", file=sys.stderr)
        return 3
    if arguments.pictures is not None:
        draw_skab(folder, arguments.pictures)
        return 0
    found = []
    for path in arguments.earlier:
        found += [Measurement(**{**one, "samples": ()}) for one in json.loads(path.read_text())["measurements"]]
    with tempfile.TemporaryDirectory(prefix="narrows-bench-") as work:
        for name in arguments.only or ([] if arguments.earlier else SETS):
            figures = SETS[name](folder, Path(work), arguments.quick)
            print_table(figures)
            found += figures
    return report(found, "bench.detection", arguments.json, arguments.check,
                  Path("docs/detection.md") if arguments.docs else None)


if __name__ == "__main__":
    sys.exit(main())
