"""Training: speed beside a plain torch loop, quality beside PCA and VAR, digits, generation, the incremental step.

    python -m bench.training [--json OUT] [--check] [--quick] [--docs] [--only SECTION] [--with EARLIER.json]

Speed is CPU time, so that a busy machine does not spoil it; ours and the plain loop take turns on the same windows.
Sets that need NARROWS_DATA (else ../shared/data) are left out, and said so, where it is absent. On a GPU the same loop
is timed with torch.compile off and on. --docs writes the tables into docs/training.md.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bench.results import Measurement, print_table, report, write_into
from pipeline.core.contract import Contract
from pipeline.formats.files import FileOptions, Table, read_tables
from training import data, examples, generate, loop
from training.compare import pca_errors
from training.evaluate import any_label, measure, score_table
from training.incremental import Replay, train_on
from training.models import BY_NAME, Autoencoder
from training.prepare import CALIBRATION, COVARIANCE, FIT, Prepared, prepare
from training.recipe import Recipe, parse_recipe
from training.train import begin, build, train
from training.windows import Windows

ROUNDS, QUICK_ROUNDS = 25, 7
SPEED_WINDOWS = 2048
DIGITS = {  # settings of each family on pictures, beside the example's own; the latent size is 16 for all and for PCA
    "dense": {"hidden": [256]}, "conv": {"hidden": [64, 32], "epochs": 100},
    "vae": {"hidden": [256], "beta": 1e-3}, "adversarial": {"hidden": [256]},
    "recursive": {"hidden": [96], "epochs": 100}, "recurrent": {"hidden": [96], "epochs": 100},
}
GENERATED = {  # D and `adversary` chosen by three-fold cross-validation among the pictures that are not held out
    "vae": {"hidden": [256], "latent": 12, "beta": 1e-3},
    "adversarial": {"hidden": [256], "latent": 8, "adversary": 0.03},
}
PAGE = Path("docs/training.md")
PCA_LATENT = 12          # beside them
SERIES = {"vae": {"hidden": [128]}, "adversarial": {"hidden": [128]}, "recurrent": {"epochs": 20},
          "recursive": {"epochs": 20}}


def main() -> int:
    """Runs what was asked for; 1 where --check is set and a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--docs", action="store_true", help="write the tables into docs/training.md")
    parser.add_argument("--with", dest="earlier", action="append", type=Path, default=[], metavar="JSON",
                        help="figures of an earlier run of a section, for the table; repeatable")
    parser.add_argument("--only", action="append", choices=sorted(SECTIONS), help="one section; repeatable")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: list[Measurement] = []
    drawn: list[Measurement] = []                                        # figures of `generation`: a table of their own
    for path in arguments.earlier:
        found += [Measurement(**{**one, "samples": ()}) for one in json.loads(path.read_text())["measurements"]]
    for name, section in ({} if arguments.earlier and not arguments.only else SECTIONS).items():
        if arguments.only and name not in arguments.only:
            continue
        began = time.monotonic()
        try:
            made = section(arguments.quick)
        except Absent as reason:
            print(f"{name}: left out, {reason}", file=sys.stderr)
            continue
        print(f"# {name}, {time.monotonic() - began:.0f} s")
        print_table(made)
        if section is generation:
            drawn = made
        else:
            found += made
    if arguments.docs and found:
        write_into(PAGE, found, "bench.training")
    if arguments.docs and drawn:
        write_into(PAGE, drawn, "bench.training --only generation")
    return report([*found, *drawn], "bench.training", arguments.json, arguments.check)


class Absent(Exception):
    """The data of a section are not on this machine."""


# ---------------------------------------------------------------- speed


def speed(quick: bool) -> list[Measurement]:
    """Windows a second of each family, and our loop's CPU time over that of the same model in a plain torch loop."""
    windows = _waves(SPEED_WINDOWS)
    found = []
    for family in BY_NAME:
        recipe = Recipe(model=family, epochs=1, patience=99, schedule="constant", adversary=0.0)
        if family in ("recurrent", "recursive"):
            part = windows.part(slice(0, SPEED_WINDOWS // 4))
        else:
            part = windows
        rates, ratios = [], []
        for turn in range(QUICK_ROUNDS if quick else ROUNDS):
            took = {}
            for name in (("ours", "plain"), ("plain", "ours"))[turn % 2]:
                model = _model(family, windows, recipe)
                took[name] = _ours(model, part, recipe) if name == "ours" else _plain(model, part, recipe)
            rates.append(len(part) / took["ours"])
            ratios.append(took["ours"] / took["plain"])
        centre = float(np.median(ratios))
        low, high = _interval(ratios)
        found += [
            Measurement(f"{family}: windows/s of one CPU core", float(np.median(rates)), "1/s", "higher"),
            Measurement(f"{family}: CPU time over a plain torch loop, median", centre, "", "lower"),
            Measurement(f"{family}: the same, upper end of its 95 % interval ({low:.3f} to {high:.3f})", high, "",
                        "lower", 1.1, tuple(ratios)),
        ]
    return found + _gpu(windows)


def _model(family: str, windows: Windows, recipe: Recipe) -> Autoencoder:
    contract = Contract(channels=examples.channels("c", windows.rows.shape[1]), window=windows.length)
    return build(contract, recipe)


def _ours(model: Autoencoder, windows: Windows, recipe: Recipe) -> float:
    runner = loop.Runner(model, windows, recipe, torch.device("cpu"))
    began = time.process_time()
    runner.epoch(1, recipe.epoch_steps)
    return time.process_time() - began


def _plain(model: Autoencoder, windows: Windows, recipe: Recipe) -> float:
    """What one writes by hand: windows laid out, Adam, clipped gradients. The parts of a family are stepped alike."""
    x = torch.from_numpy(np.ascontiguousarray(windows.raw(slice(None))))
    optimisers = {part: torch.optim.Adam(model.weights_of(part), recipe.rate) for part in model.parts}
    model.train()
    began = time.process_time()
    order = torch.randperm(len(x))
    for start in range(0, len(x), recipe.batch):
        batch = x[order[start : start + recipe.batch]]
        for part, optimiser in optimisers.items():
            optimiser.zero_grad(set_to_none=True)
            if part == "autoencoder":
                z, penalty = model.draw(batch, 1)
                loss = nn.functional.mse_loss(model.decode(z), batch) + penalty
            else:
                loss = model.objective(part, loop.Batch(batch, batch, None), 1)
            loss.backward()
            nn.utils.clip_grad_norm_(model.weights_of(part), recipe.clip)
            optimiser.step()
    return time.process_time() - began


def _interval(samples: list[float]) -> tuple[float, float]:
    """95 % interval of the median, by resampling."""
    rng = np.random.default_rng(0)
    drawn = np.median(rng.choice(samples, size=(4000, len(samples))), axis=1)
    return float(np.quantile(drawn, 0.025)), float(np.quantile(drawn, 0.975))


def _gpu(windows: Windows) -> list[Measurement]:
    if not torch.cuda.is_available():
        print("no GPU here: mixed precision and torch.compile are not timed", file=sys.stderr)
        return []
    found = []
    for is_compiled in (False, True):
        recipe = Recipe(model="dense", hidden=(1024,), batch=1024, device="cuda", precision="bf16", compile=is_compiled)
        runner = loop.Runner(_model("dense", windows, recipe).to("cuda"), windows, recipe, torch.device("cuda"))
        runner.epoch(1, recipe.epoch_steps)
        torch.cuda.synchronize()
        began = time.monotonic()
        for number in range(2, 12):
            runner.epoch(number, recipe.epoch_steps)
        torch.cuda.synchronize()
        rate = 10 * len(windows) / (time.monotonic() - began)
        name = f"GPU, dense 1024, bf16, torch.compile {'on' if is_compiled else 'off'}"
        found.append(Measurement(name, rate, "1/s", "higher"))
    return found


def _waves(count: int) -> Windows:
    rng = np.random.default_rng(0)
    steps = np.arange(count + 31)[:, None]
    rows = (np.sin(steps / (3 + np.arange(8))) + 0.1 * rng.normal(size=(count + 31, 8))).astype(np.float32)
    return Windows(rows, np.arange(31, count + 31), 32, np.arange(8))


# ---------------------------------------------------------------- quality on series


def quality(quick: bool) -> list[Measurement]:
    """Held-out reconstruction and detection of every family, alone, beside PCA and VAR, on SKAB and TEP."""
    found = []
    for name, (learn, test, label) in {"SKAB": _skab(quick), "TEP": _tep()}.items():
        contract = replace_window(data.derive_contract(learn), 32)
        first = True
        for family in BY_NAME:
            settings = {"model": family, "profile": "alone", "epochs": 40, **SERIES.get(family, {})}
            if quick:
                settings["epochs"] = 5
            with tempfile.TemporaryDirectory() as folder:
                made = train(learn, contract, parse_recipe(settings), Path(folder) / "b", refuse=False)
                scored = score_table(made.bundle, test)
                figures = measure(scored.judged, label[scored.order])
            if first:
                for rival in ("pca", "var", "pca, same D"):
                    found += _series_figures(name, rival, made.quality[rival])
                first = False
            found += _series_figures(name, family, made.quality[family])
            found.append(_detected(name, family, figures))
        for rival in ("pca", "var"):
            figures = _baseline_figures(learn, contract, rival, test, label)
            found.append(_detected(name, rival, figures))
    return found


def _detected(name: str, model: str, figures: dict[str, float]) -> Measurement:
    return Measurement(f"{name}, {model}: average precision, row by row", figures["average_precision"], "", "higher")


def _series_figures(name: str, model: str, values: dict[str, float]) -> list[Measurement]:
    label = f"{name}, {model} (D={values['latent']:.0f})"
    return [Measurement(f"{label}: held-out error of whole windows", values["window_mse"], "", "lower"),
            Measurement(f"{label}: held-out error of the newest row", values["newest_mse"], "", "lower")]


def _baseline_figures(
    learn: Table, contract: Contract, kind: str, test: Table, label: np.ndarray
) -> dict[str, float]:
    from training.make_baseline import make_baseline_bundle

    prepared = _prepare(learn, contract)
    with tempfile.TemporaryDirectory() as folder:
        bundle = make_baseline_bundle(prepared, Path(folder) / "b", kind, refuse=False)
        scored = score_table(bundle, test)
    return measure(scored.judged, label[scored.order])


def replace_window(contract: Contract, window: int) -> Contract:
    """The contract with another T."""
    import msgspec

    return msgspec.structs.replace(contract, window=window)


def _skab(quick: bool) -> tuple[Table, Table, np.ndarray]:
    files = sorted((_folder() / "skab" / "valve1").glob("*.csv"))[: 4 if quick else 16]
    learn = read_tables(files, FileOptions(rows=(0, 400)))
    test = read_tables(files, FileOptions(rows=(400, None)))
    return learn, test, any_label(test, ("anomaly",))


def _tep() -> tuple[Table, Table, np.ndarray]:
    folder = _folder() / "tep"
    options = FileOptions(time_columns=("none",), step_s=180, ignore_columns=("t",), label_columns=("fault",))
    learn = read_tables([folder / "train_normal.parquet"], options)
    test = read_tables([folder / "test.parquet"], replace(options, device_column="fault", label_columns=()))
    row = np.concatenate([np.arange((test.device == one).sum()) for one in np.unique(test.device)])
    fault = np.array([int(name) for name in test.devices])[test.device]
    return learn, test, ((fault > 0) & (row >= 160)).astype(np.float32)


# ---------------------------------------------------------------- digits


def digits(quick: bool) -> list[Measurement]:
    """Error on held-out pictures of each family beside PCA with as many numbers; and what the latents are worth."""
    example = examples.digits()
    prepared = _prepare(example.table, example.contract)
    learn, stop_by = data.learning_windows(prepared, 0.2)
    test = data.windows_of(prepared, CALIBRATION)
    everything = data.windows_of(prepared, FIT).inputs(slice(None))
    scale = float(prepared.scaling.scale[-1, 0]) ** 2
    pca = pca_errors(everything, test, 16)["window_mse"] * scale
    found = [Measurement("digits, PCA (D=16): held-out error, ink squared", pca, "", "lower")]
    label = np.asarray(example.table.labels["class"])
    axes = _pca_axes(everything, 16)
    known = label[data.windows_of(prepared, FIT).ends]
    worth = _probe(_flat(everything) @ axes, known, _flat(test.inputs(slice(None))) @ axes, label[test.ends])
    found.append(Measurement("digits, PCA: linear probe of the latent, accuracy", worth, "", "higher"))
    for family, settings in DIGITS.items():
        recipe = parse_recipe({**example.recipe, **settings, "model": family, **({"epochs": 10} if quick else {})})
        model = _fitted(prepared.contract, recipe, learn, stop_by)
        x = test.inputs(slice(None))
        missed = x - generate.decode(model, generate.encode(model, x))
        error = float(np.square(missed, dtype=np.float64).mean()) * scale
        goal = pca if family in ("dense", "conv") and not quick else None
        found.append(Measurement(f"digits, {family} (D=16): held-out error, ink squared", error, "", "lower", goal))
        worth = _probe(generate.encode(model, everything), known, generate.encode(model, x), label[test.ends])
        found.append(Measurement(f"digits, {family}: linear probe of the latent, accuracy", worth, "", "higher"))
    return found


def _fitted(contract: Contract, recipe: Recipe, learn: Windows, stop_by: Windows) -> Autoencoder:
    model = build(contract, recipe)
    begin(model, learn, recipe)
    loop.fit(model, learn, stop_by, recipe)
    return model


def _flat(windows: np.ndarray) -> np.ndarray:
    return windows.reshape(len(windows), -1)


def _pca_axes(windows: np.ndarray, size: int) -> np.ndarray:
    return np.linalg.eigh(np.cov(_flat(windows), rowvar=False))[1][:, ::-1][:, :size]


def _probe(latent: np.ndarray, label: np.ndarray, test: np.ndarray, truth: np.ndarray) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(latent, label)
    return float(probe.score(test, truth))


# ---------------------------------------------------------------- generation


def generation(quick: bool) -> list[Measurement]:
    """How well classifiers tell samples from held-out windows: 0.5 not at all. A Gaussian in PCA space beside them."""
    found = []
    for name, windows in _generation_sets().items():
        rng = np.random.default_rng(0)
        held = windows.part(np.flatnonzero(_held_out(windows)))
        kept = windows.part(np.flatnonzero(~_held_out(windows)))
        order = rng.permutation(len(kept))
        cut = int(0.85 * len(kept))
        learn, stop_by = kept.part(np.sort(order[:cut])), kept.part(np.sort(order[cut:]))
        real = held.thinned(800).inputs(slice(None))
        known = kept.thinned(4000).inputs(slice(None))
        rival = generate.told_apart(real, generate.gaussian_in_pca_space(known, PCA_LATENT, len(real)))
        same = generate.told_apart(real, known[rng.permutation(len(known))[: len(real)]])
        found += [_told(name, "real windows of the training part (the floor)", same),
                  _told(name, f"a Gaussian in PCA space (D={PCA_LATENT})", rival)]
        contract = Contract(channels=examples.channels("c", windows.rows.shape[1]), window=windows.length)
        recipe = parse_recipe({"model": "dense", "latent": PCA_LATENT})
        models = {"PCA with the same sampler": build(contract, recipe)}
        begin(models["PCA with the same sampler"], learn, recipe)       # dense before training is PCA
        for family, settings in GENERATED.items():
            recipe = parse_recipe({"model": family, "epochs": 10 if quick else 160, **settings})
            models[family] = _fitted(contract, recipe, learn, stop_by)
        for who, model in models.items():
            made = generate.fit_sampler(model, known).sample(len(real))
            goal = 0.65 if who in GENERATED and not quick else None
            found.append(_told(name, f"{who} (D={model.shape.latent})", generate.told_apart(real, made), goal))
            near = generate.nearness(real, made, known)
            found.append(Measurement(f"{name}, samples of {who}: distance to the nearest training window, over that of "
                                     "held-out ones", near, "", "higher"))
    return found


def _told(name: str, who: str, told: dict[str, float], goal: float | None = None) -> Measurement:
    others = ", ".join(f"{key} {value:.2f}" for key, value in told.items() if key != "best")
    return Measurement(f"{name}, samples of {who}: told apart ({others})", told["best"], "", "lower", goal)


def _held_out(windows: Windows) -> np.ndarray:
    """Three in ten blocks of four windows' time, chosen at random; single pictures by themselves."""
    rng = np.random.default_rng(1)
    block = windows.ends // windows.length if _are_apart(windows) else windows.ends // (4 * windows.length)
    return np.asarray(rng.random(int(block.max()) + 1) < 0.3)[block]


def _are_apart(windows: Windows) -> bool:
    return bool((np.diff(windows.ends) >= windows.length).all())


def _generation_sets() -> dict[str, Windows]:
    sets = {}
    for name in ("digits", "tones"):
        example = examples.EXAMPLES[name]()
        prepared = _prepare(example.table, example.contract)
        sets[name] = _every(prepared)
    return sets


def _every(prepared: Prepared) -> Windows:
    parts = [data.windows_of(prepared, part) for part in (FIT, COVARIANCE, CALIBRATION)]
    ends = np.sort(np.concatenate([one.ends for one in parts]))
    return Windows(parts[0].rows, ends, parts[0].length, parts[0].scored)


# ---------------------------------------------------------------- the incremental step


def incremental(quick: bool) -> list[Measurement]:
    """A champion of the old regime, trained on with the new one and a replay, beside training from scratch on both."""
    table = read_tables([_folder() / "series" / "etth1.csv"])
    prepared = _prepare(table, data.derive_contract(table, window=24))
    every = _every(prepared)
    half, tenth = len(every) // 2, len(every) // 10
    old, old_test = every.part(slice(0, half - tenth)), every.part(slice(half - tenth + 24, half))
    new, new_test = every.part(slice(half, len(every) - tenth)), every.part(slice(len(every) - tenth + 24, None))
    recipe = Recipe(model="dense", latent=8, hidden=(128,), linear_path=False, epochs=8 if quick else 40)
    champion = _fitted(prepared.contract, recipe, *_by_time(old))
    before_old, before_new = _mse(champion, old_test), _mse(champion, new_test)

    replay = Replay(size=len(old), seed=0)
    replay.add(old.raw(slice(None)))
    began = time.process_time()
    train_on(champion, new.raw(slice(None)), replay, recipe)
    step_s = time.process_time() - began
    after_old, after_new = _mse(champion, old_test), _mse(champion, new_test)

    both = every.part(np.concatenate([np.arange(half - tenth), np.arange(half, len(every) - tenth)]))
    rng = np.random.default_rng(0).permutation(len(both))
    cut = int(0.8 * len(both))
    began = time.process_time()
    scratch = _fitted(prepared.contract, recipe, both.part(rng[:cut]), both.part(rng[cut:]))
    scratch_s = time.process_time() - began
    return [
        Measurement("incremental: error on the new regime before the step", before_new, "", "lower"),
        Measurement("incremental: the same after it", after_new, "", "lower"),
        Measurement("incremental: the same from scratch", _mse(scratch, new_test), "", "lower"),
        Measurement("incremental: after the step over from scratch", after_new / _mse(scratch, new_test), "", "lower",
                    None if quick else 1.05),
        Measurement("incremental: CPU time over from scratch", step_s / scratch_s, "", "lower",
                    None if quick else 0.25),
        Measurement("incremental: error on the old regime, after over before", after_old / before_old, "", "lower",
                    None if quick else 1.1),
    ]


def _by_time(windows: Windows) -> tuple[Windows, Windows]:
    cut = int(0.8 * len(windows))
    return windows.part(slice(0, cut - windows.length)), windows.part(slice(cut, None))


def _mse(model: Autoencoder, windows: Windows) -> float:
    x = windows.inputs(slice(None))
    return float(np.square(x - generate.decode(model, generate.encode(model, x)), dtype=np.float64).mean())


def _prepare(table: Table, contract: Contract) -> Prepared:
    return prepare(contract, table.devices, table.device, table.ts_ms, data.in_contract_order(table, contract))


def _folder() -> Path:
    folder = Path(os.environ.get("NARROWS_DATA", "../shared/data"))
    if not folder.is_dir():
        raise Absent(f"no data at {folder}: set NARROWS_DATA")
    return folder


SECTIONS: dict[str, Callable[[bool], list[Measurement]]] = {
    "speed": speed, "digits": digits, "generation": generation, "incremental": incremental, "quality": quality,
}

if __name__ == "__main__":
    sys.exit(main())
