"""`narrows train`, `tune`, `evaluate`, `report`. Cheap to import: torch comes in when a command runs."""

import gc
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
import yaml

from pipeline.cli.files import file_options, told_blocks
from pipeline.cli.options import (
    ConfigFile,
    ContextColumns,
    DeviceColumn,
    IgnoreColumns,
    Json,
    Missing,
    Rows,
    Step,
    TimeColumn,
    TimeUnit,
)
from pipeline.config import parse_yaml
from pipeline.core.contract import parse_contract
from pipeline.errors import BadInput
from pipeline.formats.files import split_columns
from training.history import Epoch, History
from training.recipe import FAMILIES, WITHOUT_TORCH, Recipe, parse_recipe

if TYPE_CHECKING:
    from pipeline.registry.bundle import Bundle
    from training.page import Page
    from training.sources import Asked, Source
    from training.spool import Spool

MOST_NOMINAL = 0.5     # of normal rows over the threshold; more would call most of them anomalous

Sources = Annotated[
    list[str] | None,
    typer.Argument(help="CSV, Parquet, JSON lines; or an example: digits, tones.", show_default=False),
]
Labels = Annotated[
    list[str] | None, typer.Option("--label-column", help="Columns that mark anomalous rows; never features: a,b.")
]
Model = Annotated[str, typer.Option("--model", help=f"{', '.join((*FAMILIES, *WITHOUT_TORCH))}.")]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", help="YAML with settings (docs/training.md).")]
Changes = Annotated[list[str] | None, typer.Option("--set", help="One setting, as loss=huber; repeatable.")]
ContractFile = Annotated[Path | None, typer.Option("--contract", help="YAML or JSON; default: derived from the data.")]
Window = Annotated[int | None, typer.Option("--window", help="T, rows that the model sees at once.", show_default="32")]
Memory = Annotated[int | None, typer.Option("--memory", help="H, rows that a score may depend on.", show_default="160")]
Hop = Annotated[int | None, typer.Option("--hop", help="Score one row in so many steps.", show_default="1")]
MemoryMb = Annotated[
    float | None,
    typer.Option("--memory-mb", min=0.1, help="Memory that rows may take; more of them lie on disk meanwhile.",
                 show_default="half of what is free"),
]
Threads = Annotated[int, typer.Option("--threads", min=1, help="CPU threads of torch; the weights depend on it.")]


def train(
    sources: Sources = None,
    out: Annotated[Path, typer.Option("--out", help="The bundle's folder.", show_default=False)] = Path("bundle"),
    model: Model = "dense",
    rows: Rows = None,
    recipe_file: RecipeFile = None,
    changes: Changes = None,
    contract_file: ContractFile = None,
    window: Window = None,
    memory: Memory = None,
    hop: Hop = None,
    latent: Annotated[int | None, typer.Option("--latent", help="D.", show_default="1.5 a scored channel")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", show_default="60")] = None,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    nominal: Annotated[float, typer.Option("--nominal", help="Share of normal rows over the threshold.")] = 0.01,
    alerts_per_week: Annotated[
        float | None, typer.Option("--alerts-per-device-week", help="Wanted alerts instead of --nominal.")
    ] = None,
    time_column: TimeColumn = None,
    time_unit: TimeUnit = None,
    step: Step = None,
    device_column: DeviceColumn = None,
    ignore_columns: IgnoreColumns = None,
    context_columns: ContextColumns = None,
    label_columns: Labels = None,
    missing: Missing = None,
    trim: Annotated[bool, typer.Option("--trim", help="Leave odd rows out however many there are.")] = False,
    accept_shift: Annotated[
        bool, typer.Option("--accept-shift", help="Export even where held-out rows lie over the threshold too often.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on after a kill, or a loss that is no number, from OUT.checkpoint.")
    ] = False,
    from_topic: Annotated[str | None, typer.Option("--from-topic", help="Kafka topic instead of files.")] = None,
    since: Annotated[str | None, typer.Option("--since", help="First record: ISO 8601 or epoch ms.")] = None,
    stream: Annotated[str | None, typer.Option("--stream", help="Configured stream that reads it.")] = None,
    is_masked: Annotated[
        bool, typer.Option("--masks/--no-masks", help="Leave out a topic's rows in alerts and maintenance.")
    ] = True,
    config: ConfigFile = None,
    is_quantised: Annotated[bool, typer.Option("--int8", help="8-bit weights where detection holds.")] = False,
    has_report: Annotated[bool, typer.Option("--report/--no-report", help="Pictures and model card.")] = True,
    threads: Threads = 1,
    memory_mb: MemoryMb = None,
    json: Json = False,
) -> None:
    """Train a model, calibrate it on held-out rows, export it to ONNX, and write a bundle with report and card.

    Examples:
      narrows train pump-*.csv --rows 0:400 --ignore-columns anomaly --out pump.bundle
      narrows train digits --model conv --out digits.bundle
      narrows train --from-topic readings --since 2026-01-01 --out pump.bundle
    """
    began = time.monotonic()
    wishes = _wishes(recipe_file, changes, model=model, latent=latent, epochs=epochs, seed=seed)
    options = {"time_column": time_column, "time_unit": time_unit, "step": step, "device_column": device_column,
               "ignore_columns": ignore_columns, "context_columns": context_columns, "label_columns": label_columns,
               "rows": rows, "missing": missing}
    if not 0 < nominal <= MOST_NOMINAL:
        raise BadInput(f"--nominal {nominal:g}: give a share over 0 and at most {MOST_NOMINAL:g}, 0.01 for 1 %")
    if alerts_per_week is not None and alerts_per_week <= 0:
        raise BadInput(f"--alerts-per-device-week {alerts_per_week:g}: give a rate over 0, for example 0.5")
    calibration = {"nominal": nominal, "alerts_per_device_week": alerts_per_week, "refuse": not accept_shift}
    asked = _asked(contract_file, out, options, window=window, memory=memory, hop=hop, memory_mb=memory_mb, trim=trim,
                   accept=accept_shift)
    topic = (from_topic, since, stream, config, is_masked) if from_topic is not None else None
    with _told_memory(), _rows_of(sources, topic, options, asked, wishes) as ready:
        if wishes["model"] in WITHOUT_TORCH:
            bundle, history = _baseline(ready, wishes, out, calibration), None
        else:
            bundle, history = _torch(ready, parse_recipe(wishes), out, calibration, resume=resume, threads=threads,
                                     is_quantised=is_quantised)
        if has_report:
            _write_report(bundle, ready, history, out)
    _tell(bundle, out, time.monotonic() - began, json)


def tune(
    sources: Sources = None,
    out: Annotated[Path, typer.Option("--out", help="Recipe for `narrows train --recipe`.")] = Path("recipe.yaml"),
    model: Model = "dense",
    trials: Annotated[int, typer.Option("--trials", min=1)] = 30,
    timeout_s: Annotated[float | None, typer.Option("--timeout", help="Seconds.")] = None,
    folds: Annotated[int, typer.Option("--folds", min=2, help="Blocks of time, each held out once.")] = 3,
    journal: Annotated[
        Path | None, typer.Option("--journal", help="The search; it goes on from it.", show_default="OUT.journal")
    ] = None,
    rows: Rows = None,
    recipe_file: RecipeFile = None,
    changes: Changes = None,
    contract_file: ContractFile = None,
    window: Window = None,
    epochs: Annotated[int | None, typer.Option("--epochs", show_default="15")] = None,
    latent: Annotated[int | None, typer.Option("--latent", help="D.", show_default="1.5 a scored channel")] = None,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    time_column: TimeColumn = None,
    time_unit: TimeUnit = None,
    step: Step = None,
    device_column: DeviceColumn = None,
    ignore_columns: IgnoreColumns = None,
    context_columns: ContextColumns = None,
    label_columns: Labels = None,
    missing: Missing = None,
    threads: Threads = 1,
    memory_mb: MemoryMb = None,
    json: Json = False,
) -> None:
    """Search settings of training by held-out error over blocks of time; killed, it goes on from its journal.

    Example: narrows tune pump-*.csv --rows 0:400 --trials 40 --out recipe.yaml
    """
    wishes = _wishes(recipe_file, changes, model=model, latent=latent, epochs=epochs or 15, seed=seed)
    if wishes["model"] in WITHOUT_TORCH:
        raise BadInput(f"--model {wishes['model']}: a baseline has nothing to tune; give one of {', '.join(FAMILIES)}")
    options = {"time_column": time_column, "time_unit": time_unit, "step": step, "device_column": device_column,
               "ignore_columns": ignore_columns, "context_columns": context_columns, "label_columns": label_columns,
               "rows": rows, "missing": missing}
    # Odd rows are kept, as every trial learns from the same ones; `narrows train` refuses them.
    asked = _asked(contract_file, out, options, window=window, memory_mb=memory_mb, accept=True)
    torch = _torch_module(threads)
    from training.tune import tune as search

    torch.set_num_threads(threads)
    with _told_memory(), _rows_of(sources, None, options, asked, wishes) as ready:
        tuned = search(
            ready.prepared, parse_recipe(wishes), journal or out.with_name(f"{out.name}.journal"), trials=trials,
            timeout_s=timeout_s, folds=folds,
            progress=lambda number, error, best: _say(
                f"trial {number + 1}: held-out error {error:.4f}, best {best:.4f}"))
    # The search's short epochs are not the training's: the rest of the recipe keeps its defaults.
    chosen = {name: value for name, value in msgspec.to_builtins(tuned.recipe).items()
              if value != msgspec.to_builtins(Recipe())[name] and name != "epochs"}
    out.write_text(yaml.safe_dump({"model": tuned.recipe.model, **chosen}, sort_keys=True))
    if json:
        print(msgspec.json.encode({"recipe": chosen, "error": tuned.error, "first": tuned.first, "trials": tuned.trials,
                                   "pruned": tuned.pruned}).decode())
        return
    print(f"{out}: held-out error of the newest row {tuned.error:.4f}, {tuned.first:.4f} with the settings it began "
          f"with; {tuned.trials} trial{'s' * (tuned.trials != 1)}, {tuned.pruned} given up early")
    if tuned.error >= tuned.first:
        print("no settings did better than the ones it began with; more --trials or more rows may")


def evaluate(
    sources: Sources = None,
    bundle_folder: Annotated[Path, typer.Option("--bundle", help="The bundle's folder.")] = Path("bundle"),
    label_columns: Labels = None,
    rows: Rows = None,
    time_column: TimeColumn = None,
    time_unit: TimeUnit = None,
    step: Step = None,
    device_column: DeviceColumn = None,
    missing: Missing = None,
    pictures: Annotated[Path | None, typer.Option("--pictures", help="Folder for a report on these rows.")] = None,
    memory_mb: MemoryMb = None,
    json: Json = False,
) -> None:
    """Score files by a bundle and measure honestly: false and missed alarms, precision and recall, episodes.

    Example: narrows evaluate --bundle pump.bundle pump-*.csv --rows 400: --label-column anomaly
    """
    from pipeline.registry.bundle import load_bundle
    from training import evaluate as judging

    bundle = load_bundle(bundle_folder)
    options = {"time_column": time_column, "time_unit": time_unit, "step": step, "rows": rows,
               "device_column": device_column, "missing": missing, "label_columns": label_columns}
    with _told_memory(), _judged_rows(sources, options, bundle) as laid:
        label = laid.labels() if label_columns else None
        figures = judging.measure(judging.score_laid(bundle, laid), label)
        if pictures is not None:
            _page(bundle, laid, sources or [], label is not None, figures, memory_mb).write(pictures)
    if json:
        print(msgspec.json.encode({"bundle": bundle.digest, **figures}).decode())
        return
    print("\n".join(judging.to_lines(figures)))


def report(
    bundle_folder: Annotated[Path, typer.Argument(help="The bundle's folder.", show_default=False)],
    sources: Sources = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder.", show_default="BUNDLE/report")] = None,
    label_columns: Labels = None,
    rows: Rows = None,
    time_column: TimeColumn = None,
    time_unit: TimeUnit = None,
    step: Step = None,
    device_column: DeviceColumn = None,
    missing: Missing = None,
    memory_mb: MemoryMb = None,
    json: Json = False,
) -> None:
    """Draw a bundle's report again, on the rows of these files.

    Example: narrows report pump.bundle pump-*.csv --rows 400: --label-column anomaly --out pictures
    """
    from pipeline.registry.bundle import load_bundle
    from training import evaluate as judging

    bundle = load_bundle(bundle_folder)
    options = {"time_column": time_column, "time_unit": time_unit, "step": step, "rows": rows,
               "device_column": device_column, "missing": missing, "label_columns": label_columns}
    with _told_memory(), _judged_rows(sources, options, bundle) as laid:
        label = laid.labels() if label_columns else None
        figures = judging.measure(judging.score_laid(bundle, laid), label)
        page = _page(bundle, laid, sources or [], label is not None, figures, memory_mb)
    folder = out or bundle_folder / "report"
    page.write(folder)
    place = folder / "index.html"
    print(msgspec.json.encode({"report": str(place), "pictures": sorted(page.pictures)}).decode() if json else place)


def _wishes(recipe_file: Path | None, changes: list[str] | None, **options: Any) -> dict[str, Any]:
    """Recipe file, then options, then --set; the last word counts."""
    wishes: dict[str, Any] = {}
    if recipe_file is not None:
        wishes = _yaml(recipe_file) or {}
        if not isinstance(wishes, dict):
            raise BadInput(f"{recipe_file}: a recipe is a map of settings, as `epochs: 40`")
    given = {name: value for name, value in options.items() if value is not None}
    if "model" in wishes and given.get("model") == "dense":
        given.pop("model")
    wishes |= given
    for change in changes or ():
        name, equals, text = change.partition("=")
        if not equals:
            raise BadInput(f"--set {change}: write NAME=VALUE, for example --set loss=huber")
        wishes[name.strip()] = parse_yaml(text)
    if wishes.get("model") not in (*FAMILIES, *WITHOUT_TORCH):
        raise BadInput(f"--model {wishes.get('model')}: give one of {', '.join((*FAMILIES, *WITHOUT_TORCH))}")
    if wishes["model"] in FAMILIES:
        parse_recipe(wishes)                                         # a wrong setting is told before files are read
    return wishes


def _yaml(path: Path) -> Any:
    try:
        return parse_yaml(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise BadInput(f"{path} can't be read: {' '.join(str(error).split())}") from error


@contextmanager
def _judged_rows(sources: list[str] | None, options: dict[str, Any], bundle: "Bundle") -> "Iterator[Spool]":
    """All rows to judge a bundle by, on disk: they need not fit into memory."""
    from training import examples
    from training.spool import spool

    labels = split_columns(options["label_columns"] or ())
    if not sources:
        raise BadInput("no file given: name CSV, Parquet or JSON lines files, or an example: digits, tones")
    if examples.is_named(sources):
        if labels:
            raise BadInput(f"{sources[0]} marks no rows as anomalous: leave --label-column out")
        blocks = iter([examples.EXAMPLES[sources[0]]().table])
    else:
        blocks = told_blocks(
            [Path(source) for source in sources], file_options(**options, channels=bundle.contract.names))
    with TemporaryDirectory(prefix="narrows-") as folder, spool(blocks, Path(folder) / "rows", labels) as laid:
        yield laid


def _page(
    bundle: "Bundle", laid: "Spool", sources: list[str], has_labels: bool, figures: dict[str, float],
    memory_mb: float | None,
) -> "Page":
    """Pictures of as many rows as fit into memory; the figures are of all."""
    from training import examples
    from training import report as reports
    from training.evaluate import lay_out
    from training.sources import rows_that_fit

    most = rows_that_fit(len(bundle.contract.names), memory_mb)
    table = laid.sample(bundle.contract, most)
    if len(table) < len(laid):
        _say(f"pictures are of {len(table):,} of {len(laid):,} rows (--memory-mb); figures are of all")
    prepared, order = lay_out(bundle, table)
    label = table.labels["label"][order] if has_labels else None
    if not examples.is_named(sources):
        return reports.make(bundle, prepared, label=label, figures=figures)
    classes = examples.classes(sources[0], prepared.devices)[prepared.device]
    return reports.make(bundle, prepared, figures=figures, classes=classes, kinds=examples.KINDS.get(sources[0], ()))


def _asked(
    contract_file: Path | None, out: Path, options: dict[str, Any], *, window: int | None, memory_mb: float | None,
    memory: int | None = None, hop: int | None = None, trim: bool = False, accept: bool = False,
) -> "Asked":
    from training.sources import Asked

    contract = parse_contract(_yaml(contract_file)) if contract_file is not None else None
    step_ms = round(options["step"] * 1000) if options["step"] else None
    sizes = {"window": window, "memory": memory, "hop": hop, "step_ms": step_ms}
    if contract is not None:
        options["channels"] = contract.names
    return Asked(
        contract, {name: size for name, size in sizes.items() if size is not None},
        split_columns(options["label_columns"] or ()), out.with_name(f"{out.name}.spool"), trim, accept, memory_mb)


@contextmanager
def _rows_of(
    sources: list[str] | None, topic: tuple[str, str | None, str | None, Path | None, bool] | None,
    options: dict[str, Any], asked: "Asked", wishes: dict[str, Any],
) -> "Iterator[Source]":
    """The rows to learn from. topic : its name, since when, the stream that reads it, the configuration, and whether
    rows of alerts and maintenance are masked."""
    from training import examples
    from training import sources as rooms

    if topic is not None:
        from training.from_topic import reach

        if asked.labels:
            raise BadInput("--label-column names a column of files, and a topic's rows have none: leave it out; rows "
                           "of alerts and of maintenance are masked")
        with rooms.from_topic(reach(*topic[:4], asked.contract, is_masked=topic[4]), asked) as ready:
            yield ready
        return
    if not sources:
        raise BadInput("no file given: name CSV, Parquet or JSON lines files, or an example: digits, tones")
    if examples.is_named(sources):
        _refuse_for_example(sources[0], options, asked)
        ready, recipe = rooms.from_example(sources[0])
        for name, value in recipe.items():
            wishes.setdefault(name, value)
        yield ready
        return
    with rooms.from_files([Path(source) for source in sources], file_options(**options), asked) as ready:
        yield ready


def _refuse_for_example(name: str, options: dict[str, Any], asked: "Asked") -> None:
    """Rows, window and labels of an example are its own: an option that would be passed over in silence is refused."""
    given = {"--rows": options["rows"], "--label-column": options["label_columns"],
             "--ignore-columns": options["ignore_columns"], "--context-columns": options["context_columns"],
             "--contract": asked.contract,
             **{f"--{size}": asked.sizes.get(size) for size in ("window", "memory", "hop")}}
    wrong = [option for option, value in given.items() if value]
    if wrong:
        raise BadInput(f"{name} is an example, with rows and a contract of its own: leave {', '.join(wrong)} out")


@contextmanager
def _told_memory() -> Iterator[None]:
    """Memory that ran out while rows were read or looked at, as what to do. The loop tells its own (`loop.fit`)."""
    try:
        yield
    except MemoryError as error:
        raise BadInput(
            "out of memory: give a lower --memory-mb, over which rows are laid on disk; or fewer rows (--rows), or a "
            "shorter --window") from error


def _baseline(ready: "Source", wishes: dict[str, Any], out: Path, calibration: dict[str, Any]) -> "Bundle":
    from training.calibrate import calibrate
    from training.compare import compare
    from training.ensemble import PROFILES
    from training.make_baseline import fit_without_torch, write_calibrated

    kind, profile = wishes["model"], wishes.get("profile", "default")
    if profile not in PROFILES:
        raise BadInput(f"profile {profile!r}: --model {kind} takes {', '.join(PROFILES)}")
    model, members = fit_without_torch(ready.prepared, kind, profile)
    return write_calibrated(
        ready.prepared, model, calibrate(model, ready.prepared, members=members, **calibration), out, family=kind,
        members=members, seed=wishes.get("seed", 0), data=ready.source, quality=compare({kind: model}, ready.prepared),
        created_ms=time.time_ns() // 1_000_000)


def _torch(
    ready: "Source", recipe: Recipe, out: Path, calibration: dict[str, Any], *, resume: bool, threads: int,
    is_quantised: bool,
) -> "tuple[Bundle, History]":
    torch = _torch_module(threads)
    from training.loop import TrainingDiverged
    from training.train import train_on_windows

    torch.set_num_threads(threads)
    state = out.with_name(f"{out.name}.checkpoint")
    if resume and not state.exists():
        _say(f"there is no {state} to go on from: training begins anew")
    with _Progress(recipe) as progress:
        try:
            made = train_on_windows(
                ready.prepared, ready.windows(recipe.validation), recipe, out, source=ready.source, progress=progress,
                state=state, resume=resume, is_quantised=is_quantised, **calibration)
        except TrainingDiverged as error:
            again = "go on from there with --resume" if state.exists() else "train again with"
            raise TrainingDiverged(f"{error}; {again} --set rate={recipe.rate / 10:g}") from error
    state.unlink(missing_ok=True)
    return made.bundle, made.history


def _torch_module(threads: int) -> Any:
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    # torch and its exporter make a million objects that stay. Looking for garbage among them at the usual pace took 1.5
    # of the 9 CPU s of a training on SKAB.
    gc.set_threshold(100_000, 10, 10)
    try:
        import torch
    except ModuleNotFoundError as error:
        raise BadInput("training needs torch: install narrows[train], or use --model var, pca or raw") from error
    except ImportError as error:                                     # it is there: no memory, or a library is missing
        raise BadInput(f"torch can't be loaded: {error}") from error
    return torch


def _write_report(bundle: "Bundle", ready: "Source", history: History | None, out: Path) -> None:
    from training import examples
    from training import report as reports
    from training.evaluate import any_label, lay_out

    table, labels = ready.table, ready.labels
    _, order = lay_out(bundle, table)
    label = any_label(table, labels)[order] if labels else None
    classes = table.labels["class"][order] if "class" in table.labels and not labels else None
    kinds = examples.KINDS.get(ready.source.get("example", ""), ())
    page = reports.make(bundle, ready.prepared, history, label, classes=classes, kinds=kinds)
    page.write(out / "report")
    (out / "card.md").write_text(page.card)


def _tell(bundle: "Bundle", out: Path, seconds: float, json: bool) -> None:
    manifest = bundle.manifest
    quality = {name: values for name, values in manifest.quality.items() if isinstance(values, dict)}
    if json:
        facts = {"bundle": str(out), "digest": manifest.digest, "family": manifest.family, "quality": quality,
                 "calibration": manifest.calibration, "training": manifest.training, "seconds": round(seconds, 1)}
        print(msgspec.json.encode(facts).decode())
        return
    print(f"{out}: {manifest.family} {manifest.short}, {seconds:.0f} s")
    for name, values in quality.items():
        print(f"  {name:<12} D={values['latent']:<4.0f} held-out error of the newest row {values['newest_mse']:.4f}, "
              f"of whole windows {values['window_mse']:.4f}")
    calibration = manifest.calibration
    print(f"  threshold {bundle.scorer.threshold:.4g}; {calibration['held_out_share']:.2%} of held-out rows lie over "
          f"one that is meant for {calibration['nominal_share']:.2%}")
    if calibration["set_aside"]:
        print(f"  {len(calibration['set_aside'])} devices with the highest scores set no threshold; with theirs, "
              f"{calibration['share_of_all']:.2%} of held-out rows lie over it")
    if (out / "report" / "index.html").exists():
        print(f"  report {out / 'report' / 'index.html'}, card {out / 'card.md'}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class _Progress:
    """A bar on a terminal; elsewhere one line for the first, each tenth and each better epoch. On standard error."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._bar: Any = None

    def __enter__(self) -> "_Progress":
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            self._bar = Progress(TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.fields[state]}"),
                                 TimeElapsedColumn(), console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(f"{self._recipe.model}", total=self._recipe.epochs, state="starting")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, epoch: Epoch, history: History) -> None:
        if self._bar is not None:                                    # 80 columns hold it beside a bar
            self._bar.update(
                self._task, completed=epoch.number, description=f"epoch {epoch.number} of {self._recipe.epochs}",
                state=f"held out {epoch.held_out:.4g}, best {history.best_loss:.4g} at {history.best}")
            return
        state = (f"epoch {epoch.number}: training {epoch.train:.4g}, held out {epoch.held_out:.4g} "
                 f"(best {history.best_loss:.4g} at {history.best}), {history.windows_per_s:,.0f} windows/s")
        if epoch.number == 1 or epoch.number % 10 == 0 or history.stopped:
            _say(state + (f"; stopped: {history.stopped}" if history.stopped else ""))
